# SPDX-License-Identifier: BSD-2-Clause
"""Counterexample search: from the violation of a lemma to a packet, each traced before its report.

Candidates take the required headers and sockets from the violation, and the path to the uplink
from the ip rules and routes. A candidate counts only if its trace leaves the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import evolve

from ..model.fib.source_address import is_multicast6
from ..model.packet import ETHERTYPES, EXTENSION_HEADERS, FORWARD, FRAME, KERNEL, SOCKET, Packet
from ..model.symbolic import field_values
from ..model.symbolic.header_space import HeaderSpace
from ..model.trace import Trace
from ..netstate.nft.symbols import CT_DIRECTIONS
from ..netstate.routing import IpRule
from .assumptions import device_matches
from .bypass import interfering_rules
from .candidates import candidate_packets
from .concretize import choose, concretize, with_usual_source
from .context import ProofContext
from .entitlement import tunnel_regions, unmarked_user_regions
from .lemmas import Violation
from .spec import ARRIVAL, UplinkSpec
from .verdict import Counterexample

_MAX_EXAMPLES = 4
_ABSENT = -1  # in no range


def is_entitled(packet: Packet, uplink: UplinkSpec) -> bool:
    """Return True if the packet has the uplink's mark at the start.

    Also if it arrived by the uplink, or its flow has the mark.
    """
    if packet.flow.mark & uplink.mask == uplink.value:
        return True
    if packet.origin == FORWARD:
        return packet.iif in uplink.devices
    return packet.mark & uplink.mask == uplink.value


def is_exempt(trace: Trace, uplink: UplinkSpec) -> bool:
    """Return True if the packet that leaves matches an exemption, a forward or a tunnel, or its user needs no mark."""
    packet = trace.packet
    if packet.origin == FRAME:
        link_header = {"ether.type": packet.frame_type, "llc": packet.fields.get(("llc", "header"), _ABSENT)}
        if any(region.holds(link_header) for exemption in uplink.exemptions for region in exemption.frames):
            return True
        if packet.frame_type != ETHERTYPES[packet.family] or packet.ethertype not in (None, packet.frame_type):
            return False
    fields = {
        "protocol": packet.protocol,
        "fragment": int(bool(packet.fields.get(("ip", "frag-off"), 0))),
        "saddr": trace.source or 0,
        "daddr": trace.destination,
        "sport": packet.sport,
        "dport": trace.dport,
        "ttl": packet.fields.get(("ip", "ttl") if packet.family == 4 else ("ip6", "hoplimit"), 64),
        "icmp.type": packet.fields.get(("icmp", "type"), 8),
        "icmpv6.type": packet.fields.get(("icmpv6", "type"), 128),
        "icmpv6.code": packet.fields.get(("icmpv6", "code"), 0),
        "igmp.type": packet.fields.get(("igmp", "type"), _ABSENT),
        "socket": int(packet.has_socket),
        "ct.direction": CT_DIRECTIONS[packet.flow.direction],
        "uid": packet.uid,
        "gid": packet.gid,
        ARRIVAL: int(packet.iif is not None),
    }
    regions = [region for exemption in uplink.exemptions for region in exemption.headers.get(packet.family, ())]
    # Without those that require a flow's mark: see `entitled`.
    regions += [
        region
        for region in unmarked_user_regions(uplink, packet.family)
        if packet.origin == SOCKET and not region.marks
    ]
    if packet.origin != FRAME:
        regions += tunnel_regions(uplink, packet.family)
    if packet.origin == FORWARD and packet.iif is not None and packet.flow.direction == "original":
        regions += [
            region
            for forward in uplink.forwards
            if any(device_matches(pattern, packet.iif) for pattern in forward.devices)
            for region in forward.leaving.get(packet.family, ())
        ]
    return any(region.holds(fields) for region in regions)


def search_leaks(
    context: ProofContext,
    uplink: UplinkSpec,
    origin: str,
    families: Iterable[int],
    devices: Iterable[str],
    violations: Sequence[Violation],
    most: int = _MAX_EXAMPLES,
) -> tuple[list[Counterexample], list[str]]:
    """Return packets that leave by the uplink and must not, one for each leak path.

    The second result are the unsupported constructs in traces of packets that may leave.
    """
    examples: dict[object, Counterexample] = {}
    unsupported: list[str] = []
    for family in families:
        for device in devices:
            for packet in candidate_packets(context, uplink, origin, family, device, violations):
                if packet.origin != origin or is_entitled(packet, uplink):
                    continue
                trace = trace_candidate(context, packet)
                if trace.outcome == "unknown" and trace.device in (device, None):
                    unsupported += trace.unsupported
                if trace.outcome != "leaves" or trace.device != device or is_exempt(trace, uplink):
                    continue
                reason, path = _leak_path(trace, packet)
                examples.setdefault((family, path), Counterexample(packet, trace, device, reason))
                if len(examples) >= most:
                    return list(examples.values()), unsupported
    return list(examples.values()), list(dict.fromkeys(unsupported))


def trace_candidate(context: ProofContext, packet: Packet) -> Trace:
    """Return the trace of a packet.

    It is unknown if there is no such packet, and if a rule outside nftables may stop it or lead it elsewhere.
    """
    trace = context.model.trace(packet)
    if trace.outcome not in ("leaves", "delivered"):
        return trace
    reasons = interfering_rules(context.state, packet, trace)
    if packet.origin == SOCKET and (packet.source == 0 or (packet.family == 6 and is_multicast6(packet.source or 0))):
        reasons.append("sockets that send from no address, or from that of a group")  # bind(2) does not set it
    if packet.family == 6 and packet.protocol in EXTENSION_HEADERS:
        reasons.append(f"IPv6 packets whose protocol is the extension header {packet.protocol}")
    return evolve(trace, outcome="unknown", unsupported=(*trace.unsupported, *reasons)) if reasons else trace


def _leak_path(trace: Trace, packet: Packet) -> tuple[str, object]:
    """Return the cause of a leak as text, and a key that distinguishes leak paths."""
    mark_steps = [step for step in trace.steps if step.effect.startswith("mark")]
    rule_steps = [step for step in trace.steps if step.kind == "ip-rule" and isinstance(step.subject, IpRule)]
    if packet.origin == FRAME:
        return "AF_PACKET frames pass only the netdev egress hook", FRAME
    if mark_steps:
        return f"marked by a rule: {mark_steps[-1].text}", ("marked", mark_steps[-1].text)
    if packet.bound:
        return f"the socket is bound to {packet.bound}", "bound"
    if rule_steps:
        return f"routed: {rule_steps[-1].text}", rule_steps[-1].text
    return "routed", "routed"


def search_mark_misuse(
    context: ProofContext, uplink: UplinkSpec, violations: Sequence[Violation], stray: bool
) -> tuple[list[Counterexample], list[str]]:
    """Return packets with the mark that leave by another device (`stray`), or without a service."""
    examples: list[Counterexample] = []
    unsupported: list[str] = []
    for violation in violations:
        space = context.space(violation.family)
        for device in _output_devices(context, space, violation, uplink, stray):
            packets = (concretize(space, violation.box, origin, device) for origin in local_origins(violation))
            for packet in (evolve(start, iif=None) for each in packets for start in with_usual_source(each)):
                trace = trace_candidate(context, packet)
                if trace.outcome == "unknown":
                    unsupported += trace.unsupported
                elif trace.outcome == "leaves" and trace.device == device and trace.mark & uplink.mask == uplink.value:
                    reason = "it carries the mark"
                    if stray:
                        reason += f" and is routed or bound to {device}"
                    examples.append(Counterexample(packet, trace, device, reason))
                    break
    return examples[:_MAX_EXAMPLES], list(dict.fromkeys(unsupported))


def search_outcome(
    context: ProofContext, violations: Sequence[Violation], outcome: str
) -> tuple[list[Counterexample], list[str]]:
    """Return packets of the violation regions that have an outcome, whatever their marks.

    `outcome` is "leaves", by the device of the region (for lo: "delivered" there), or "delivered".
    """
    examples: list[Counterexample] = []
    unsupported: list[str] = []
    for violation in violations:
        space = context.space(violation.family)
        out_ranges, in_ranges = violation.box.get("oif"), violation.box.get("iif")
        out_devices = [field_values.representative_name(space.devices[low]) for low, _ in out_ranges or () if low]
        arrival = choose(in_ranges, 0) if in_ranges else 0
        local_origin = KERNEL if choose(violation.box.get("socket"), 1) == 0 else SOCKET
        origin = FORWARD if arrival else local_origin
        devices: Sequence[str | None] = out_devices[:2] or [None]
        for device in devices:
            bound = None if device == "lo" else device
            for packet in with_usual_source(concretize(space, violation.box, origin, bound)):
                trace = trace_candidate(context, packet)
                if trace.outcome == "unknown":
                    unsupported += trace.unsupported
                elif trace.outcome == outcome and device in (None, trace.device, "lo"):
                    reason = "it is delivered" if outcome == "delivered" else f"it leaves by {trace.device}"
                    examples.append(Counterexample(packet, trace, trace.device or "", reason))
    return examples[:_MAX_EXAMPLES], list(dict.fromkeys(unsupported))


def local_origins(violation: Violation) -> list[str]:
    """Return the local origins that packets of a violation may have."""
    sockets = violation.box.get("socket", ((0, 1),))
    return [
        origin for origin, value in ((SOCKET, 1), (KERNEL, 0)) if any(low <= value <= high for low, high in sockets)
    ]


def _output_devices(
    context: ProofContext, space: HeaderSpace, violation: Violation, uplink: UplinkSpec, stray: bool
) -> list[str]:
    """Return up to two devices by which packets of a violation leave."""
    out_ranges = violation.box.get("oif")
    if out_ranges is None:
        patterns = list(space.devices[1:])
    else:
        indexes = [index for low, high in out_ranges for index in range(low, high + 1)]
        patterns = [space.devices[index] for index in indexes if index]
    names = [field_values.representative_name(pattern) for pattern in patterns]
    if not stray:
        return [name for name in names if name in uplink.devices][:2]
    routed = {route.device for route in context.state.routes}
    elsewhere = [name for name in names if name not in ("lo", *uplink.devices)]
    return ([name for name in elsewhere if name in routed] or elsewhere)[:2]
