# SPDX-License-Identifier: BSD-2-Clause
"""Chains that write marks: each path of a region through them by itself, with the marks as they are by then."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from ..netstate import nft, text
from .box import Box, Ranges, common, only
from .marks import new_marks
from .shapes import HARMLESS, SOMETIMES, kind_of

if TYPE_CHECKING:
    from .passage import Event, Passage, Place

Marks = dict[str, int | str]
Stack = tuple[tuple[nft.Chain, int, int], ...]  # chain, rule, statement


class Paths:
    """The paths through one base chain, at most `cap` of them; what is beyond is not understood."""

    def __init__(self, passage: Passage, place: Place, cap: int) -> None:
        self._passage, self._place, self._left = passage, place, cap

    def events(self, region: Box) -> Iterator[Event]:
        """What the chain does with the packets of `region`."""
        yield from self._run(((self._place[1], 0, 0),), region, [], {})

    def _run(self, stack: Stack, region: Box, covers: list[Box], marks: Marks) -> Iterator[Event]:
        from .passage import Event

        hook = self._place[1].hook
        assert hook is not None
        self._left -= 1
        if self._left < 0:
            doubt = self._passage.space.doubt(f"too many paths through {self._place[0].name} {self._place[1].name}")
            yield Event("accept", self._place, None, {**region, doubt: only(1)}, _given(covers), None, marks)
            return
        while stack:
            *below, (chain, at, first) = stack
            if at >= len(chain.rules):
                stack = tuple(below)
                continue
            after: Stack = (*below, (chain, at + 1, 0))
            if (yield from self._rule(chain, at, first, tuple(below), region, covers, marks)):
                return
            stack = after
        if hook.policy != "drop":
            yield Event("accept", self._place, None, region, _given(covers), None, dict(marks))

    def _rule(
        self, chain: nft.Chain, at: int, first: int, below: Stack, region: Box, covers: list[Box], marks: Marks
    ) -> Generator[Event, None, bool]:
        """One rule from its statement `first` on; what it takes away from the region is added to `covers`.
        Returns whether that is all of it."""
        from .passage import Event

        passage, table, rule = self._passage, self._place[0], chain.rules[at]
        reached: list[Box] = [{}]
        for number, statement in enumerate(rule.statements[first:], first):
            if isinstance(statement, nft.Match):
                boxes = [now(box, marks) for box in passage.space.match(table, statement)]
                reached = passage.narrowed(reached, region, [box for box in boxes if box is not None])
                if not reached:
                    return False
                continue
            if type(statement).__name__ in HARMLESS:
                continue
            if passage.of_other_family(statement):
                return False
            if isinstance(statement, nft.Mangle):
                boxes = [now(box, marks) for box in passage.space.writable(table, statement)]
                reached = passage.narrowed(reached, region, [box for box in boxes if box is not None])
            pairs: list[tuple[Box, nft.Statement]] = [(one, statement) for one in reached]
            if isinstance(statement, nft.VerdictMap | nft.VerdictMapRef):
                pairs = self._looked_up(statement, reached, region, marks)
                # Without an entry the rule does not match.
                reached = [one for one, verdict in pairs if kind_of(verdict) == "continue"]
            elif type(statement).__name__ in SOMETIMES:
                doubt = passage.space.doubt(f"{table.family} {table.name}: {text.shown(statement)}")
                reached = [{**one, doubt: only(1)} for one in reached]
                continue
            for narrow, effect in pairs:
                kind, box, rest = kind_of(effect), {**region, **narrow}, list(covers)
                if kind == "continue":
                    continue
                if kind in ("jump", "goto"):
                    target = passage.chain(table, effect)
                    back: Stack = (*below, (chain, at + 1, 0)) if kind == "jump" else below
                    if target is None:
                        yield Event(
                            "accept", self._place, rule, self._doubted(box, effect), _given(rest), effect, marks
                        )
                    else:
                        yield from self._run((*back, (target, 0, 0)), box, rest, marks)
                elif kind == "return":
                    yield from self._run(below, box, rest, marks)
                elif kind == "write":
                    written = new_marks(passage.space, effect, marks)  # type: ignore[arg-type]
                    yield from self._run((*below, (chain, at, number + 1)), box, rest, written)
                elif kind == "doubt":
                    yield Event("accept", self._place, rule, self._doubted(box, effect), _given(rest), effect, marks)
                    continue
                else:
                    if kind == "nat":
                        yield Event("nat", self._place, rule, box, _given(rest), effect, dict(marks))
                    if kind != "drop":
                        yield Event("accept", self._place, rule, box, _given(rest), effect, dict(marks))
                covers.append(narrow)
                if not narrow:
                    return True
            if isinstance(statement, nft.Mangle):
                return False  # who could write is on the way of its own by now
        return False

    def _doubted(self, box: Box, effect: nft.Statement) -> Box:
        return {**box, self._passage.space.doubt(f"{self._place[0].name}: {text.shown(effect)}"): only(1)}

    def _looked_up(
        self, statement: nft.VerdictMap | nft.VerdictMapRef, reached: list[Box], region: Box, marks: Marks
    ) -> list[tuple[Box, nft.Statement]]:
        passage, found = self._passage, []
        for boxes, verdict in passage.looked_up(self._place[0], statement):
            current = [one for one in (now(box, marks) for box in boxes) if one is not None]
            found += [(one, verdict) for one in passage.narrowed(reached, region, current)]
        return found


def _given(covers: list[Box]) -> Callable[[Box], list[Box]]:
    return lambda _: list(covers)


def now(box: Box, marks: Marks) -> Box | None:
    """A condition on the marks as they are by now, as one on the marks as they were; None if it can't hold."""
    if not marks:
        return box
    found: Box = {}
    for field, wanted in box.items():
        current = marks.get(field, field)
        if isinstance(current, int):
            if not any(low <= current <= high for low, high in wanted):
                return None
            continue
        present: Ranges | None = found.get(current)
        both = wanted if present is None else common(present, wanted)
        if not both:
            return None
        found[current] = both
    return found
