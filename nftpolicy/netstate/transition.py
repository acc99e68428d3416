# SPDX-License-Identifier: BSD-2-Clause
"""Transition function: the state after a step. Refuses the steps that Linux refuses.

The planner, the proof of intermediate states and the fake kernel share it. Errors have the text of
strerror(3) for the error number that Linux returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from attrs import evolve

from ..exceptions import NftpolicyError
from .nft import (
    Chain,
    CounterRef,
    Hook,
    Match,
    NamedCounter,
    Rule,
    Set,
    SetRef,
    Table,
    Verdict,
    VerdictMap,
)
from .operations import (
    ChainRules,
    IpRuleChange,
    NftOperation,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    SetElements,
    Step,
    SysctlChange,
)
from .routing import IpRule, Route
from .state import NetState

ENOENT_TEXT, EEXIST_TEXT, EBUSY_TEXT = "No such file or directory", "File exists", "Device or resource busy"
ESRCH_TEXT, EOPNOTSUPP_TEXT = "No such process", "Operation not supported"

_Reference = tuple[type, str]  # class and name of a table's object


class _HasName(Protocol):
    @property
    def name(self) -> str: ...


_Item = TypeVar("_Item")
_Named = TypeVar("_Named", bound=_HasName)


class StepRejected(NftpolicyError):
    """Step that Linux would refuse: the error text, and the object that it refers to."""

    def __init__(self, reason: str, item: object = None) -> None:
        self.reason, self.item = reason, item
        super().__init__(reason)


def state_after(state: NetState, step: Step) -> NetState:
    """Return the state after a step.

    Raises:
        StepRejected: Linux would refuse the step.
    """
    match step:
        case NftTransaction(operations):
            tables = _apply_transaction({table.key: table for table in state.tables}, operations)
            return evolve(state, tables=tuple(tables.values()))
        case IpRuleChange(verb, rule):
            rules = _add_or_delete(state.rules, verb, rule, IpRule.__eq__, ENOENT_TEXT)
            ordered = sorted(rules, key=lambda rule: (rule.family, rule.priority))
            return evolve(state, rules=tuple(ordered))
        case RouteChange(verb, route):
            routes = _add_or_delete(state.routes, verb, route, _is_same_route, ESRCH_TEXT)
            return evolve(state, routes=routes)
        case RouteReplacement(_, route):
            other_routes = (other for other in state.routes if not _is_same_route(other, route))
            return evolve(state, routes=(*other_routes, route))
        case SysctlChange(_, new):
            if all(sysctl.path != new.path for sysctl in state.sysctls):
                raise StepRejected(ENOENT_TEXT)
            sysctls = (new if old.path == new.path else old for old in state.sysctls)
            return evolve(state, sysctls=tuple(sysctls))


def _apply_transaction(
    tables: dict[tuple[str, str], Table], operations: Iterable[NftOperation]
) -> dict[tuple[str, str], Table]:
    """Return the tables, by key, after the operations. Raises StepRejected."""
    tables = dict(tables)
    for operation in operations:
        key = (operation.family, operation.table)
        if isinstance(operation.object, Table):
            if operation.verb == "add":
                tables.setdefault(key, Table(*key))
            elif tables.pop(key, None) is None:
                raise StepRejected(ENOENT_TEXT, operation.object)
        elif key not in tables:
            raise StepRejected(ENOENT_TEXT, operation.object)
        else:
            tables[key] = _apply_operation(tables[key], operation)
    return tables


def _add_or_delete(
    items: tuple[_Item, ...],
    verb: str,
    item: _Item,
    conflicts: Callable[[_Item, _Item], bool],
    missing: str,
) -> tuple[_Item, ...]:
    """Return `items` with `item` added or deleted. Raises StepRejected."""
    if verb == "add":
        if any(conflicts(item, other) for other in items):
            raise StepRejected(EEXIST_TEXT, item)
        return (*items, item)
    if item not in items:
        raise StepRejected(missing, item)
    index = items.index(item)
    return (*items[:index], *items[index + 1 :])


def _is_same_route(route: Route, other: Route) -> bool:
    """Return True if a table cannot have both routes."""
    return route.table_key == other.table_key


def _apply_operation(table: Table, operation: NftOperation) -> Table:
    """Return the table after an operation on one of its objects. Raises StepRejected."""
    is_add = operation.verb == "add"
    match operation.object:
        case NamedCounter() as counter:
            counters = _change_objects(table, table.counters, counter, is_add, lambda _: True)
            return evolve(table, counters=counters)
        case Set() as nft_set if operation.verb == "flush":
            present = _find(table.sets, nft_set.name, nft_set)
            return evolve(table, sets=_replace(table.sets, evolve(present, elements=frozenset())))
        case Set() as nft_set:
            empty = evolve(nft_set, elements=frozenset())
            kind = (nft_set.type, nft_set.flags)
            sets = _change_objects(
                table, table.sets, empty, is_add, lambda present: (present.type, present.flags) == kind
            )
            return evolve(table, sets=sets)
        case SetElements() as change:
            return evolve(table, sets=_change_elements(table, change, is_add))
        case ChainRules(chain, rules) as change:
            present_chain = _find(table.chains, chain.name, change)
            available = _object_references(table)
            for rule in rules:
                if not _references(rule) <= available:
                    raise StepRejected(ENOENT_TEXT, rule)
            longer = evolve(present_chain, rules=present_chain.rules + rules)
            return evolve(table, chains=_replace(table.chains, longer))
        case Chain() as chain:
            return evolve(table, chains=_change_chain(table, chain, operation.verb))
    raise TypeError(operation.object)


def _change_elements(table: Table, change: SetElements, is_add: bool) -> tuple[Set, ...]:
    present = _find(table.sets, change.nft_set.name, change)
    if is_add:
        return _replace(table.sets, evolve(present, elements=present.elements | change.elements))
    if change.elements - present.elements:
        raise StepRejected(ENOENT_TEXT, change)
    return _replace(table.sets, evolve(present, elements=present.elements - change.elements))


def _change_chain(table: Table, chain: Chain, verb: str) -> tuple[Chain, ...]:
    present = next((other for other in table.chains if other.name == chain.name), None)
    if verb == "flush" or (verb == "delete" and present and present.rules):
        # The deletion of a chain deletes its rules first, and with them their references.
        emptied = _replace(table.chains, evolve(_find(table.chains, chain.name, chain), rules=()))
        if verb == "flush":
            return emptied
        table = evolve(table, chains=emptied)
    if verb == "add" and present and present.hook and chain.hook:
        if _hook_point(present.hook) != _hook_point(chain.hook):
            raise StepRejected(EOPNOTSUPP_TEXT, chain)
        return _replace(table.chains, evolve(present, hook=chain.hook))  # its policy may change
    empty = evolve(chain, rules=())
    return _change_objects(table, table.chains, empty, verb == "add", lambda _: chain.hook is None)


def _hook_point(hook: Hook) -> Hook:
    """Return the hook without the part that can change in place."""
    return evolve(hook, policy="")


def _change_objects(
    table: Table,
    objects: tuple[_Named, ...],
    item: _Named,
    is_add: bool,
    is_compatible: Callable[[_Named], bool],
) -> tuple[_Named, ...]:
    """Return `objects` with `item` added or deleted. Raises StepRejected.

    `is_compatible`: return True if the addition of `item` over the object of this name is not an error.
    """
    present = next((other for other in objects if other.name == item.name), None)
    if is_add:
        if present is None:
            return (*objects, item)
        if not is_compatible(present):
            raise StepRejected(EEXIST_TEXT, item)
        return objects
    if present is None:
        raise StepRejected(ENOENT_TEXT, item)
    reference = (type(item), item.name)
    if any(reference in _references(rule) for chain in table.chains for rule in chain.rules):
        raise StepRejected(EBUSY_TEXT, item)
    return tuple(other for other in objects if other is not present)


def _find(objects: tuple[_Named, ...], name: str, item: object) -> _Named:
    """Return the object of a name. Raises StepRejected for `item` if it does not exist."""
    for candidate in objects:
        if candidate.name == name:
            return candidate
    raise StepRejected(ENOENT_TEXT, item)


def _replace(objects: tuple[_Named, ...], item: _Named) -> tuple[_Named, ...]:
    """Return `objects` with `item` instead of the object of its name."""
    return tuple(item if other.name == item.name else other for other in objects)


def _object_references(table: Table) -> set[_Reference]:
    objects: tuple[_HasName, ...] = (*table.chains, *table.sets, *table.counters)
    return {(type(item), item.name) for item in objects}


def _references(rule: Rule) -> set[_Reference]:
    """Return the chains, sets and counters that a rule refers to."""
    references: set[_Reference] = set()
    for statement in rule.statements:
        match statement:
            case Match(_, SetRef(name)):
                references.add((Set, name))
            case Verdict(_, str(name)):
                references.add((Chain, name))
            case CounterRef(name):
                references.add((NamedCounter, name))
            case VerdictMap(_, entries):
                references |= {(Chain, verdict.target) for _, verdict in entries if verdict.target}
    return references
