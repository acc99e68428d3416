# SPDX-License-Identifier: BSD-2-Clause
"""Paths through chains that write marks, each with its part of a region and its marks."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from ..netstate import nft, text
from .box import Box, Ranges, common, only
from .chain_event import Event, Marks, Place
from .chain_reader import ChainReader
from .marks import new_marks
from .shapes import HARMLESS, SOMETIMES, VerdictMapping, kind_of

__all__ = ["Marks", "Paths", "now"]

_VERDICT_MAPS = (nft.VerdictMap, nft.VerdictMapRef)


@frozen
class Position:
    """The next statement of a path in one chain."""

    chain: nft.Chain
    rule: int = 0
    statement: int = 0

    def next_rule(self) -> Position:
        """Return the start of the following rule."""
        return Position(self.chain, self.rule + 1)


@frozen
class PathState:
    """One path of a region: its position in each chain (innermost last), decided parts, marks."""

    stack: tuple[Position, ...]
    region: Box
    decided: tuple[Box, ...]
    marks: Marks

    def moved(self, *stack: Position) -> PathState:
        """Return the same path at another position."""
        return PathState(stack, self.region, self.decided, self.marks)

    def narrowed(self, narrow: Box) -> PathState:
        """Return the path of the part `narrow` of the region."""
        return PathState(self.stack, {**self.region, **narrow}, self.decided, self.marks)

    def without(self, narrow: Box) -> PathState:
        """Return the path of the remaining region when the part `narrow` is decided."""
        return PathState(self.stack, self.region, (*self.decided, narrow), self.marks)

    def with_marks(self, marks: Marks) -> PathState:
        """Return the path after a write."""
        return PathState(self.stack, self.region, self.decided, marks)


class Paths:
    """The paths through one base chain, at most `limit` of them; further paths are unsupported."""

    def __init__(self, reader: ChainReader, base_chain: Place, limit: int) -> None:
        self._reader, self._place, self._remaining = reader, base_chain, limit

    def events(self, region: Box) -> Iterator[Event]:
        """Yield what the chain does with the packets of `region`."""
        yield from self._follow(PathState((Position(self._place[1]),), region, (), {}))

    def _follow(self, path: PathState) -> Iterator[Event]:
        """Yield the events of a path and of its branches, up to the end of the chain."""
        table, chain = self._place
        assert chain.hook is not None
        self._remaining -= 1
        if self._remaining < 0:
            limit = self._reader.space.doubt(f"too many paths through {table.name} {chain.name}")
            yield self._event("accept", None, path.narrowed({limit: only(1)}))
            return
        while path.stack:
            *outer, position = path.stack
            if position.rule >= len(position.chain.rules):
                path = path.moved(*outer)
                continue
            rule = position.chain.rules[position.rule]
            for narrow, statement, index in self._rule_effects(path):
                if kind_of(statement) == "continue":
                    continue
                yield from self._effect_events(path, rule, narrow, statement, index)
                if kind_of(statement) == "unsupported":
                    continue
                if not narrow:
                    return
                path = path.without(narrow)
            path = path.moved(*outer, position.next_rule())
        if chain.hook.policy != "drop":
            yield self._event("accept", None, path)

    def _rule_effects(self, path: PathState) -> Iterator[tuple[Box, nft.Statement, int]]:
        """Yield the effects of the rule at the position of a path, from its next statement on.

        Each comes with the part of the region that it applies to and the number of its statement.
        """
        reader, table, position = self._reader, self._place[0], path.stack[-1]
        statements = position.chain.rules[position.rule].statements
        reached: list[Box] = [{}]
        for index in range(position.statement, len(statements)):
            statement = statements[index]
            if isinstance(statement, nft.Match):
                reached = self._narrowed(path, reached, reader.space.match(table, statement))
                if not reached:
                    return
            elif isinstance(statement, HARMLESS):
                continue
            elif reader.of_other_family(statement):
                return
            elif isinstance(statement, nft.Mangle):
                reached = self._narrowed(path, reached, reader.space.writable(table, statement))
                for narrow in reached:
                    yield narrow, statement, index
                return  # packets that write continue on a path of their own
            elif isinstance(statement, _VERDICT_MAPS):
                pairs = self._map_effects(path, statement, reached)
                for narrow, verdict in pairs:
                    yield narrow, verdict, index
                # Without an entry the rule does not match.
                reached = [narrow for narrow, verdict in pairs if kind_of(verdict) == "continue"]
            elif isinstance(statement, SOMETIMES):
                condition = {reader.unsupported(table, statement): only(1)}
                reached = [{**narrow, **condition} for narrow in reached]
            else:
                for narrow in reached:
                    yield narrow, statement, index

    def _effect_events(
        self, path: PathState, rule: nft.Rule, narrow: Box, statement: nft.Statement, index: int
    ) -> Iterator[Event]:
        """Yield the events of one effect on the part `narrow` of the region."""
        *outer, position = path.stack
        effect, part = kind_of(statement), path.narrowed(narrow)
        if effect in ("jump", "goto"):
            target = self._reader.chain(self._place[0], statement)
            if target is None:
                yield self._unsupported_event(rule, part, statement)
                return
            if effect == "jump":
                outer.append(position.next_rule())
            yield from self._follow(part.moved(*outer, Position(target)))
        elif effect == "return":
            yield from self._follow(part.moved(*outer))
        elif isinstance(statement, nft.Mangle):
            written = part.with_marks(new_marks(self._reader.space, statement, path.marks))
            after = Position(position.chain, position.rule, index + 1)
            yield from self._follow(written.moved(*outer, after))
        elif effect == "unsupported":
            yield self._unsupported_event(rule, part, statement)
        elif effect != "drop":
            if effect == "nat":
                yield self._event("nat", rule, part, statement)
            yield self._event("accept", rule, part, statement)

    def _event(
        self, kind: str, rule: nft.Rule | None, path: PathState, statement: nft.Statement | None = None
    ) -> Event:
        return Event(kind, self._place, rule, path.region, path.decided, statement, path.marks)

    def _unsupported_event(self, rule: nft.Rule, part: PathState, statement: nft.Statement) -> Event:
        """Return an accept event under the condition of a new artificial field."""
        description = f"{self._place[0].name}: {text.shown(statement)}"
        condition = {self._reader.space.doubt(description): only(1)}
        return self._event("accept", rule, part.narrowed(condition), statement)

    def _map_effects(
        self, path: PathState, statement: VerdictMapping, reached: list[Box]
    ) -> list[tuple[Box, nft.Statement]]:
        """Return the verdicts of a map with the parts of the region that find them."""
        pairs: list[tuple[Box, nft.Statement]] = []
        for boxes, verdict in self._reader.looked_up(self._place[0], statement):
            pairs += [(narrow, verdict) for narrow in self._narrowed(path, reached, boxes)]
        return pairs

    def _narrowed(self, path: PathState, reached: list[Box], boxes: list[Box]) -> list[Box]:
        """Narrow `reached` by boxes about the marks at this point of the path."""
        conditions = [now(box, path.marks) for box in boxes]
        possible = [box for box in conditions if box is not None]
        return self._reader.narrowed(reached, path.region, possible)


def now(box: Box, marks: Marks) -> Box | None:
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
        both = wanted if present is None else common(present, wanted)
        if not both:
            return None
        original[current] = both
    return original
