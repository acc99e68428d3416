# SPDX-License-Identifier: BSD-2-Clause
"""A kernel in memory: it takes the same steps as Linux and refuses them with the same words.

What it does not know: routing itself, overlaps inside interval sets, and netlink's other users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import evolve

from ..netstate.changes import (
    Elements,
    NftOperation,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    RuleChange,
    Rules,
    Step,
)
from ..netstate.nft import Chain, CounterRef, Match, NamedCounter, Rule, Set, SetRef, Table, Verdict, VerdictMap
from ..netstate.routing import IpRule, Route, Sysctl
from ..netstate.state import Counters, Counts, NetState
from .interface import Refused

MISSING, EXISTS, BUSY = "No such file or directory", "File exists", "Device or resource busy"
NO_ROUTE, OTHER_HOOK, INJECTED = "No such process", "Operation not supported", "Operation not permitted"

Key = tuple[str, str]


class _No(Exception):
    """One operation is refused: why, and the object that it was about."""

    def __init__(self, reason: str, item: object = None) -> None:
        self.reason, self.item = reason, item


class Fake:
    """See interface.Kernel. `state` is what it holds, `generation` grows with every change.

    `devices`: those that exist; None means all. `unhooked`: those at whose egress no chain can be
    hooked. `refuse_at`: the number of the step, counted from 0, that is refused whatever it is.
    """

    def __init__(
        self,
        state: NetState = NetState(),
        devices: Iterable[str] | None = None,
        refuse_at: int | None = None,
        families: tuple[int, ...] = (4, 6),
        ports: Mapping[str, Sequence[str]] | None = None,
        unhooked: Iterable[str] = (),
    ) -> None:
        self.tables: dict[Key, Table] = {table.key: table for table in state.tables}
        self.rules, self.routes = list(state.rules), list(state.routes)
        self.sysctls = {one.path: one.value for one in state.sysctls}
        self.counts: dict[tuple[str, str, str], Counts] = {}
        self.devices = None if devices is None else {"lo", *devices}
        self.refuse_at, self.asked, self.generation = refuse_at, 0, 0
        self._families, self._ports, self._unhooked = families, dict(ports or {}), frozenset(unhooked)

    @property
    def state(self) -> NetState:
        """All that is held, as a value: tables by key, rules and routes in the order of the kernel."""
        return NetState(
            tuple(self.tables[key] for key in sorted(self.tables)),
            tuple(sorted(self.rules, key=lambda one: (one.family, one.priority))),
            tuple(self.routes),
            tuple(Sysctl(path, value) for path, value in sorted(self.sysctls.items())),
        )

    def observe(self, table: str, families: Sequence[str], protocol: int, sysctls: Iterable[str]) -> NetState:
        held = self.state
        return NetState(
            tuple(self.tables[family, table] for family in families if (family, table) in self.tables),
            tuple(one for one in held.rules if one.protocol == protocol),
            tuple(one for one in held.routes if one.protocol == protocol),
            tuple(Sysctl(path, self.sysctls[path]) for path in sysctls if path in self.sysctls),
        )

    def counters(self, table: str) -> Counters:
        return {
            (family, table, counter.name): self.counts.get((family, table, counter.name), Counts(0, 0))
            for (family, name), held in self.tables.items()
            if name == table
            for counter in held.counters
        }

    def ip_families(self) -> tuple[int, ...]:
        return self._families

    def bridge_ports(self, devices: Iterable[str]) -> Mapping[str, Sequence[str]]:
        return {device: self._ports[device] for device in devices if device in self._ports}

    def links(self) -> set[str]:
        return set(self._ports) | {port for ports in self._ports.values() for port in ports}

    def takes_link_guard(self, device: str) -> bool:
        return device not in self._unhooked

    def carry_out(self, step: Step) -> None:
        number, self.asked = self.asked, self.asked + 1
        if number == self.refuse_at:
            raise Refused(step, INJECTED)
        try:
            match step:
                case NftTransaction(operations):
                    self._transaction(operations)
                case RuleChange(verb, rule):
                    _change(self.rules, verb, rule, _same_rule, MISSING)
                case RouteChange(verb, route):
                    self._needs(route)
                    _change(self.routes, verb, route, _same_route, NO_ROUTE)
                case RouteReplacement(_, route):
                    self._needs(route)
                    self.routes[:] = [one for one in self.routes if not _same_route(one, route)]
                    self.routes.append(route)
                case _:
                    if step.new.path not in self.sysctls:
                        raise _No(MISSING)
                    self.sysctls[step.new.path] = step.new.value
        except _No as no:
            raise Refused(step, no.reason, no.item) from None
        self.generation += 1

    def _transaction(self, operations: tuple[NftOperation, ...]) -> None:
        tables, counts = dict(self.tables), dict(self.counts)
        for one in operations:
            key = (one.family, one.table)
            if isinstance(one.object, Table):
                if one.verb == "add":
                    tables.setdefault(key, Table(*key))
                elif tables.pop(key, None) is None:
                    raise _No(MISSING, one.object)
            elif key not in tables:
                raise _No(MISSING, one.object)
            else:
                if isinstance(one.object, Chain) and one.object.hook and one.object.hook.device in self._unhooked:
                    raise _No(MISSING, one.object)
                tables[key] = _operation(tables[key], one)
            # A counter that goes takes its numbers along.
            held = {counter.name for counter in tables[key].counters} if key in tables else set()
            counts = {place: found for place, found in counts.items() if place[:2] != key or place[2] in held}
        self.tables, self.counts = tables, counts

    def _needs(self, route: Route) -> None:
        known = self.devices is None or route.kind != "unicast" or route.device in {None, *self.devices}
        if not known:
            raise _No(f"there is no device {route.device}", route)


def _change(held: list, verb: str, item: object, same: Callable, missing: str) -> None:  # type: ignore[type-arg]
    if verb == "add":
        if any(same(item, one) for one in held):
            raise _No(EXISTS, item)
        held.append(item)
    elif item in held:
        held.remove(item)
    else:
        raise _No(missing, item)


def _same_rule(one: IpRule, other: IpRule) -> bool:
    """The kernel does not look at who wrote a rule."""
    return evolve(one, protocol=0) == evolve(other, protocol=0)


def _same_route(one: Route, other: Route) -> bool:
    """A table has one route of a metric to a destination."""
    places = [(route.family, route.table, route.destination, route.metric) for route in (one, other)]
    return places[0] == places[1]


def _operation(table: Table, one: NftOperation) -> Table:
    """The table after an operation on something in it. Raises _No."""
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
                raise _No(MISSING, one.object)
            return evolve(
                table,
                sets=_put(table.sets, evolve(held, elements=held.elements | which if add else held.elements - which)),
            )
        case Rules(chain, rules):
            held_chain = _find(table.chains, chain.name, one.object)
            for rule in rules:
                if not all(map(_names(table).__contains__, _uses(rule))):
                    raise _No(MISSING, rule)
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
            raise _No(OTHER_HOOK, chain)
        return _put(table.chains, evolve(held, hook=chain.hook))  # its policy may change
    return _objects(table, table.chains, evolve(chain, rules=()), verb == "add", lambda _: chain.hook is None)


def _place(chain: Chain) -> object:
    return chain.hook and evolve(chain.hook, policy="")


def _objects(table: Table, held: tuple, item, add: bool, same: Callable) -> tuple:  # type: ignore[no-untyped-def, type-arg]
    """`held` with the object, or without it."""
    found = next((one for one in held if one.name == item.name), None)
    if add:
        if found is not None and not same(found):
            raise _No(EXISTS, item)
        return held if found is not None else (*held, item)
    if found is None:
        raise _No(MISSING, item)
    if any((type(item), item.name) in _uses(rule) for chain in table.chains for rule in chain.rules):
        raise _No(BUSY, item)
    return tuple(one for one in held if one is not found)


def _find(held: tuple, name: str, item: object):  # type: ignore[no-untyped-def, type-arg]
    found = next((one for one in held if one.name == name), None)
    if found is None:
        raise _No(MISSING, item)
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
