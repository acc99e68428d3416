# SPDX-License-Identifier: BSD-2-Clause
"""P1 to P3 for the kernel's tunnels and TCP: their packets have no mark when the kernel sends them."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.packet import ESP, FORWARD, KERNEL, TCP, TRANSFORMED, UDP, Packet, evolve_packet
from .assumptions import sample_device
from .concretize import REMOTE_ADDRESS, remote_address
from .spec import ServiceSpec, Spec, UplinkSpec
from .usability_case import UsabilityCase


def tunnel_cases(uplink: UplinkSpec, service: ServiceSpec, packet: Packet, spec: Spec) -> Iterator[UsabilityCase]:
    """Yield the cases of one packet; the owner of a tunnel's is that of the packet in the tunnel, that of TCP none."""
    title, device, mark = f"service {service.name}", uplink.devices[0], (uplink.value, uplink.mask)
    is_tcp = packet.protocol == TCP
    for sent_with in (0, uplink.value):  # the mark of the packet in the tunnel, or that of an IPsec state
        outer = evolve_packet(packet, mark=sent_with, uid=0, gid=0)
        by_kernel = evolve_packet(outer, origin=KERNEL)
        yield UsabilityCase("P3", uplink.name, title, service.origin, by_kernel, "leaves", device, mark)
        if not is_tcp:
            through = f"{title}: packets that a process sends through it"
            yield UsabilityCase("P3", uplink.name, through, service.origin, outer, "leaves", device, mark)
    if packet.protocol == ESP:
        key = "ip daddr" if packet.family == 4 else "ip6 daddr"
        inner = evolve_packet(  # with a mark that it may not have, as it has the route of a marked packet
            packet, mark=uplink.value, protocol=UDP, fields={(TRANSFORMED, key): packet.destination},
            destination=remote_address(packet.family, spec),
        )  # fmt: skip
        encrypted = f"{title}: packets that it encrypts"
        yield UsabilityCase("P3", uplink.name, encrypted, service.origin, inner, "leaves", device, mark)
    if is_tcp:
        packet = evolve_packet(packet, origin=KERNEL)
    for pattern in (spec.inside or ())[:1]:
        inside = sample_device(pattern)
        bound = evolve_packet(packet, mark=0, bound=inside)
        yield UsabilityCase(
            "P2", uplink.name, f"{title} inside", service.origin, bound, "dropped", must_not_leave_by=inside
        )
        source = REMOTE_ADDRESS[packet.family] + 1
        forwarded = evolve_packet(packet, mark=0, bound=None, origin=FORWARD, iif=inside, source=source)
        yield UsabilityCase(
            "P1",
            uplink.name,
            f"{title}: packets of other hosts",
            service.origin,
            forwarded,
            "dropped",
            must_not_leave_by=device,
        )
