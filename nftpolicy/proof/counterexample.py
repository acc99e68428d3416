# SPDX-License-Identifier: BSD-2-Clause
"""Counterexample search: from the violation of a lemma to a packet, each traced before its report.

Candidates take the required headers and sockets from the violation, and the path to the uplink
from the ip rules and routes. A candidate counts only if its trace leaves the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import evolve

from ..model.nft import symbols
from ..model.packet import (
    ADDRESS_BITS,
    FORWARD,
    FRAME,
    KERNEL,
    SOCKET,
    TCP,
    UDP,
    CtInfo,
    Packet,
    address_range,
    parse_address,
)
from ..model.symbolic import field_values, mark_bits
from ..model.symbolic.box import Box, Ranges, intersect_ranges
from ..model.symbolic.header_space import HeaderSpace
from ..model.trace import Trace
from ..netstate.nft import FULL_MASK
from ..netstate.routing import IpRule, Route
from ..netstate.state import NetState
from .context import ProofContext
from .entitlement import unmarked_user_regions
from .lemmas import Violation
from .spec import UplinkSpec
from .verdict import Counterexample

# Documentation addresses (RFC 5737, RFC 3849), the default destination.
REMOTE_ADDRESS = {4: parse_address("198.51.100.9"), 6: parse_address("2001:db8:9::9")}
# Addresses of other hosts: without "this host", loopback, groups (RFC 6890) and the like.
_HOSTS = {
    4: tuple(address_range(span, 4) for span in ("1.0.0.0-126.255.255.255", "128.0.0.0-223.255.255.255")),
    6: (address_range("2000::/3", 6),),
}
_MAX_ROUTES = 3  # per ip rule
_MAX_EXAMPLES = 4
_ABSENT = -1  # in no range
_STATES = {index: name for name, index in field_values.CT_STATES.items()}
_DIRECTIONS = {index: name for name, index in field_values.CT_DIRECTIONS.items()}


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

    Where the box leaves a choice, fields get common values.
    """
    family = space.family or 4
    frame_type = None
    if not space.family:
        frame_type = choose(box.get("ethertype"), 0x88B5)
    source = box.get("saddr")
    protocol = choose(box.get("protocol"), UDP, TCP)
    fields: dict[tuple[str, str], int] = {}
    if "ttl" in box:
        fields["ip" if family == 4 else "ip6", "ttl" if family == 4 else "hoplimit"] = choose(box["ttl"], 64)
    for name in ("icmp.type", "icmp.code", "icmpv6.type", "icmpv6.code"):
        if name in box:
            first, _, second = name.partition(".")
            fields[first, second] = choose(box[name], 8 if first == "icmp" else 128)
    if protocol == TCP:
        flags = (
            choose(box.get(f"tcp.{flag}"), int(flag == "syn")) << bit for bit, flag in enumerate(symbols.TCP_FLAGS)
        )
        fields["tcp", "flags"] = sum(flags)
    arrival = choose(box.get("iif"), 0)
    return Packet(
        family,
        _destination(family, box.get("daddr")),
        choose(source, 0) if source else None,
        protocol,
        choose(box.get("sport"), 40000),
        choose(box.get("dport"), 9),
        origin,
        _mark(space, box, "mark"),
        choose(box.get("uid"), 65534),
        choose(box.get("gid"), 65534),
        None,
        device if origin != FORWARD else None,
        field_values.representative_name(space.devices[arrival]) if origin == FORWARD and arrival else None,
        CtInfo(
            _STATES[choose(box.get("ct.state"), 0, 1)],
            _DIRECTIONS[choose(box.get("ct.direction"), 0)],
            _mark(space, box, "ctmark"),
        ),
        frame_type,
        fields,
    )


def _destination(family: int, ranges: Ranges | None) -> int:
    """Return an address of another host, if the ranges hold one."""
    if ranges is None:
        return REMOTE_ADDRESS[family]
    spans = host_ranges(family, ranges)
    low, high = spans[0]
    return choose(spans, REMOTE_ADDRESS[family], min(low + 9, high))


