# SPDX-License-Identifier: BSD-2-Clause
"""The way from what is in force to what is wanted, with the proof of every state on it."""

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
from ...proof.stages import Promise, Stage, stages, verdict
from ...proof.verdict import PROVED, REFUTED, UNKNOWN
from .apply import Prospect
from .unproved import NotSafe


@frozen
class Way:
    """A plan, its states with their proofs, and the same states with everybody's tables, rules and routes in them."""

    plan: Plan
    own: tuple[Stage, ...]
    whole: tuple[Stage, ...]

    @property
    def verdict(self) -> str:
        """Of our own objects alone."""
        return verdict(self.own)

    @property
    def with_others(self) -> str:
        """Of the whole kernel. Refuted and unknown come from others if our own objects are proved."""
        return verdict(self.whole)


def find(
    kernel: Kernel,
    found: Prospect,
    before: Iterable[Policy],
    after: Policy | None,
    block: tuple[Table, ...] = (),
    despite_others: bool = False,
) -> Way:
    """The first order of the steps in which every state is proved. Changes nothing.

    `before`: the policies that may be in force, the likeliest first. The promise of the first whose guard
    is really there is kept up to the switch, that of `after` from then on.

    Raises:
        NotSafe: in every order a state is not proved, or is refuted with the tables of others.
    """
    kept = _kept(found, before)
    wanted = _promise(found, after, f"{after.name}, as it will be") if after is not None else None
    everything = kernel.everything()
    tried = []
    for plan in _plans(found, block):
        way = _judged(plan, found.observed, everything, kept, wanted)
        if _good(way, despite_others):
            return way
        tried.append(way)
    raise NotSafe(tried)


def _plans(found: Prospect, block: tuple[Table, ...]) -> Iterator[Plan]:
    if block:
        yield blocked(found.observed, found.desired, block)
    else:
        yield from orders(found.observed, found.desired)


def _good(way: Way, despite_others: bool) -> bool:
    if way.verdict != PROVED:
        return False
    return despite_others or way.with_others != REFUTED


def _promise(found: Prospect, policy: Policy, name: str) -> Promise:
    """What a policy promises of a state that it was compiled to: of frames only where all devices can be hooked."""
    return Promise(name, evolve(claim(policy, found.ports), frames=not found.unhooked))


def _kept(found: Prospect, policies: Iterable[Policy]) -> Promise | None:
    for policy in policies:
        promise = _promise(found, policy, f"{policy.name}, as it is")
        if stages([found.observed], [promise])[0].verdict == PROVED:
            return promise
    return None


def _judged(plan: Plan, observed: NetState, everything: NetState, kept: Promise | None, wanted: Promise | None) -> Way:
    promises = [kept if number < plan.switch else wanted for number in range(len(plan.steps) + 1)]
    own = stages(plan.states(observed), promises)
    try:
        whole = plan.states(_with_mine(everything, observed))
    except Impossible:
        return Way(plan, own, ())  # something of others is in the way; the kernel will say so of the step
    if kept is not None and stages(whole[:1], [kept])[0].verdict == REFUTED:
        # Others break it already. What is left to keep until the switch is only what is ours.
        promises = [one if one is not kept else None for one in promises]
    return Way(plan, own, stages(whole, promises))


def _with_mine(everything: NetState, observed: NetState) -> NetState:
    """Everything, with our own objects as `observed` has them, and without what will not stay."""
    mine, paths = {table.key for table in observed.tables}, {one.path for one in observed.sysctls}
    others = (one for one in everything.tables if one.key not in mine and one.name not in names.ASIDE)
    tables = (*others, *observed.tables)
    sysctls = (*(one for one in everything.sysctls if one.path not in paths), *observed.sysctls)
    return evolve(everything, tables=tables, sysctls=sysctls)


def others_say(way: Way) -> Iterator[str]:
    """What the tables of others make of it, where that is less than proved, a line each."""
    if way.with_others in (PROVED, "") or way.verdict != PROVED:
        return
    said: dict[str, None] = {}
    for stage in way.whole[-1:] if way.with_others == UNKNOWN else way.whole:
        for one in stage.failures():
            reason = "; ".join(one.doubts) or one.detail
            said[f"{one.property} {one.uplink}: {one.verdict}: {one.subject}: {reason}"] = None
    yield from said
