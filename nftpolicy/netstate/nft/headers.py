# SPDX-License-Identifier: BSD-2-Clause
"""Layouts of headers: the bits of each field that nft names (nftables, src/proto.c). Offsets and lengths in bits."""

from __future__ import annotations

from collections.abc import Mapping

FieldLayout = tuple[int, int, str]  # offset, length, name

_PORTS: tuple[FieldLayout, ...] = ((0, 16, "sport"), (16, 16, "dport"))
_ICMP: tuple[FieldLayout, ...] = ((0, 8, "type"), (8, 8, "code"), (16, 16, "checksum"))
HEADER_FIELDS: Mapping[str, tuple[FieldLayout, ...]] = {
    "ether": ((0, 48, "daddr"), (48, 48, "saddr"), (96, 16, "type")),
    "arp": (
        (0, 16, "htype"), (16, 16, "ptype"), (32, 8, "hlen"), (40, 8, "plen"), (48, 16, "operation"),
        (64, 48, "saddr ether"), (112, 32, "saddr ip"), (144, 48, "daddr ether"), (192, 32, "daddr ip"),
    ),
    "ip": (
        (0, 4, "version"), (4, 4, "hdrlength"), (8, 6, "dscp"), (14, 2, "ecn"), (16, 16, "length"), (32, 16, "id"),
        (48, 16, "frag-off"), (64, 8, "ttl"), (72, 8, "protocol"), (80, 16, "checksum"), (96, 32, "saddr"),
        (128, 32, "daddr"),
    ),
    "ip6": (
        (0, 4, "version"), (4, 6, "dscp"), (10, 2, "ecn"), (12, 20, "flowlabel"), (32, 16, "length"),
        (48, 8, "nexthdr"), (56, 8, "hoplimit"), (64, 128, "saddr"), (192, 128, "daddr"),
    ),
    "th": _PORTS,
    "tcp": (
        *_PORTS, (32, 32, "sequence"), (64, 32, "ackseq"), (96, 4, "doff"), (100, 4, "reserved"), (104, 8, "flags"),
        (112, 16, "window"), (128, 16, "checksum"), (144, 16, "urgptr"),
    ),
    "udp": (*_PORTS, (32, 16, "length"), (48, 16, "checksum")),
    "udplite": (*_PORTS, (32, 16, "csumcov"), (48, 16, "checksum")),
    "sctp": (*_PORTS, (32, 32, "vtag"), (64, 32, "checksum")),
    "dccp": _PORTS,
    "esp": ((0, 32, "spi"), (32, 32, "sequence")),
    "ah": ((0, 8, "nexthdr"), (8, 8, "hdrlength"), (16, 16, "reserved"), (32, 32, "spi"), (64, 32, "sequence")),
    "comp": ((0, 8, "nexthdr"), (8, 8, "flags"), (16, 16, "cpi")),
    "icmp": _ICMP,
    "icmpv6": _ICMP,
    "igmp": ((0, 8, "type"), (8, 8, "mrt"), (16, 16, "checksum"), (32, 32, "group")),
}  # fmt: skip
_BITS = {
    (protocol, name): (offset, length) for protocol, layout in HEADER_FIELDS.items() for offset, length, name in layout
}
_BASES = {"ether": "ll", "vlan": "ll", "ip": "nh", "ip6": "nh", "arp": "nh"}
_LONGEST = 1 << 16


def field_bits(protocol: str, name: str) -> tuple[str, int, int]:
    """Return base, offset and length of a header field; all bits behind the base for a field that is not listed."""
    return _BASES.get(protocol, "th"), *_BITS.get((protocol, name), (0, _LONGEST))