def host_ranges(family: int, ranges: Ranges) -> Ranges:
    """Return the part of `ranges` that holds host addresses; if there is none, all of them."""
    return intersect_ranges(ranges, _HOSTS[family]) or ranges


def _mark(space: HeaderSpace, box: Box, kind: str) -> int:
    return sum(
        mark_bits.unpack_bits(choose(box.get(mark_bits.field_name(kind, group)), 0), group) for group in space.partition
    )


# --- routes to a device -----------------------------------------------------------------


def _rules(state: NetState, family: int) -> list[IpRule]:
    return [rule for rule in state.rules if rule.family == family]


def _output_devices_of(route: Route) -> set[str]:
    hops = {nexthop.device for nexthop in route.nexthops if nexthop.device}
    return hops | ({route.device} if route.device else set())


def _routes_to_device(state: NetState, family: int, device: str) -> Iterator[tuple[IpRule, Route]]:
    """Yield each ip rule with up to three routes of its table that use the device."""
    by_table: dict[int, list[Route]] = {}
    for route in state.routes:
        if route.family == family and route.kind == "unicast" and device in _output_devices_of(route):
            routes = by_table.setdefault(route.table, [])
            if len(routes) < _MAX_ROUTES or route.destination == "default":
                routes.append(route)
    for rule in _rules(state, family):
        for route in by_table.get(rule.table, ())[-_MAX_ROUTES:] if rule.action == "lookup" else ():
            yield rule, route


def _local_address(state: NetState, family: int, prefix: str | None) -> int | None:
    """Return an address of this machine within the prefix.

    If it has none, the first address of the prefix; None without a prefix.
    """
    low, high = address_range(prefix, family) if prefix else (0, (1 << ADDRESS_BITS[family]) - 1)
    for route in state.routes:
        if route.family == family and route.kind == "local":
            address = address_range(route.destination, family)[0]
            if low <= address <= high and route.device != "lo":
                return address
    return low + 1 if prefix and "/" in prefix and high > low else (low if prefix else None)


def _steer_to_route(state: NetState, packet: Packet, rule: IpRule, route: Route) -> Packet:
    """Return the packet with fields that make the rule match and the lookup select the route."""
    family = packet.family
    low, high = address_range(route.destination, family)
    changes: dict[str, object] = {}
    if not low <= packet.destination <= high or (route.destination == "default" and rule.destination):
        changes["destination"] = min(low + 9, high)
    if rule.destination:
        first, last = address_range(rule.destination, family)
        changes["destination"] = min(max(first, low) + 9, last, high)
    if rule.source and not rule.invert:
        changes["source"] = _local_address(state, family, rule.source)
    if rule.mask and not rule.invert and packet.origin != FORWARD:  # an arriving packet has no mark
        changes["mark"] = packet.mark & ~rule.mask & FULL_MASK | rule.mark
    if rule.uids:
        changes["uid"] = rule.uids[0]
    if rule.l4proto:
        changes["protocol"] = rule.l4proto
    if rule.dports:
        changes["dport"] = rule.dports[0]
    if rule.sports:
        changes["sport"] = rule.sports[0]
    if rule.oif:
        changes["bound"] = rule.oif
    if rule.iif and rule.iif != "lo":
        changes |= {"iif": rule.iif, "origin": FORWARD, "source": changes.get("source", REMOTE_ADDRESS[family] + 1)}
    return evolve(packet, **changes)  # type: ignore[arg-type]


# --- the search ------------------------------------------------------------------------


def candidate_packets(
    ground: ProofContext, uplink: UplinkSpec, origin: str, family: int, device: str, hits: Sequence[Violation]
) -> Iterator[Packet]:
    """Yield packets that may leave by the device without being entitled, the simplest first."""
    state = ground.state
    space = ground.space(family)
    address_family = family or 4
    family_hits = [hit for hit in hits if hit.family == family]
    supported_first = sorted(family_hits, key=lambda hit: bool(hit.unsupported))
    starts = [concretize(space, hit.box, origin) for hit in supported_first] or [concretize(space, {}, origin)]
    if origin == FRAME:
        yield from (
            evolve(packet, bound=device, source=packet.source or _local_address(state, address_family, None))
            for packet in starts
        )
        return
    if origin == FORWARD:
        arrivals = _arrival_devices(ground, uplink, family)
        starts = [
            evolve(packet, iif=packet.iif or arrival, source=packet.source or REMOTE_ADDRESS[family] + 1)
            for packet in starts
            for arrival in arrivals
        ]
    for packet in starts:
        for rule, route in _routes_to_device(state, family, device):
            yield _steer_to_route(state, packet, rule, route)
        yield packet
        if origin == SOCKET:
            yield evolve(packet, bound=device)
            yield evolve(packet, bound=device, uid=0, gid=0)


