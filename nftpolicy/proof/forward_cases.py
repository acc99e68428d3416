# SPDX-License-Identifier: BSD-2-Clause
"""P3 cases of forwards and published ports: packets of other machines, by the device of arrival.

With NAT, answers have no case: a packet of the model has the same addresses before and after it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..model.packet import FORWARD, ICMP, ICMPV6, KERNEL, TCP, CtInfo, Packet, evolve_packet
from ..model.symbolic.box import Ranges, find_uncovered, intersect_ranges
from .assumptions import device_matches, sample_device
from .concretize import REMOTE_ADDRESS, choose, concretize, host_ranges
from .context import ProofContext
from .spec import IP_FAMILIES, ForwardSpec, PublishSpec, Region, Spec, UplinkSpec
from .usability_case import UsabilityCase, device_address

_HOST_INSIDE = {4: REMOTE_ADDRESS[4] + 4, 6: REMOTE_ADDRESS[6] + 4}
_SYN, _ACK = 0x02, 0x10
_ALL: dict[int, Ranges] = {4: ((0, (1 << 32) - 1),), 6: ((0, (1 << 128) - 1),)}


def forward_cases(context: ProofContext, uplink: UplinkSpec, spec: Spec) -> Iterator[UsabilityCase]:
    """Yield the packets of the uplink's forwards, and replies of its published ports."""
    for forward in uplink.forwards:
        for pattern in forward.devices:
            for family in forward.arriving:
                device = _present_device(context, pattern)
                if device is not None and _obstacle(context, uplink, family, device, forward.masquerade) is None:
                    for packet in _forwarded(context, forward, family, device):
                        yield _case(uplink, forward, f"forward {forward.name}", packet)
                        yield from _errors(uplink, forward, packet)
                        yield from _answer(context, uplink, forward, packet, spec.inside or ())
                    yield from _between_networks(context, uplink, forward, family, device)
    for publish in uplink.publishes:
        for family in IP_FAMILIES:
            device = _present_device(context, publish.device)
            if device is not None and _obstacle(context, uplink, family, device, False) is None:
                reply = _reply(context, uplink, publish, family)
                yield _case(uplink, publish, f"publish {publish.name}: replies", reply)
                yield from _request(context, uplink, publish, reply)


def forward_notes(context: ProofContext, spec: Spec) -> Iterator[str]:
    """Yield why packets of forwards and published ports cannot be tried on this machine now."""
    for uplink in spec.uplinks:
        tried = [(pattern, each.arriving, each.masquerade) for each in uplink.forwards for pattern in each.devices]
        tried += [(publish.device, dict.fromkeys(IP_FAMILIES, ()), False) for publish in uplink.publishes]
        for pattern, families, masquerade in tried:
            device = _present_device(context, pattern)
            if device is None:
                yield f"no packet was tried by {pattern}: no such device is up"
                continue
            for family in families:
                obstacle = _obstacle(context, uplink, family, device, masquerade)
                if obstacle is not None and family in spec.families:
                    yield f"no IPv{family} packet was tried from {device} to uplink {uplink.name}: {obstacle}"


def _case(uplink: UplinkSpec, entry: ForwardSpec | PublishSpec, title: str, packet: Packet) -> UsabilityCase:
    return UsabilityCase(
        "P3",
        uplink.name,
        title,
        entry.origin,
        packet,
        "leaves",
        uplink.devices[0],
        (uplink.value, uplink.mask),
        may_be_firewalled=True,
    )


def _present_device(context: ProofContext, pattern: str) -> str | None:
    """Return a device of the pattern that is up; of a state without devices, any device of the pattern."""
    if not context.state.devices:
        return sample_device(pattern)
    names = (device.name for device in context.state.devices if device.up)
    return next((name for name in names if device_matches(pattern, name)), None)


def _obstacle(context: ProofContext, uplink: UplinkSpec, family: int, device: str, masquerade: bool) -> str | None:
    """Return what keeps this machine from forwarding now, beside routes; None: nothing."""
    if not context.state.devices:
        return None
    if not context.model.is_forwarding(family, device):
        return f"forwarding is off for {device}"
    needed = (device, uplink.devices[0]) if masquerade else (device,)
    missing = next((name for name in needed if device_address(context.state, family, name) is None), None)
    return None if missing is None else f"{missing} has no address"


