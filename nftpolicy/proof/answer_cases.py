# SPDX-License-Identifier: BSD-2-Clause
"""P3 for answers: the replies of this machine leave by the uplink."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.packet import KERNEL, SOCKET, TCP, UDP, CtInfo, evolve_packet
from .context import ProofContext
from .spec import Spec, UplinkSpec
from .usability_case import UsabilityCase, device_address, needs_device, region_parts, sample_packet

_TCP_ACK = 0x10
_RST = {("tcp", "flags"): 0x04}


def answer_cases(context: ProofContext, uplink: UplinkSpec, spec: Spec) -> Iterator[UsabilityCase]:
    """Yield a reply to each network of each answer, as every kind of sender sends it."""
    device, mark = uplink.devices[0], (uplink.value, uplink.mask)
    flow = CtInfo("established", "reply", uplink.value)
    for reply in uplink.replies:
        parts = ((family, part) for family, full in reply.headers.items() for part in region_parts(family, full[0]))
        for family, region in parts:
            packet = evolve_packet(
                sample_packet(context, family, region, SOCKET), flow=flow, uid=0, gid=0, dport=40000,
                source=device_address(context.state, family, device),
            )  # fmt: skip
            if packet.protocol == TCP:
                packet = evolve_packet(packet, fields={("tcp", "flags"): _TCP_ACK})
            if family == 6 and needs_device(packet.destination):
                packet = evolve_packet(packet, bound=device)
            by_kernel = evolve_packet(packet, origin=KERNEL, mark=uplink.value)
            # Accepted sockets have the mark of their SYN (tcp_fwmark_accept). Other sockets, and
            # sockets that are older than the policy, need any route before the flow's mark
            # reroutes them. Only the kernel answers pings.
            packets = [by_kernel]
            if packet.protocol == TCP:
                packets.append(evolve_packet(packet, mark=uplink.value))
            if packet.protocol in (TCP, UDP) and spec.inside:
                packets.append(packet)
            for answer in packets:
                yield UsabilityCase(
                    "P3", uplink.name, f"answer {reply.name}", reply.origin, answer, "leaves", device, mark
                )
    for family, regions in uplink.resets.items():
        sample = sample_packet(context, family, regions[0], KERNEL)
        bound = device if family == 6 and needs_device(sample.destination) else None
        reset = evolve_packet(sample, sport=81, dport=40000, mark=uplink.value, flow=flow, fields=_RST, bound=bound)
        yield UsabilityCase(
            "P3", uplink.name, "answer: closed ports", ("uplink", uplink.name, "answer"), reset, "leaves", device
        )
