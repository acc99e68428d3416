# SPDX-License-Identifier: BSD-2-Clause
"""Scan of all tables, in one pass, for the inputs of the header space: devices, masks, writers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import Factory, define

from ...netstate import nft
from ...netstate.formats import nft_text
from ...netstate.nft import FULL_MASK
from ..nft.chain_calls import called_chains
from .identity_cache import IdentityCache
from .rule_shape import NEUTRAL, PreparedRule

DEVICE_KEYS = frozenset({"iifname", "oifname", "iif", "oif"})
_DEVICE_TYPES = ("ifname", "iface_index")
# Beginnings of the JSON of objects that do nothing to a packet unless a statement refers to them.
_PASSIVE_OBJECTS = tuple(
    f'{{"{kind}":'
    for kind in (
        "set", "map", "counter", "quota", "limit", "ct helper", "ct timeout", "ct expectation", "secmark", "synproxy",
        "tunnel",
    )
)  # fmt: skip
_VOLATILE_FLAGS = frozenset({"dynamic", "timeout"})
_ARRIVAL_HOOKS = frozenset({"ingress", "prerouting", "input"})
_SET_REFERENCE = '"@'  # in the JSON of a statement that may add an element to any set of its table
_UNSUPPORTED = (nft.FlowOffload, nft.Fwd, nft.Dup, nft.Queue, nft.UnknownStatement)


@define
class RulesetScan:
    """Names and patterns of `devices`, `masks` of marks, and the rules that write.

    `writing_chains` are the chains with a rule that changes a mark or a header.
    """

    devices: set[str] = Factory(set)
    masks: set[int] = Factory(set)
    writing_chains: set[tuple[str, str, str]] = Factory(set)  # family, table, chain
    mangles: dict[nft.Mangle, None] = Factory(dict)  # without duplicates, in order
    # By family, table and chain: the chains that its rules call
    called: dict[tuple[str, str, str], set[str]] = Factory(dict)
    # By table: what rules change
    writes: dict[tuple[str, str], set[nft.Expression]] = Factory(dict)
    # Sets and maps whose elements packets or timeouts change: family, table, name
    changing_sets: set[tuple[str, str, str]] = Factory(set)
    diverting: list[str] = Factory(list)  # statements that give arriving packets a socket
    unsupported: list[str] = Factory(list)  # statements that may do anything, or bypass hooks
    prepared_rules: IdentityCache[nft.Chain, Sequence[PreparedRule]] = Factory(IdentityCache)  # a cache


def mark_kind(expression: object) -> str | None:
    """Return "mark" or "ctmark" if the expression reads only that mark, else None."""
    if isinstance(expression, nft.Meta):
        return "mark" if expression.key == "mark" else None
    if isinstance(expression, nft.Ct):
        return "ctmark" if expression.key == "mark" else None
    return None


def scan_ruleset(tables: Sequence[nft.Table]) -> RulesetScan:
    """Scan all tables once."""
    scan = RulesetScan()
    for table in tables:
        for named_set in table.sets:
            _scan_set(named_set, scan)
        containers: tuple[nft.Set | nft.Map, ...] = (*table.sets, *table.maps)
        scan.changing_sets.update(
            (*table.key, each.name) for each in containers if each.flags & _VOLATILE_FLAGS or each.timeout
        )
        for text in table.unknown:
            if not text.startswith(_PASSIVE_OBJECTS):
                scan.unsupported.append(f"{table.family} {table.name}: {text}")
        for chain in table.chains:
            for rule in chain.rules:
                for statement in rule.statements:
                    if not isinstance(statement, NEUTRAL):
                        _scan_statement(table, chain, statement, scan)
            scan.called[(*table.key, chain.name)] = called_chains(table, chain)
    if scan.diverting and any(map(_reads_socket_on_arrival, tables)):
        scan.unsupported += scan.diverting
    return scan


def _reads_socket_on_arrival(table: nft.Table) -> bool:
    """Return True if a rule for arriving packets reads the owner of a socket, which tproxy gives them."""
    chains = {chain.name: chain for chain in table.chains}
    names = [name for name, chain in chains.items() if chain.hook is not None and chain.hook.hook in _ARRIVAL_HOOKS]
    reachable: set[str] = set()
    while names:
        name = names.pop()
        if name in chains and name not in reachable:
            reachable.add(name)
            names += called_chains(table, chains[name])
    rules = (rule for name in reachable for rule in chains[name].rules)
    return any(key in repr(rule.statements) for rule in rules for key in ("skuid", "skgid"))


def _scan_set(named_set: nft.Set, scan: RulesetScan) -> None:
    columns = [index for index, name in enumerate(named_set.type) if name in _DEVICE_TYPES]
    if not columns:
        return
    for element in named_set.elements:
        parts = element if isinstance(element, tuple) else (element,)
        scan.devices.update(str(parts[index]) for index in columns if index < len(parts))


def _scan_statement(table: nft.Table, chain: nft.Chain, statement: nft.Statement, scan: RulesetScan) -> None:
    if isinstance(statement, nft.Match):
        _scan_match(statement.left, statement.right, scan)
    elif isinstance(statement, nft.Verdict):
        return
    elif isinstance(statement, nft.Unless):
        for match in statement.matches:
            _scan_match(match.left, match.right, scan)
    elif isinstance(statement, nft.Mangle):
        _scan_write(statement, scan)
        scan.writing_chains.add((*table.key, chain.name))
        scan.mangles[statement] = None
        scan.writes.setdefault(table.key, set()).add(statement.key)
    elif isinstance(statement, nft.VerdictMap):
        keys = nft.AnonymousSet(frozenset(key for key, _ in statement.entries))
        _scan_match(statement.key, keys, scan)
    elif isinstance(statement, nft.VerdictMapRef):
        _scan_match(statement.key, _map_keys(table, statement.name), scan)
    elif isinstance(statement, nft.SetUpdate):
        scan.changing_sets.add((*table.key, statement.name))
    elif isinstance(statement, nft.Tproxy):
        scan.diverting.append(f"{table.family} {table.name} {chain.name}: {nft_text.display_text(statement)}")
    elif isinstance(statement, _UNSUPPORTED):
        if isinstance(statement, nft.UnknownStatement) and _SET_REFERENCE in statement.raw:
            containers: tuple[nft.Set | nft.Map, ...] = (*table.sets, *table.maps)
            scan.changing_sets.update((*table.key, each.name) for each in containers)
        scan.unsupported.append(f"{table.family} {table.name} {chain.name}: {nft_text.display_text(statement)}")


def _map_keys(table: nft.Table, name: str) -> nft.AnonymousSet | None:
    named = next((each for each in table.maps if each.name == name), None)
    return nft.AnonymousSet(frozenset(key for key, _ in named.elements)) if named else None


def _scan_match(left: nft.Expression, right: object, scan: RulesetScan) -> None:
    if isinstance(left, nft.Meta):
        if left.key in DEVICE_KEYS:
            scan.devices.update(_names(right))
    elif isinstance(left, nft.Bitwise):
        if mark_kind(left.operand) and isinstance(left.and_mask, int):
            scan.masks.add(left.and_mask)
    elif isinstance(left, nft.Concat):
        for index, part in enumerate(left.parts):
            _scan_match(part, _column(right, index), scan)


def _column(right: object, index: int) -> nft.AnonymousSet | None:
    """Return one part of each element of a set of concatenations."""
    if not isinstance(right, nft.AnonymousSet):
        return None
    return nft.AnonymousSet(
        frozenset(element[index] for element in right.elements if isinstance(element, tuple) and index < len(element))
    )


def _names(right: object) -> Iterable[str]:
    if isinstance(right, str):
        return (right,)
    if isinstance(right, nft.AnonymousSet):
        return (str(element) for element in right.elements if not isinstance(element, tuple))
    return ()


def _scan_write(statement: nft.Mangle, scan: RulesetScan) -> None:
    value = statement.value
    if isinstance(value, nft.Binary) and value.op == "^" and isinstance(value.right, int):
        scan.masks.update({value.right & FULL_MASK} - {0, FULL_MASK})
        value = value.left
    if isinstance(value, nft.Binary):
        for side in (value.left, value.right):
            if isinstance(side, nft.Bitwise) and isinstance(side.and_mask, int):
                scan.masks.update({side.and_mask & FULL_MASK} - {0, FULL_MASK})
    if isinstance(value, nft.Bitwise) and isinstance(value.and_mask, int) and isinstance(value.or_bits, int):
        scan.masks.update({value.and_mask & FULL_MASK, value.or_bits & FULL_MASK} - {0, FULL_MASK})
