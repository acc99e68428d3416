# SPDX-License-Identifier: BSD-2-Clause
"""Fields of the header space that a write into a packet may change, by the position of their bits."""

from __future__ import annotations

from ...netstate import nft
from ...netstate.nft.headers import field_bits

# Bits of the fields: base header, first bit, number of bits. IPv4: RFC 791 3.1; IPv6: RFC 8200 3.
_NETWORK: dict[int, dict[str, tuple[int, int]]] = {
    4: {"fragment": (48, 16), "ttl": (64, 8), "protocol": (72, 8), "saddr": (96, 32), "daddr": (128, 32)},
    6: {"protocol": (48, 8), "ttl": (56, 8), "saddr": (64, 128), "daddr": (192, 128)},
}
_TRANSPORT: dict[str, tuple[int, int]] = {
    "sport": (0, 16), "dport": (16, 16), "icmp.type": (0, 8), "icmp.code": (8, 8), "icmpv6.type": (0, 8),
    "icmpv6.code": (8, 8), "igmp.type": (0, 8), "tcp.": (104, 8),
}  # fmt: skip
_FIXED_HEADER = {4: 160, 6: 320}  # bits; behind it are options, extension headers and the transport header
# Bits that say where the transport header is: version, header length and total length; next header.
_STRUCTURE: dict[int, tuple[tuple[int, int], ...]] = {
    4: ((0, 8), (16, 16), (48, 16), (72, 8)),
    6: ((0, 4), (32, 24)),
}
_ETHERNET_HEADER = 112  # bits
_ETHERTYPE = (96, 16)
_READABLE = ("readable", "link.readable")
_FIB = "fib "  # beginning of the names of opaque fields


def written_fields(key: nft.Expression, family: int) -> tuple[str, ...]:
    """Return the fields of packets of a family that a write to `key` may change, as prefixes of names.

    Empty for properties that no match reads.
    """
    match key:
        case nft.Meta("mark"):
            return "mark:", _FIB
        case nft.Ct("mark"):
            return ("ctmark:",)
        case nft.Meta("pkttype"):
            return ("pkttype",)
        case nft.Payload(protocol, name):
            return _overlapping(*field_bits(protocol, name), family)
        case nft.RawPayload(base, offset, length):
            return _overlapping(base, offset, length, family)
    return ()


def _overlaps(offset: int, length: int, part: tuple[int, int]) -> bool:
    return offset < part[0] + part[1] and part[0] < offset + length


def _overlapping(base: str, offset: int, length: int, family: int) -> tuple[str, ...]:
    """Return the fields that share bits with a part of the packet."""
    if base == "th":
        return tuple(name for name, part in _TRANSPORT.items() if _overlaps(offset, length, part))
    network = _NETWORK.get(family, {})
    if base == "nh" and family in _NETWORK:
        fields = [name for name, part in network.items() if _overlaps(offset, length, part)]
        is_behind = offset + length > _FIXED_HEADER[family]
        if is_behind or any(_overlaps(offset, length, part) for part in _STRUCTURE[family]):
            fields += [*_TRANSPORT, "protocol", "fragment", *_READABLE]
        return tuple(dict.fromkeys((*fields, _FIB)))
    if base == "ll" and offset + length <= _ETHERNET_HEADER:
        return ("ether.type",) if _overlaps(offset, length, _ETHERTYPE) else ()
    # Behind the link header, or from the transport header's own length on, which may be wrong.
    network_fields = () if base == "ih" else (*network, "fragment", *_READABLE, "ether.type", _FIB)
    return (*_TRANSPORT, *network_fields)
