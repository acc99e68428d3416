# SPDX-License-Identifier: BSD-2-Clause
"""The second guard: a copy of the chains that drop, in tables that one process owns while it lives.

A table with an owner (Linux 5.12) can be changed by nobody else, and `nft flush ruleset` passes it by. So
what others do to the first guard opens nothing until it is put back. Both guards have to accept a packet.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from ..netstate.nft import Chain, Table, Verdict, VerdictMap
from ..netstate.state import NetState
from . import names

_DROPPING = frozenset({"postrouting", "input", "egress"})


def second(state: NetState) -> tuple[Table, ...]:
    """The tables of a compiled state once more, without the chains that mark before a route is chosen, or redirect."""
    return tuple(
        evolve(table, name=names.SECOND_TABLE, chains=_kept(table))
        for table in state.tables
        if table.name == names.TABLE
    )


def _kept(table: Table) -> tuple[Chain, ...]:
    """The base chains that drop, and what they lead to."""
    led_to = {chain.name: set(_targets(chain)) for chain in table.chains}
    kept: set[str] = set()
    ahead = {chain.name for chain in table.chains if chain.hook and chain.hook.hook in _DROPPING}
    while ahead:
        kept |= ahead
        ahead = set().union(*(led_to[name] for name in ahead)) - kept
    return tuple(chain for chain in table.chains if chain.name in kept)


def _targets(chain: Chain) -> Iterator[str]:
    for rule in chain.rules:
        for one in rule.statements:
            verdicts = [verdict for _, verdict in one.entries] if isinstance(one, VerdictMap) else [one]
            yield from (each.target for each in verdicts if isinstance(each, Verdict) and each.target)
