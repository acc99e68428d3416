# SPDX-License-Identifier: BSD-2-Clause
"""The operations that turn one nft table into another, and no more than those.

Counters and set elements that both states have stay as they are, with their numbers.
"""

from __future__ import annotations

from ..netstate.changes import Elements, NftOperation, Rules
from ..netstate.nft import Chain, Element, Match, NamedCounter, Set, SetRef, Table, Verdict, VerdictMap

_ELEMENTS_A_COMMAND = 20_000  # keeps one command's text, and nft's memory for it, bounded


def table_changes(old: Table | None, new: Table | None) -> list[NftOperation]:
    """Operations, in an order that one transaction takes: what goes, then what comes."""
    if old == new:
        return []
    if new is None:
        assert old is not None
        return [NftOperation("delete", old.family, old.name, old)]
    found: list[NftOperation] = []
    if old is not None and old.is_foreign:
        # Somebody put things into our table that we can't name to take them out one by one.
        found.append(NftOperation("delete", old.family, old.name, old))
        old = None

    def add(verb: str, item: NamedCounter | Set | Elements | Chain | Rules) -> None:
        found.append(NftOperation(verb, new.family, new.name, item))

    if old is None:
        found.append(NftOperation("add", new.family, new.name, new))
        old = Table(new.family, new.name)
    chains, sets = {one.name: one for one in old.chains}, {one.name: one for one in old.sets}
    wanted_chains, wanted_sets = {one.name: one for one in new.chains}, {one.name: one for one in new.sets}
    gone = [one for one in old.chains if _is_other_chain(one, wanted_chains.get(one.name))]
    gone_sets = [one for one in old.sets if _is_other_set(one, wanted_sets.get(one.name))]
    lost = {one.name for one in (*gone, *gone_sets)}
    changed = [one for one in old.chains if _rules(wanted_chains.get(one.name)) != one.rules or _uses(one) & lost]
    # Rules first: they hold on to chains, sets and counters.
    for chain in changed:
        if chain.rules:
            add("flush", chain)
    for chain in gone:
        if chain not in changed and chain.rules:
            add("flush", chain)
        chains.pop(chain.name)
        add("delete", chain)
    for one in gone_sets:
        sets.pop(one.name)
        add("delete", one)
    for counter in old.counters:
        if counter not in new.counters:
            add("delete", counter)
    for counter in new.counters:
        if counter not in old.counters:
            add("add", counter)
    for one in new.sets:
        held = sets.get(one.name)
        if held is None:
            add("add", one)
        there = held.elements if held else frozenset()
        if there != one.elements and _has_wildcard(there | one.elements):
            # nft 1.0.6 finds no element with a wildcard that is to go, and takes others for its overlaps.
            add("flush", one)
            there = frozenset()
        _elements(add, "delete", one, there - one.elements)
        _elements(add, "add", one, one.elements - there)
    for chain in new.chains:
        if chain.name not in chains or chains[chain.name].hook != chain.hook:
            add("add", chain)
    emptied = {one.name for one in (*changed, *gone)}
    for chain in new.chains:
        if chain.rules and (chain.name not in chains or chain.name in emptied):
            add("add", Rules(chain, chain.rules))
    return found


def _rules(chain: Chain | None) -> object:
    return () if chain is None else chain.rules


def _uses(chain: Chain) -> set[str]:
    """The names of the sets and chains that the chain's rules hold on to."""
    names: set[str] = set()
    for rule in chain.rules:
        for one in rule.statements:
            match one:
                case Match(_, SetRef(name)) | Verdict(_, str(name)):
                    names.add(name)
                case VerdictMap(_, entries):
                    names |= {to.target for _, to in entries if to.target}
    return names


def _is_other_chain(old: Chain, new: Chain | None) -> bool:
    """Whether the chain must go: a hook can't be changed in place, but for its policy."""
    if new is None or (old.hook is None) != (new.hook is None):
        return True
    if old.hook is None or new.hook is None:
        return False
    place = (old.hook.type, old.hook.hook, old.hook.priority, old.hook.device)
    return place != (new.hook.type, new.hook.hook, new.hook.priority, new.hook.device)


def _has_wildcard(elements: frozenset[Element]) -> bool:
    return any(isinstance(one, str) and one.endswith("*") for one in elements)


def _is_other_set(old: Set, new: Set | None) -> bool:
    return new is None or (old.type, old.flags) != (new.type, new.flags)


def _elements(add, verb: str, of: Set, which) -> None:  # type: ignore[no-untyped-def]
    if len(which) <= _ELEMENTS_A_COMMAND:
        if which:
            add(verb, Elements(of, frozenset(which)))
        return
    ordered = sorted(which)  # elements of one set have the same types in the same places
    for start in range(0, len(ordered), _ELEMENTS_A_COMMAND):
        add(verb, Elements(of, frozenset(ordered[start : start + _ELEMENTS_A_COMMAND])))
