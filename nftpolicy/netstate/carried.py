# SPDX-License-Identifier: BSD-2-Clause
"""What a state is after a step: the same steps as Linux takes, refused with the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from attrs import evolve

from .changes import (
    Elements,
    NftOperation,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    RuleChange,
    Rules,
    Step,
    SysctlChange,
)
from .nft import Chain, CounterRef, Match, NamedCounter, Rule, Set, SetRef, Table, Verdict, VerdictMap
from .routing import IpRule, Route
from .state import NetState

MISSING, EXISTS, BUSY = "No such file or directory", "File exists", "Device or resource busy"
NO_ROUTE, OTHER_HOOK = "No such process", "Operation not supported"

T = TypeVar("T")


class Impossible(Exception):
    """A step can't be done: why, and the object that it was about."""

    def __init__(self, reason: str, item: object = None) -> None:
        self.reason, self.item = reason, item
        super().__init__(reason)


def after(state: NetState, step: Step) -> NetState:
    """The state when the step is done. Raises Impossible where Linux would refuse it."""
    match step:
        case NftTransaction(operations):
            tables = transaction({table.key: table for table in state.tables}, operations)
            return evolve(state, tables=tuple(tables.values()))
        case RuleChange(verb, rule):
            rules = changed(state.rules, verb, rule, IpRule.__eq__, MISSING)
            return evolve(state, rules=tuple(sorted(rules, key=lambda one: (one.family, one.priority))))
        case RouteChange(verb, route):
            return evolve(state, routes=changed(state.routes, verb, route, same_route, NO_ROUTE))
        case RouteReplacement(_, route):
            return evolve(state, routes=(*(one for one in state.routes if not same_route(one, route)), route))
        case SysctlChange(_, new):
            if all(one.path != new.path for one in state.sysctls):
                raise Impossible(MISSING)
            return evolve(state, sysctls=tuple(new if one.path == new.path else one for one in state.sysctls))


def transaction(
    tables: dict[tuple[str, str], Table], operations: tuple[NftOperation, ...]
) -> dict[tuple[str, str], Table]:
    """The tables, by key, after a transaction. Raises Impossible."""
    tables = dict(tables)
    for one in operations:
        key = (one.family, one.table)
        if isinstance(one.object, Table):
            if one.verb == "add":
                tables.setdefault(key, Table(*key))
            elif tables.pop(key, None) is None:
                raise Impossible(MISSING, one.object)
        elif key not in tables:
            raise Impossible(MISSING, one.object)
        else:
            tables[key] = _operation(tables[key], one)
    return tables


def changed(held: tuple[T, ...], verb: str, item: T, same: Callable[[T, T], bool], missing: str) -> tuple[T, ...]:
    """`held` with the item added or taken out. Raises Impossible."""
    if verb == "add":
        if any(same(item, one) for one in held):
            raise Impossible(EXISTS, item)
        return (*held, item)
    if item not in held:
        raise Impossible(missing, item)
    at = held.index(item)
    return (*held[:at], *held[at + 1 :])


def same_route(one: Route, other: Route) -> bool:
    """A table has one route of a metric to a destination."""
    places = [(route.family, route.table, route.destination, route.metric) for route in (one, other)]
    return places[0] == places[1]


def _operation(table: Table, one: NftOperation) -> Table:
    """The table after an operation on something in it. Raises Impossible."""
    add = one.verb == "add"
    match one.object:
        case NamedCounter() as counter:
            return evolve(table, counters=_objects(table, table.counters, counter, add, lambda _: True))
        case Set() as wanted if one.verb == "flush":
            held = _find(table.sets, wanted.name, wanted)
            return evolve(table, sets=_put(table.sets, evolve(held, elements=frozenset())))
        case Set() as wanted:
            return evolve(
                table,
                sets=_objects(
                    table,
                    table.sets,
                    evolve(wanted, elements=frozenset()),
                    add,
                    lambda held: (held.type, held.flags) == (wanted.type, wanted.flags),
                ),
            )
        case Elements(of, which):
            held = _find(table.sets, of.name, one.object)
            if not add and which - held.elements:
                raise Impossible(MISSING, one.object)
            return evolve(
                table,
                sets=_put(table.sets, evolve(held, elements=held.elements | which if add else held.elements - which)),
            )
        case Rules(chain, rules):
            held_chain = _find(table.chains, chain.name, one.object)
            for rule in rules:
                if not all(map(_names(table).__contains__, _uses(rule))):
                    raise Impossible(MISSING, rule)
            return evolve(table, chains=_put(table.chains, evolve(held_chain, rules=held_chain.rules + rules)))
        case Chain() as chain:
            return evolve(table, chains=_chain(table, chain, one.verb))
    raise TypeError(one.object)


def _chain(table: Table, chain: Chain, verb: str) -> tuple[Chain, ...]:
    held = next((other for other in table.chains if other.name == chain.name), None)
    if verb == "flush" or (verb == "delete" and held and held.rules):
        # Deleting a chain deletes its rules, which hold on to nothing any more.
        emptied = _put(table.chains, evolve(_find(table.chains, chain.name, chain), rules=()))
        if verb == "flush":
            return emptied
        table = evolve(table, chains=emptied)
    if verb == "add" and held and held.hook and chain.hook:
        if _place(held) != _place(chain):
            raise Impossible(OTHER_HOOK, chain)
        return _put(table.chains, evolve(held, hook=chain.hook))  # its policy may change
    return _objects(table, table.chains, evolve(chain, rules=()), verb == "add", lambda _: chain.hook is None)


def _place(chain: Chain) -> object:
    return chain.hook and evolve(chain.hook, policy="")


def _objects(table: Table, held: tuple, item, add: bool, same: Callable) -> tuple:  # type: ignore[no-untyped-def, type-arg]
    """`held` with the object, or without it."""
    found = next((one for one in held if one.name == item.name), None)
    if add:
        if found is not None and not same(found):
            raise Impossible(EXISTS, item)
        return held if found is not None else (*held, item)
    if found is None:
        raise Impossible(MISSING, item)
    if any((type(item), item.name) in _uses(rule) for chain in table.chains for rule in chain.rules):
        raise Impossible(BUSY, item)
    return tuple(one for one in held if one is not found)


def _find(held: tuple, name: str, item: object):  # type: ignore[no-untyped-def, type-arg]
    found = next((one for one in held if one.name == name), None)
    if found is None:
        raise Impossible(MISSING, item)
    return found


def _put(held: tuple, item) -> tuple:  # type: ignore[no-untyped-def, type-arg]
    return tuple(item if one.name == item.name else one for one in held)


def _names(table: Table) -> set[tuple[type, str]]:
    return {(type(one), one.name) for group in (table.chains, table.sets, table.counters) for one in group}


def _uses(rule: Rule) -> set[tuple[type, str]]:
    """What a rule holds on to, by kind and name."""
    used: set[tuple[type, str]] = set()
    for one in rule.statements:
        match one:
            case Match(_, SetRef(name)):
                used.add((Set, name))
            case Verdict(_, str(name)):
                used.add((Chain, name))
            case CounterRef(name):
                used.add((NamedCounter, name))
            case VerdictMap(_, entries):
                used |= {(Chain, to.target) for _, to in entries if to.target}
    return used
