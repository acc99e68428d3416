# SPDX-License-Identifier: BSD-2-Clause
"""Readers of rules for regions: jump targets, entries of verdict maps, narrowing by matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...netstate import nft
from ...netstate.formats import nft_text
from .box import Box, intersect_ranges, points, subtract_boxes
from .header_space import HeaderSpace
from .header_writes import written_fields
from .rule_shape import NEUTRAL, NONDETERMINISTIC, VerdictMapStatement, effect_of, possible_verdicts, restricted_family
from .ruleset_scan import RulesetScan

_VERDICT_MAPS = (nft.VerdictMap, nft.VerdictMapRef)
_MAX_PIECES = 256  # of the packets that a negation lets pass


class ChainReader:
    """The chains of `tables`, read for packets of a header space."""

    def __init__(self, space: HeaderSpace, tables: Sequence[nft.Table], scan: RulesetScan) -> None:
        self.space = space
        self._changing_sets = scan.changing_sets
        space.add_sets(tables)
        self._chains = {(*table.key, chain.name): chain for table in tables for chain in table.chains}

    def jump_target(self, table: nft.Table, verdict: nft.Statement) -> nft.Chain | None:
        """Return the target of a jump or goto, None if the table does not have it."""
        target = verdict.target if isinstance(verdict, nft.Verdict) else None
        return self._chains.get((*table.key, str(target)))

    def is_other_family(self, statement: nft.Statement) -> bool:
        """Return True if a NAT or reject statement applies only to packets of the other family."""
        return restricted_family(statement) not in (None, self.space.family)

    def verdict_entries(
        self, table: nft.Table, statement: VerdictMapStatement
    ) -> Iterator[tuple[list[Box], nft.Statement]]:
        """Yield each verdict of a verdict map with the packets that find it."""
        entries = self._entries(table, statement)
        if entries is None:
            yield [{}], nft.UnknownStatement(nft_text.display_text(statement))
            return
        conditional = self._conditional_elements(table, statement)
        for element, verdict in sorted(entries, key=repr):
            if element != "*":
                boxes = self.space.key_boxes(table, statement.key, element)
            else:
                keys = frozenset(element for element, _ in entries if element != "*")
                boxes = self.space.match_boxes(table, nft.Match(statement.key, nft.AnonymousSet(keys), "!="))
            if element in conditional:
                condition = self.space.element_condition(table, nft_text.display_text(statement))
                boxes = [{**box, **condition} for box in boxes]
            yield boxes, verdict

    @staticmethod
    def _conditional_elements(table: nft.Table, statement: VerdictMapStatement) -> frozenset[nft.Element]:
        if isinstance(statement, nft.VerdictMap):
            return frozenset()
        named = next((each for each in table.maps if each.name == statement.name), None)
        return named.conditional_elements if named is not None else frozenset()

    def _entries(
        self, table: nft.Table, statement: VerdictMapStatement
    ) -> list[tuple[nft.Element, nft.Verdict]] | None:
        """Return the entries of a verdict map.

        None if they are not known or packets may change them.
        """
        if isinstance(statement, nft.VerdictMap):
            return list(statement.entries)
        named = next((each for each in table.maps if each.name == statement.name), None)
        if named is None or (*table.key, named.name) in self._changing_sets:
            return None
        entries = [(element, content) for element, content in named.elements if isinstance(content, nft.Verdict)]
        return entries if len(entries) == len(named.elements) else None

    @staticmethod
    def narrow(reached: list[Box], region: Box, boxes: list[Box]) -> list[Box]:
        """Return what each box of `reached` together with each of `boxes` adds to the region."""
        narrowed: list[Box] = []
        for start in reached:
            for box in boxes:
                added = dict(start)
                for field, wanted in box.items():
                    present = added.get(field) or region.get(field)
                    if present is None:
                        added[field] = wanted
                    elif present != wanted:
                        both = intersect_ranges(present, wanted)
                        if not both:
                            break
                        if both != present:
                            added[field] = both
                else:
                    narrowed.append(added)
        return narrowed

    def effects(
        self,
        table: nft.Table,
        statements: Sequence[nft.Statement],
        region: Box,
        reached: list[Box],
    ) -> Iterator[tuple[Box, nft.Statement]]:
        """Yield each effect of the statements with the part of the region that it applies to.

        `reached` has the parts of `region` for which the first statement is executed.
        """
        for statement in statements:
            if isinstance(statement, nft.Match):
                reached = self.narrow(reached, region, self.space.match_boxes(table, statement))
                if not reached:
                    return
            elif isinstance(statement, nft.Unless):
                reached = self.narrow(reached, region, self.unless_boxes(table, statement))
                if not reached:
                    return
            elif isinstance(statement, nft.Verdict):
                if statement.kind != "continue":
                    for narrow in reached:
                        yield narrow, statement
            elif isinstance(statement, _VERDICT_MAPS):
                continuing: list[Box] = []
                for boxes, verdict in self.verdict_entries(table, statement):
                    matching = self.narrow(reached, region, boxes)
                    if effect_of(verdict) == "continue":
                        continuing += matching
                        continue
                    for narrow in matching:
                        yield narrow, verdict
                reached = continuing  # without an entry the rule does not match
                if not reached:
                    return
            elif isinstance(statement, nft.Mangle):
                reached = self.narrow(reached, region, self.space.writable_boxes(table, statement))
                for narrow in reached:
                    yield narrow, statement
                written = written_fields(statement.key, self.space.family)
                if written:
                    reached = [
                        {name: values for name, values in narrow.items() if not name.startswith(written)}
                        for narrow in reached
                    ]
            elif isinstance(statement, nft.Undecided):
                for verdict in possible_verdicts(statement):
                    yield from ((narrow, verdict) for narrow in self.undecided(table, statement, reached))
                reached = self.continuing(table, statement, reached)
            elif isinstance(statement, NONDETERMINISTIC):
                reached = self.undecided(table, statement, reached)
            elif self.is_other_family(statement):
                return  # "dnat ip to ..." in an inet table applies only to IPv4 packets
            elif not isinstance(statement, NEUTRAL):
                for narrow in reached:
                    yield narrow, statement

    def unless_boxes(self, table: nft.Table, statement: nft.Unless) -> list[Box]:
        """Return the boxes of packets for which not all matches hold."""
        holding: list[Box] = [{}]
        for match in statement.matches:
            holding = self.narrow(holding, {}, self.space.match_boxes(table, match))
        left = subtract_boxes({}, holding, self.space.max_values, _MAX_PIECES)
        return [{self.unsupported_field(table, statement): points(1)}] if left is None else left

    def undecided(self, table: nft.Table, statement: nft.Statement, reached: list[Box]) -> list[Box]:
        """Return `reached` under the condition that the statement has one of its results."""
        condition = {self.unsupported_field(table, statement): points(1)}
        return [{**narrow, **condition} for narrow in reached]

    def continuing(self, table: nft.Table, statement: nft.Undecided, reached: list[Box]) -> list[Box]:
        """Return the part of `reached` for which the rule may continue after the statement."""
        if statement.results == {"continue"}:
            return reached
        return self.undecided(table, statement, reached) if "continue" in statement.results else []

    def unsupported_field(self, table: nft.Table, statement: nft.Statement) -> str:
        """Return a new artificial field for a statement that is not modelled."""
        return self.space.unsupported_field(f"{table.family} {table.name}: {nft_text.display_text(statement)}")
