# SPDX-License-Identifier: BSD-2-Clause
"""Paths through chains that write marks, each with its part of a region and its marks."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from ...netstate import nft
from ...netstate.formats import nft_text
from .box import Box, Ranges, intersect_ranges, points
from .chain_event import BaseChain, ChainEvent, MarkValues
from .chain_reader import ChainReader
from .mark_writes import marks_after
from .rule_shape import NEUTRAL, NONDETERMINISTIC, VerdictMapStatement, effect_of, possible_verdicts

__all__ = ["ChainPaths", "MarkValues", "substitute_marks"]

_VERDICT_MAPS = (nft.VerdictMap, nft.VerdictMapRef)


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
class PathState:
    """Path of a region: its position in each chain (innermost last), decided parts, marks."""

    stack: tuple[PathPosition, ...]
    region: Box
    decided: tuple[Box, ...]
    marks: MarkValues

    def moved(self, *stack: PathPosition) -> PathState:
        """Return the same path at another position."""
        return PathState(stack, self.region, self.decided, self.marks)

    def narrowed(self, narrow: Box) -> PathState:
        """Return the path of the part `narrow` of the region."""
        return PathState(self.stack, {**self.region, **narrow}, self.decided, self.marks)

    def with_decided(self, narrow: Box) -> PathState:
        """Return the path of the remaining region when the part `narrow` is decided."""
        return PathState(self.stack, self.region, (*self.decided, narrow), self.marks)

    def with_marks(self, marks: MarkValues) -> PathState:
        """Return the path after a write."""
        return PathState(self.stack, self.region, self.decided, marks)


class ChainPaths:
    """The paths through one base chain, at most `limit` of them; further paths are unsupported."""

    def __init__(self, reader: ChainReader, base_chain: BaseChain, limit: int) -> None:
        self._reader, self._base_chain, self._remaining = reader, base_chain, limit

    def events(self, region: Box) -> Iterator[ChainEvent]:
        """Yield what the chain does with the packets of `region`."""
        yield from self._follow(PathState((PathPosition(self._base_chain[1]),), region, (), {}))

    def _follow(self, path: PathState) -> Iterator[ChainEvent]:
        """Yield the events of a path and of its branches, up to the end of the chain."""
        table, chain = self._base_chain
        assert chain.hook is not None
        self._remaining -= 1
        if self._remaining < 0:
            limit = self._reader.space.unsupported_field(f"too many paths through {table.name} {chain.name}")
            yield self._event("accept", None, path.narrowed({limit: points(1)}))
            return
        while path.stack:
            *outer, position = path.stack
            if position.rule >= len(position.chain.rules):
                path = path.moved(*outer)
                continue
            rule = position.chain.rules[position.rule]
            for narrow, statement, index in self._rule_effects(path):
                if effect_of(statement) == "continue":
                    continue
                yield from self._effect_events(path, rule, narrow, statement, index)
                if effect_of(statement) == "unsupported":
                    continue
                if not narrow:
                    return
                path = path.with_decided(narrow)
            path = path.moved(*outer, position.next_rule())
        if chain.hook.policy != "drop":
            yield self._event("accept", None, path)

    def _rule_effects(self, path: PathState) -> Iterator[tuple[Box, nft.Statement, int]]:
        """Yield the effects of the rule at the position of a path, from its next statement on.

        Each comes with the part of the region that it applies to and the number of its statement.
        """
        reader, table, position = self._reader, self._base_chain[0], path.stack[-1]
        statements = position.chain.rules[position.rule].statements
        reached: list[Box] = [{}]
        for index in range(position.statement, len(statements)):
            statement = statements[index]
            if isinstance(statement, nft.Match):
                reached = self._narrowed(path, reached, reader.space.match_boxes(table, statement))
                if not reached:
                    return
            elif isinstance(statement, nft.Unless):
                reached = self._narrowed(path, reached, reader.unless_boxes(table, statement))
                if not reached:
                    return
            elif isinstance(statement, NEUTRAL):
                continue
            elif reader.is_other_family(statement):
                return
            elif isinstance(statement, nft.Mangle):
                reached = self._narrowed(path, reached, reader.space.writable_boxes(table, statement))
                for narrow in reached:
                    yield narrow, statement, index
                return  # packets that write continue on a path of their own
            elif isinstance(statement, _VERDICT_MAPS):
                pairs = self._map_effects(path, statement, reached)
                for narrow, verdict in pairs:
                    yield narrow, verdict, index
                # Without an entry the rule does not match.
                reached = [narrow for narrow, verdict in pairs if effect_of(verdict) == "continue"]
            elif isinstance(statement, nft.Undecided):
                for verdict in possible_verdicts(statement):
                    for narrow in reader.undecided(table, statement, reached):
                        yield narrow, verdict, index
                reached = reader.continuing(table, statement, reached)
            elif isinstance(statement, NONDETERMINISTIC):
                reached = reader.undecided(table, statement, reached)
            else:
                for narrow in reached:
                    yield narrow, statement, index

    def _effect_events(
        self, path: PathState, rule: nft.Rule, narrow: Box, statement: nft.Statement, index: int
    ) -> Iterator[ChainEvent]:
        """Yield the events of one effect on the part `narrow` of the region."""
        *outer, position = path.stack
        effect, part = effect_of(statement), path.narrowed(narrow)
        if effect in ("jump", "goto"):
            target = self._reader.jump_target(self._base_chain[0], statement)
            if target is None:
                yield self._unsupported_event(rule, part, statement)
                return
            if effect == "jump":
                outer.append(position.next_rule())
            yield from self._follow(part.moved(*outer, PathPosition(target)))
        elif effect == "return":
            yield from self._follow(part.moved(*outer))
        elif isinstance(statement, nft.Mangle):
            written = part.with_marks(marks_after(self._reader.space, statement, path.marks))
            after = PathPosition(position.chain, position.rule, index + 1)
            yield from self._follow(written.moved(*outer, after))
        elif effect == "unsupported":
            yield self._unsupported_event(rule, part, statement)
        elif effect != "drop":
            if effect == "nat":
                yield self._event("nat", rule, part, statement)
            yield self._event("accept", rule, part, statement)

    def _event(
        self, kind: str, rule: nft.Rule | None, path: PathState, statement: nft.Statement | None = None
    ) -> ChainEvent:
        return ChainEvent(kind, self._base_chain, rule, path.region, path.decided, statement, path.marks)

    def _unsupported_event(self, rule: nft.Rule, part: PathState, statement: nft.Statement) -> ChainEvent:
        """Return an accept event under the condition of a new artificial field."""
        description = f"{self._base_chain[0].name}: {nft_text.display_text(statement)}"
        condition = {self._reader.space.unsupported_field(description): points(1)}
        return self._event("accept", rule, part.narrowed(condition), statement)

    def _map_effects(
        self, path: PathState, statement: VerdictMapStatement, reached: list[Box]
    ) -> list[tuple[Box, nft.Statement]]:
        """Return the verdicts of a map with the parts of the region that find them."""
        pairs: list[tuple[Box, nft.Statement]] = []
        for boxes, verdict in self._reader.verdict_entries(self._base_chain[0], statement):
            pairs += [(narrow, verdict) for narrow in self._narrowed(path, reached, boxes)]
        return pairs

    def _narrowed(self, path: PathState, reached: list[Box], boxes: list[Box]) -> list[Box]:
        """Narrow `reached` by boxes about the marks at this point of the path."""
        conditions = [substitute_marks(box, path.marks) for box in boxes]
        possible = [box for box in conditions if box is not None]
        return self._reader.narrow(reached, path.region, possible)


def substitute_marks(box: Box, marks: MarkValues) -> Box | None:
    """Translate a condition on the current marks into one on the original marks.

    None: impossible.
    """
    if not marks:
        return box
    original: Box = {}
    for field, wanted in box.items():
        current = marks.get(field, field)
        if isinstance(current, int):
            if not any(low <= current <= high for low, high in wanted):
                return None
            continue
        present: Ranges | None = original.get(current)
        both = wanted if present is None else intersect_ranges(present, wanted)
        if not both:
            return None
        original[current] = both
    return original
