# SPDX-License-Identifier: BSD-2-Clause
"""The tables of a state, as the functions that execute rules for sets of packets read them."""

from __future__ import annotations

from collections.abc import Sequence

from ...netstate import nft
from ...netstate.formats import nft_text
from .header_space import HeaderSpace
from .header_writes import written_fields
from .rule_shape import PreparedRule, VerdictMapStatement, prepare_rule
from .ruleset_scan import RulesetScan


class SymbolicRuleset:
    """Chains, sets and maps of `tables`, for the packets of a header space. No method changes what it returns."""

    def __init__(self, space: HeaderSpace, tables: Sequence[nft.Table], scan: RulesetScan) -> None:
        self.space = space
        space.add_sets(tables)
        self._scan = scan
        self._chains = {(*table.key, chain.name): chain for table in tables for chain in table.chains}
        self._can_write: dict[tuple[str, str, str], bool] = {}
        self._written_fields: dict[tuple[str, str], tuple[str, ...]] = {}

    def jump_target(self, table: nft.Table, verdict: nft.Statement) -> nft.Chain | None:
        """Return the target of a jump or goto, None if the table does not have it."""
        if not isinstance(verdict, nft.Verdict) or verdict.target is None:
            return None
        return self._chains.get((*table.key, verdict.target))

    def map_entries(
        self, table: nft.Table, statement: VerdictMapStatement
    ) -> list[tuple[nft.Element, nft.Verdict]] | None:
        """Return the entries of a verdict map; None if they are not known or packets may change them."""
        if isinstance(statement, nft.VerdictMap):
            return list(statement.entries)
        named = next((each for each in table.maps if each.name == statement.name), None)
        if named is None or (*table.key, named.name) in self._scan.changing_sets:
            return None
        entries = [(element, content) for element, content in named.elements if isinstance(content, nft.Verdict)]
        return entries if len(entries) == len(named.elements) else None

    @staticmethod
    def conditional_elements(table: nft.Table, statement: VerdictMapStatement) -> frozenset[nft.Element]:
        """Return the elements of a verdict map whose own statements can end the rule."""
        if isinstance(statement, nft.VerdictMap):
            return frozenset()
        named = next((each for each in table.maps if each.name == statement.name), None)
        return named.conditional_elements if named is not None else frozenset()

    def can_write(self, table: nft.Table, name: str, visited: frozenset[str] = frozenset()) -> bool:
        """Return True if a chain, or one that it calls, changes a mark or a header."""
        key = (*table.key, name)
        if key not in self._can_write:
            called = self._scan.called.get(key, set()) - visited
            self._can_write[key] = key in self._scan.writing_chains or any(
                self.can_write(table, target, visited | {name}) for target in called
            )
        return self._can_write[key]

    def fields_written_in(self, table: nft.Table) -> tuple[str, ...]:
        """Return the fields that rules of a table may write, as prefixes of names."""
        if table.key not in self._written_fields:
            keys = self._scan.writes.get(table.key, ())
            names = dict.fromkeys(name for key in keys for name in written_fields(key, self.space.family))
            self._written_fields[table.key] = tuple(names)
        return self._written_fields[table.key]

    def prepared_rules(self, chain: nft.Chain) -> Sequence[PreparedRule]:
        """Return the rules of a chain, each in the order in which it is quickest to execute."""
        prepared = self._scan.prepared_rules.get(chain)
        if prepared is None:
            prepared = tuple(map(prepare_rule, chain.rules))
            self._scan.prepared_rules.set(chain, prepared)
        return prepared

    def unsupported_field(self, table: nft.Table, statement: nft.Statement) -> str:
        """Return a new artificial field for a statement that is not modelled."""
        return self.space.unsupported_field(f"{table.family} {table.name}: {nft_text.display_text(statement)}")
