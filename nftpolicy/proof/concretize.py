# SPDX-License-Identifier: BSD-2-Clause
"""Packet of a box of the header space: one value for each field."""

from __future__ import annotations

from ..model.conntrack import UNTRACKED_TYPES, can_begin_flow
from ..model.packet import (
    ADDRESS_BITS,
    ETHERTYPES,
    EXTENSION_HEADERS,
    FORWARD,
    FRAME,
    ICMPV6,
    TCP,
    UDP,
    CtInfo,
    Packet,
    address_range,
    evolve_packet,
    parse_address,
)
from ..model.symbolic import field_values, mark_bits
from ..model.symbolic.box import Box, Ranges, complement, intersect_ranges, points
from ..model.symbolic.header_space import HeaderSpace
from ..netstate.nft import symbols
from .header_search import choose_header
from .spec import Spec

# Documentation addresses (RFC 5737, RFC 3849), the default destination.
REMOTE_ADDRESS = {4: parse_address("198.51.100.9"), 6: parse_address("2001:db8:9::9")}
_REMOTE_GROUP = {4: parse_address("233.252.0.9"), 6: parse_address("ff0e::db8:9")}  # RFC 6676, RFC 4291
# Addresses of other hosts: without "this host", loopback, groups (RFC 6890) and the like.
_HOSTS = {
    4: tuple(address_range(span, 4) for span in ("1.0.0.0-126.255.255.255", "128.0.0.0-223.255.255.255")),
    6: (address_range("2000::/3", 6),),
}
# Values that packets have where a box leaves a choice.
_USUAL_VALUES = {"icmp.type": 8, "icmp.code": 0, "icmpv6.type": 128, "icmpv6.code": 0, "igmp.type": 0x22}
_NEIGHBOUR_SOLICITATION = 135  # RFC 4861 4.3
_ALL_PROTOCOLS: Ranges = ((0, 255),)
_IPV6_PROTOCOLS = complement(points(*EXTENSION_HEADERS), 255)
_LATER_STATES = ("established", "related")  # a flow with a mark has had a packet before
_STATES = {index: name for name, index in field_values.CT_STATES.items()}
_DIRECTIONS = symbols.names_by_number(symbols.CT_DIRECTIONS)


def choose(ranges: Ranges | None, *preferred: int) -> int:
    """Return the first preferred value that the ranges hold, else their lowest value."""
    if ranges is None:
        return preferred[0]
    for value in preferred:
        if any(low <= value <= high for low, high in ranges):
            return value
    return ranges[0][0]


