# SPDX-License-Identifier: BSD-2-Clause
"""The steps from an observed state to a desired one, in an order in which the guard always stands.

nft is atomic, rtnetlink is not. One transaction is the switch from the old guard to the new one, and
each of them keeps its promise whatever is routed (proof/lemmas.py). Around it, tables are filled before
a rule leads to them, new rules are there before old ones go, and a guard that is to go at all goes last.
Whether every state on the way keeps its promise is not believed here: runtime/changes/way.py has it proved.
"""

from __future__ import annotations

from attrs import evolve, frozen

from ..netstate import text
from ..netstate.carried import after
from ..netstate.changes import NftTransaction, RouteChange, RouteReplacement, RuleChange, Step, SysctlChange
from ..netstate.nft import Rule, Table
from ..netstate.routing import Route
from ..netstate.state import NetState
from .difference import table_changes

MAKE_BEFORE_BREAK, GUARD_FIRST, GUARD_LAST = "make before break", "guard first", "guard last"
VIA_BLOCK = "via block"


@frozen
class Plan:
    """Steps in order. No steps: the kernel holds what is wanted.

    `order` is the name of their order, and `switch` the number of steps after which the desired guard
    stands instead of the observed one.
    """

    steps: tuple[Step, ...]
    order: str = GUARD_FIRST
    switch: int = 0

    def states(self, observed: NetState) -> list[NetState]:
        """The state before the first step, and that after each one. Raises Impossible (netstate/carried.py)."""
        found = [observed]
        for step in self.steps:
            found.append(after(found[-1], step))
        return found


@frozen
class _Parts:
    """The steps by what they are: `adds` come before `ends`, so that a mark always leads somewhere."""

    sysctls: list[Step]
    adds: list[Step]
    ends: list[Step]
    guard: list[Step]


_NOTHING = _Parts([], [], [], [])


def plan(observed: NetState, desired: NetState) -> Plan:
    """From `observed` (our own objects in the kernel) to `desired`, in the first of its orders.

    A sysctl that `observed` does not have belongs to a device that is not there; it is left out.
    """
    return orders(observed, desired)[0]


def orders(observed: NetState, desired: NetState) -> tuple[Plan, ...]:
    """The same steps in every order that may be safe, the one that disturbs least first."""
    parts = _parts(observed, desired)
    if parts == _NOTHING:
        return (Plan(()),)
    if not desired.tables:
        names: tuple[str, ...] = (GUARD_LAST,)
    elif all(table.family != "inet" for table in observed.tables):
        names = (GUARD_FIRST,)
    else:
        names = (MAKE_BEFORE_BREAK, GUARD_FIRST)
    return tuple(_in_order(name, parts) for name in names)


def blocked(observed: NetState, desired: NetState, block: tuple[Table, ...]) -> Plan:
    """The same steps behind tables that stop everything, which come first and go last."""
    come = [one for table in block for one in table_changes(None, table)]
    go = [one for table in block for one in table_changes(table, None)]
    parts = _parts(observed, desired)
    if parts == _NOTHING:
        return Plan(())
    inner = _in_order(GUARD_FIRST, parts)
    first, last = NftTransaction(tuple(come), tuple(go)), NftTransaction(tuple(go), tuple(come))
    return Plan((first, *inner.steps, last), VIA_BLOCK, 1 + inner.switch)


def _in_order(name: str, parts: _Parts) -> Plan:
    groups = {
        MAKE_BEFORE_BREAK: ([*parts.sysctls, *parts.adds], parts.ends),
        GUARD_FIRST: ([], [*parts.sysctls, *parts.adds, *parts.ends]),
        GUARD_LAST: ([*parts.sysctls, *parts.adds, *parts.ends], []),
    }
    before, behind = groups[name]
    return Plan((*before, *parts.guard, *behind), name, len(before) + len(parts.guard))


def _parts(observed: NetState, desired: NetState) -> _Parts:
    held, wanted = set(observed.rules), set(desired.rules)
    held_routes, wanted_routes = set(observed.routes), set(desired.routes)
    values = {one.path: one.value for one in observed.sysctls}
    sysctls: list[Step] = [
        SysctlChange(values[one.path], one) for one in desired.sysctls if values.get(one.path, one.value) != one.value
    ]
    adds: list[Step] = []
    outworn = {_place(route): route for route in observed.routes if route not in wanted_routes}
    for route in desired.routes:
        if route not in held_routes:
            old = outworn.pop(_place(route), None)
            adds.append(RouteReplacement(old, route) if old else RouteChange("add", route))
    adds += [RuleChange("add", rule) for rule in desired.rules if rule not in held]
    ends: list[Step] = [RuleChange("delete", rule) for rule in observed.rules if rule not in wanted]
    ends += [RouteChange("delete", route) for route in outworn.values()]
    return _Parts(sysctls, adds, ends, list(_transaction(observed, desired)))


def writable(table: Table) -> Table:
    """The table as far as it can be written again: without what others put into it that we do not know."""
    chains = tuple(evolve(chain, rules=tuple(filter(_can_be_written, chain.rules))) for chain in table.chains)
    return evolve(table, chains=chains, unknown=())


def _can_be_written(rule: Rule) -> bool:
    try:
        text.rule(rule)
    except ValueError:
        return False
    return True


def _place(route: Route) -> tuple[int, int, str, int]:
    """A table holds one route to a destination with a metric."""
    return route.family, route.table, route.destination, route.metric


def _transaction(observed: NetState, desired: NetState) -> tuple[NftTransaction, ...]:
    keys = {table.key: None for table in (*desired.tables, *observed.tables)}
    forth = [one for key in keys for one in table_changes(observed.table(*key), desired.table(*key))]
    earlier = {table.key: writable(table) for table in observed.tables}
    back = [one for key in keys for one in table_changes(desired.table(*key), earlier.get(key))]
    if not forth:
        return ()
    return (NftTransaction(tuple(forth), tuple(back)),)
