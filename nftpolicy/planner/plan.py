# SPDX-License-Identifier: BSD-2-Clause
"""Steps from an observed state to a desired one, in an order in which a guard is always in place.

nft is atomic, rtnetlink is not. One transaction switches from the old guard to the new one, and
each guard satisfies its specification for any routes (proof/lemmas.py). Around it, tables are
filled before a rule selects them, new rules are added before old ones are deleted, and a guard
that is removed without a successor is removed last. The safety of every intermediate state is not
assumed here: runtime/apply/step_order.py has it proved.
"""

from __future__ import annotations

from attrs import evolve, frozen

from ..netstate.formats import nft_text
from ..netstate.nft import Chain, Set, Table
from ..netstate.operations import (
    IpRuleChange,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    Step,
    SysctlChange,
)
from ..netstate.state import NetState
from ..netstate.transition import state_after
from .table_diff import diff_tables

MAKE_BEFORE_BREAK, GUARD_FIRST, GUARD_LAST = "make before break", "guard first", "guard last"
VIA_BLOCK = "via block"


@frozen
class Plan:
    """Steps in order; no steps if the observed state is the desired one.

    `order` is the name of the step order, `switch` the number of steps after which the desired
    guard has replaced the observed one.
    """

    steps: tuple[Step, ...]
    order: str = GUARD_FIRST
    switch: int = 0

    def states(self, observed: NetState) -> list[NetState]:
        """Return the state before the first step, and the state after each step.

        Raises:
            StepRejected: Linux would refuse a step (netstate/transition.py).
        """
        sequence = [observed]
        for step in self.steps:
            sequence.append(state_after(sequence[-1], step))
        return sequence


@frozen
class _StepGroups:
    """Steps by purpose: `make` comes before `break_`, so that a mark always selects a route.

    `make` adds ip rules and routes, `break_` deletes the old ones, `guard` is the nft transaction.
    """

    sysctls: list[Step]
    make: list[Step]
    break_: list[Step]
    guard: list[Step]


_NO_STEPS = _StepGroups([], [], [], [])


def plan(observed: NetState, desired: NetState) -> Plan:
    """Return the plan from `observed` (our own objects in the kernel) to `desired`, in the first order.

    Sysctls that `observed` does not have are of absent devices, and are left out.
    """
    return candidate_plans(observed, desired)[0]


def candidate_plans(observed: NetState, desired: NetState) -> tuple[Plan, ...]:
    """Return the same steps in every order that may be safe, the least disruptive one first."""
    groups = _step_groups(observed, desired)
    if groups == _NO_STEPS:
        return (Plan(()),)
    if not desired.tables:
        names: tuple[str, ...] = (GUARD_LAST,)
    elif all(table.family != "inet" for table in observed.tables):
        names = (GUARD_FIRST,)
    else:
        names = (MAKE_BEFORE_BREAK, GUARD_FIRST)
    return tuple(_in_order(name, groups) for name in names)


def plan_via_block(observed: NetState, desired: NetState, block: tuple[Table, ...]) -> Plan:
    """Return the same steps behind the tables of `block`, which are added first and deleted last."""
    add = tuple(item for table in block for item in diff_tables(None, table))
    delete = tuple(item for table in block for item in diff_tables(table, None))
    groups = _step_groups(observed, desired)
    if groups == _NO_STEPS:
        return Plan(())
    inner = _in_order(GUARD_FIRST, groups)
    first, last = NftTransaction(add, delete), NftTransaction(delete, add)
    return Plan((first, *inner.steps, last), VIA_BLOCK, 1 + inner.switch)


def _in_order(name: str, groups: _StepGroups) -> Plan:
    orders = {
        MAKE_BEFORE_BREAK: ([*groups.sysctls, *groups.make], groups.break_),
        GUARD_FIRST: ([], [*groups.sysctls, *groups.make, *groups.break_]),
        GUARD_LAST: ([*groups.sysctls, *groups.make, *groups.break_], []),
    }
    before_guard, after_guard = orders[name]
    return Plan((*before_guard, *groups.guard, *after_guard), name, len(before_guard) + len(groups.guard))


def _step_groups(observed: NetState, desired: NetState) -> _StepGroups:
    observed_values = {sysctl.path: sysctl.value for sysctl in observed.sysctls}
    sysctls: list[Step] = []
    for sysctl in desired.sysctls:
        value = observed_values.get(sysctl.path, sysctl.value)
        if value != sysctl.value:
            sysctls.append(SysctlChange(value, sysctl))
    observed_routes, desired_routes = set(observed.routes), set(desired.routes)
    obsolete = {route.table_key: route for route in observed.routes if route not in desired_routes}
    make: list[Step] = []
    for route in desired.routes:
        if route not in observed_routes:
            replaced = obsolete.pop(route.table_key, None)
            make.append(RouteReplacement(replaced, route) if replaced else RouteChange("add", route))
    observed_rules, desired_rules = set(observed.rules), set(desired.rules)
    make += [IpRuleChange("add", rule) for rule in desired.rules if rule not in observed_rules]
    break_: list[Step] = [IpRuleChange("delete", rule) for rule in observed.rules if rule not in desired_rules]
    break_ += [RouteChange("delete", route) for route in obsolete.values()]
    return _StepGroups(sysctls, make, break_, list(_guard_transaction(observed, desired)))


def writable_part(table: Table) -> Table:
    """Return the table without the foreign objects and rules that this version cannot write."""
    return evolve(
        table,
        chains=tuple(map(_writable_rules, filter(nft_text.can_name, table.chains))),
        sets=tuple(map(_writable_elements, filter(nft_text.can_name, table.sets))),
        counters=tuple(filter(nft_text.can_name, table.counters)),
        unknown=(),
    )


def _writable_rules(chain: Chain) -> Chain:
    """Return the chain without the rules that this version cannot write."""
    return evolve(chain, rules=tuple(rule for rule in chain.rules if nft_text.can_write(nft_text.rule_text, rule)))


def _writable_elements(item: Set) -> Set:
    """Return the set without the elements that nft text cannot carry, such as a device with a quote in its name."""
    writable = (each for each in item.elements if nft_text.can_write(nft_text.elements_text, item, (each,)))
    return evolve(item, elements=frozenset(writable))


def _guard_transaction(observed: NetState, desired: NetState) -> tuple[NftTransaction, ...]:
    """Return the nft transaction from `observed` to `desired`, () if the tables are equal."""
    keys = dict.fromkeys(table.key for table in (*desired.tables, *observed.tables))
    operations = tuple(item for key in keys for item in diff_tables(observed.table(*key), desired.table(*key)))
    if not operations:
        return ()
    previous = {table.key: writable_part(table) for table in observed.tables}
    undo = tuple(item for key in keys for item in diff_tables(desired.table(*key), previous.get(key)))
    return (NftTransaction(operations, undo),)
