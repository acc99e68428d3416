# SPDX-License-Identifier: BSD-2-Clause
"""Readers of the kernel's structs for iptables matches and targets (include/uapi/linux/netfilter/xt_*.h)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeAlias

from attrs import frozen

from .. import nft
from ..nft import FULL_MASK, Expression, Statement, Value

Fields: TypeAlias = tuple[Any, ...]
Statements: TypeAlias = tuple[Statement, ...]
_ALIGNMENT = 8  # XT_ALIGN: the alignment of struct _xt_align


class UnsupportedXt(Exception):
    """An xt match or target with contents that the decoder does not know."""


@frozen
class XtStruct:
    """The struct of one revision, and its decoder.

    `layout` is a format of the module struct without byte order; padding is explicit. Addresses and ports in
    network byte order are read as bytes. `decode` gets the fields and the family of the table, "ip" or "ip6".
    """

    layout: str
    decode: Callable[[Fields, str], Statements]

    def read(self, info: bytes, byteorder: str) -> Fields:
        """Return the fields.

        Raises: UnsupportedXt for another size than the kernel's.
        """
        layout = struct.Struct((">" if byteorder == "big" else "<") + self.layout)
        if len(info) != -(-layout.size // _ALIGNMENT) * _ALIGNMENT:
            raise UnsupportedXt
        return layout.unpack_from(info)


def require(condition: object) -> None:
    """Raise UnsupportedXt if the condition is false."""
    if not condition:
        raise UnsupportedXt


def require_bits(value: int, known: int) -> None:
    """Raise UnsupportedXt if the value has other bits than the known ones."""
    require(not value & ~known)


def operator_for(invert: int) -> str:
    """Return == or != for the flag of an inverted match. Raises UnsupportedXt for another number than 0 and 1."""
    require(invert in (0, 1))
    return "!=" if invert else "=="


def text(value: bytes) -> str:
    """Return a C string, with \\xNN for bytes that are not printable ASCII. Raises UnsupportedXt without its end."""
    require(b"\0" in value)
    string = value.partition(b"\0")[0]
    return "".join(chr(each) if 0x20 <= each < 0x7F else f"\\x{each:02x}" for each in string)


def number_range(low: int, high: int) -> Value:
    """Return a number or "LOW-HIGH"."""
    return low if low == high else f"{low}-{high}"


def address(value: bytes, family: str) -> str:
    """Return the address in a union nf_inet_addr, or in four bytes."""
    return str(IPv4Address(value[:4]) if family == "ip" else IPv6Address(value))


def address_range(low: bytes, high: bytes, family: str) -> str:
    """Return an address or "LOW-HIGH"."""
    first, last = address(low, family), address(high, family)
    return first if first == last else f"{first}-{last}"


def prefix(value: bytes, mask: bytes, family: str) -> str:
    """Return "ADDRESS/LENGTH". Raises UnsupportedXt for a mask that is not a prefix."""
    size = 4 if family == "ip" else 16
    bits = f"{int.from_bytes(mask[:size], 'big'):0{8 * size}b}"
    require("01" not in bits)
    network = bytes(each & keep for each, keep in zip(value[:size], mask[:size], strict=True))
    return f"{address(network, family)}/{bits.count('1')}"


def replace_bits(key: Expression, mask: int, bits: int, full: int = FULL_MASK) -> Expression | Value:
    """Return (`key` & ~`mask`) ^ `bits`, the usual write of xt targets; `full` has all bits of the key."""
    mask, bits = mask & full, bits & full
    if mask == full:
        return bits
    remainder = nft.Bitwise(key, full & ~mask) if mask else key
    if bits & ~mask:
        return nft.Binary("^", remainder, bits)
    return nft.Bitwise(key, full & ~mask, bits) if mask else nft.Bitwise(key)


def masked(key: Expression, mask: int) -> Expression:
    """Return `key` & `mask` for a key of 32 bits."""
    return key if mask == FULL_MASK else nft.Bitwise(key, mask)
