# SPDX-License-Identifier: BSD-2-Clause
"""P1, no leak: a packet that leaves by an uplink was sent with its mark or matches an exemption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..model.box import Ranges, only
from ..model.packet import FORWARD, FRAME, SOCKET
from ..netstate import nft
from .claim import BOTH, Claim, Region, UplinkClaim
from .findings import finding, judged
from .ground import Ground
from .lemmas import Hit, guard, integrity, round_the_hooks
from .verdict import Finding
from .witness import search_marked, seen
from .worn import of_users, worn

_SENDERS = {SOCKET: "sockets", FORWARD: "forwarded packets", FRAME: "AF_PACKET sockets"}
_PACKET_HOST = 0  # include/uapi/linux/if_packet.h


def headers(uplink: UplinkClaim, family: int) -> list[Region]:
    """Return the headers of an uplink's exemptions in one family."""
    return [region for exemption in uplink.holes for region in exemption.headers.get(family, ())]


def no_leak(ground: Ground, claim: Claim, uplink: UplinkClaim) -> Iterator[Finding]:
    """Yield the findings of P1 for one uplink."""
    unmarked = Region(marks=(uplink.unmarked,))
    writes = {family: integrity(ground, family, uplink) for family in BOTH}
    # Postrouting alone proves all packets of the IP layer, if it accepts none of these.
    postrouting = {
        family: guard(
            ground,
            family,
            ground.at(family, "postrouting"),
            unmarked.with_(out=uplink.devices),
            [*headers(uplink, family), *of_users(uplink, family)],
        )
        for family in BOTH
    }
    bypasses = round_the_hooks(ground)
    marked_by_rule = [hit for family in BOTH for hit in _marked_by_rule(ground, uplink, writes[family])]
    for origin, sender in _SENDERS.items():
        if origin == FRAME:
            hits = _frame_violations(ground, claim, uplink, unmarked)
            devices = (*uplink.devices, *uplink.ports)
        else:
            hits = [*bypasses, *marked_by_rule]
            for family in BOTH:
                if postrouting[family] is not None:
                    hits += _ip_violations(ground, family, uplink, origin, unmarked)
            devices = uplink.devices
        subject = f"{sender}: packets without the mark that leave by {', '.join(uplink.devices)}"
        yield judged(ground, "P1", uplink, subject, hits, origin, devices)
    if claim.frames:
        yield _other_ethertypes(ground, claim, uplink, unmarked)
    if claim.whole:
        yield _mark_entitlement(ground, uplink)


def _marked_by_rule(ground: Ground, uplink: UplinkClaim, hits: Sequence[Hit]) -> list[Hit]:
    """Return violations of integrity, first the parts that the guard accepts as marked packets."""
    accepted = []
    for hit in hits:
        fields = _without_fields(hit.box, ("mark:", "ctmark:", "?"))
        fields = {name: ranges for name, ranges in fields.items() if name not in ("iif", "oif")}
        for device in uplink.devices:
            chains = [*ground.at(hit.family, "postrouting"), *ground.at(hit.family, "egress", device)]
            past_guard = guard(ground, hit.family, chains, Region(fields, (uplink.marked,), (device,)))
            if past_guard is not None:
                box = _without_fields(past_guard.box, ("mark:", "oif"))
                mark_before = {name: ranges for name, ranges in hit.box.items() if name.startswith("mark:")}
                accepted.append(Hit(hit.family, {**box, **mark_before}, hit.where, hit.doubts))
    return [*accepted, *hits]


def _without_fields(box: Mapping[str, Ranges], prefixes: tuple[str, ...]) -> dict[str, Ranges]:
    return {name: ranges for name, ranges in box.items() if not name.startswith(prefixes)}


def _frame_violations(ground: Ground, claim: Claim, uplink: UplinkClaim, region: Region) -> list[Hit]:
    """Return the violations for IP frames of AF_PACKET sockets, which pass only the egress hook."""
    hits = [hit for family in BOTH for hit in integrity(ground, family, uplink, "egress")]
    if not claim.frames:
        return hits  # an assumption instead
    for family in BOTH:
        exempt = headers(uplink, family)
        for device in (*uplink.devices, *uplink.ports):
            hit = _frame_violation(ground, family, device, region, exempt)
            if hit is not None:
                hits.append(hit)
    return hits


