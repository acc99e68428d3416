# SPDX-License-Identifier: BSD-2-Clause
"""P3 for UDP services in flows that their peers began, and the assumption about services that cannot send in them.

After a flush of connection tracking, the first packet of a flow may be the peer's: then the packets of the service
are replies, with the uplink's mark in the flow.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ..model.packet import KERNEL, SOCKET, UDP, CtInfo, Packet, evolve_packet
from .context import ProofContext
from .entitlement import DNS_PORT
from .spec import ServiceSpec, Spec, UplinkSpec
from .usability_case import UsabilityCase, needs_device, sample_packet


def peer_flow_cases(context: ProofContext, uplink: UplinkSpec, service: ServiceSpec) -> Iterator[UsabilityCase]:
    """Yield a UDP packet of the service in a flow that its peer began, for each family."""
    device, mark = uplink.devices[0], (uplink.value, uplink.mask)
    title = f"service {service.name}: packets in a flow that the peer began"
    for packet in _udp_packets(context, service):
        reply = evolve_packet(packet, mark=uplink.value, flow=CtInfo("established", "reply", uplink.value))
        if packet.family == 6 and needs_device(packet.destination):
            reply = evolve_packet(reply, bound=device)
        owners = [owner for owner in service.owners if not owner.marked][:1]
        senders = [evolve_packet(reply, **{owner.key: owner.number}) for owner in owners]
        senders += [evolve_packet(reply, origin=KERNEL)] if service.names_source_port else []
        for sender in senders:
            yield UsabilityCase("P3", uplink.name, title, service.origin, sender, "leaves", device, mark)


def _udp_packets(context: ProofContext, service: ServiceSpec) -> Iterator[Packet]:
    """Yield a packet for each family that the service may send over UDP; queries are always its own flows."""
    for family, regions in service.regions.items() if not service.unmarked else ():
        packets = (sample_packet(context, family, region, SOCKET) for region in regions)
        yield from islice((each for each in packets if each.protocol == UDP and each.dport != DNS_PORT), 1)


def peer_flow_assumptions(context: ProofContext, spec: Spec) -> Iterator[str]:
    """Yield the services that the guard lets send over UDP only in flows that they began.

    Replies of these services look like replies of other programs: no port of the kernel's socket is named, or the
    mark alone distinguishes the service from root's programs, and a reply has the mark of its flow.
    """
    for uplink in spec.uplinks:
        names = [
            service.name
            for service in uplink.services
            if (service.kernel and not service.names_source_port) or service.has_marked_owner
            if any(_udp_packets(context, service))
        ]
        if names:
            yield (
                f"peers of {', '.join(names)} begin no flow, as one may after a flush of connection tracking: the "
                "replies of the service would be dropped"
            )
