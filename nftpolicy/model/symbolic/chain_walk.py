# SPDX-License-Identifier: BSD-2-Clause
"""A base chain whose rules write nothing, for all packets of a region at once: each rule is executed once.

The loop is that of nft_do_chain (net/netfilter/nf_tables_core.c); a state (`ChainState`) is passed to each step
and returned by it. Where the kernel follows one packet, a step takes a part of the region away: the packets that a
rule decides are excluded from all that follow, and those that return are excluded from the rest of their chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from ...netstate import nft
from .box import Box
from .chain_event import BaseChain, ChainEvent, unsupported_box
from .chain_state import (
    ChainFrame,
    ChainState,
    continue_rule,
    decide,
    enter_base_chain,
    enter_chain,
    excluded_parts,
    leave_called_chain,
    leave_early,
    still_in_chain,
)
from .rule_execution import Packets, RuleEffect, execute_statement, narrow_parts
from .rule_shape import effect_of
from .symbolic_ruleset import SymbolicRuleset

WalkStep: TypeAlias = tuple[ChainState, Sequence[ChainEvent]]
_Drop: TypeAlias = tuple[Sequence[nft.Match], Sequence[Box]]  # matches of a rule, and the parts that reach them


def walk_chain(ruleset: SymbolicRuleset, base_chain: BaseChain, region: Box) -> Iterator[ChainEvent]:
    """Yield what a base chain without writes does with the packets of `region`, in the order of its rules."""
    table, chain = base_chain
    assert chain.hook is not None
    tops = ruleset.space.max_values
    state = enter_base_chain(chain, region, tops)
    while not state.is_finished:
        frame = state.frames[-1]
        if frame.effects:
            state, events = apply_effect(ruleset, base_chain, state)
            yield from events
        elif frame.is_finished:
            state = leave_called_chain(state, tops)
        else:
            state = execute_rules(ruleset, table, state)
    # nft_base_chain(basechain)->policy
    if not state.frame.is_empty and chain.hook.policy != "drop":
        yield ChainEvent("accept", base_chain, None, region, state.decided.overlapping(region))


def execute_rules(ruleset: SymbolicRuleset, table: nft.Table, state: ChainState) -> ChainState:
    """Execute rules of the innermost chain up to the first one that does more than drop packets.

    Most rules of a long chain only drop. Their parts are computed when a later rule accepts packets.
    """
    frame = state.frame
    call = frame.call
    drops: list[_Drop] = []
    rules = ruleset.prepared_rules(call.chain)
    for number in range(frame.next_rule, len(rules)):
        rule = rules[number]
        start = call.starts.get(rule.cache_key) if rule.cache_key else None
        if start is None:
            start = matched_parts(ruleset, table, rule.cheap_matches, call.region, ({},))
            if rule.cache_key:
                call.starts[rule.cache_key] = start
        if not start:
            continue
        if rule.only_drops:
            drops.append((rule.other_matches, start))
            continue
        parts = matched_parts(ruleset, table, rule.other_matches, call.region, start)
        effects = execute_rule(ruleset, table, rule.remaining, Packets(call.region, parts, {})) if parts else ()
        if effects:
            frame = ChainFrame(call, frame.returned, number + 1, effects)
            break
    else:
        frame = ChainFrame(call, frame.returned, len(rules))
    decided = state.decided
    if drops:
        decided = decided.with_deferred(partial(dropped_parts, ruleset, table, drops, state))
    return ChainState((*state.frames[:-1], frame), decided)


def execute_rule(
    ruleset: SymbolicRuleset, table: nft.Table, statements: Sequence[nft.Statement], packets: Packets
) -> list[RuleEffect]:
    """Execute the statements of one rule (nft_rule_dp_for_each_expr) and return their effects."""
    effects: list[RuleEffect] = []
    for statement in statements:
        more, packets = execute_statement(ruleset, table, statement, packets)
        effects += more
        if not packets.parts:
            break
    return effects


def matched_parts(
    ruleset: SymbolicRuleset, table: nft.Table, matches: Iterable[nft.Match], region: Box, parts: Sequence[Box]
) -> Sequence[Box]:
    """Return what of `parts` of the region passes all matches, as execute_statement does; no rule has written."""
    for match in matches:
        if not parts:
            break
        parts = narrow_parts(parts, region, ruleset.space.match_boxes(table, match))
    return parts


def dropped_parts(
    ruleset: SymbolicRuleset, table: nft.Table, drops: Iterable[_Drop], state: ChainState
) -> Iterator[Box]:
    """Yield the parts that rules drop which only drop; `state` is the one in which they are executed."""
    for matches, start in drops:
        for narrow in matched_parts(ruleset, table, matches, state.frame.call.region, start):
            yield from still_in_chain(state, narrow, ruleset.space.max_values)


def apply_effect(ruleset: SymbolicRuleset, base_chain: BaseChain, state: ChainState) -> WalkStep:
    """Apply the first effect of the innermost frame: the `switch (regs.verdict.code)` of nft_do_chain."""
    frame, tops = state.frame, ruleset.space.max_values
    effect = frame.effects[0]
    kind = effect_of(effect.statement)
    if kind == "return":
        return leave_early(state), ()
    if kind == "drop":
        return decide(state, tops), ()
    if kind in ("jump", "goto"):
        target = ruleset.jump_target(base_chain[0], effect.statement)
        if target is not None and all(target.name != each.call.chain.name for each in state.frames):
            return enter_chain(state, target, tops), ()
    box = {**frame.call.region, **effect.narrow}
    excluded = excluded_parts(state, box)
    if kind in ("accept", "nat"):
        kinds = ("nat", "accept") if kind == "nat" else ("accept",)
        events = [ChainEvent(each, base_chain, frame.rule, box, excluded, effect.statement) for each in kinds]
        return decide(state, tops), events
    # Not modelled, or a call of no chain, or in a circle: the packets may be accepted, or continue.
    box = unsupported_box(ruleset.space, base_chain, box, effect.statement)
    event = ChainEvent("accept", base_chain, frame.rule, box, excluded, effect.statement)
    return leave_early(state) if kind == "goto" else continue_rule(state), [event]
