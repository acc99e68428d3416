# SPDX-License-Identifier: BSD-2-Clause
"""Assumed environment of a compiled state: the kernel's own rules, addresses and learned routes.

A compiled state names neither routes from DHCP nor addresses, and policy entries can be used only
with some. Packets that the guard drops do not depend on any of these. Each assumption is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve

from ..model.packet import ADDRESS_BITS, format_address, parse_address
from ..model.symbolic.field_values import representative_name
from ..netstate.routing import (
    RTPROT_BOOT,
    RTPROT_KERNEL,
    TABLE_DEFAULT,
    TABLE_LOCAL,
    TABLE_MAIN,
    IpRule,
    Route,
)
from ..netstate.state import NetState
from .spec import IP_FAMILIES, Spec, UplinkSpec

# First assumed address, and the distance to that of the next device: RFC 5737, RFC 3849.
_ADDRESSES = {4: (parse_address("192.0.2.2"), 16), 6: (parse_address("2001:db8:77::2"), 1 << 24)}
_LOOPBACK = {4: "127.0.0.0/8", 6: "::1/128"}
_CLAT_ADDRESS = "2001:db8:77:ffff::9/128"  # that a translator uses on its own
# Priority and table of the kernel's own rules; IPv6 has no rule for table default.
_KERNEL_RULES = {
    4: ((0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT)),
    6: ((0, TABLE_LOCAL), (32766, TABLE_MAIN)),
}
_KERNEL_METRIC = 256  # of the routes that the kernel adds for IPv6: IP6_RT_PRIO_ADDRCONF
_ASSUMED_METRIC = 512


def sample_device(pattern: str) -> str:
    """Return a device name that a pattern of `inside` matches."""
    return representative_name(pattern.replace("*", "~"))


def assumed_address(family: int, index: int) -> int:
    """Return the assumed address of this machine on its device number `index`."""
    first, distance = _ADDRESSES[family]
    return first + index * distance


def assumed_link_local(index: int) -> int:
    """Return the assumed link-local address of this machine on its device number `index`."""
    return parse_address("fe80::a00:27ff:fe00:2") + index


def without_absent_devices(state: NetState, spec: Spec) -> Spec:
    """Return the specification with the uplinks' devices that are absent in the state, and have no chain at egress.

    A kernel before Linux 6.18 hooks no chain at an absent device. A state without devices, such as a
    compiled one, does not say which are absent: the specification does.
    """
    if not state.devices:
        return spec
    present = {name for device in state.devices for name in (device.name, *device.other_names)}
    hooked = {chain.hook.device for table in state.tables for chain in table.chains if chain.hook}
    named = {device for uplink in spec.uplinks for device in uplink.devices if "*" not in device}
    return evolve(spec, absent_devices=frozenset(named - present - hooked))


def restrict_to_present(state: NetState, spec: Spec) -> tuple[Spec, dict[str, None]]:
    """Return the specification restricted to devices that are up, and notes of the parts left out.

    A state without devices is a compiled one, whose assumed routes name all, or printed by nft and ip: no packet leaves
    by a device that no route names.
    """
    if not state.devices:
        return _restrict_to_routed(state, spec)
    up = [device.name for device in state.devices if device.up and device.name != "lo"]  # nothing leaves by lo
    notes: dict[str, None] = {}
    uplinks = []
    for uplink in spec.uplinks:
        present = tuple(device for device in uplink.devices if device in up)
        if present:
            ports = tuple(port for port in uplink.ports if port in up)
            uplinks.append(evolve(uplink, devices=present, ports=ports))
        for device in uplink.devices:
            if device not in up:
                notes[f"no packet was tried by {device}: the device does not exist or is down"] = None
    inside = []
    for pattern in spec.inside or ():
        matching = [name for name in up if device_matches(pattern, name)]
        inside += matching[:1]
        if not matching:
            notes[f"no packet was tried by {pattern}: no such device is up"] = None
    return evolve(spec, uplinks=tuple(uplinks), inside=tuple(inside)), notes


def _restrict_to_routed(state: NetState, spec: Spec) -> tuple[Spec, dict[str, None]]:
    """Return the specification restricted to the devices inside that routes name; nothing if there are no routes."""
    routed = {hop.device for route in state.routes for hop in route.all_nexthops if hop.device is not None}
    absent = [
        pattern for pattern in spec.inside or () if routed and not any(device_matches(pattern, name) for name in routed)
    ]
    if not absent:
        return spec, {}
    notes = {f"no packet was tried by {pattern}: no route names such a device": None for pattern in absent}
    return evolve(spec, inside=tuple(pattern for pattern in spec.inside or () if pattern not in absent)), notes


def device_matches(pattern: str, name: str) -> bool:
    """Return True if a device has the name, or a name that the pattern matches."""
    return name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1]))


def add_assumed_environment(
    state: NetState, spec: Spec, uplink_routes: bool = True
) -> tuple[NetState, tuple[str, ...]]:
    """Return the state with all parts that sending packets needs, and the assumptions made.

    Without `uplink_routes`, an uplink's table without a default route stays as it is.
    """
    assumptions: list[str] = []
    local_families = {route.family for route in state.routes if route.table == TABLE_LOCAL}
    rules = _with_kernel_rules(state, local_families)
    routes = list(state.routes)
    if not local_families:
        assumptions.append("addresses on each device, and routes inside, as a machine has them (the state names none)")
        for family in IP_FAMILIES:
            routes += _assumed_routes(spec, family)
        assumptions += [
            f"a connected route by {uplink.devices[0]} in table main for {exemption.name}"
            for uplink in spec.uplinks
            for exemption in uplink.exemptions
            if exemption.is_lan
        ]
    for uplink in spec.uplinks if uplink_routes else ():
        for family in IP_FAMILIES:
            if uplink.table is not None and not _has_default_route(routes, uplink.table, family):
                routes += _uplink_routes(uplink, uplink.table, family)
                device = uplink.devices[0]
                assumptions.append(f"a default route by {device} in table {uplink.table} (it has none now)")
    return evolve(state, rules=rules, routes=tuple(routes)), tuple(dict.fromkeys(assumptions))


def _with_kernel_rules(state: NetState, local_families: set[int]) -> tuple[IpRule, ...]:
    """Return the rules, with the kernel's own for each family without a lookup in table local."""
    looked_up = {(rule.family, rule.table) for rule in state.rules if rule.action == "lookup" and not rule.mask}
    kernel_rules = [
        IpRule(family, priority, "lookup", table, protocol=RTPROT_KERNEL)
        for family in IP_FAMILIES
        if (family, TABLE_LOCAL) not in looked_up and family not in local_families
        for priority, table in _KERNEL_RULES[family]
    ]
    if not kernel_rules:
        return state.rules
    return tuple(sorted([*state.rules, *kernel_rules], key=lambda rule: (rule.family, rule.priority)))


