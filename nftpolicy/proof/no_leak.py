# SPDX-License-Identifier: BSD-2-Clause
"""P1, no leak: a packet that leaves by an uplink was sent with its mark or matches an exemption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve

from ..model.packet import ETHERTYPES, FORWARD, FRAME, SOCKET
from ..model.symbolic import field_values
from ..model.symbolic.box import Ranges, complement, intersect_boxes, points
from ..netstate import nft
from .bypass import leak_violations
from .context import ProofContext
from .counterexample import search_mark_misuse, search_outcome
from .entitlement import entitled_regions, unmarked_user_regions
from .findings import finding, finding_by_search
from .inherited_marks import accepted_socket_violations, harmless_chains
from .lemmas import Violation, guard_violation, hook_bypasses, integrity_violations
from .source_addresses import check_source_addresses
from .spec import ARRIVAL, IP_FAMILIES, Region, Spec, UplinkSpec
from .verdict import Finding

_SENDERS = {SOCKET: "sockets", FORWARD: "forwarded packets", FRAME: "AF_PACKET sockets"}
_ARPHRD_ETHER = 1  # include/uapi/linux/if_arp.h
_PACKET_HOST = 0  # include/uapi/linux/if_packet.h


def exempt_headers(uplink: UplinkSpec, family: int) -> list[Region]:
    """Return the headers of an uplink's exemptions in one family."""
    headers = [region for exemption in uplink.exemptions for region in exemption.headers.get(family, ())]
    return [evolve(region, not_oifname=(*region.not_oifname, *uplink.clat_devices)) for region in headers]


