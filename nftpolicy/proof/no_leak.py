# SPDX-License-Identifier: BSD-2-Clause
"""P1, no leak: a packet that leaves by an uplink was sent with its mark or matches an exemption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..model.packet import FORWARD, FRAME, SOCKET
from ..model.symbolic.box import Ranges, points
from ..netstate import nft
from .context import ProofContext
from .counterexample import search_mark_misuse, search_outcome
from .entitlement import entitled_regions, unmarked_user_regions
from .findings import finding, finding_by_search
from .lemmas import Violation, guard_violation, hook_bypasses, integrity_violations
from .spec import IP_FAMILIES, Region, Spec, UplinkSpec
from .verdict import Finding

_SENDERS = {SOCKET: "sockets", FORWARD: "forwarded packets", FRAME: "AF_PACKET sockets"}
_PACKET_HOST = 0  # include/uapi/linux/if_packet.h


def exempt_headers(uplink: UplinkSpec, family: int) -> list[Region]:
    """Return the headers of an uplink's exemptions in one family."""
    return [region for exemption in uplink.exemptions for region in exemption.headers.get(family, ())]


def check_no_leak(ground: ProofContext, claim: Spec, uplink: UplinkSpec) -> Iterator[Finding]:
    """Yield the findings of P1 for one uplink."""
    unmarked = Region(marks=(uplink.lacks_mark,))
    writes = {family: integrity_violations(ground, family, uplink) for family in IP_FAMILIES}
    # Postrouting alone proves all packets of the IP layer, if it accepts none of these.
    postrouting = {
        family: guard_violation(
            ground,
            family,
            ground.filter_chains(family, "postrouting"),
            unmarked.narrowed(oifname=uplink.devices),
            [*exempt_headers(uplink, family), *unmarked_user_regions(uplink, family)],
        )
        for family in IP_FAMILIES
    }
    bypasses = hook_bypasses(ground)
    marked_by_rule = [hit for family in IP_FAMILIES for hit in _marked_by_rule(ground, uplink, writes[family])]
    for origin, sender in _SENDERS.items():
        if origin == FRAME:
            hits = _frame_violations(ground, claim, uplink, unmarked)
            devices = (*uplink.devices, *uplink.ports)
        else:
            hits = [*bypasses, *marked_by_rule]
            for family in IP_FAMILIES:
                if postrouting[family] is not None:
                    hits += _ip_violations(ground, family, uplink, origin, unmarked)
            devices = uplink.devices
        subject = f"{sender}: packets without the mark that leave by {', '.join(uplink.devices)}"
        yield finding_by_search(ground, "P1", uplink, subject, hits, origin, devices)
    if claim.frames:
        yield _other_ethertypes(ground, claim, uplink, unmarked)
    if claim.has_policy:
        yield _mark_entitlement(ground, uplink)


def _marked_by_rule(ground: ProofContext, uplink: UplinkSpec, hits: Sequence[Violation]) -> list[Violation]:
    """Return violations of integrity, first the parts that the guard accepts as marked packets."""
    accepted = []
    for hit in hits:
        fields = _without_fields(hit.box, ("mark:", "ctmark:", "?"))
        fields = {name: ranges for name, ranges in fields.items() if name not in ("iif", "oif")}
        for device in uplink.devices:
            chains = [
                *ground.filter_chains(hit.family, "postrouting"),
                *ground.filter_chains(hit.family, "egress", device),
            ]
            past_guard = guard_violation(ground, hit.family, chains, Region(fields, (uplink.has_mark,), (device,)))
            if past_guard is not None:
                box = _without_fields(past_guard.box, ("mark:", "oif"))
                mark_before = {name: ranges for name, ranges in hit.box.items() if name.startswith("mark:")}
                accepted.append(Violation(hit.family, {**box, **mark_before}, hit.location, hit.unsupported))
    return [*accepted, *hits]


def _without_fields(box: Mapping[str, Ranges], prefixes: tuple[str, ...]) -> dict[str, Ranges]:
    return {name: ranges for name, ranges in box.items() if not name.startswith(prefixes)}


def _frame_violations(ground: ProofContext, claim: Spec, uplink: UplinkSpec, region: Region) -> list[Violation]:
    """Return the violations for IP frames of AF_PACKET sockets, which pass only the egress hook."""
    hits = [hit for family in IP_FAMILIES for hit in integrity_violations(ground, family, uplink, "egress")]
    if not claim.frames:
        return hits  # an assumption instead
    for family in IP_FAMILIES:
        exempt = exempt_headers(uplink, family)
        for device in (*uplink.devices, *uplink.ports):
            hit = _frame_violation(ground, family, device, region, exempt)
            if hit is not None:
                hits.append(hit)
    return hits


