# SPDX-License-Identifier: BSD-2-Clause
"""P3 cases of an uplink's own network: packets to an address there, by the connected routes of table main."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..model.packet import SOCKET, address_range, evolve_packet
from ..model.symbolic.box import Ranges, intersect_ranges, merge_ranges, points, subtract_ranges
from ..netstate.routing import TABLE_MAIN, Route
from .context import ProofContext
from .exemption_spec import LOCAL_GROUPS, address_ranges
from .spec import Region, Spec, UplinkSpec
from .usability_case import UsabilityCase, needs_device, region_parts, sample_packet


def lan_cases(context: ProofContext, uplink: UplinkSpec) -> Iterator[UsabilityCase]:
    """Yield packets of each permitted sender to each network that is connected."""
    lans = [each for each in uplink.exemptions if each.is_lan]
    networks = {family: _connected_networks(context, uplink, family) for lan in lans for family in lan.headers}
    for lan in lans:
        for family, regions in lan.headers.items():
            for region in regions:
                for part in region_parts(family, region, with_ends=True):
                    for device, address in _neighbours(networks[family], part.fields["daddr"]):
                        neighbour = part.narrowed(daddr=points(address))
                        packet = sample_packet(context, family, neighbour, SOCKET)
                        if needs_device(address) and family == 6:
                            packet = evolve_packet(packet, bound=device)
                        yield UsabilityCase("P3", uplink.name, lan.name, lan.origin, packet, "leaves", device)
                for group in _groups(family, region):
                    for part in region_parts(family, region.narrowed(daddr=points(group)), with_ends=True):
                        for device in _network_devices(uplink):
                            packet = sample_packet(context, family, part, SOCKET, device)
                            yield UsabilityCase("P3", uplink.name, lan.name, lan.origin, packet, "leaves", device)


def lan_notes(context: ProofContext, spec: Spec) -> Iterator[str]:
    """Yield the entries without a case: none of their networks is connected now."""
    for uplink in spec.uplinks:
        for lan in (each for each in uplink.exemptions if each.is_lan):
            for family, regions in lan.headers.items():
                networks = _connected_networks(context, uplink, family)
                connected = any(
                    _neighbours(networks, region.fields["daddr"]) or _groups(family, region) for region in regions
                )
                if not connected and family in spec.families:
                    yield f"no IPv{family} packet was tried for {lan.name}: none of its networks is connected now"


def _groups(family: int, region: Region) -> list[int]:
    """Return an address of each range of groups in the region, to which a socket sends by a device."""
    ranges = intersect_ranges(region.fields["daddr"], address_ranges(*LOCAL_GROUPS[family]))
    return [min(low + 1, high) for low, high in ranges]


def _network_devices(uplink: UplinkSpec) -> list[str]:
    return [device for device in uplink.devices if device not in uplink.clat_devices]


def _neighbours(networks: Iterable[tuple[str, Ranges]], addresses: Ranges) -> list[tuple[str, int]]:
    """Return (device, an address) of each connected network that has some of these addresses."""
    common = ((device, intersect_ranges(hosts, addresses)) for device, hosts in networks)
    return [(device, hosts[0][0]) for device, hosts in common if hosts]


def _connected_networks(context: ProofContext, uplink: UplinkSpec, family: int) -> list[tuple[str, Ranges]]:
    """Return (device, hosts) of each connected network of the uplink, without the addresses of this machine."""
    own = context.own_addresses(family, ("local", "broadcast", "anycast"))
    networks = []
    devices = _network_devices(uplink)
    # A route of another device that is more specific, or better, leads the packets of its network elsewhere.
    preferred: list[tuple[str | None, tuple[int, int]]] = []
    for route in sorted(_routes_of_main(context, family), key=lambda route: _preference(route, family)):
        low, high = address_range(route.destination, family)
        if route.device in devices and route.gateway is None:
            hosts = ((low + 1, high - 1),) if high - low > 1 else ((low, high),)
            elsewhere = [network for device, network in preferred if device != route.device]
            networks.append((str(route.device), subtract_ranges(hosts, merge_ranges([*own, *elsewhere]))))
        preferred.append((route.device, (low, high)))
    return networks


def _routes_of_main(context: ProofContext, family: int) -> list[Route]:
    return [
        route
        for route in context.state.routes
        if (route.family, route.table, route.kind) == (family, TABLE_MAIN, "unicast") and route.destination != "default"
    ]


def _preference(route: Route, family: int) -> tuple[int, int]:
    """Return the order in which the kernel prefers the routes of a table: most specific first, then the metric."""
    low, high = address_range(route.destination, family)
    return high - low, route.metric or 0
