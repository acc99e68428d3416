# SPDX-License-Identifier: BSD-2-Clause
"""P3 for answers: the replies of this machine leave by the uplink. Assumptions about UDP servers."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.packet import KERNEL, SOCKET, TCP, UDP, CtInfo, evolve_packet, format_address, parse_address
from ..model.symbolic.box import points
from .context import ProofContext
from .spec import Region, Spec, UplinkSpec
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


def answer_assumptions(context: ProofContext, spec: Spec) -> Iterator[str]:
    """Yield what the servers of UDP answers do by assumption; for a state with devices, what some of them do now."""
    for uplink in spec.uplinks:
        for reply in uplink.replies:
            regions = {family: full[0] for family, full in reply.headers.items() if full}
            if not any(region.fields.get("protocol") == points(UDP) for region in regions.values()):
                continue
            assumption = (
                f"the server of answer {reply.name} of uplink {uplink.name} sends its UDP replies from the address "
                "and port that were asked; others are dropped where a route leads them inside"
            )
            parts = regions.items() if context.state.devices else ()
            routes = [route for family, region in parts if (route := _unbound_reply(context, uplink, family, region))]
            wrong = [text for is_right, text in routes if not is_right]
            if routes:
                verdict, texts = ("false", wrong) if wrong else ("true", [text for _, text in routes])
                assumption += f"; {verdict} now of one that is bound to no address and selects none: {', '.join(texts)}"
            yield assumption


def _unbound_reply(context: ProofContext, uplink: UplinkSpec, family: int, region: Region) -> tuple[bool, str] | None:
    """Return the route of a reply whose source the kernel selects: True if it is the uplink's, and its text.

    None if the uplink has no address of the family, or the model does not know the route.
    """
    packet = sample_packet(context, family, region, SOCKET)
    if device_address(context.state, family, uplink.devices[0]) is None or needs_device(packet.destination):
        return None
    route = context.model.router.lookup(
        family, packet.destination, protocol=UDP, sport=packet.sport, dport=packet.dport
    )
    host = f"to {format_address(family, packet.destination)}"
    if route.error:
        return False, f"{host} no route"
    if not route.leaves or route.source is None or route.device is None:
        return None
    address_type = context.model.address_types.address_type(family, parse_address(route.source), route.device)
    is_right = address_type == "local" and route.device in uplink.devices
    return is_right, f"{host} by {route.device} from {route.source}"
