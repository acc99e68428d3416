# SPDX-License-Identifier: BSD-2-Clause
"""Writes that packets of a region may reach in a base chain, for the lemma of mark confinement."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from ...netstate import nft
from .box import Box
from .chain_event import BaseChain, ChainEvent
from .header_writes import written_fields
from .rule_execution import Packets, RuleEffect, execute_statement, without_fields
from .rule_shape import effect_of
from .symbolic_ruleset import SymbolicRuleset

MARKS = ("mark:", "ctmark:")  # prefixes of the names of their fields


@frozen
class _Call:
    """A chain that packets enter: what the calls up to it add to the region, and the parts that do not get there."""

    chain: nft.Chain
    added: Box
    excluded: tuple[Box, ...] = ()
    callers: tuple[str, ...] = ()


def reachable_writes(ruleset: SymbolicRuleset, base_chain: BaseChain, region: Box) -> Iterator[ChainEvent]:
    """Yield every write that a packet of `region` may reach in a base chain.

    The caller checks each write by itself, and `region` must hold for the fields before and after it. So writes are
    not followed: conditions on fields that rules of the table write are dropped on the way to later rules.
    """
    if ruleset.can_write(base_chain[0], base_chain[1].name):
        yield from _writes_of_chain(ruleset, base_chain, region, _Call(base_chain[1], {}))


def _writes_of_chain(ruleset: SymbolicRuleset, base_chain: BaseChain, region: Box, call: _Call) -> Iterator[ChainEvent]:
    """Yield the writes of a called chain, and those of the chains that it calls."""
    table = base_chain[0]
    changing, has_header_writes = (*MARKS, *ruleset.fields_written_in(table)), writes_headers(ruleset, table)
    entering = {**region, **call.added}
    excluded = list(call.excluded)
    for rule in call.chain.rules:
        for effect in _effects_of_rule(ruleset, table, rule, entering):
            kind, stable = effect_of(effect.statement), without_fields(effect.narrow, changing)
            if kind in ("write", "unsupported"):
                box = {**entering, **effect.narrow}
                yield ChainEvent("write", base_chain, rule, box, tuple(excluded), effect.statement)
                continue
            if kind in ("jump", "goto"):
                target = ruleset.jump_target(table, effect.statement)
                if target is not None and target.name not in call.callers:
                    called = _Call(target, {**call.added, **stable}, tuple(excluded), (*call.callers, call.chain.name))
                    yield from _writes_of_chain(ruleset, base_chain, region, called)
            if kind == "jump":
                continue
            # Decided, or no longer in this chain: excluded if no condition on a field is lost, now or before.
            if stable == effect.narrow and not (stable and has_header_writes):
                excluded.append({**call.added, **stable})
                if not stable:
                    return


def _effects_of_rule(ruleset: SymbolicRuleset, table: nft.Table, rule: nft.Rule, region: Box) -> Iterator[RuleEffect]:
    """Yield the effects of a rule; behind a write any value of the written fields is possible."""
    packets = Packets(region, [{}], {})
    for statement in rule.statements:
        effects, packets = execute_statement(ruleset, table, statement, packets)
        yield from effects
        if not packets.parts:
            return
        if isinstance(statement, nft.Mangle):
            packets = packets.without_conditions(written_fields(statement.key, ruleset.space.family))


def writes_headers(ruleset: SymbolicRuleset, table: nft.Table) -> bool:
    """Return True if a rule of the table changes a header."""
    return any(not name.startswith((*MARKS, "fib ")) for name in ruleset.fields_written_in(table))
