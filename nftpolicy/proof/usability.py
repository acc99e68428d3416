# SPDX-License-Identifier: BSD-2-Clause
"""P3, usable: a packet can use every policy entry. P4, parity: in IPv4 and IPv6 alike."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from attrs import evolve, frozen

from ..model.packet import FORWARD, Packet, address_range, evolve_packet
from ..model.symbolic.box import Ranges, subtract_ranges
from ..model.trace import Trace
from ..netstate.formats import ip_text
from ..netstate.nft import CounterRef, Rule
from ..netstate.routing import IpRule
from .assumptions import restrict_to_present
from .clat_cases import clat_notes
from .context import ProofContext
from .entitlement import is_of_tunnel
from .forward_cases import forward_notes
from .lan_cases import lan_notes
from .query_routes import has_no_route
from .reply_cases import reverse_path_filter
from .spec import IP_FAMILIES, Spec, UplinkSpec
from .usability_case import UsabilityCase, lacks_source
from .usability_cases import usability_cases
from .verdict import Counterexample, Finding, Proved, Refuted, Unknown, describe_packet

_LOST = ("unroutable", "dropped")  # outcomes
_ONLY_FORBIDDING = ("P1", "P2")  # properties that require no packet to arrive
_Title = tuple[str, str, str, tuple[str, ...]]  # property, uplink, policy entry, origin


@frozen
class _CaseResult:
    """Result of one case for `property`. `failure` is None if the case is met.

    `is_met` is None if the result depends on a construct that the model does not support. `note` says
    that a foreign rule drops the packet.
    """

    property: str
    is_met: bool | None
    failure: Counterexample | None = None
    note: str | None = None


def check_usability(context: ProofContext, spec: Spec) -> tuple[list[Finding], tuple[str, ...]]:
    """Return the findings of P3 and P4, and the cases that this machine cannot try now, as text.

    P3 traces one packet for each case of a policy entry; P4 compares the results of both families.
    """
    present, skipped = restrict_to_present(context.state, spec)
    results: dict[_Title, dict[int, list[_CaseResult]]] = {}
    uplinks = {uplink.name: uplink for uplink in spec.uplinks}
    listeners = {
        (family, *endpoint)
        for uplink in spec.uplinks
        if uplink.resolver is not None
        for family in IP_FAMILIES
        for endpoint in uplink.resolver.endpoints(family)
    }
    for case in usability_cases(context, present, spec.inside or ()):
        family = case.packet.family
        if family not in spec.families:
            continue
        if case.property == "P3" and _meets_this_machine(case, context.own_addresses(family), listeners):
            skipped[f"no other machine has an address of: {case.entry} (IPv{family})"] = None
            continue
        switched_off = _switched_off_device(context, case)
        if switched_off is not None:
            skipped[f"no IPv6 packet was tried by {switched_off}: IPv6 is switched off there (disable_ipv6)"] = None
            continue
        if lacks_source(context, present, case):
            skipped[f"{case.device} has no address now to send from, for: {case.entry} (IPv{family})"] = None
            continue
        result = _try(context, case, uplinks.get(case.uplink))
        if result.note is not None:
            skipped[result.note] = None
        failure = result.failure
        is_refused = failure is not None and _is_refused_arrival(context, failure.packet)
        if (
            failure is not None
            and not is_refused
            and context.state.devices
            and _has_no_route_now(failure.trace, uplinks.get(case.uplink))
        ):
            near = _try_neighbours(context, case, uplinks.get(case.uplink))
            suffix = " beyond the uplink's own network" if near is not None else ""
            skipped[f"no route exists now for: {case.entry}{suffix} (IPv{family})"] = None
            if near is None:
                continue
            result = near
        for name in (result.property, "P4"):
            by_family = results.setdefault((name, case.uplink, case.entry, case.origin), {})
            by_family.setdefault(family, []).append(result)
    skipped |= dict.fromkeys(
        (*forward_notes(context, present), *clat_notes(context, present), *lan_notes(context, present))
    )
    findings = [_usable(title, by_family) for title, by_family in results.items() if title[0] != "P4"]
    findings += [
        _parity(title, by_family) for title, by_family in results.items() if title[0] == "P4" and len(by_family) == 2
    ]
    return findings, tuple(skipped)


def _meets_this_machine(case: UsabilityCase, own: Ranges, listeners: Container[tuple[int, int, int]]) -> bool:
    """Return True if a packet that has to leave is to this machine, or one from outside to a resolver of it."""
    packet = case.packet
    if packet.origin == FORWARD:
        return (packet.family, packet.destination, packet.dport) in listeners
    return case.outcome == "leaves" and any(low <= packet.destination <= high for low, high in own)


def _is_refused_arrival(context: ProofContext, packet: Packet) -> bool:
    """Return True if a packet is for an address of this machine: without a route, its source is refused (rp_filter)."""
    is_arrival = packet.origin == FORWARD and packet.iif is not None
    return is_arrival and context.model.address_types.address_type(packet.family, packet.destination, None) == "local"


def _has_no_route_now(trace: Trace, uplink: UplinkSpec | None) -> bool:
    """Return True if a packet is unroutable since its own table has no route for it now.

    A packet that an ip rule keeps from the uplink's table stays unroutable when the network comes.
    """
    return has_no_route(trace) and starving_rule(trace, uplink) is None


def _try_neighbours(context: ProofContext, case: UsabilityCase, uplink: UplinkSpec | None) -> _CaseResult | None:
    """Return the result of the case with a host of a network that the uplink's table leads to, if it is met."""
    own = context.own_addresses(case.packet.family)
    for route in context.state.routes:
        is_connected = (route.kind, route.gateway, route.nexthops) == ("unicast", None, ())
        if uplink is None or (route.family, route.table) != (case.packet.family, uplink.table) or not is_connected:
            continue
        low, high = address_range(route.destination, route.family)
        hosts = subtract_ranges(((min(low + 1, high), max(low, high - 1)),), own)
        if hosts:
            result = _try(context, evolve(case, packet=evolve_packet(case.packet, destination=hosts[0][0])), uplink)
            if result.is_met:
                return result
    return None