def _forwarded(context: ProofContext, forward: ForwardSpec, family: int, device: str) -> Iterator[Packet]:
    """Yield a packet of each protocol of a forward."""
    space = context.space(family)
    elsewhere = [box for region in forward.elsewhere[family] for box in region.boxes(space)]
    for region in forward.arriving[family]:
        addresses = {key: host_ranges(family, region.fields.get(key, _ALL[family])) for key in ("saddr", "daddr")}
        arriving = Region({**region.fields, **addresses}, iifname=(device,))
        for box in arriving.boxes(space):
            part = find_uncovered(box, elsewhere, space.max_values)
            if part is not None:
                packet = concretize(space, part, FORWARD)
                source = choose(part["saddr"], _HOST_INSIDE[family], part["saddr"][0][0] + 9)
                yield evolve_packet(packet, iif=device, source=source, flow=CtInfo())


def _errors(uplink: UplinkSpec, forward: ForwardSpec, packet: Packet) -> Iterator[UsabilityCase]:
    """Yield errors of the kernel about a forwarded packet, which have its mark (fwmark_reflect)."""
    protocol, name, types = (ICMP, "icmp", (3, 11, 12)) if packet.family == 4 else (ICMPV6, "icmpv6", (1, 2, 3, 4))
    for number in types:
        assert packet.source is not None
        error = Packet(
            packet.family,
            packet.source,
            protocol=protocol,
            origin=KERNEL,
            mark=uplink.value,
            flow=CtInfo("invalid"),
            fields={(name, "type"): number},
        )
        title, no_mark = f"forward {forward.name}: errors about its packets", (0, uplink.mask)
        yield UsabilityCase(
            "P3", uplink.name, title, forward.origin, error, "leaves", mark=no_mark, may_be_firewalled=True
        )


def _answer(
    context: ProofContext, uplink: UplinkSpec, forward: ForwardSpec, packet: Packet, inside: tuple[str, ...]
) -> Iterator[UsabilityCase]:
    """Yield the answer to a packet whose source is not translated.

    Only if table main of a compiled state leads to its host, by the first device inside.
    """
    is_translated = forward.masquerade or "saddr" not in forward.arriving[packet.family][0].fields
    if is_translated or context.state.devices or packet.iif != sample_device(inside[0]):
        return
    answer = evolve_packet(
        packet,
        iif=uplink.devices[0],
        source=packet.destination,
        destination=packet.source,
        sport=packet.dport,
        dport=packet.sport,
        flow=CtInfo("established", "reply"),
    )
    title, no_mark = f"forward {forward.name}: answers", (0, uplink.mask)
    yield UsabilityCase("P3", uplink.name, title, forward.origin, answer, "leaves", packet.iif, no_mark)


def _between_networks(
    context: ProofContext, uplink: UplinkSpec, forward: ForwardSpec, family: int, device: str
) -> Iterator[UsabilityCase]:
    """Yield packets to each network inside, which do not leave by the uplink."""
    space = context.space(family)
    for region in forward.arriving[family]:
        for inside in forward.inside.get(family, ()):
            both = intersect_ranges(region.fields.get("daddr", _ALL[family]), (inside,))
            for box in Region({**region.fields, "daddr": both}, iifname=(device,)).boxes(space)[:1] if both else ():
                packet = concretize(space, box, FORWARD)
                source = packet.source if packet.source is not None else _HOST_INSIDE[family]
                packet = evolve_packet(packet, iif=device, source=source, flow=CtInfo())
                title, output = f"forward {forward.name}: networks inside", uplink.devices[0]
                yield UsabilityCase(
                    "P2", uplink.name, title, forward.origin, packet, "dropped", must_not_leave_by=output
                )


def _request(context: ProofContext, uplink: UplinkSpec, publish: PublishSpec, reply: Packet) -> Iterator[UsabilityCase]:
    """Yield the request, as it is without destination NAT; with it, it leaves by the device inside."""
    address = device_address(context.state, reply.family, uplink.devices[0])
    if context.state.devices or address is None:
        return
    request = evolve_packet(
        reply,
        iif=uplink.devices[0],
        source=reply.destination,
        destination=address,
        sport=reply.dport,
        dport=reply.sport,
        flow=CtInfo(),
        fields={("tcp", "flags"): _SYN} if reply.protocol == TCP else {},
    )
    title, mark = f"publish {publish.name}: requests", (uplink.value, uplink.mask)
    yield UsabilityCase(
        "P3", uplink.name, title, publish.origin, request, "delivered", mark=(0, uplink.mask), flow_mark=mark
    )


def _reply(context: ProofContext, uplink: UplinkSpec, publish: PublishSpec, family: int) -> Packet:
    space = context.space(family)
    packet = concretize(space, publish.replies.boxes(space)[0], FORWARD)
    flow = CtInfo("established", "reply", uplink.value)
    ends = {"source": _HOST_INSIDE[family], "destination": REMOTE_ADDRESS[family], "dport": 40000}
    fields = {("tcp", "flags"): _ACK} if packet.protocol == TCP else {}
    return evolve_packet(packet, iif=publish.device, flow=flow, fields=fields, **ends)
