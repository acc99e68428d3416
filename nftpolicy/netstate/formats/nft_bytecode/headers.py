# SPDX-License-Identifier: BSD-2-Clause
"""Header fields by their place: which field nft names at some bits of a header.

Offsets and lengths are in bits.
"""

from __future__ import annotations

from functools import lru_cache

from attrs import frozen

from ... import nft
from ...nft.headers import HEADER_FIELDS
from .values import Kind

_TRANSPORT = {6: "tcp", 17: "udp", 136: "udplite", 132: "sctp", 33: "dccp", 50: "esp", 51: "ah", 108: "comp"}
# These names imply a family too.
_CONTROL = {(1, "ip"): "icmp", (58, "ip6"): "icmpv6", (2, "ip"): "igmp"}
_KINDS = {
    ("ether", "daddr"): Kind.LINK_ADDRESS, ("ether", "saddr"): Kind.LINK_ADDRESS, ("ether", "type"): Kind.ETHERTYPE,
    ("arp", "saddr ether"): Kind.LINK_ADDRESS, ("arp", "daddr ether"): Kind.LINK_ADDRESS,
    ("arp", "saddr ip"): Kind.IPV4, ("arp", "daddr ip"): Kind.IPV4, ("arp", "operation"): Kind.ARP_OPERATION,
    ("arp", "ptype"): Kind.ETHERTYPE,
    ("ip", "saddr"): Kind.IPV4, ("ip", "daddr"): Kind.IPV4, ("ip", "protocol"): Kind.PROTOCOL,
    ("ip6", "saddr"): Kind.IPV6, ("ip6", "daddr"): Kind.IPV6, ("ip6", "nexthdr"): Kind.PROTOCOL,
    ("tcp", "flags"): Kind.TCP_FLAGS, ("icmp", "type"): Kind.ICMP_TYPE, ("icmpv6", "type"): Kind.ICMPV6_TYPE,
    ("igmp", "type"): Kind.IGMP_TYPE, ("ah", "nexthdr"): Kind.PROTOCOL, ("comp", "nexthdr"): Kind.PROTOCOL,
}  # fmt: skip


@frozen
class HeaderPart:
    """Bits of a header inside one field: `field` is at `offset` of the loaded bits and `length` long.

    `field_length` is the length of the whole field, `skipped` the number of its bits before the
    loaded ones.
    """

    field: nft.Payload
    offset: int
    length: int
    field_length: int
    skipped: int

    @property
    def is_whole(self) -> bool:
        """Return True if the part is the whole field."""
        return self.length == self.field_length


def payload_kind(field: nft.Payload) -> Kind:
    """Return the kind of a field's values."""
    default = Kind.PORT if field.name in ("sport", "dport") else Kind.NUMBER
    return _KINDS.get((field.protocol, field.name), default)


def header_protocol(base: str, network: str | None, transport: int | None) -> str | None:
    """Return nft's name of the header at a base, None if the tests of the rule do not establish it.

    `network` is "ip", "ip6" or "arp", `transport` a protocol number; None: not established.
    """
    if base == "ll":
        return "ether"
    if base == "nh":
        return network
    if base != "th":
        return None
    if transport is None:
        return "th"
    return _CONTROL.get((transport, network or "")) or _TRANSPORT.get(transport, "th")


@lru_cache(maxsize=1 << 10)
def header_parts(protocol: str | None, offset: int, length: int) -> tuple[HeaderPart, ...] | None:
    """Return the fields at some bits of a header, in order; None if nft has no names for all of them."""
    parts: list[HeaderPart] = []
    position, end = offset, offset + length
    for start, size, name in HEADER_FIELDS.get(protocol or "", ()):
        if start + size <= position:
            continue
        if start > position:
            return None
        stop = min(end, start + size)
        field = nft.Payload(str(protocol), name)
        parts.append(HeaderPart(field, position - offset, stop - position, size, position - start))
        position = stop
        if position == end:
            return tuple(parts)
    return None
