# SPDX-License-Identifier: BSD-2-Clause
"""Paths through a base chain whose rules write marks or headers: each has its part of a region, and its fields.

The loop is that of nft_do_chain (net/netfilter/nf_tables_core.c); a path is passed to each step and returned by it.
Where packets go different ways, the step also returns the paths that branch off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve, frozen

from ...netstate import nft
from .box import Box, points
from .chain_event import BaseChain, ChainEvent, FieldValues, unsupported_box
from .mark_writes import marks_after
from .rule_execution import Packets, RuleEffect, execute_statement
from .rule_shape import effect_of
from .symbolic_ruleset import SymbolicRuleset


@frozen
class PathPosition:
    """The next statement of a path in one chain."""

    chain: nft.Chain
    rule: int = 0
    statement: int = 0

    def next_rule(self) -> PathPosition:
        """Return the start of the following rule."""
        return PathPosition(self.chain, self.rule + 1)


@frozen
class ChainPath:
    """The packets of `region` without those of `decided`, all of them at one statement.

    `stack` has the position in each chain, innermost last: the jump stack of nft_do_chain. `region` and `decided`
    are about the fields that the packets had at the base chain, `written` has those that rules changed since.
    """

    stack: tuple[PathPosition, ...]
    region: Box
    decided: tuple[Box, ...]
    written: FieldValues

    def part(self, narrow: Box) -> ChainPath:
        """Return the path of the part `narrow` of the region."""
        return ChainPath(self.stack, {**self.region, **narrow}, self.decided, self.written)

    def remaining(self, narrow: Box) -> ChainPath | None:
        """Return the path of the packets that are not in the part `narrow`; None if it is the whole region."""
        return evolve(self, decided=(*self.decided, narrow)) if narrow else None


@frozen
class PathStep:
    """Result of a step: the path behind it (None: no packet is left on it), what happened, and its branches."""

    path: ChainPath | None
    events: Sequence[ChainEvent] = ()
    branches: Sequence[ChainPath] = ()


def follow_paths(ruleset: SymbolicRuleset, base_chain: BaseChain, region: Box, limit: int) -> Iterator[ChainEvent]:
    """Yield what a base chain does with the packets of `region`, path by path.

    At most `limit` paths are followed; the packets of any other path may be accepted.
    """
    table, chain = base_chain
    assert chain.hook is not None
    waiting = [ChainPath((PathPosition(chain),), region, (), {})]
    started = 1
    while waiting:
        path = waiting.pop()
        if not path.stack:
            if chain.hook.policy != "drop":  # nft_base_chain(basechain)->policy
                yield _event("accept", base_chain, path)
            continue
        step = execute_next_rule(ruleset, base_chain, path)
        yield from step.events
        if step.path is not None:
            waiting.append(step.path)
        for branch in reversed(step.branches):
            started += 1
            if started <= limit:
                waiting.append(branch)
                continue
            field = ruleset.space.unsupported_field(f"too many paths through {table.name} {chain.name}")
            yield _event("accept", base_chain, branch.part({field: points(1)}))


def execute_next_rule(ruleset: SymbolicRuleset, base_chain: BaseChain, path: ChainPath) -> PathStep:
    """Execute the rule at the position of a path, from its next statement on (nft_rule_dp_for_each_expr).

    At the end of a chain, the position is that of its caller: `rule = jumpstack[--stackptr].rule`.
    """
    *outer, position = path.stack
    if position.rule >= len(position.chain.rules):
        return PathStep(evolve(path, stack=tuple(outer)))
    rule = position.chain.rules[position.rule]
    remaining: ChainPath | None = evolve(path, stack=(*outer, position.next_rule()))
    packets = Packets(path.region, [{}], path.written)
    events: list[ChainEvent] = []
    branches: list[ChainPath] = []
    for number in range(position.statement, len(rule.statements)):
        statement = rule.statements[number]
        effects, packets = execute_statement(ruleset, base_chain[0], statement, packets)
        for effect in effects:
            if remaining is None:
                break
            resume_at = evolve(position, statement=number + 1)
            step = apply_effect(ruleset, base_chain, rule, effect, remaining, resume_at)
            remaining, events, branches = step.path, [*events, *step.events], [*branches, *step.branches]
        if not packets.parts or isinstance(statement, nft.Mangle):  # packets that write are on branches
            break
    return PathStep(remaining, events, branches)


def apply_effect(
    ruleset: SymbolicRuleset,
    base_chain: BaseChain,
    rule: nft.Rule,
    effect: RuleEffect,
    path: ChainPath,
    resume_at: PathPosition,
) -> PathStep:
    """Apply one effect of a rule to a path that continues at the next rule.

    This is the `switch (regs.verdict.code)` of nft_do_chain, and a write, behind which the rule continues at the
    position `resume_at`.
    """
    part, remaining = path.part(effect.narrow), path.remaining(effect.narrow)
    statement, kind = effect.statement, effect_of(effect.statement)
    callers = path.stack[:-1]
    if kind == "drop":
        return PathStep(remaining)
    if kind == "return":
        return PathStep(remaining, branches=[evolve(part, stack=callers)])
    if isinstance(statement, nft.Mangle):
        written = marks_after(ruleset.space, statement, part.written)
        return PathStep(remaining, branches=[evolve(part, stack=(*callers, resume_at), written=written)])
    if kind in ("accept", "nat"):
        kinds = ("nat", "accept") if kind == "nat" else ("accept",)
        return PathStep(remaining, [_event(each, base_chain, part, rule, statement) for each in kinds])
    if kind in ("jump", "goto"):
        target = ruleset.jump_target(base_chain[0], statement)
        if target is not None:
            outer = path.stack if kind == "jump" else callers  # jumpstack[stackptr].rule = nft_rule_next(rule)
            return PathStep(remaining, branches=[evolve(part, stack=(*outer, PathPosition(target)))])
    # Not modelled, or a call of no chain: the packets may be accepted.
    box = unsupported_box(ruleset.space, base_chain, part.region, statement)
    event = _event("accept", base_chain, evolve(part, region=box), rule, statement)
    return PathStep(path if kind == "unsupported" else remaining, [event])


def _event(
    kind: str,
    base_chain: BaseChain,
    path: ChainPath,
    rule: nft.Rule | None = None,
    statement: nft.Statement | None = None,
) -> ChainEvent:
    return ChainEvent(kind, base_chain, rule, path.region, path.decided, statement, path.written)
