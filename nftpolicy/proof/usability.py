# SPDX-License-Identifier: BSD-2-Clause
"""P3, usable: a packet can use every policy entry. P4, parity: in IPv4 and IPv6 alike."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from ..model.packet import evolve_packet
from ..model.trace import Trace
from ..netstate.nft import CounterRef, Rule
from .assumptions import restrict_to_present
from .context import ProofContext
from .spec import Spec
from .usability_case import UsabilityCase
from .usability_cases import usability_cases
from .verdict import PROVED, REFUTED, UNKNOWN, Counterexample, Finding

_Title = tuple[str, str, str, tuple[str, ...]]  # property, uplink, policy entry, origin


@frozen
class _CaseResult:
    """Result of one case; `counterexample` is None if the case is met."""

    case: UsabilityCase
    counterexample: Counterexample | None

    @property
    def is_met(self) -> bool:
        return self.counterexample is None


def check_usability(context: ProofContext, spec: Spec) -> tuple[list[Finding], tuple[str, ...]]:
    """Return the findings of P3 and P4, and the cases that this machine cannot try now, as text.

    P3 traces one packet for each case of a policy entry; P4 compares the results of both families.
    """
    present, skipped = restrict_to_present(context.state, spec)
    results: dict[_Title, dict[int, list[_CaseResult]]] = {}
    for case in usability_cases(context, present):
        family = case.packet.family
        if family not in spec.families:
            continue
        result = _try(context, case)
        failure = result.counterexample
        if failure is not None and context.state.devices and failure.trace.outcome == "unroutable":
            skipped[f"no route exists now for: {case.entry} (IPv{family})"] = None
            continue
        by_family = results.setdefault((case.property, case.uplink, case.entry, case.origin), {})
        by_family.setdefault(family, []).append(result)
    findings = [_usable(title, by_family) for title, by_family in results.items()]
    findings += [_parity(title, by_family) for title, by_family in results.items() if len(by_family) == 2]
    return findings, tuple(skipped)


def _try(context: ProofContext, case: UsabilityCase) -> _CaseResult:
    """Trace the packet of a case; first without a log, which suffices if the case is met."""
    packet = case.packet
    trace = context.model.trace(packet, record=False)
    is_met = case.is_met(trace) and (trace.unanimous or trace.outcome in ("unroutable", "dropped"))
    if not is_met and case.may_equal_unmarked and trace.outcome in ("unroutable", "dropped"):
        # The outcome may equal that of the same packet without its mark.
        unmarked = context.model.trace(evolve_packet(packet, mark=0), record=False)
        is_met = unmarked.outcome == trace.outcome
    if is_met:
        return _CaseResult(case, None)
    trace = context.model.trace(packet)
    if (
        case.may_be_firewalled
        and trace.unanimous
        and case.has_marks(trace)
        and _dropped_by_firewall(trace, case.uplink)
    ):
        return _CaseResult(case, None)
    device = f" by {trace.device}" if trace.device else ""
    reason = f"{trace.outcome}{device}, mark {trace.mark:#x}"
    return _CaseResult(case, Counterexample(packet, trace, case.device or "", reason))


def _dropped_by_firewall(trace: Trace, uplink: str) -> bool:
    """Return True if a foreign rule dropped the packet.

    Compiled rules count the packets that they drop, in a counter named after the uplink.
    """
    last_rules = [step.subject for step in trace.steps[-2:] if isinstance(step.subject, Rule)]
    counters = {
        statement.name for rule in last_rules for statement in rule.statements if isinstance(statement, CounterRef)
    }
    return trace.outcome == "dropped" and not any(name.startswith(f"{uplink}.") for name in counters)


def _usable(title: _Title, by_family: Mapping[int, list[_CaseResult]]) -> Finding:
    name, uplink, entry, origin = title
    results = [result for case_results in by_family.values() for result in case_results]
    failures = tuple(result.counterexample for result in results if result.counterexample is not None)
    unsupported = tuple(text for failure in failures for text in failure.trace.unsupported)
    verdict = PROVED
    if failures:
        verdict = UNKNOWN if unsupported else REFUTED
    detail = failures[0].reason if failures else ""
    return Finding(name, uplink, entry, verdict, detail, failures, unsupported, origin=origin)


def _parity(title: _Title, by_family: Mapping[int, list[_CaseResult]]) -> Finding:
    _, uplink, entry, origin = title
    ipv4, ipv6 = ([result.is_met for result in by_family[family]] for family in (4, 6))
    equal = all(ipv4) == all(ipv6) and any(ipv4) == any(ipv6)
    detail = ""
    if not equal:
        detail = f"IPv4 {_can(ipv4)} be used, IPv6 {_can(ipv6)}"
    return Finding("P4", uplink, entry, PROVED if equal else REFUTED, detail, origin=origin)


def _can(results: list[bool]) -> str:
    return "can" if all(results) else "cannot"