def concretize(space: HeaderSpace, box: Box, origin: str, device: str | None = None) -> Packet:
    """Return a packet of a box, bound to `device`.

    Where the box leaves a choice, fields get common values. Where a packet begins, it has no mark if another host sent
    it, and its flow has none if it is new: only rules can give them the marks of the box.
    """
    family = space.family or 4
    if family == 6 and (protocols := intersect_ranges(box.get("protocol", _ALL_PROTOCOLS), _IPV6_PROTOCOLS)):
        box = {**box, "protocol": protocols}
    frame_type = None
    if not space.family:
        frame_type = choose(box.get("ethertype"), choose(box.get("ether.type"), 0x88B5), 0x88B5)
    source = box.get("saddr")
    chosen = choose_header(space, box)
    state = _STATES[choose(box.get("ct.state"), 0, 1)]
    usual_protocols = (TCP, UDP) if state == "invalid" else (UDP, TCP)
    protocol = choose(box.get("protocol"), *usual_protocols) if chosen.protocol is None else chosen.protocol
    fields = dict(chosen.fields)
    if "ttl" in box:
        fields["ip" if family == 4 else "ip6", "ttl" if family == 4 else "hoplimit"] = choose(box["ttl"], 64)
    for name, usual in _USUAL_VALUES.items():
        if name in box:
            first, _, second = name.partition(".")
            fields[first, second] = choose(box[name], usual)
    if origin == FRAME:
        sender_type = ETHERTYPES[family] if frame_type is None else frame_type
        fields |= {
            (layer, field): choose(box[name], usual, ETHERTYPES[4])
            for name, (layer, field), usual in (
                ("ether.type", ("ether", "type"), sender_type),
                ("ether.readable", ("ether", "readable"), 1),
                ("oiftype", ("meta", "oiftype"), 1),
            )
            if name in box and choose(box[name], usual) != usual
        }
        if "llc" in box:
            fields["llc", "header"] = choose(box["llc"])
    if protocol == TCP and ("tcp", "flags") not in fields:
        fields["tcp", "flags"] = _tcp_flags(box, is_new=state != "invalid")
    arrival = choose(box.get("iif"), 0)
    if state == "untracked":  # where a packet begins, only some types are; a rule makes others untracked (notrack)
        state, icmp_type = "new", choose(box.get("icmpv6.type"), _NEIGHBOUR_SOLICITATION)
        if family == 6 and choose(box.get("protocol"), ICMPV6) == ICMPV6 and icmp_type in UNTRACKED_TYPES:
            protocol, fields["icmpv6", "type"] = ICMPV6, icmp_type
            fields.pop(("tcp", "flags"), None)
    if state == "new" and origin != FRAME and not can_begin_flow(family, protocol, fields):
        state = "invalid"
    return Packet(
        family,
        _destination(family, box.get("daddr")),
        _source(family, source) if source else None,
        protocol,
        choose(box.get("sport"), 40000),
        choose(box.get("dport"), 9),
        origin,
        _mark(space, box, "mark") if origin != FORWARD else 0,
        choose(box.get("uid"), 65534),
        choose(box.get("gid"), 65534),
        None,
        device if origin != FORWARD else None,
        field_values.representative_name(space.devices[arrival]) if origin == FORWARD and arrival else None,
        CtInfo(
            state,
            _DIRECTIONS[choose(box.get("ct.direction"), 0)],
            _mark(space, box, "ctmark") if state in _LATER_STATES else 0,
            None if "ct.confirmed" not in box else bool(choose(box["ct.confirmed"], 0)),
        ),
        frame_type,
        fields,
    )


def remote_address(family: int, spec: Spec) -> int:
    """Return the address of another host that is no other end of IPsec."""
    return _destination(family, complement(spec.ipsec_ends(family), (1 << ADDRESS_BITS[family]) - 1))


def with_usual_source(packet: Packet) -> tuple[Packet, ...]:
    """Return the packet, and that with the source that the kernel selects: a rule may ask whose address it is."""
    if packet.source is None or packet.origin in (FORWARD, FRAME):
        return (packet,)
    return (packet, evolve_packet(packet, source=None))


def _tcp_flags(box: Box, is_new: bool) -> int:
    """Return TCP flags of a box: of a new flow if it has such flags, or of none."""
    for usual in ("syn", "ack") if is_new else ("",):
        flags = sum(
            choose(box.get(f"tcp.{flag}"), int(flag == usual)) << bit for bit, flag in enumerate(symbols.TCP_FLAGS)
        )
        if can_begin_flow(4, TCP, {("tcp", "flags"): flags}) == is_new:
            break
    return flags


def _source(family: int, ranges: Ranges) -> int:
    """Return an address of a host, if the ranges hold one; not the unspecified one if they hold another."""
    spans = host_ranges(family, ranges)
    low, high = spans[0]
    return choose(spans, min(low + 9, high)) if low == 0 else low


def _destination(family: int, ranges: Ranges | None) -> int:
    """Return an address of another host, if the ranges hold one."""
    if ranges is None:
        return REMOTE_ADDRESS[family]
    spans = host_ranges(family, ranges)
    low, high = spans[0]
    return choose(spans, REMOTE_ADDRESS[family], _REMOTE_GROUP[family], min(low + 9, high))


def host_ranges(family: int, ranges: Ranges) -> Ranges:
    """Return the part of `ranges` that holds host addresses; if there is none, all of them."""
    return intersect_ranges(ranges, _HOSTS[family]) or ranges


def _mark(space: HeaderSpace, box: Box, kind: str) -> int:
    return sum(
        mark_bits.unpack_bits(choose(box.get(mark_bits.field_name(kind, group)), 0), group) for group in space.partition
    )