def _arrival_devices(ground: ProofContext, uplink: UplinkSpec, family: int) -> list[str]:
    """Return up to three devices by which packets of other hosts may arrive."""
    routed = {route.device for route in ground.state.routes if route.device and route.family == family}
    named = {field_values.representative_name(pattern) for pattern in ground.space(family).devices[1:]}
    devices = sorted(routed - {"lo", *uplink.devices}) or sorted(named - {"lo", *uplink.devices})
    return devices[:3]


def is_entitled(packet: Packet, uplink: UplinkSpec) -> bool:
    """Return True if the packet has the uplink's mark at the start.

    Also if it arrived by the uplink, or its flow has the mark.
    """
    if packet.flow.mark & uplink.mask == uplink.value:
        return True
    if packet.origin == FORWARD:
        return packet.iif in uplink.devices
    return packet.mark & uplink.mask == uplink.value


def is_exempt(walk: Trace, uplink: UplinkSpec) -> bool:
    """Return True if the packet that leaves matches an exemption, or its user needs no mark."""
    packet = walk.packet
    if packet.origin == FRAME and packet.ethertype is not None:
        return any(packet.ethertype in exemption.ethertypes for exemption in uplink.exemptions)
    fields = {
        "protocol": packet.protocol,
        "fragment": int(bool(packet.fields.get(("ip", "frag-off"), 0))),
        "saddr": walk.source or 0,
        "daddr": walk.destination,
        "sport": packet.sport,
        "dport": walk.dport,
        "ttl": packet.fields.get(("ip", "ttl") if packet.family == 4 else ("ip6", "hoplimit"), 64),
        "icmpv6.type": packet.fields.get(("icmpv6", "type"), 128),
        "socket": int(packet.has_socket),
        "uid": packet.uid,
        "gid": packet.gid,
    }
    regions = [region for exemption in uplink.exemptions for region in exemption.headers.get(packet.family, ())]
    # Without those that require a flow's mark: see `entitled`.
    regions += [
        region
        for region in unmarked_user_regions(uplink, packet.family)
        if packet.origin == SOCKET and not region.marks
    ]
    return any(
        all(
            any(low <= fields.get(name, _ABSENT) <= high for low, high in ranges)
            for name, ranges in region.fields.items()
        )
        for region in regions
    )


def search_leaks(
    ground: ProofContext,
    uplink: UplinkSpec,
    origin: str,
    families: Iterable[int],
    devices: Iterable[str],
    hits: Sequence[Violation],
    most: int = _MAX_EXAMPLES,
) -> tuple[list[Counterexample], list[str]]:
    """Return packets that leave by the uplink and must not, one for each leak path.

    The second result are the unsupported constructs in traces of packets that may leave.
    """
    examples: dict[object, Counterexample] = {}
    unsupported: list[str] = []
    for family in families:
        for device in devices:
            for packet in candidate_packets(ground, uplink, origin, family, device, hits):
                if packet.origin != origin or is_entitled(packet, uplink):
                    continue
                walk = ground.model.trace(packet)
                if walk.outcome == "unknown" and walk.device in (device, None):
                    unsupported += walk.unsupported
                if walk.outcome != "leaves" or walk.device != device or is_exempt(walk, uplink):
                    continue
                reason, path = _leak_path(walk, packet)
                examples.setdefault((family, path), Counterexample(packet, walk, device, reason))
                if len(examples) >= most:
                    return list(examples.values()), unsupported
    return list(examples.values()), list(dict.fromkeys(unsupported))