def check_no_leak(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Iterator[Finding]:
    """Yield the findings of P1 for one uplink."""
    unmarked = Region(marks=(uplink.lacks_mark,))
    writes = {
        family: integrity_violations(context, family, uplink, skipped=harmless_chains(context, spec, family, uplink))
        for family in IP_FAMILIES
    }
    # Postrouting alone proves all packets of the IP layer, if it accepts none of these.
    postrouting = {
        family: guard_violation(
            context,
            family,
            context.filter_chains(family, "postrouting"),
            unmarked.narrowed(oifname=uplink.devices),
            [*exempt_headers(uplink, family), *unmarked_user_regions(uplink, family)],
        )
        for family in IP_FAMILIES
    }
    beside = leak_violations(context, spec, uplink)
    bypasses = [*hook_bypasses(context), *beside]
    marked_by_rule = [
        violation for family in IP_FAMILIES for violation in _marked_by_rule(context, uplink, writes[family])
    ]
    for origin, sender in _SENDERS.items():
        if origin == FRAME:
            violations = [*beside, *_frame_violations(context, spec, uplink, unmarked)]
            devices = spec.frame_devices(uplink)
        else:
            violations = [*bypasses, *marked_by_rule]
            if origin == SOCKET:
                violations += accepted_socket_violations(context, spec, uplink)
            for family in IP_FAMILIES:
                if postrouting[family] is not None:
                    violations += _ip_violations(context, family, uplink, origin, unmarked)
            devices = uplink.devices
        subject = f"{sender}: packets without the mark that leave by {', '.join(uplink.devices)}"
        families = tuple(dict.fromkeys((*IP_FAMILIES, *(violation.family for violation in violations))))
        yield finding_by_search(context, "P1", uplink, subject, violations, origin, devices, families)
    if spec.frames:
        yield _other_ethertypes(context, spec, uplink, unmarked)
    if spec.has_policy:
        yield _mark_entitlement(context, uplink)
        yield check_source_addresses(context, uplink)


def _marked_by_rule(context: ProofContext, uplink: UplinkSpec, violations: Sequence[Violation]) -> list[Violation]:
    """Return violations of integrity, first the parts that the guard accepts as marked packets."""
    accepted = []
    for violation in violations:
        fields = _without_fields(violation.box, ("mark:", "ctmark:", "?"))
        fields = {name: ranges for name, ranges in fields.items() if name not in ("iif", "oif")}
        for device in uplink.devices:
            chains = [
                *context.filter_chains(violation.family, "postrouting"),
                *context.filter_chains(violation.family, "egress", device),
            ]
            past_guard = guard_violation(
                context, violation.family, chains, Region(fields, (uplink.has_mark,), (device,))
            )
            if past_guard is not None:
                box = _without_fields(past_guard.box, ("mark:", "oif"))
                mark_before = {name: ranges for name, ranges in violation.box.items() if name.startswith("mark:")}
                accepted.append(
                    Violation(violation.family, {**box, **mark_before}, violation.location, violation.unsupported)
                )
    return [*accepted, *violations]


def _without_fields(box: Mapping[str, Ranges], prefixes: tuple[str, ...]) -> dict[str, Ranges]:
    return {name: ranges for name, ranges in box.items() if not name.startswith(prefixes)}


def _frame_violations(context: ProofContext, spec: Spec, uplink: UplinkSpec, region: Region) -> list[Violation]:
    """Return the violations for IP frames of AF_PACKET sockets, which pass only the egress hook."""
    violations = [
        violation for family in IP_FAMILIES for violation in integrity_violations(context, family, uplink, "egress")
    ]
    for written in integrity_violations(context, 0, uplink, "egress"):  # IP frames of a sender that says another one
        box = intersect_boxes(written.box, {"ether.type": points(*ETHERTYPES.values())})
        violations += [] if box is None else [evolve(written, box=box)]
    if not spec.frames:
        return violations  # an assumption instead
    for family in IP_FAMILIES:
        exempt_packets = _ip_frames(exempt_headers(uplink, family), family)
        for device in spec.frame_devices(uplink):
            exempt = [*exempt_packets, *_other_frames(uplink, device)]
            violation = _frame_violation(context, uplink, family, device, region, exempt)
            if violation is not None:
                violations.append(violation)
    # Frames that are IP packets, of a sender that says another ethertype.
    claimed = region.narrowed(oiftype=points(_ARPHRD_ETHER), ether_type=points(*ETHERTYPES.values()))
    for device in spec.frame_devices(uplink):
        violation = _frame_violation(context, uplink, 0, device, claimed, ())
        if violation is not None:
            violations.append(violation)
    return violations


def _frame_violation(
    context: ProofContext, uplink: UplinkSpec, family: int, device: str, region: Region, exempt: Sequence[Region]
) -> Violation | None:
    """Return the violation for frames by one device, in the end of all devices that its frames come from.

    A frame that another device of this machine receives on the way, such as the end of a veth in the
    uplink's bridge, does not have the packet type of a packet of this machine any more.
    """
    region = region.narrowed(oifname=(device,), **_link_type(context, device))
    own = region.narrowed(oifname=(device,), **_from_this_machine(context))
    violation = _egress_violation(context, family, device, own, exempt)
    senders = context.device_paths.received_on_the_way((*uplink.devices, *uplink.ports))
    if violation is not None or not senders:
        return violation
    violation = _egress_violation(context, family, device, region, exempt)
    return violation and evolve(
        violation, location=f"frames of {', '.join(senders)} arrive at this machine again and leave by {device}"
    )


def _egress_violation(
    context: ProofContext, family: int, device: str, frames: Region, exempt: Sequence[Region]
) -> Violation | None:
    chains = context.filter_chains(family, "egress", device)
    violation = guard_violation(context, family, chains, frames, exempt)
    if violation is None or not family:
        return violation
    # A whole IP packet says more than a frame that its sender calls one.
    packets = frames.narrowed(oiftype=points(_ARPHRD_ETHER), ether_type=points(ETHERTYPES[family]))
    return guard_violation(context, family, chains, packets, exempt) or violation


def _ip_frames(headers: Sequence[Region], family: int) -> list[Region]:
    """Return the frames that are packets with these headers, whatever the ethertype that their sender says.

    A device without link header has no ethertype but that one. At a device's own hook, no frame has an input device.
    """
    headers = [
        evolve(region, fields={name: ranges for name, ranges in region.fields.items() if name != ARRIVAL})
        for region in headers
    ]
    own_type = points(ETHERTYPES[family])
    bare_devices = complement(points(_ARPHRD_ETHER), field_values.MAX_VALUES["oiftype"])
    return [
        frames
        for region in headers
        for frames in (region.narrowed(ether_type=own_type), region.narrowed(oiftype=bare_devices))
    ]


def _other_frames(uplink: UplinkSpec, device: str) -> list[Region]:
    """Return the frames of an uplink's exemptions that are no IP packets, and those of a bridge itself by its ports."""
    if device in uplink.clat_devices:
        return []
    exempt = [region for exemption in uplink.exemptions for region in exemption.frames]
    return [*exempt, *uplink.bpdus] if device in uplink.ports else exempt


def _from_this_machine(context: ProofContext) -> dict[str, Ranges]:
    """Return the packet type of packets of this machine; empty if a rule writes packet types.

    A frame that a bridge forwards from another port does not have the type "host".
    """
    is_written = any(statement.key == nft.Meta("pkttype") for statement in context.ruleset_scan.mangles)
    return {} if is_written else {"pkttype": points(_PACKET_HOST)}


def _link_type(context: ProofContext, device: str) -> dict[str, Ranges]:
    """Return the hardware type of a device; empty if it is not known."""
    known = context.model.link_types.get(device)
    return {} if known is None else {"oiftype": points(known)}


def _ip_violations(
    context: ProofContext, family: int, uplink: UplinkSpec, origin: str, region: Region
) -> list[Violation]:
    """Return packets of the IP layer that all hooks accept, if postrouting alone is not enough."""
    exempt = exempt_headers(uplink, family)
    if origin == SOCKET:
        exempt += unmarked_user_regions(uplink, family)
    violations = []
    for device in uplink.devices:
        chains = [*context.filter_chains(family, "postrouting"), *context.filter_chains(family, "egress", device)]
        packets = region.narrowed(oifname=(device,))
        if origin == FORWARD:  # of any type: a multicast router keeps the type of the arrival (ip_mr_forward)
            packets = packets.narrowed(socket=points(0))
            packets = Region(packets.fields, packets.marks, packets.oifname, not_iifname=("lo", *uplink.devices))
            chains += context.filter_chains(family, "forward")
        else:
            packets = region.narrowed(oifname=(device,), **_from_this_machine(context))
        if origin != FORWARD and not _may_be_rerouted(context, family):
            chains += context.filter_chains(family, "output")
        violation = guard_violation(context, family, chains, packets, exempt)
        if violation is not None:
            violations.append(violation)
    return violations


def _may_be_rerouted(context: ProofContext, family: int) -> bool:
    """Return True if a later reroute may change the output device that the output hook sees."""
    hooks = (chain.hook for _, chain in context.ruleset.base_chains(family, "output"))
    return any(hook is not None and hook.type in ("route", "nat") for hook in hooks)


def _other_ethertypes(context: ProofContext, spec: Spec, uplink: UplinkSpec, region: Region) -> Finding:
    """Return the finding about frames that are neither IPv4 nor IPv6."""
    devices = spec.frame_devices(uplink)
    violations = integrity_violations(context, 0, uplink, "egress")
    for device in devices:
        violation = _frame_violation(context, uplink, 0, device, region, _other_frames(uplink, device))
        if violation is not None:
            violations.append(violation)
    subject = f"frames of other ethertypes: frames without the mark that leave by {', '.join(uplink.devices)}"
    return finding_by_search(context, "P1", uplink, subject, violations, FRAME, devices, (0,), spec.has_policy)


def _mark_entitlement(context: ProofContext, uplink: UplinkSpec) -> Finding:
    """Return the finding about marked packets that no service, reply or resolver may send."""
    violations = []
    for family in IP_FAMILIES:
        marked = Region(marks=(uplink.has_mark,), oifname=uplink.devices)
        violation = guard_violation(
            context,
            family,
            context.filter_chains(family, "postrouting"),
            marked,
            list(entitled_regions(uplink, family)),
        )
        if violation is not None:
            violations.append(violation)
    subject = f"sockets of no service: packets with the mark that leave by {', '.join(uplink.devices)}"
    examples, unsupported = search_mark_misuse(context, uplink, violations, False)
    return finding(context, "P1", uplink, subject, violations, examples, unsupported)


def check_unnamed_devices(context: ProofContext, spec: Spec) -> Iterator[Finding]:
    """Yield the finding that no packet leaves by a device that the policy does not name."""
    named = (*(device for uplink in spec.uplinks for device in uplink.devices), "lo", *(spec.inside or ()))
    violations = []
    for family in IP_FAMILIES:
        violation = guard_violation(
            context, family, context.filter_chains(family, "postrouting"), Region(not_oifname=named)
        )
        if violation is not None:
            violations.append(violation)
    subject = "packets that leave by a device that the policy does not name"
    examples, unsupported = search_outcome(context, violations, "leaves")
    yield finding(context, "P1", None, subject, violations, examples, unsupported)