def starving_rule(trace: Trace, uplink: UplinkSpec | None) -> IpRule | None:
    """Return the ip rule that decided for a packet before the uplink's table was looked up, or None.

    The packet has the uplink's mark or a user of its services without a mark, or is one of the kernel's
    tunnels; no other packet has to be looked up in that table.
    """
    packet = trace.packet
    if uplink is None:
        return None
    is_entitled = packet.mark & uplink.mask == uplink.value or packet.uid in uplink.unmarked_uids
    if not is_entitled and not is_of_tunnel(packet, uplink):
        return None
    rules = [step.subject for step in trace.steps if isinstance(step.subject, IpRule)]
    if any(rule.action == "lookup" and rule.table == uplink.table for rule in rules):
        return None
    return rules[-1] if rules else None


def _switched_off_device(context: ProofContext, case: UsabilityCase) -> str | None:
    """Return a device of the case on which IPv6 is switched off, None if there is none."""
    packet = case.packet
    if not context.model.switched_off:
        return None
    loopback = "lo" if case.outcome == "delivered" and packet.iif is None else None
    devices = (case.device, case.must_not_leave_by, packet.bound, packet.iif, loopback)
    return next((name for name in devices if name and context.model.is_switched_off(packet.family, name)), None)


def _try(context: ProofContext, case: UsabilityCase, uplink: UplinkSpec | None) -> _CaseResult:
    """Trace the packet of a case; first without a log, which suffices if the case is met."""
    packet, name = case.packet, case.property
    is_met = _is_met(context, case, context.model.trace(packet, record=False))
    if is_met:
        return _CaseResult(name, True)
    if is_met is None and case.may_be_undecided:
        undecided = f"rules that cannot be decided let these packets pass: {case.entry} (IPv{packet.family})"
        return _CaseResult(name, True, note=undecided)
    trace = context.model.trace(packet)
    if (
        case.may_be_firewalled
        and trace.unanimous
        and case.has_marks(trace)
        and _dropped_by_firewall(trace, case.uplink)
    ):
        path_filter = reverse_path_filter(trace)
        way_back = f"packets that arrive by {packet.iif} have another way back, and are dropped"
        note = f"{way_back}: {path_filter}" if path_filter else None
        return _CaseResult(name, True, note=note)
    possible = trace.possible_traces
    is_safe = possible is not None and not any(map(case.is_violated, possible))
    if is_safe and name in _ONLY_FORBIDDING and not (case.may_equal_unmarked and trace.unanimous):
        return _CaseResult(name, True)
    device = f" by {trace.device}" if trace.device else ""
    reason = f"{trace.outcome}{device}, mark {trace.mark:#x}"
    rule = starving_rule(trace, uplink)
    if rule is not None:
        reason += f", since ip rule {rule.priority} decides: {ip_text.display_text(rule)}"
    if trace.outcome == "unroutable" and _is_refused_arrival(context, packet):
        reason += f", since {packet.iif} refuses its source (rp_filter in ip-sysctl.rst)"
    failure = Counterexample(packet, trace, case.device or "", reason)
    # A packet that is lost violates no property but P3.
    violated = "P3" if is_safe else name
    # A trace that ends in several ways shows of no entry that it cannot be used.
    is_undecided = violated == "P3" and trace.outcome == "unknown"
    return _CaseResult(violated, None if is_undecided else is_met, failure)


