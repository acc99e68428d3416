# SPDX-License-Identifier: BSD-2-Clause
"""Forms of matches: the ones in which nft lists masks, flags, prefixes and intervals."""

from __future__ import annotations

from ipaddress import ip_address

from attrs import evolve

from ... import nft
from .attributes import UnsupportedBytecode
from .registers import Content
from .values import Kind, flags_value, prefix_value

ADDRESSES = (Kind.IPV4, Kind.IPV6)


def compare_whole(content: Content, number: int, bits: int) -> tuple[Content, int, int]:
    """Return a comparison with the first bytes of a value as one of the whole value under a mask.

    Raises UnsupportedBytecode.
    """
    if content.mask is None and content.kind is Kind.DEVICE:
        return content, number, bits  # a wildcard
    if content.kind is Kind.EXISTENCE and content.order == "little":
        return content, number, 8 * content.length
    if content.mask is not None or content.kind not in ADDRESSES:
        raise UnsupportedBytecode("a comparison with a part of a value")
    width = 8 * content.length
    mask = (1 << width) - (1 << width - bits)
    return evolve(content, mask=mask), number << width - bits, width


def join_ends(low: nft.MatchRight, high: nft.MatchRight) -> nft.Value | None:
    """Return the interval of two ends, None if it has no more than one value or the ends are symbols."""
    ends = [_number(end) for end in (low, high)]
    return None if None in ends or ends[0] >= ends[1] else f"{low}-{high}"  # type: ignore[operator]


def _number(value: nft.MatchRight) -> int | None:
    """Return a number or an address as a number, None for other values."""
    if isinstance(value, int):
        return value
    try:
        return int(ip_address(value))  # type: ignore[arg-type]
    except ValueError:
        return None


def bitwise(source: nft.Expression, kind: Kind, mask: int, bits: int, full: int) -> nft.Expression:
    """Return (source & mask) | bits in the form in which nft lists it, of an address with addresses."""
    is_address, width = kind in ADDRESSES, full.bit_length()
    and_mask: nft.Value = prefix_value(kind, mask, width, width) if is_address else mask
    or_bits: nft.Value = prefix_value(kind, bits, width, width) if is_address and bits else bits
    return nft.Bitwise(source, nft.FULL_MASK if mask | bits == full else and_mask, or_bits)


def flags_match(source: nft.Expression, kind: Kind, mask: int, op: str, number: int) -> nft.Match:
    """Return a test of flags. Raises UnsupportedBytecode."""
    names = flags_value(kind, mask)
    if not number and op in ("==", "!="):
        return nft.Match(source, names, "!" if op == "==" else "in")
    if number == mask and op == "==" and not mask & mask - 1:
        return nft.Match(source, names, "&")
    return nft.Match(nft.Bitwise(source, names), flags_value(kind, number), op)


def address_match(source: nft.Expression, kind: Kind, mask: int, op: str, number: int, bits: int) -> nft.Match:
    """Return a test of an address under a mask, as a prefix where it is one. Raises UnsupportedBytecode."""
    host_bits = (mask & -mask).bit_length() - 1
    if mask >> host_bits == (1 << bits - host_bits) - 1:
        return nft.Match(source, prefix_value(kind, number, bits, bits - host_bits), op)
    masked = nft.Bitwise(source, prefix_value(kind, mask, bits, bits))
    return nft.Match(masked, prefix_value(kind, number, bits, bits), op)
