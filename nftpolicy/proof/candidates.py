# SPDX-License-Identifier: BSD-2-Clause
"""Candidates for a counterexample: packets of a violation that the ip rules and routes lead to a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve

from ..model.packet import FORWARD, FRAME, SOCKET, Packet, address_range
from ..model.symbolic import field_values
from ..netstate.nft import FULL_MASK
from ..netstate.routing import IpRule, Route
from ..netstate.state import NetState
from .concretize import REMOTE_ADDRESS, concretize
from .context import ProofContext
from .lemmas import Violation
from .spec import UplinkSpec

_MAX_ROUTES = 3  # per ip rule


def candidate_packets(
    context: ProofContext, uplink: UplinkSpec, origin: str, family: int, device: str, violations: Sequence[Violation]
) -> Iterator[Packet]:
    """Yield packets that may leave by the device without being entitled, the simplest first."""
    state = context.state
    space = context.space(family)
    address_family = family or 4
    family_hits = [violation for violation in violations if violation.family == family]
    supported_first = sorted(family_hits, key=lambda violation: bool(violation.unsupported))
    starts = [concretize(space, violation.box, origin) for violation in supported_first] or [
        concretize(space, {}, origin)
    ]
    if origin == FRAME:
        yield from (
            evolve(packet, bound=device, source=packet.source or _local_address(state, address_family, None))
            for packet in starts
        )
        return
    if origin == FORWARD:
        arrivals = _arrival_devices(context, uplink, family)
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


def _arrival_devices(context: ProofContext, uplink: UplinkSpec, family: int) -> list[str]:
    """Return up to three devices by which packets of other hosts may arrive."""
    routed = {route.device for route in context.state.routes if route.device and route.family == family}
    named = {field_values.representative_name(pattern) for pattern in context.space(family).devices[1:]}
    devices = sorted(routed - {"lo", *uplink.devices}) or sorted(named - {"lo", *uplink.devices})
    return devices[:3]


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
    low, high = address_range(prefix or "default", family)
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