def _frame_violation(ground: Ground, family: int, device: str, region: Region, exempt: Sequence[Region]) -> Hit | None:
    frames = region.with_(out=(device,), **_from_this_machine(ground))
    return guard(ground, family, ground.at(family, "egress", device), frames, exempt)


def _from_this_machine(ground: Ground) -> dict[str, Ranges]:
    """Return the packet type of packets of this machine; empty if a rule writes packet types.

    A frame that a bridge forwards from another port does not have the type "host".
    """
    is_written = any(statement.key == nft.Meta("pkttype") for statement in ground.survey.writes)
    return {} if is_written else {"pkttype": only(_PACKET_HOST)}


def _ip_violations(ground: Ground, family: int, uplink: UplinkClaim, origin: str, region: Region) -> list[Hit]:
    """Return packets of the IP layer that all hooks accept, if postrouting alone is not enough."""
    exempt = headers(uplink, family)
    if origin == SOCKET:
        exempt += of_users(uplink, family)
    hits = []
    for device in uplink.devices:
        chains = [*ground.at(family, "postrouting"), *ground.at(family, "egress", device)]
        packets = region.with_(out=(device,), **_from_this_machine(ground))
        if origin == FORWARD:
            packets = packets.with_(socket=only(0))
            packets = Region(packets.fields, packets.marks, packets.out, not_arrived=("lo", *uplink.devices))
            chains += ground.at(family, "forward")
        elif not _may_be_rerouted(ground, family):
            chains += ground.at(family, "output")
        hit = guard(ground, family, chains, packets, exempt)
        if hit is not None:
            hits.append(hit)
    return hits


def _may_be_rerouted(ground: Ground, family: int) -> bool:
    """Return True if a later reroute may change the output device that the output hook sees."""
    hooks = (chain.hook for _, chain in ground.ruleset.hooked(family, "output"))
    return any(hook is not None and hook.type in ("route", "nat") for hook in hooks)


def _other_ethertypes(ground: Ground, claim: Claim, uplink: UplinkClaim, region: Region) -> Finding:
    """Return the finding about frames that are neither IPv4 nor IPv6."""
    ethertypes = [ethertype for exemption in uplink.holes for ethertype in exemption.frames]
    exempt = [Region({"ethertype": only(*ethertypes)})] if ethertypes else []
    devices = (*uplink.devices, *uplink.ports)
    hits = integrity(ground, 0, uplink, "egress")
    for device in devices:
        hit = _frame_violation(ground, 0, device, region, exempt)
        if hit is not None:
            hits.append(hit)
    subject = f"frames of other ethertypes: frames without the mark that leave by {', '.join(uplink.devices)}"
    return judged(ground, "P1", uplink, subject, hits, FRAME, devices, (0,), claim.whole)


def _mark_entitlement(ground: Ground, uplink: UplinkClaim) -> Finding:
    """Return the finding about marked packets that no service, reply or resolver may send."""
    hits = []
    for family in BOTH:
        marked = Region(marks=(uplink.marked,), out=uplink.devices)
        hit = guard(ground, family, ground.at(family, "postrouting"), marked, list(worn(uplink, family)))
        if hit is not None:
            hits.append(hit)
    subject = f"sockets of no service: packets with the mark that leave by {', '.join(uplink.devices)}"
    examples, unsupported = search_marked(ground, uplink, hits, False)
    return finding("P1", uplink, subject, hits, examples, unsupported)


def unnamed_devices(ground: Ground, claim: Claim) -> Iterator[Finding]:
    """Yield the finding that no packet leaves by a device that the policy does not name."""
    named = (*(device for uplink in claim.uplinks for device in uplink.devices), "lo", *(claim.inside or ()))
    hits = []
    for family in BOTH:
        hit = guard(ground, family, ground.at(family, "postrouting"), Region(not_out=named))
        if hit is not None:
            hits.append(hit)
    subject = "packets that leave by a device that the policy does not name"
    examples, unsupported = seen(ground, hits, "leaves")
    yield finding("P1", None, subject, hits, examples, unsupported)