def _assumed_routes(spec: Spec, family: int) -> Iterator[Route]:
    """Yield the routes of assumed addresses in one family, and a default route inside."""
    inside = [sample_device(pattern) for pattern in spec.inside or ()]
    devices = [device for uplink in spec.uplinks for device in uplink.devices] + inside
    yield Route(family, TABLE_LOCAL, _LOOPBACK[family], "local", device="lo", protocol=RTPROT_KERNEL)
    for index, device in enumerate(devices):
        yield _local_route(family, assumed_address(family, index), device)
        if family == 6:
            yield from _ipv6_kernel_routes(index, device)
    for uplink in spec.uplinks:
        yield from _resolver_routes(uplink, family)
        for low, high in uplink.addresses.get(family, ()):
            yield _local_route(family, min(low + 1, high), "lo")
        for address in dict.fromkeys(min(low + 1, high) for low, high in uplink.lan_networks(family)):
            host = f"{format_address(family, address)}/{ADDRESS_BITS[family]}"
            yield Route(family, TABLE_MAIN, host, device=uplink.devices[0], protocol=RTPROT_KERNEL)
    if inside:
        yield Route(family, TABLE_MAIN, "default", device=inside[0], metric=_ASSUMED_METRIC, protocol=RTPROT_BOOT)


def _local_route(family: int, address: int, device: str) -> Route:
    prefix = f"{format_address(family, address)}/{ADDRESS_BITS[family]}"
    return Route(family, TABLE_LOCAL, prefix, "local", device=device, protocol=RTPROT_KERNEL)


def _ipv6_kernel_routes(index: int, device: str) -> Iterator[Route]:
    """Yield the routes that the kernel adds to every device with IPv6."""
    yield _local_route(6, assumed_link_local(index), device)
    yield Route(6, TABLE_LOCAL, "ff00::/8", "multicast", device=device, metric=_KERNEL_METRIC, protocol=RTPROT_KERNEL)
    yield Route(6, TABLE_MAIN, "fe80::/64", device=device, metric=_KERNEL_METRIC, protocol=RTPROT_KERNEL)


def _resolver_routes(uplink: UplinkSpec, family: int) -> Iterator[Route]:
    """Yield routes on lo for the resolver's addresses outside 127.0.0.0/8 and ::1."""
    if uplink.resolver is None:
        return
    for address, _ in uplink.resolver.endpoints(family):
        is_loopback = (family, address >> 24) == (4, 127) or address == 1
        if not is_loopback:
            yield _local_route(family, address, "lo")


def _has_default_route(routes: Sequence[Route], table: int, family: int) -> bool:
    return any(
        route.family == family and route.table == table and route.kind == "unicast" and route.destination == "default"
        for route in routes
    )


def _uplink_routes(uplink: UplinkSpec, table: int, family: int) -> Iterator[Route]:
    for index, device in enumerate(uplink.devices):
        is_clat = family == 6 and device in uplink.clat_devices
        to = _CLAT_ADDRESS if is_clat else "default"
        yield Route(family, table, to, device=device, metric=_ASSUMED_METRIC + index, protocol=RTPROT_BOOT)
