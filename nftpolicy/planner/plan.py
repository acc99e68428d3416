# SPDX-License-Identifier: BSD-2-Clause
"""The steps from an observed state to a desired one, in an order in which the guard always stands.

nft is atomic, rtnetlink is not: so the guard comes before any route or rule changes, tables are
filled before a rule leads to them, new rules are there before old ones go, and a guard that is
to go at all goes last.
"""

from __future__ import annotations

from attrs import evolve, frozen

from ..netstate import text
from ..netstate.changes import NftTransaction, RouteChange, RouteReplacement, RuleChange, Step, SysctlChange
from ..netstate.nft import Rule, Table
from ..netstate.routing import Route
from ..netstate.state import NetState
from .difference import table_changes


@frozen
class Plan:
    """Steps in order. No steps: the kernel holds what is wanted."""

    steps: tuple[Step, ...]


def plan(observed: NetState, desired: NetState) -> Plan:
    """From `observed` (our own objects in the kernel) to `desired`.

    A sysctl that `observed` does not have belongs to a device that is not there; it is left out.
    """
    held, wanted = set(observed.rules), set(desired.rules)
    held_routes, wanted_routes = set(observed.routes), set(desired.routes)
    values = {one.path: one.value for one in observed.sysctls}
    routing: list[Step] = [
        SysctlChange(values[one.path], one) for one in desired.sysctls if values.get(one.path, one.value) != one.value
    ]
    fresh = [route for route in desired.routes if route not in held_routes]
    outworn = {_place(route): route for route in observed.routes if route not in wanted_routes}
    for route in fresh:
        old = outworn.pop(_place(route), None)
        routing.append(RouteReplacement(old, route) if old else RouteChange("add", route))
    routing += [RuleChange("add", rule) for rule in desired.rules if rule not in held]
    routing += [RuleChange("delete", rule) for rule in observed.rules if rule not in wanted]
    routing += [RouteChange("delete", route) for route in outworn.values()]
    guard = _transaction(observed, desired)
    opens = not desired.tables
    return Plan((*routing, *guard) if opens else (*guard, *routing))


def _writable(table: Table | None) -> Table | None:
    """The table as far as it can be written again: without what others put into it that we do not know."""
    if table is None:
        return None
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
    back = [one for key in keys for one in table_changes(desired.table(*key), _writable(observed.table(*key)))]
    if not forth:
        return ()
    return (NftTransaction(tuple(forth), tuple(back)),)
