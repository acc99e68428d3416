# SPDX-License-Identifier: BSD-2-Clause
"""Shadow guard: a copy of the chains that drop, in tables that one process owns while it runs.

Only its owner can change a table with an owner (Linux 5.12), and `nft flush ruleset` skips it. So
a foreign change to the guard opens nothing until the guard is restored. Both guards have to accept
a packet.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from ..netstate.nft import Chain, Table, Verdict, VerdictMap
from ..netstate.state import NetState
from . import object_names

_DROPPING_HOOKS = frozenset({"postrouting", "input", "egress"})


def shadow_guard_tables(state: NetState) -> tuple[Table, ...]:
    """Return copies of the guard's tables without the chains that mark, restore or redirect."""
    return tuple(
        evolve(table, name=object_names.SHADOW_TABLE, chains=_dropping_chains(table))
        for table in state.tables
        if table.name == object_names.TABLE
    )


def _dropping_chains(table: Table) -> tuple[Chain, ...]:
    """Return the base chains at the hooks that drop, and the chains reachable from them."""
    targets = {chain.name: set(_targets(chain)) for chain in table.chains}
    reachable: set[str] = set()
    pending = {chain.name for chain in table.chains if _drops(chain)}
    while pending:
        reachable |= pending
        pending = set().union(*(targets[name] for name in pending)) - reachable
    return tuple(_after_guard(chain) for chain in table.chains if chain.name in reachable)


def _after_guard(chain: Chain) -> Chain:
    return evolve(chain, hook=evolve(chain.hook, priority=object_names.SHADOW_PRIORITY)) if chain.hook else chain


def _drops(chain: Chain) -> bool:
    return chain.hook is not None and chain.hook.hook in _DROPPING_HOOKS and chain.hook.type != "nat"


def _targets(chain: Chain) -> Iterator[str]:
    """Yield the chains that the rules of a chain jump or go to."""
    for rule in chain.rules:
        for statement in rule.statements:
            if isinstance(statement, VerdictMap):
                yield from (verdict.target for _, verdict in statement.entries if verdict.target)
            elif isinstance(statement, Verdict) and statement.target:
                yield statement.target
