# SPDX-License-Identifier: BSD-2-Clause
"""What chains do with all packets of a region at once: which they accept, which they drop, what is written.

A region is a box. Going through a chain keeps two things: the part of the region that is looked at
(`narrow`, what the rule adds to the region) and the parts that have been decided already (`covers`).
A packet is accepted by a rule if it is in the rule's box and in no cover.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from attrs import frozen

from ..netstate import nft, text
from .box import Box, common, only, outside, uncovered
from .covers import Covers
from .shapes import HARMLESS, SOMETIMES, Shape, calls, family_of, kind_of, shape_of
from .space import Space
from .survey import Survey

Place = tuple[nft.Table, nft.Chain]

_LOST = ("mark:", "ctmark:", "pkttype", "ttl", "saddr", "daddr", "sport", "dport")  # what a rule can rewrite
_FORKS = 512  # of paths through chains that write marks
_PIECES = 256  # of what a rule decides, where packets have left its chain before


@frozen
class Event:
    """What becomes of part of a region: kind is "accept", "write" or "nat"; what is dropped is no event.

    `box` is the part, without the boxes that `decided` gives: what earlier rules decided and that meets a box.
    It must be asked before the next event. `rule` is None where a chain's policy decided; `statement` is what
    writes or translates, `marks` what the marks are by then.
    """

    kind: str
    place: Place
    rule: nft.Rule | None
    box: Box
    decided: Callable[[Box], list[Box]]
    statement: nft.Statement | None = None
    marks: dict[str, int | str] | None = None


class Passage:
    """Chains of `tables` over the packets of a space."""

    def __init__(self, space: Space, tables: Sequence[nft.Table], survey: Survey) -> None:
        self.space = space
        space.use(tables)
        self._chains = {(*table.key, chain.name): chain for table in tables for chain in table.chains}
        self._writers = survey.writers
        self._rewritten = survey.rewritten
        self._writes: dict[tuple[str, str, str], bool] = {}
        self._shapes = survey.shapes

    def first_through(
        self,
        places: Sequence[Place],
        region: Box,
        allowed: Covers,
        covers: Sequence[Box] = (),
        volatile: tuple[str, ...] = (),
    ) -> Box | None:
        """A part of `region` that all the base chains accept and that is in no box of `allowed`; None: there is none.

        Exact for chains that write nothing; for those that do, what is written may be anything in the chains
        behind. `volatile` are fields that may differ from chain to chain whatever the rules say.
        """
        if not places:
            return uncovered(region, [*covers, *allowed.meeting(region)], self.space.tops)
        place, rest = places[0], places[1:]
        early = allowed if not (rest and volatile) else Covers()
        for event in self.events(place, region):
            if event.kind != "accept":
                continue
            decided = [*covers, *event.decided(event.box)]
            left = uncovered(event.box, [*decided, *early.meeting(event.box)], self.space.tops)
            if left is None:
                continue
            if not rest:
                return left
            lost = (*volatile, *_LOST) if event.marks else volatile
            box = self._forget(event.box, lost)
            later = [one for one in decided if not any(name.startswith(lost) for name in one)] if lost else decided
            found = self.first_through(rest, box, allowed, later, volatile)
            if found is not None:
                return found
        return None

    @staticmethod
    def _forget(box: Box, lost: tuple[str, ...] = ("mark:", "ctmark:")) -> Box:
        return {name: wanted for name, wanted in box.items() if not name.startswith(lost)} if lost else box

    def events(self, place: Place, region: Box) -> Iterator[Event]:
        """What one base chain does with the packets of `region`, in order."""
        table, chain = place
        assert chain.hook is not None
        if self.writes(table, chain.name):
            yield from self._paths(place, region)
            return
        covers = Covers((), self.space.tops)
        ended = yield from self._chain(place, chain, region, {}, covers, (), ())
        if not ended and chain.hook.policy != "drop":
            yield Event("accept", place, None, region, covers.meeting)

    def writes(self, table: nft.Table, name: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether a chain, or one that it calls, changes a mark."""
        key = (*table.key, name)
        if key not in self._writes:
            chain = self._chains.get(key)
            called = calls(table, chain) - seen if chain else set()
            self._writes[key] = key in self._writers or any(
                self.writes(table, one, seen | {name}) for one in called
            )  # fmt: skip
        return self._writes[key]

    def chain(self, table: nft.Table, verdict: nft.Statement) -> nft.Chain | None:
        """The chain that a jump or goto leads to."""
        return self._chains.get((*table.key, str(getattr(verdict, "target", None))))

    # --- one chain without writes: every rule once -------------------------------------

    def _chain(
        self,
        place: Place,
        chain: nft.Chain,
        region: Box,
        prefix: Box,
        covers: Covers,
        outer: tuple[Covers, ...],
        callers: tuple[str, ...],
    ) -> Iterator[Event]:
        """Events of the chain for `region`, which is the root region narrowed by `prefix`. What it decides for
        good is added to `covers`; `outer` is what had gone back to one of its callers before it was called.
        Returns whether nothing of the region came out at its end."""
        table = place[0]
        returned = Covers((), self.space.tops)  # decided as far as this chain goes
        gone = (*outer, returned)
        known: dict[tuple[object, ...], list[Box]] = {}

        def decided(box: Box) -> list[Box]:
            return [*covers.meeting(box), *(one for some in gone for one in some.meeting(box))]

        def close(box: Box) -> None:
            covers.extend(self._kept(gone, [len(some) for some in gone], box))

        for rule in chain.rules:
            shape = self._shape(rule)
            # Rules that ask for the same device, mark and owner come out the same here.
            start = known.get(shape.key) if shape.key else None
            if start is None:
                start = self._reached([{}], region, table, shape.quick)
                if shape.key:
                    known[shape.key] = start
            if not start:
                continue
            if shape.drops and shape.rest:
                told = [len(some) for some in gone]
                covers.defer(partial(self._late, start, region, prefix, table, shape.rest, gone, told))
                continue
            for narrow, statement in self._effects(table, shape.rest, region, start):
                closed = {**prefix, **narrow}
                box = {**region, **narrow} if narrow else region
                kind = kind_of(statement)
                if kind in ("jump", "goto"):
                    target = self.chain(table, statement)
                    ended = False
                    if target is None or target.name in callers:
                        yield self._doubted(place, rule, box, decided, statement)
                    else:
                        within = (*callers, chain.name)
                        ended = yield from self._chain(place, target, box, closed, covers, gone, within)
                    if ended:
                        close(closed)
                    elif kind == "goto":
                        returned.append(closed)
                    else:
                        continue
                elif kind == "return":
                    returned.append(closed)
                elif kind == "doubt":  # not understood, or for somebody else to decide: it may let the packet out
                    yield self._doubted(place, rule, box, decided, statement)
                    continue
                else:
                    if kind == "nat":
                        yield Event("nat", place, rule, box, decided, statement)
                    if kind != "drop":
                        yield Event("accept", place, rule, box, decided, statement)
                    close(closed)
                if not narrow:
                    return not len(returned)
        return False

    def _late(
        self,
        start: list[Box],
        region: Box,
        prefix: Box,
        table: nft.Table,
        matches: Sequence[nft.Statement],
        gone: Sequence[Covers],
        told: Sequence[int],
    ) -> Iterator[Box]:
        """What a rule drops, worked out when somebody asks."""
        for narrow in self._reached(start, region, table, matches):
            yield from self._kept(gone, told, {**prefix, **narrow})

    def _kept(self, gone: Sequence[Covers], told: Sequence[int], box: Box) -> list[Box]:
        """A box without what had left its chain: of each of `gone`, as many as `told` says. Nothing where that
        comes in too many pieces, so that they count as not decided."""
        before = [one for some, until in zip(gone, told, strict=True) for one in some.meeting(box, until)]
        return outside(box, before, self.space.tops, _PIECES) or [] if before else [box]

    def _reached(self, start: list[Box], region: Box, table: nft.Table, matches: Sequence[nft.Statement]) -> list[Box]:
        for match in matches:
            start = self.narrowed(start, region, self.space.match(table, match))  # type: ignore[arg-type]
            if not start:
                break
        return start

    def _shape(self, rule: nft.Rule) -> Shape:
        """How a rule is gone through: matches that are quick to read, then the rest; worked out once."""
        known = self._shapes.get(id(rule))
        if known is None or known.rule is not rule:
            known = self._shapes[id(rule)] = shape_of(rule)
        return known

    def _doubted(
        self,
        place: Place,
        rule: nft.Rule,
        box: Box,
        decided: Callable[[Box], list[Box]],
        statement: nft.Statement,
    ) -> Event:
        table, chain = place
        doubt = {self.space.doubt(f"{table.family} {table.name} {chain.name}: {text.shown(statement)}"): only(1)}
        return Event("accept", place, rule, {**box, **doubt}, decided, statement)

    def _effects(
        self, table: nft.Table, statements: Sequence[nft.Statement], region: Box, reached: list[Box]
    ) -> Iterator[tuple[Box, nft.Statement]]:
        """Each thing that statements do, with what it takes to get there: narrowed from `region`."""
        for statement in statements:
            kind = type(statement)
            if kind is nft.Match:
                reached = self.narrowed(reached, region, self.space.match(table, statement))
                if not reached:
                    return
            elif kind in (nft.VerdictMap, nft.VerdictMapRef):
                onward: list[Box] = []
                for boxes, verdict in self.looked_up(table, statement):
                    found = self.narrowed(reached, region, boxes)
                    if kind_of(verdict) == "continue":
                        onward += found
                        continue
                    for one in found:
                        yield one, verdict
                reached = onward  # without an entry the rule does not match
                if not reached:
                    return
            elif kind is nft.Mangle:
                reached = self.narrowed(reached, region, self.space.writable(table, statement))
                for one in reached:
                    yield one, statement
            elif kind.__name__ in SOMETIMES:
                doubt = {self.space.doubt(f"{table.family} {table.name}: {text.shown(statement)}"): only(1)}
                reached = [{**one, **doubt} for one in reached]
            elif self.of_other_family(statement):
                return  # "dnat ip to ..." in a table of both families is for IPv4 packets alone
            elif kind.__name__ not in HARMLESS and not (kind is nft.Verdict and statement.kind == "continue"):
                for one in reached:
                    yield one, statement

    def of_other_family(self, statement: nft.Statement) -> bool:
        """Whether a translation or a rejection is for packets of the other family alone."""
        return family_of(statement) not in (None, self.space.family)

    def looked_up(self, table: nft.Table, statement: nft.Statement) -> Iterator[tuple[list[Box], nft.Statement]]:
        """Each verdict of a verdict map, with the packets that find it."""
        assert isinstance(statement, nft.VerdictMap | nft.VerdictMapRef)
        entries = self._entries(table, statement)
        if entries is None:
            yield [{}], nft.UnknownStatement(repr(statement))
            return
        for element, verdict in sorted(entries, key=repr):
            if element != "*":
                yield self.space.key(table, statement.key, element), verdict
        for _, verdict in (one for one in entries if one[0] == "*"):
            named = frozenset(element for element, _ in entries if element != "*")
            yield self.space.match(table, nft.Match(statement.key, nft.AnonymousSet(named), "!=")), verdict

    def _entries(self, table: nft.Table, statement: nft.Statement) -> frozenset[tuple[nft.Element, nft.Verdict]] | None:
        if isinstance(statement, nft.VerdictMap):
            return statement.entries
        name = getattr(statement, "name", "")
        held = next((one for one in table.maps if one.name == name), None)
        if held is None or held.flags & {"dynamic", "timeout"}:
            return None
        if not all(isinstance(verdict, nft.Verdict) for _, verdict in held.elements):
            return None
        return held.elements  # type: ignore[return-value]

    @staticmethod
    def narrowed(reached: list[Box], region: Box, boxes: list[Box]) -> list[Box]:
        """For each box reached and each of `boxes`: what both together add to the region."""
        found: list[Box] = []
        for one in reached:
            for box in boxes:
                added = dict(one)
                for field, wanted in box.items():
                    present = added.get(field) or region.get(field)
                    if present is None:
                        added[field] = wanted
                    elif present != wanted:
                        both = common(present, wanted)
                        if not both:
                            break
                        if both != present:
                            added[field] = both
                else:
                    found.append(added)
        return found

    # --- chains that write marks: every path by itself ---------------------------------

    def _paths(self, place: Place, region: Box) -> Iterator[Event]:
        """The same for a chain that writes marks: paths part at each write and each call."""
        from .paths import Paths

        yield from Paths(self, place, _FORKS).events(region)

    # --- all writes, for the lemma that no packet gets a mark it may not have ----------

    def mark_writes(self, place: Place, region: Box) -> Iterator[Event]:
        """Every write of a packet's or a flow's mark that a packet of `region` may meet in a base chain.

        `region` must hold of the marks before and after each write (it is checked write by write);
        so marks are not followed, and what was decided by a mark counts for nothing later.
        """
        if self.writes(place[0], place[1].name):
            yield from self._writes_in(place, place[1], region, {}, [], ())

    def _writes_in(
        self, place: Place, chain: nft.Chain, region: Box, prefix: Box, covers: list[Box], callers: tuple[str, ...]
    ) -> Iterator[Event]:
        table = place[0]
        start = {**region, **prefix}
        mine = list(covers)
        for rule in chain.rules:
            for narrow, statement in self._effects(table, rule.statements, start, [{}]):
                kind, steady = kind_of(statement), self._forget(narrow)
                if kind in ("write", "doubt"):
                    yield Event("write", place, rule, {**start, **narrow}, lambda _: list(mine), statement)
                    continue
                if kind in ("jump", "goto"):
                    target = self.chain(table, statement)
                    if target is not None and target.name not in callers:
                        onward = {**prefix, **steady}
                        yield from self._writes_in(place, target, region, onward, mine, (*callers, chain.name))
                    if kind == "jump":
                        continue
                # Decided, or gone from this chain: but only if no mark was asked for it, and no header has changed.
                if steady == narrow and not (narrow and table.key in self._rewritten):
                    mine.append({**prefix, **steady})
                    if not narrow:
                        return