def _is_met(context: ProofContext, case: UsabilityCase, trace: Trace) -> bool | None:
    """Return True if the case is met, False if it is not; None: unknown."""
    possible = trace.possible_traces
    if possible is None:
        return None
    answers = {_is_met_in_branch(context, case, branch) for branch in possible}
    return answers.pop() if len(answers) == 1 else None


def _is_met_in_branch(context: ProofContext, case: UsabilityCase, trace: Trace) -> bool:
    if not case.is_met(trace) and case.may_equal_unmarked and trace.outcome in _LOST:
        # The outcome may equal that of the same packet without its mark.
        unmarked = context.model.trace(evolve_packet(case.packet, mark=0), record=False)
        return unmarked.outcome == trace.outcome
    return case.is_met(trace)


def _dropped_by_firewall(trace: Trace, uplink: str) -> bool:
    """Return True if a foreign rule dropped the packet.

    Compiled rules count the packets that they drop, in a counter named after the uplink. From postrouting on, the
    guard may have dropped it.
    """
    if any(step.kind == "hook" and step.text.startswith("postrouting") for step in trace.steps):
        return False
    last_rules = [step.subject for step in trace.steps[-2:] if isinstance(step.subject, Rule)]
    counters = {
        statement.name for rule in last_rules for statement in rule.statements if isinstance(statement, CounterRef)
    }
    return trace.outcome == "dropped" and not any(name.startswith(f"{uplink}.") for name in counters)


def _usable(title: _Title, by_family: Mapping[int, list[_CaseResult]]) -> Finding:
    name, uplink, entry, origin = title
    results = [result for case_results in by_family.values() for result in case_results]
    refuting = _certain_failures(results)
    if refuting:
        return Finding(name, uplink, entry, Refuted(refuting[0], tuple(refuting[1:])), origin=origin)
    unknown = [result.failure for result in results if result.failure is not None]
    if unknown:
        reason = f"{describe_packet(unknown[0].packet)}: {unknown[0].reason}"
        return Finding(name, uplink, entry, Unknown(reason, _constructs(unknown)), origin=origin)
    return Finding(name, uplink, entry, Proved(), origin=origin)


def _certain_failures(results: Sequence[_CaseResult]) -> list[Counterexample]:
    return [result.failure for result in results if result.failure is not None and result.is_met is False]


def _constructs(failures: Sequence[Counterexample]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for failure in failures for text in failure.trace.unsupported))


def _parity(title: _Title, by_family: Mapping[int, list[_CaseResult]]) -> Finding:
    """Return the finding of P4: refuted by a packet of the family that can use the entry less."""
    _, uplink, entry, origin = title
    usable = {family: (_all(results), _any(results)) for family, results in by_family.items()}
    ipv4, ipv6 = usable[4], usable[6]
    for in_ipv4, in_ipv6 in zip(ipv4, ipv6, strict=True):
        if None in (in_ipv4, in_ipv6) or in_ipv4 == in_ipv6:
            continue
        failure = _certain_failures(by_family[6 if in_ipv4 else 4])[0]
        reason = f"IPv4 {_can(in_ipv4)} be used, IPv6 {_can(in_ipv6)}: {failure.reason}"
        return Finding("P4", uplink, entry, Refuted(evolve(failure, reason=reason)), origin=origin)
    if None in (*ipv4, *ipv6):
        families = " and ".join(f"IPv{family}" for family, answers in usable.items() if None in answers)
        unknown = [
            result.failure
            for results in by_family.values()
            for result in results
            if result.failure is not None and result.is_met is None
        ]
        reason = f"it is unknown if {families} can be used"
        return Finding("P4", uplink, entry, Unknown(reason, _constructs(unknown)), origin=origin)
    return Finding("P4", uplink, entry, Proved(), origin=origin)


def _all(results: Sequence[_CaseResult]) -> bool | None:
    """Return True if all cases are met, False if one is not; None: unknown."""
    answers = {result.is_met for result in results}
    return False if False in answers else None if None in answers else True


def _any(results: Sequence[_CaseResult]) -> bool | None:
    """Return True if a case is met, False if none is; None: unknown."""
    answers = {result.is_met for result in results}
    return True if True in answers else None if None in answers else False


def _can(is_usable: bool | None) -> str:
    return "can" if is_usable else "cannot"
