# SPDX-License-Identifier: BSD-2-Clause
"""Search for a step order in which every state from the old to the new policy is proved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import evolve, frozen

from ...compiler import names
from ...kernel.interface import Kernel
from ...netstate.carried import Impossible
from ...netstate.nft import Table
from ...netstate.state import NetState
from ...planner.plan import Plan, blocked, orders
from ...policy.objects import Policy
from ...proof.promise import claim
from ...proof.prover import prove
from ...proof.stages import Promise, Stage, stages, verdict
from ...proof.verdict import PROVED, REFUTED, UNKNOWN, Proof
from .apply import Prospect
from .unproved import NotSafe


@frozen
class Way:
    """A plan with the proofs of its states.

    `own_proofs`: proofs of nftpolicy's objects alone; `full_proofs`: of the same states together
    with the foreign tables, rules and routes, empty if these states could not be computed.
    """

    plan: Plan
    own: tuple[Stage, ...]
    whole: tuple[Stage, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict over nftpolicy's own objects."""
        return verdict(self.own)

    @property
    def with_others(self) -> str:
        """The worst verdict over the whole kernel state.

        If `verdict` is proved, a refutation or an unknown comes from a foreign ruleset.
        """
        return verdict(self.whole)


def prove_desired(planned: Prospect, policy: Policy, families: tuple[int, ...]) -> Proof:
    """Prove that the desired state leaks nothing.

    Usability (P3, P4) is not checked here; 'nftpolicy check' does.
    """
    spec = evolve(claim(policy, planned.ports), frames=not planned.unhooked, families=families)
    return prove(planned.desired, spec, use=False)


def find(
    kernel: Kernel,
    planned: Prospect,
    before: Iterable[Policy],
    after: Policy | None,
    block: tuple[Table, ...] = (),
    despite_others: bool = False,
) -> Way:
    """Return the first step order in which every state is proved. Changes nothing.

    `before`: the policies that may be in force, the likeliest first. The spec of the first policy
    with its guard in the kernel must hold up to the switch, the spec of `after` from then on.
    `block`: tables that block the uplinks during the change. `ignore_foreign`: accept orders that are
    refuted only together with foreign rulesets.

    Raises:
        NoSafeOrder: every order has a state that is not proved, or is refuted with a foreign
        ruleset.
    """
    spec_before = _spec_in_force(planned, before)
    spec_after = None
    if after is not None:
        spec_after = _spec(planned, after, f"{after.name}, as it will be")
    everything = kernel.everything()
    rejected = []
    for plan in _plans(planned, block):
        order = _prove_order(plan, planned.observed, everything, spec_before, spec_after)
        if _is_safe(order, despite_others):
            return order
        rejected.append(order)
    raise NotSafe(rejected)


def _plans(planned: Prospect, block: tuple[Table, ...]) -> Iterator[Plan]:
    if block:
        yield blocked(planned.observed, planned.desired, block)
    else:
        yield from orders(planned.observed, planned.desired)


def _is_safe(order: Way, ignore_foreign: bool) -> bool:
    if order.verdict != PROVED:
        return False
    return ignore_foreign or order.with_others != REFUTED


def _spec(planned: Prospect, policy: Policy, name: str) -> Promise:
    """Return the spec of a policy; frames are part of it only if every device can be hooked."""
    return Promise(name, evolve(claim(policy, planned.ports), frames=not planned.unhooked))


def _spec_in_force(planned: Prospect, policies: Iterable[Policy]) -> Promise | None:
    """Return the spec of the first policy that the observed state is proved to satisfy."""
    for policy in policies:
        spec = _spec(planned, policy, f"{policy.name}, as it is")
        if stages([planned.observed], [spec])[0].verdict == PROVED:
            return spec
    return None


def _prove_order(
    plan: Plan,
    observed: NetState,
    everything: NetState,
    spec_before: Promise | None,
    spec_after: Promise | None,
) -> Way:
    specs = [spec_before if number < plan.switch else spec_after for number in range(len(plan.steps) + 1)]
    own = stages(plan.states(observed), specs)
    try:
        whole = plan.states(_with_own(everything, observed))
    except Impossible:
        # A foreign object conflicts with a step; the kernel will refuse that step.
        return Way(plan, own, ())
    if spec_before is not None and stages(whole[:1], [spec_before])[0].verdict == REFUTED:
        # A foreign ruleset violates it already, so until the switch only our own objects count.
        specs = [spec if spec is not spec_before else None for spec in specs]
    return Way(plan, own, stages(whole, specs))


def _with_own(everything: NetState, observed: NetState) -> NetState:
    """Return `everything` with our own objects as in `observed`, without the auxiliary tables."""
    own_keys = {table.key for table in observed.tables}
    own_paths = {sysctl.path for sysctl in observed.sysctls}
    foreign = (table for table in everything.tables if table.key not in own_keys and table.name not in names.ASIDE)
    sysctls = (sysctl for sysctl in everything.sysctls if sysctl.path not in own_paths)
    return evolve(
        everything,
        tables=(*foreign, *observed.tables),
        sysctls=(*sysctls, *observed.sysctls),
    )


def others_say(order: Way) -> Iterator[str]:
    """Yield a line for each finding that foreign rulesets cause, where ours alone is proved."""
    if order.with_others in (PROVED, "") or order.verdict != PROVED:
        return
    lines: dict[str, None] = {}
    for state in order.whole[-1:] if order.with_others == UNKNOWN else order.whole:
        for finding in state.failures():
            reason = "; ".join(finding.doubts) or finding.detail
            subject = f"{finding.property} {finding.uplink}: {finding.verdict}: {finding.subject}"
            lines[f"{subject}: {reason}"] = None
    yield from lines
