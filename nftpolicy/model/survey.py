# SPDX-License-Identifier: BSD-2-Clause
"""One look through all tables for what the space of packets depends on: device names, masks, writers of marks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import Factory, define

from ..netstate import nft, text
from ..netstate.nft import FULL

DEVICE_KEYS = frozenset({"iifname", "oifname", "iif", "oif"})
_ANYTHING = (nft.FlowAdd, nft.Fwd, nft.Dup, nft.Queue, nft.Tproxy, nft.UnknownStatement)


@define
class Survey:
    """`devices` and patterns that rules name, `masks` of marks that are tested or written, and `writers`:
    the chains with a rule that changes a mark or a header."""

    devices: set[str] = Factory(set)
    masks: set[int] = Factory(set)
    writers: set[tuple[str, str, str]] = Factory(set)  # family, table, chain
    writes: dict[nft.Mangle, None] = Factory(dict)  # each different one once
    rewritten: set[tuple[str, str]] = Factory(set)  # tables with a rule that changes something else than a mark
    unknown: list[str] = Factory(list)  # statements that may do anything, or send packets round the hooks
    shapes: dict[int, Any] = Factory(dict)  # what model/passage.py works out of each rule, once


def which_mark(expression: object) -> str | None:
    """ "mark" or "ctmark" if the expression reads that alone."""
    if isinstance(expression, nft.Meta):
        return "mark" if expression.key == "mark" else None
    if isinstance(expression, nft.Ct):
        return "ctmark" if expression.key == "mark" else None
    return None


def survey(tables: Iterable[nft.Table]) -> Survey:
    """Look through everything once."""
    found = Survey()
    for table in tables:
        for one in table.sets:
            if "ifname" in one.type or "iface_index" in one.type:
                columns = [at for at, kind in enumerate(one.type) if kind in ("ifname", "iface_index")]
                for element in one.elements:
                    parts = element if isinstance(element, tuple) else (element,)
                    found.devices.update(str(parts[at]) for at in columns if at < len(parts))
        for chain in table.chains:
            for rule in chain.rules:
                for statement in rule.statements:
                    kind = type(statement)
                    if kind is nft.Match:
                        _expression(statement.left, statement.right, found)
                    elif kind is nft.Mangle:
                        _write(statement, found)
                        found.writers.add((*table.key, chain.name))
                        found.writes[statement] = None
                        if which_mark(statement.key) is None:
                            found.rewritten.add(table.key)
                    elif kind is nft.VerdictMap:
                        _expression(statement.key, _keys(statement), found)
                    elif kind is nft.VerdictMapRef:
                        _expression(statement.key, _held(table, statement.name), found)
                    elif kind in _ANYTHING:
                        found.unknown.append(_where(table, chain, statement))
    return found


def _where(table: nft.Table, chain: nft.Chain, statement: nft.Statement) -> str:
    return f"{table.family} {table.name} {chain.name}: {text.shown(statement)}"


def _held(table: nft.Table, name: str) -> nft.AnonymousSet | None:
    found = next((one for one in table.maps if one.name == name), None)
    return nft.AnonymousSet(frozenset(key for key, _ in found.elements)) if found else None


def _keys(statement: nft.VerdictMap) -> nft.AnonymousSet:
    return nft.AnonymousSet(frozenset(key for key, _ in statement.entries))


def _expression(left: object, right: object, found: Survey) -> None:
    kind = type(left)
    if kind is nft.Meta:
        if left.key in DEVICE_KEYS:  # type: ignore[attr-defined]
            found.devices.update(_names(right))
    elif kind is nft.Bitwise:
        if which_mark(left.of) and isinstance(left.keep, int):  # type: ignore[attr-defined]
            found.masks.add(left.keep)  # type: ignore[attr-defined]
    elif kind is nft.Concat:
        for at, part in enumerate(left.parts):  # type: ignore[attr-defined]
            column = nft.AnonymousSet(
                frozenset(one[at] for one in right.elements if isinstance(one, tuple) and at < len(one))
            ) if isinstance(right, nft.AnonymousSet) else None  # fmt: skip
            _expression(part, column, found)


def _names(right: object) -> Iterable[str]:
    if isinstance(right, str):
        return (right,)
    if isinstance(right, nft.AnonymousSet):
        return (str(one) for one in right.elements if not isinstance(one, tuple))
    return ()


def _write(statement: nft.Mangle, found: Survey) -> None:
    value = statement.value
    if isinstance(value, nft.Bitwise) and isinstance(value.keep, int) and isinstance(value.put, int):
        found.masks.update({value.keep & FULL, value.put & FULL} - {0, FULL})