def _leak_path(walk: Trace, packet: Packet) -> tuple[str, object]:
    """Return the cause of a leak as text, and a key that distinguishes leak paths."""
    mark_steps = [step for step in walk.steps if step.effect.startswith("mark")]
    rule_steps = [step for step in walk.steps if step.kind == "ip-rule" and isinstance(step.subject, IpRule)]
    if packet.origin == FRAME:
        return "AF_PACKET frames pass only the netdev egress hook", FRAME
    if mark_steps:
        return f"marked by a rule: {mark_steps[-1].text}", ("marked", mark_steps[-1].text)
    if packet.bound:
        return f"the socket is bound to {packet.bound}", "bound"
    if rule_steps:
        return f"routed: {rule_steps[-1].text}", rule_steps[-1].text
    return "routed", "routed"


def search_mark_misuse(
    ground: ProofContext, uplink: UplinkSpec, hits: Sequence[Violation], stray: bool
) -> tuple[list[Counterexample], list[str]]:
    """Return packets with the mark that leave by another device (`stray`), or without a service."""
    examples: list[Counterexample] = []
    unsupported: list[str] = []
    for hit in hits:
        space = ground.space(hit.family)
        for device in _output_devices(ground, space, hit, uplink, stray):
            for origin in (KERNEL,) if choose(hit.box.get("socket"), 1) == 0 else (SOCKET, KERNEL):
                packet = evolve(concretize(space, hit.box, origin, device), iif=None)
                walk = ground.model.trace(packet)
                if walk.outcome == "unknown":
                    unsupported += walk.unsupported
                elif walk.outcome == "leaves" and walk.device == device and walk.mark & uplink.mask == uplink.value:
                    reason = "it carries the mark"
                    if stray:
                        reason += f" and is routed or bound to {device}"
                    examples.append(Counterexample(packet, walk, device, reason))
                    break
    return examples[:_MAX_EXAMPLES], list(dict.fromkeys(unsupported))


def search_outcome(
    ground: ProofContext, hits: Sequence[Violation], outcome: str
) -> tuple[list[Counterexample], list[str]]:
    """Return packets of the violation regions that have an outcome, whatever their marks.

    `outcome` is "leaves", by the device of the region (for lo: "delivered" there), or "delivered".
    """
    examples: list[Counterexample] = []
    unsupported: list[str] = []
    for hit in hits:
        space = ground.space(hit.family)
        out_ranges, in_ranges = hit.box.get("oif"), hit.box.get("iif")
        out_devices = [field_values.representative_name(space.devices[low]) for low, _ in out_ranges or () if low]
        arrival = choose(in_ranges, 0) if in_ranges else 0
        local_origin = KERNEL if choose(hit.box.get("socket"), 1) == 0 else SOCKET
        origin = FORWARD if arrival else local_origin
        devices: Sequence[str | None] = out_devices[:2] or [None]
        for device in devices:
            packet = concretize(space, hit.box, origin, None if device == "lo" else device)
            walk = ground.model.trace(packet)
            if walk.outcome == "unknown":
                unsupported += walk.unsupported
            elif walk.outcome == outcome and device in (None, walk.device, "lo"):
                reason = "it is delivered" if outcome == "delivered" else f"it leaves by {walk.device}"
                examples.append(Counterexample(packet, walk, walk.device or "", reason))
    return examples[:_MAX_EXAMPLES], list(dict.fromkeys(unsupported))


def _output_devices(
    ground: ProofContext, space: HeaderSpace, hit: Violation, uplink: UplinkSpec, stray: bool
) -> list[str]:
    """Return up to two devices by which packets of a violation leave."""
    out_ranges = hit.box.get("oif")
    if out_ranges is None:
        patterns = list(space.devices[1:])
    else:
        indexes = [index for low, high in out_ranges for index in range(low, high + 1)]
        patterns = [space.devices[index] for index in indexes if index]
    names = [field_values.representative_name(pattern) for pattern in patterns]
    if not stray:
        return [name for name in names if name in uplink.devices][:2]
    routed = {route.device for route in ground.state.routes if route.device}
    with_routes = [name for name in names if name in routed and name not in uplink.devices]
    return (with_routes or [name for name in names if name != "lo"])[:2]
