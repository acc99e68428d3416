# SPDX-License-Identifier: BSD-2-Clause
"""Transfer function of chains: which packets of a region they accept, drop or rewrite.

A region is a box. The evaluation of a chain keeps two things (ChainState): the part of the region
that is considered (`narrow`, what the matches add to the region) and the parts that are decided
already. A rule accepts a packet that is in the rule's box and in no decided part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from ...netstate import nft
from ...netstate.formats import nft_text
from .box import Box, find_uncovered, points, subtract_boxes
from .box_index import BoxIndex
from .chain_event import BaseChain, ChainEvent
from .chain_paths import ChainPaths, substitute_marks
from .chain_reader import ChainReader
from .chain_state import ChainState
from .header_space import HeaderSpace
from .header_writes import written_fields
from .rule_shape import PreparedRule, called_chains, effect_of, prepare_rule
from .ruleset_scan import RulesetScan

__all__ = ["BaseChain", "ChainEvent", "ChainTransfer"]

_MARKS = ("mark:", "ctmark:")
_MAX_PATHS = 512  # through chains that write marks
_MAX_PIECES = 256  # of a decided part, without the packets that had left its chain before


class ChainTransfer(ChainReader):
    """The transfer function of the chains of `tables` over a header space."""

    def __init__(self, space: HeaderSpace, tables: Sequence[nft.Table], scan: RulesetScan) -> None:
        super().__init__(space, tables, scan)
        self._writing_chains = scan.writing_chains
        self._writes = scan.writes
        self._writes_marks: dict[tuple[str, str, str], bool] = {}
        self._prepared_rules = scan.prepared_rules

    def find_accepted(
        self,
        base_chains: Sequence[BaseChain],
        region: Box,
        allowed: BoxIndex,
        covers: Sequence[Box] = (),
        unstable_fields: tuple[str, ...] = (),
    ) -> Box | None:
        """Return a part of `region`, outside `allowed`, that all base chains accept; or None.

        If a chain writes, the order of the chains must be that of the kernel. Exact for chains that
        write nothing; after a chain that writes, the written fields may have any value in the chains
        that follow. `covers` are excluded parts of the region. `unstable_fields` may change from
        chain to chain whatever the rules do.
        """
        if not base_chains:
            excluded = [*covers, *allowed.overlapping(region)]
            return find_uncovered(region, excluded, self.space.max_values)
        base_chain, following = base_chains[0], base_chains[1:]
        # `allowed` applies to the packets after the last chain, where fields may be others.
        is_early = bool(following and (unstable_fields or any(self._writes_headers(each) for each in following)))
        for event in self.events(base_chain, region):
            if event.kind != "accept":
                continue
            decided = [*covers, *event.excluded]
            excluded = [*decided, *(() if is_early else self._allowed_after(event, allowed))]
            accepted = find_uncovered(event.box, excluded, self.space.max_values)
            if accepted is None:
                continue
            if not following:
                return accepted
            # A lookup may use the devices, which differ between hooks.
            lost = (*unstable_fields, *(event.marks or ()), *(("fib ",) if self.space.opaque_values else ()))
            box, still_decided = event.box, decided
            if lost:
                box = _without_fields(event.box, lost)
                still_decided = [each for each in decided if not any(name.startswith(lost) for name in each)]
            accepted = self.find_accepted(following, box, allowed, still_decided, unstable_fields)
            if accepted is not None:
                return accepted
        return None

    def _writes_headers(self, base_chain: BaseChain) -> bool:
        """Return True if a rule of the table changes a header."""
        return any(not name.startswith((*_MARKS, "fib ")) for name in self.fields_written_in(base_chain[0]))

    def fields_written_in(self, table: nft.Table) -> tuple[str, ...]:
        """Return the fields that rules of a table may write, as prefixes of names."""
        keys = self._writes.get(table.key, ())
        return tuple(name for key in keys for name in written_fields(key, self.space.family))

    @staticmethod
    def _allowed_after(event: ChainEvent, allowed: BoxIndex) -> list[Box]:
        """Return the packets that are allowed with the headers that the chain has written."""
        headers = {name: value for name, value in (event.marks or {}).items() if not name.startswith(_MARKS)}
        if not headers:
            return list(allowed.overlapping(event.box))
        substituted = (substitute_marks(box, headers) for box in allowed.boxes)
        return [box for box in substituted if box is not None]

    def events(self, base_chain: BaseChain, region: Box) -> Iterator[ChainEvent]:
        """Yield what one base chain does with the packets of `region`, in order."""
        table, chain = base_chain
        assert chain.hook is not None
        if self.can_write(table, chain.name):
            yield from ChainPaths(self, base_chain, _MAX_PATHS).events(region)
            return
        tops = self.space.max_values
        state = ChainState(region, {}, BoxIndex((), tops), (BoxIndex((), tops),))
        yield from self._chain_events(base_chain, chain, state)
        if not state.is_empty and chain.hook.policy != "drop":
            decided = list(state.decided_boxes.overlapping(region))
            yield ChainEvent("accept", base_chain, None, region, decided)

    def can_write(self, table: nft.Table, name: str, visited: frozenset[str] = frozenset()) -> bool:
        """Return True if a chain, or one that it calls, changes a mark or a header."""
        key = (*table.key, name)
        if key not in self._writes_marks:
            chain = self._chains.get(key)
            called = called_chains(table, chain) - visited if chain else set()
            self._writes_marks[key] = key in self._writing_chains or any(
                self.can_write(table, target, visited | {name}) for target in called
            )
        return self._writes_marks[key]

    # --- chains without writes: each rule once -----------------------------------------

    def _chain_events(self, base_chain: BaseChain, chain: nft.Chain, state: ChainState) -> Iterator[ChainEvent]:
        """Yield the events of a chain for the region of `state`, and update the state."""
        table = base_chain[0]
        starts: dict[tuple[object, ...], list[Box]] = {}  # by cache key of the cheap matches
        for rule in chain.rules:
            prepared = self._prepare(rule)
            start = starts.get(prepared.cache_key) if prepared.cache_key else None
            if start is None:
                start = self._reached([{}], state.region, table, prepared.cheap_matches)
                if prepared.cache_key:
                    starts[prepared.cache_key] = start
            if not start:
                continue
            if prepared.only_drops and prepared.remaining:
                # Most rules of a long chain only drop: evaluate them when a decided part is needed.
                counts = state.returned_counts()
                drops = partial(self._lazy_drops, start, state, table, prepared.remaining, counts)
                state.decided_boxes.add_lazy(drops)
                continue
            for narrow, statement in self.effects(table, prepared.remaining, state.region, start):
                yield from self._effect_events(base_chain, chain, rule, state, narrow, statement)
                if state.is_exhausted:
                    return

    def _effect_events(
        self,
        base_chain: BaseChain,
        chain: nft.Chain,
        rule: nft.Rule,
        state: ChainState,
        narrow: Box,
        statement: nft.Statement,
    ) -> Iterator[ChainEvent]:
        """Yield the events of one effect on the part `narrow` of the region; update the state."""
        effect = effect_of(statement)
        box = {**state.region, **narrow} if narrow else state.region
        if effect in ("jump", "goto"):
            yield from self._call_events(base_chain, chain, rule, state, narrow, statement)
        elif effect == "return":
            state.leave(narrow)
        elif effect == "unsupported":  # the statement may accept the packet
            yield self._unsupported_event(base_chain, rule, box, state, statement)
        elif effect == "drop":
            self._decide(state, narrow)
        else:
            excluded = state.excluded(box)
            if effect == "nat":
                yield ChainEvent("nat", base_chain, rule, box, excluded, statement)
            yield ChainEvent("accept", base_chain, rule, box, excluded, statement)
            self._decide(state, narrow)

    def _call_events(
        self,
        base_chain: BaseChain,
        chain: nft.Chain,
        rule: nft.Rule,
        state: ChainState,
        narrow: Box,
        statement: nft.Statement,
    ) -> Iterator[ChainEvent]:
        """Yield the events of a jump or goto, and update the state of the caller."""
        target = self.jump_target(base_chain[0], statement)
        is_decided = False
        if target is None or target.name in state.callers:
            box = {**state.region, **narrow}
            yield self._unsupported_event(base_chain, rule, box, state, statement)
        else:
            called = state.call(chain.name, narrow, self.space.max_values)
            yield from self._chain_events(base_chain, target, called)
            is_decided = called.is_empty
        if is_decided:
            self._decide(state, narrow)
        elif effect_of(statement) == "goto":
            state.leave(narrow)

    def _unsupported_event(
        self, base_chain: BaseChain, rule: nft.Rule, box: Box, state: ChainState, statement: nft.Statement
    ) -> ChainEvent:
        """Return an accept event under the condition of a new artificial field."""
        table, chain = base_chain
        description = f"{table.family} {table.name} {chain.name}: {nft_text.display_text(statement)}"
        condition = {self.space.unsupported_field(description): points(1)}
        return ChainEvent("accept", base_chain, rule, {**box, **condition}, state.excluded(box), statement)

    def _decide(self, state: ChainState, narrow: Box) -> None:
        """Record that the part `narrow` of the region is accepted or dropped."""
        box = {**state.prefix, **narrow}
        state.decided_boxes.extend(self._minus_returned(state.returned_boxes, state.returned_counts(), box))
        state.remove(narrow)

    def _lazy_drops(
        self,
        start: list[Box],
        state: ChainState,
        table: nft.Table,
        matches: Sequence[nft.Statement],
        counts: Sequence[int],
    ) -> Iterator[Box]:
        """Yield the parts that a rule drops; `counts` is from the moment of its evaluation."""
        for narrow in self._reached(start, state.region, table, matches):
            yield from self._minus_returned(state.returned_boxes, counts, {**state.prefix, **narrow})

    def _minus_returned(self, returned: Sequence[BoxIndex], counts: Sequence[int], box: Box) -> list[Box]:
        """Return `box` without the packets that had left their chain before, as boxes.

        `counts` is the number of boxes that had returned from each chain. Empty if there are too
        many pieces: the packets then count as not decided, which is safe.
        """
        before = [part for index, count in zip(returned, counts, strict=True) for part in index.overlapping(box, count)]
        if not before:
            return [box]
        return subtract_boxes(box, before, self.space.max_values, _MAX_PIECES) or []

    def _reached(self, start: list[Box], region: Box, table: nft.Table, matches: Sequence[nft.Statement]) -> list[Box]:
        """Return the parts of the region that pass the matches."""
        reached = start
        for match in matches:
            assert isinstance(match, nft.Match)
            reached = self.narrow(reached, region, self.space.match_boxes(table, match))
            if not reached:
                break
        return reached

    def _prepare(self, rule: nft.Rule) -> PreparedRule:
        """Return the prepared rule, from the cache if it was prepared before."""
        prepared = self._prepared_rules.get(rule)
        if prepared is None:
            prepared = prepare_rule(rule)
            self._prepared_rules.set(rule, prepared)
        return prepared

    # --- all writes, for the lemma of mark confinement ---------------------------------

    def mark_writes(self, base_chain: BaseChain, region: Box) -> Iterator[ChainEvent]:
        """Yield every write that a packet of `region` may reach in a base chain.

        The caller checks each write by itself, and `region` must hold for the marks before and
        after it. So marks are not followed, and a part that a mark decided is not excluded later.
        """
        if self.can_write(base_chain[0], base_chain[1].name):
            yield from self._writes_in(base_chain, base_chain[1], region, {}, (), ())

    def _writes_in(
        self,
        base_chain: BaseChain,
        chain: nft.Chain,
        region: Box,
        prefix: Box,
        excluded: Sequence[Box],
        callers: tuple[str, ...],
    ) -> Iterator[ChainEvent]:
        """Yield the writes of a chain; `prefix` is what the calls up to it add to `region`."""
        table = base_chain[0]
        entering = {**region, **prefix}
        decided = list(excluded)
        changing = (*_MARKS, *self.fields_written_in(table))
        for rule in chain.rules:
            for narrow, statement in self.effects(table, rule.statements, entering, [{}]):
                effect, stable = effect_of(statement), _without_fields(narrow, changing)
                if effect in ("write", "unsupported"):
                    box = {**entering, **narrow}
                    yield ChainEvent("write", base_chain, rule, box, tuple(decided), statement)
                    continue
                if effect in ("jump", "goto"):
                    target = self.jump_target(table, statement)
                    if target is not None and target.name not in callers:
                        onward, within = {**prefix, **stable}, (*callers, chain.name)
                        yield from self._writes_in(base_chain, target, region, onward, decided, within)
                    if effect == "jump":
                        continue
                # Decided, or returned from this chain: excluded later if no mark was tested and no
                # header may have changed before.
                if stable == narrow and not (narrow and self._writes_headers(base_chain)):
                    decided.append({**prefix, **stable})
                    if not narrow:
                        return


def _without_fields(box: Box, prefixes: tuple[str, ...]) -> Box:
    """Return the box without conditions on fields with one of the name prefixes."""
    return {name: wanted for name, wanted in box.items() if not name.startswith(prefixes)}
