# SPDX-License-Identifier: BSD-2-Clause
"""Calls between the chains of a table: jumps, gotos and verdict maps."""

from __future__ import annotations

from ...netstate import nft

_VERDICTS = (nft.Verdict, nft.VerdictMap, nft.VerdictMapRef)


def called_chains(table: nft.Table, chain: nft.Chain) -> set[str]:
    """Return the names of the chains that a chain calls."""
    names: set[str] = set()
    for rule in chain.rules:
        for statement in rule.statements:
            if isinstance(statement, _VERDICTS):
                names.update(verdict.target for verdict in _verdicts(table, statement) if verdict.target)
    return names


def _verdicts(table: nft.Table, statement: nft.Statement) -> list[nft.Verdict]:
    if isinstance(statement, nft.Verdict):
        return [statement]
    if isinstance(statement, nft.VerdictMap):
        return [verdict for _, verdict in statement.entries]
    if isinstance(statement, nft.VerdictMapRef):
        named = (each for each in table.maps if each.name == statement.name)
        contents = (content for each in named for _, content in each.elements)
        return [content for content in contents if isinstance(content, nft.Verdict)]
    return []


def reachable_chains(table: nft.Table, chain: nft.Chain) -> set[str]:
    """Return the names of a chain and of those that it calls, directly or not."""
    by_name = {each.name: each for each in table.chains}
    names, waiting = set[str](), [chain.name]
    while waiting:
        name = waiting.pop()
        if name not in names and name in by_name:
            names.add(name)
            waiting += called_chains(table, by_name[name])
    return names
