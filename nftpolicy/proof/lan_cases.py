# SPDX-License-Identifier: BSD-2-Clause
"""P3 cases of an uplink's own network: packets to an address there, by the connected routes of table main."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.packet import SOCKET, address_range, evolve_packet
from ..model.symbolic.box import Ranges, intersect_ranges, merge_ranges, points, subtract_ranges
from ..netstate.routing import TABLE_MAIN
from .assumptions import TABLE_LOCAL
from .context import ProofContext
from .spec import Spec, UplinkSpec
from .usability_case import UsabilityCase, needs_device, region_parts, sample_packet


def lan_cases(context: ProofContext, uplink: UplinkSpec) -> Iterator[UsabilityCase]:
    """Yield packets of each permitted sender to each network that is connected."""
    for lan in (each for each in uplink.exemptions if each.is_lan):
        for family, regions in lan.headers.items():
            for region in regions:
                for part in region_parts(family, region, with_ends=True):
                    for device, address in _neighbours(context, uplink, family, part.fields["daddr"]):
                        neighbour = part.narrowed(daddr=points(address))
                        packet = sample_packet(context, family, neighbour, SOCKET)
                        if needs_device(address) and family == 6:
                            packet = evolve_packet(packet, bound=device)
                        yield UsabilityCase("P3", uplink.name, lan.name, lan.origin, packet, "leaves", device)


def lan_notes(context: ProofContext, spec: Spec) -> Iterator[str]:
    """Yield the entries without a case: none of their networks is connected now."""
    for uplink in spec.uplinks:
        for lan in (each for each in uplink.exemptions if each.is_lan):
            for family, regions in lan.headers.items():
                connected = any(_neighbours(context, uplink, family, region.fields["daddr"]) for region in regions)
                if not connected and family in spec.families:
                    yield f"no IPv{family} packet was tried for {lan.name}: none of its networks is connected now"


def _neighbours(context: ProofContext, uplink: UplinkSpec, family: int, addresses: Ranges) -> list[tuple[str, int]]:
    """Return (device, an address) of each connected network of the uplink that has some of these addresses."""
    own = [
        address_range(route.destination, family)
        for route in context.state.routes
        if (route.family, route.table) == (family, TABLE_LOCAL)
    ]
    neighbours = []
    devices = [device for device in uplink.devices if device not in uplink.clat_devices]
    for route in context.state.routes:
        is_connected = (route.family, route.table, route.kind, route.gateway) == (family, TABLE_MAIN, "unicast", None)
        if is_connected and route.device in devices and route.destination != "default":
            low, high = address_range(route.destination, family)
            hosts = ((low + 1, high - 1),) if high - low > 1 else ((low, high),)
            free = subtract_ranges(intersect_ranges(hosts, addresses), merge_ranges(own))
            if free:
                neighbours.append((str(route.device), free[0][0]))
    return neighbours