def _frame_violation(
    ground: ProofContext, family: int, device: str, region: Region, exempt: Sequence[Region]
) -> Violation | None:
    frames = region.narrowed(oifname=(device,), **_from_this_machine(ground))
    return guard_violation(ground, family, ground.filter_chains(family, "egress", device), frames, exempt)


def _from_this_machine(ground: ProofContext) -> dict[str, Ranges]:
    """Return the packet type of packets of this machine; empty if a rule writes packet types.

    A frame that a bridge forwards from another port does not have the type "host".
    """
    is_written = any(statement.key == nft.Meta("pkttype") for statement in ground.ruleset_scan.mangles)
    return {} if is_written else {"pkttype": points(_PACKET_HOST)}


def _ip_violations(
    ground: ProofContext, family: int, uplink: UplinkSpec, origin: str, region: Region
) -> list[Violation]:
    """Return packets of the IP layer that all hooks accept, if postrouting alone is not enough."""
    exempt = exempt_headers(uplink, family)
    if origin == SOCKET:
        exempt += unmarked_user_regions(uplink, family)
    hits = []
    for device in uplink.devices:
        chains = [*ground.filter_chains(family, "postrouting"), *ground.filter_chains(family, "egress", device)]
        packets = region.narrowed(oifname=(device,), **_from_this_machine(ground))
        if origin == FORWARD:
            packets = packets.narrowed(socket=points(0))
            packets = Region(packets.fields, packets.marks, packets.oifname, not_iifname=("lo", *uplink.devices))
            chains += ground.filter_chains(family, "forward")
        elif not _may_be_rerouted(ground, family):
            chains += ground.filter_chains(family, "output")
        hit = guard_violation(ground, family, chains, packets, exempt)
        if hit is not None:
            hits.append(hit)
    return hits


def _may_be_rerouted(ground: ProofContext, family: int) -> bool:
    """Return True if a later reroute may change the output device that the output hook sees."""
    hooks = (chain.hook for _, chain in ground.ruleset.base_chains(family, "output"))
    return any(hook is not None and hook.type in ("route", "nat") for hook in hooks)


def _other_ethertypes(ground: ProofContext, claim: Spec, uplink: UplinkSpec, region: Region) -> Finding:
    """Return the finding about frames that are neither IPv4 nor IPv6."""
    ethertypes = [ethertype for exemption in uplink.exemptions for ethertype in exemption.ethertypes]
    exempt = [Region({"ethertype": points(*ethertypes)})] if ethertypes else []
    devices = (*uplink.devices, *uplink.ports)
    hits = integrity_violations(ground, 0, uplink, "egress")
    for device in devices:
        hit = _frame_violation(ground, 0, device, region, exempt)
        if hit is not None:
            hits.append(hit)
    subject = f"frames of other ethertypes: frames without the mark that leave by {', '.join(uplink.devices)}"
    return finding_by_search(ground, "P1", uplink, subject, hits, FRAME, devices, (0,), claim.has_policy)


def _mark_entitlement(ground: ProofContext, uplink: UplinkSpec) -> Finding:
    """Return the finding about marked packets that no service, reply or resolver may send."""
    hits = []
    for family in IP_FAMILIES:
        marked = Region(marks=(uplink.has_mark,), oifname=uplink.devices)
        hit = guard_violation(
            ground, family, ground.filter_chains(family, "postrouting"), marked, list(entitled_regions(uplink, family))
        )
        if hit is not None:
            hits.append(hit)
    subject = f"sockets of no service: packets with the mark that leave by {', '.join(uplink.devices)}"
    examples, unsupported = search_mark_misuse(ground, uplink, hits, False)
    return finding("P1", uplink, subject, hits, examples, unsupported)


def check_unnamed_devices(ground: ProofContext, claim: Spec) -> Iterator[Finding]:
    """Yield the finding that no packet leaves by a device that the policy does not name."""
    named = (*(device for uplink in claim.uplinks for device in uplink.devices), "lo", *(claim.inside or ()))
    hits = []
    for family in IP_FAMILIES:
        hit = guard_violation(ground, family, ground.filter_chains(family, "postrouting"), Region(not_oifname=named))
        if hit is not None:
            hits.append(hit)
    subject = "packets that leave by a device that the policy does not name"
    examples, unsupported = search_outcome(ground, hits, "leaves")
    yield finding("P1", None, subject, hits, examples, unsupported)
