# SPDX-License-Identifier: BSD-2-Clause
"""Search for a step order in which every state from the old to the new policy is proved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import evolve

from ...compiler import object_names
from ...compiler.compile import HostFacts
from ...kernel.interface import Kernel
from ...netstate.nft import Table
from ...netstate.state import NetState
from ...netstate.transition import StepRejected
from ...planner.plan import Plan, candidate_plans, plan_via_block
from ...policy.objects import Policy
from ...proof.policy_spec import build_spec
from ...proof.prover import prove
from ...proof.spec import Spec
from ...proof.transition_proof import NamedSpec, ProvedState, prove_states
from ...proof.verdict import PROVED, REFUTED, UNKNOWN, Proof
from .errors import NoSafeOrder
from .executor import PlannedChange
from .proved_order import ProvedOrder


def prove_desired(planned: PlannedChange, policy: Policy, kernel: Kernel) -> Proof:
    """Prove that the desired state leaks nothing.

    Usability (P3, P4) is not checked here; 'nftpolicy check' does.
    """
    spec = evolve(spec_on_host(policy, planned.host), families=kernel.ip_families())
    return prove(planned.desired, spec, usability=False)


def spec_on_host(policy: Policy, host: HostFacts) -> Spec:
    """Return the spec of a policy on a host; frames are part of it only where a chain can be hooked."""
    return evolve(
        build_spec(policy, host.bridge_ports),
        frames=host.has_egress_hook,
        absent_devices=host.unhookable_devices,
        loopback_families=host.loopback_families,
    )


def find_safe_order(
    kernel: Kernel,
    planned: PlannedChange,
    before: Iterable[Policy],
    after: Policy | None,
    block: tuple[Table, ...] = (),
    ignore_foreign: bool = False,
) -> ProvedOrder:
    """Return the first step order in which every state is proved. Changes nothing.

    `before`: the policies that may be in force, the likeliest first. The spec of the first policy
    with its guard in the kernel must hold up to the switch, the spec of `after` from then on.
    `block`: tables that block the uplinks during the change. `ignore_foreign`: accept orders that are
    refuted only together with foreign rulesets.

    Raises:
        NoSafeOrder: every order has a state that is not proved, or is refuted with a foreign
        ruleset.
    """
    proved: list[ProvedState] = []  # most orders have their first and last states in common
    spec_before = _spec_in_force(planned, before, proved)
    spec_after = None
    if after is not None:
        spec_after = _spec(planned, after, f"{after.name}, as it will be")
    everything = kernel.read_all()
    rejected = []
    for plan in _plans(planned, block):
        order = _prove_order(plan, planned.observed, everything, spec_before, spec_after, proved)
        if _is_safe(order, ignore_foreign):
            return order
        rejected.append(order)
    raise NoSafeOrder(rejected)


def _plans(planned: PlannedChange, block: tuple[Table, ...]) -> Iterator[Plan]:
    if block:
        yield plan_via_block(planned.observed, planned.desired, block)
    else:
        yield from candidate_plans(planned.observed, planned.desired)


def _is_safe(order: ProvedOrder, ignore_foreign: bool) -> bool:
    if order.verdict != PROVED:
        return False
    return ignore_foreign or order.full_verdict != REFUTED


def _spec(planned: PlannedChange, policy: Policy, name: str) -> NamedSpec:
    return NamedSpec(name, spec_on_host(policy, planned.host))


def _spec_in_force(planned: PlannedChange, policies: Iterable[Policy], proved: list[ProvedState]) -> NamedSpec | None:
    """Return the spec of the first policy that the observed state is proved to satisfy."""
    for policy in policies:
        spec = _spec(planned, policy, f"{policy.name}, as it is")
        (state,) = prove_states([planned.observed], [spec], proved)
        if state.verdict == PROVED:
            return spec
    return None


def _prove_order(
    plan: Plan,
    observed: NetState,
    everything: NetState,
    spec_before: NamedSpec | None,
    spec_after: NamedSpec | None,
    proved: list[ProvedState],
) -> ProvedOrder:
    specs = [spec_before if number < plan.switch else spec_after for number in range(len(plan.steps) + 1)]
    own = prove_states(plan.states(observed), specs, proved)
    try:
        whole = plan.states(_with_own(everything, observed))
    except StepRejected:
        # A foreign object conflicts with a step; the kernel will refuse that step.
        return ProvedOrder(plan, own, ())
    if spec_before is not None:
        (first,) = prove_states(whole[:1], [spec_before], proved)
        if first.verdict == REFUTED:
            # A foreign ruleset violates it already, so until the switch only our own objects count.
            specs = [spec if spec is not spec_before else None for spec in specs]
    return ProvedOrder(plan, own, prove_states(whole, specs, proved))


def _with_own(everything: NetState, observed: NetState) -> NetState:
    """Return `everything` with our own objects as in `observed`, without the auxiliary tables."""
    own_keys = {table.key for table in observed.tables}
    own_paths = {sysctl.path for sysctl in observed.sysctls}
    foreign = (
        table
        for table in everything.tables
        if table.key not in own_keys and table.name not in object_names.AUXILIARY_TABLES
    )
    sysctls = (sysctl for sysctl in everything.sysctls if sysctl.path not in own_paths)
    return evolve(
        everything,
        tables=(*foreign, *observed.tables),
        sysctls=(*sysctls, *observed.sysctls),
    )


def foreign_findings(order: ProvedOrder) -> Iterator[str]:
    """Yield a line for each finding that foreign rulesets cause, where ours alone is proved."""
    if order.verdict != PROVED:
        return
    lines: dict[str, None] = {}
    for state in order.full_proofs[-1:] if order.full_verdict == UNKNOWN else order.full_proofs:
        for finding in state.failures():
            reason = "; ".join(finding.unsupported) or finding.detail
            subject = f"{finding.property} {finding.uplink}: {finding.verdict}: {finding.subject}"
            lines[f"{subject}: {reason}"] = None
    yield from lines
