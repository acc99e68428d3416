# SPDX-License-Identifier: BSD-2-Clause
"""P3 cases of forwards and published ports: packets of other machines, by the device of arrival.

Answers to forwarded packets have no case: their addresses before and after NAT are not those of one packet.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..model.packet import FORWARD, CtInfo, Packet, evolve_packet
from ..model.symbolic.box import Ranges, find_uncovered
from .assumptions import device_matches, sample_device
from .concretize import REMOTE_ADDRESS, choose, concretize, host_ranges
from .context import ProofContext
from .spec import IP_FAMILIES, ForwardSpec, PublishSpec, Region, Spec, UplinkSpec
from .usability_case import UsabilityCase, device_address

_HOST_INSIDE = {4: REMOTE_ADDRESS[4] + 4, 6: REMOTE_ADDRESS[6] + 4}
_ALL: dict[int, Ranges] = {4: ((0, (1 << 32) - 1),), 6: ((0, (1 << 128) - 1),)}


def forward_cases(context: ProofContext, uplink: UplinkSpec) -> Iterator[UsabilityCase]:
    """Yield the packets of the uplink's forwards, and replies of its published ports."""
    for forward in uplink.forwards:
        for pattern in forward.devices:
            for family in forward.arriving:
                device = _present_device(context, pattern)
                if device is not None and _obstacle(context, uplink, family, device, forward.masquerade) is None:
                    for packet in _forwarded(context, forward, family, device):
                        yield _case(uplink, forward, f"forward {forward.name}", packet)
    for publish in uplink.publishes:
        for family in IP_FAMILIES:
            device = _present_device(context, publish.device)
            if device is not None and _obstacle(context, uplink, family, device, False) is None:
                title = f"publish {publish.name}: replies"
                yield _case(uplink, publish, title, _reply(context, uplink, publish, family))


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


def _reply(context: ProofContext, uplink: UplinkSpec, publish: PublishSpec, family: int) -> Packet:
    space = context.space(family)
    packet = concretize(space, publish.replies.boxes(space)[0], FORWARD)
    flow = CtInfo("established", "reply", uplink.value)
    ends = {"source": _HOST_INSIDE[family], "destination": REMOTE_ADDRESS[family], "dport": 40000}
    return evolve_packet(packet, iif=publish.device, flow=flow, **ends)
