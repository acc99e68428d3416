# SPDX-License-Identifier: BSD-2-Clause
"""Minimal nft operations that turn one table into another.

Counters and set elements that both tables have are not touched, so counters keep their values.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from attrs import evolve, frozen

from ..netstate.formats import nft_text
from ..netstate.nft import (
    Chain,
    Element,
    Hook,
    Match,
    NamedCounter,
    Set,
    SetRef,
    Table,
    Verdict,
    VerdictMap,
)
from ..netstate.operations import ChainRules, NftOperation, SetElements

_MAX_ELEMENTS = 20_000  # of one command; bounds its text, and nft's memory for it

_Operation = tuple[str, NamedCounter | Set | SetElements | Chain | ChainRules]  # verb, object


def diff_tables(old: Table | None, new: Table | None) -> list[NftOperation]:
    """Return the operations in an order that one transaction accepts: deletions before additions."""
    if old == new:
        return []
    if new is None:
        assert old is not None
        return [NftOperation("delete", old.family, old.name, old)]
    creation = [NftOperation("add", new.family, new.name, new)]
    if old is None:
        return creation + _object_operations(Table(new.family, new.name), new)
    if not old.has_foreign_objects:
        operations = _object_operations(old, new)
        if all(nft_text.can_write(nft_text.operation_text, operation) for operation in operations):
            return operations
    # Foreign objects in our table cannot be deleted one by one: this version, or nft text, cannot name them.
    deletion = NftOperation("delete", old.family, old.name, old)
    return [deletion, *creation, *_object_operations(Table(new.family, new.name), new)]


def _object_operations(old: Table, new: Table) -> list[NftOperation]:
    """Return the operations for the objects of a table that stays."""
    operations: list[NftOperation] = []
    changes = _find_changes(old, new)
    for verb, item in (
        *_deletions(old, new, changes),
        *_counter_additions(old, new),
        *_set_elements(old, new, changes),
        *_chain_additions(old, new),
        *_rule_additions(old, new, changes),
    ):
        operations.append(NftOperation(verb, new.family, new.name, item))
    return operations


@frozen
class _Changes:
    """Objects of the old table that do not stay as they are.

    `deleted_*`: deleted, and added again if the new table has one of the name. `flushed`: chains
    with other rules in the new table, or with references to a deleted object.
    """

    deleted_chains: tuple[Chain, ...]
    deleted_sets: tuple[Set, ...]
    flushed: tuple[Chain, ...]


def _find_changes(old: Table, new: Table) -> _Changes:
    new_chains = {chain.name: chain for chain in new.chains}
    new_sets = {nft_set.name: nft_set for nft_set in new.sets}
    deleted_chains = tuple(chain for chain in old.chains if not _is_same_chain(chain, new_chains.get(chain.name)))
    deleted_sets = tuple(nft_set for nft_set in old.sets if not _is_same_set(nft_set, new_sets.get(nft_set.name)))
    deleted = {chain.name for chain in deleted_chains}
    deleted |= {nft_set.name for nft_set in deleted_sets}

    def is_flushed(chain: Chain) -> bool:
        successor = new_chains.get(chain.name)
        rules = () if successor is None else successor.rules
        return rules != chain.rules or not deleted.isdisjoint(_references(chain))

    return _Changes(deleted_chains, deleted_sets, tuple(filter(is_flushed, old.chains)))


def _deletions(old: Table, new: Table, changes: _Changes) -> Iterator[_Operation]:
    """Yield flushes before deletions: rules refer to chains, sets and counters."""
    for chain in changes.flushed:
        if chain.rules:
            yield "flush", chain
    for chain in changes.deleted_chains:
        if chain not in changes.flushed and chain.rules:
            yield "flush", chain
        yield "delete", chain
    for nft_set in changes.deleted_sets:
        yield "delete", nft_set
    for counter in old.counters:
        if counter not in new.counters:
            yield "delete", counter


def _counter_additions(old: Table, new: Table) -> Iterator[_Operation]:
    for counter in new.counters:
        if counter not in old.counters:
            yield "add", counter


def _set_elements(old: Table, new: Table, changes: _Changes) -> Iterator[_Operation]:
    """Yield additions of sets, and the changes of the elements of all sets."""
    deleted = {nft_set.name for nft_set in changes.deleted_sets}
    remaining = {nft_set.name: nft_set for nft_set in old.sets if nft_set.name not in deleted}
    for nft_set in new.sets:
        predecessor = remaining.get(nft_set.name)
        if predecessor is None:
            yield "add", nft_set
        if "dynamic" in nft_set.flags:
            continue  # packets add its elements
        present = predecessor.elements if predecessor else frozenset()
        if present != nft_set.elements and _has_wildcard(present | nft_set.elements):
            # nft 1.0.6 does not find an element with a wildcard to delete it, and reports other
            # elements as overlaps with it.
            yield "flush", nft_set
            present = frozenset()
        yield from _element_operations("delete", nft_set, present - nft_set.elements)
        yield from _element_operations("add", nft_set, nft_set.elements - present)


def _chain_additions(old: Table, new: Table) -> Iterator[_Operation]:
    """Yield additions of chains that are new or have another hook; of a base chain that stays, to change its policy."""
    hooks = {chain.name: chain.hook for chain in old.chains}
    for chain in new.chains:
        if chain.name not in hooks or hooks[chain.name] != chain.hook:
            yield "add", chain


def _rule_additions(old: Table, new: Table, changes: _Changes) -> Iterator[_Operation]:
    present = {chain.name for chain in old.chains}
    emptied = {chain.name for chain in (*changes.flushed, *changes.deleted_chains)}
    for chain in new.chains:
        if chain.rules and (chain.name not in present or chain.name in emptied):
            yield "add", ChainRules(chain, chain.rules)


def _references(chain: Chain) -> set[str]:
    """Return the names of the sets and chains that the chain's rules refer to."""
    names: set[str] = set()
    for rule in chain.rules:
        for statement in rule.statements:
            match statement:
                case Match(_, SetRef(name)) | Verdict(_, str(name)):
                    names.add(name)
                case VerdictMap(_, entries):
                    names |= {verdict.target for _, verdict in entries if verdict.target}
    return names


def _is_same_chain(old: Chain, new: Chain | None) -> bool:
    """Return True if `old` can become `new` in place: of a hook, only the policy can change."""
    return new is not None and _with_default_policy(old.hook) == _with_default_policy(new.hook)


def _with_default_policy(hook: Hook | None) -> Hook | None:
    return hook and evolve(hook, policy="accept")


def _is_same_set(old: Set, new: Set | None) -> bool:
    """Return True if `old` can become `new` by a change of its elements."""
    return new is not None and evolve(old, elements=new.elements) == new


def _has_wildcard(elements: frozenset[Element]) -> bool:
    return any(isinstance(element, str) and element.endswith("*") for element in elements)


def _element_operations(verb: str, nft_set: Set, elements: frozenset[Element]) -> Iterator[_Operation]:
    """Yield operations of at most _MAX_ELEMENTS elements each."""
    if not elements:
        return
    if len(elements) <= _MAX_ELEMENTS:
        yield verb, SetElements(nft_set, elements)
        return
    ordered = iter(sorted(elements, key=str))
    while chunk := frozenset(islice(ordered, _MAX_ELEMENTS)):
        yield verb, SetElements(nft_set, chunk)
