# SPDX-License-Identifier: BSD-2-Clause
"""nft values as libnftables JSON (libnftables-json(5)), for tools that want it.

nft 1.0.6 loses some things silently when it reads JSON (a named priority, for one), so
numbers are written where nft allows a choice, and `apply` sends text.
"""

from __future__ import annotations

import re
from typing import Any

from . import nft
from .nft import Element, Expression, Statement

_INTERVAL = re.compile(r"([0-9]+)-([0-9]+)\Z")
_ADDRESS = frozenset({"ipv4_addr", "ipv6_addr"})


def value(item: nft.Value, kind: str) -> Any:
    """One value; prefixes and intervals become objects."""
    if isinstance(item, int):
        return item
    if kind in _ADDRESS and "/" in item:
        address, length = item.split("/")
        return {"prefix": {"addr": address, "len": int(length)}}
    if kind != "ifname" and (ends := _INTERVAL.match(item)):
        return {"range": [int(end) for end in ends.groups()]}
    return item


def element(item: Element, types: tuple[str, ...]) -> Any:
    """One set element."""
    if isinstance(item, tuple):
        return {"concat": [value(part, kind) for part, kind in zip(item, types, strict=True)]}
    return value(item, types[0])


def _kinds(expression: Expression) -> tuple[str, ...]:
    if isinstance(expression, nft.Concat):
        return tuple(kind for part in expression.parts for kind in _kinds(part))
    named = {"iifname": "ifname", "oifname": "ifname"}
    if isinstance(expression, nft.Payload):
        return ("ipv6_addr",) if expression.name in ("saddr", "daddr") else ("inet_service",)
    return (named.get(expression.key, "mark"),) if isinstance(expression, nft.Meta) else ("mark",)


def expression(item: Expression) -> Any:
    """An expression as libnftables-json(5) has it."""
    match item:
        case nft.Meta(key):
            return {"meta": {"key": key}}
        case nft.Ct(key, None):
            return {"ct": {"key": key}}
        case nft.Ct(key, direction):
            return {"ct": {"key": key, "dir": direction}}
        case nft.Payload(protocol, field):
            return {"payload": {"protocol": protocol, "field": field}}
        case nft.Fib(result, keys):
            return {"fib": {"result": result, "flags": list(keys)}}
        case nft.Bitwise(of, keep, put):
            kept = expression(of) if keep == nft.FULL else {"&": [expression(of), keep]}
            return {"|": [kept, put]} if put else kept
        case nft.Concat(parts):
            return {"concat": [expression(part) for part in parts]}
    raise ValueError(f"not modelled, so it can not be written: {item}")


def _sorted(elements: frozenset[Element]) -> list[Element]:
    return sorted(elements, key=lambda one: tuple(map(str, one)) if isinstance(one, tuple) else (str(one),))


def _right(item: nft.Match) -> Any:
    kinds = _kinds(item.left)
    match item.right:
        case nft.SetRef(target):
            return f"@{target}"
        case nft.AnonymousSet(elements):
            return {"set": [element(one, kinds) for one in _sorted(elements)]}
    return value(item.right, kinds[0])


def verdict(item: nft.Verdict) -> Any:
    """A verdict; jump and goto name their chain."""
    return {item.kind: None if item.target is None else {"target": item.target}}


def statement(item: Statement) -> Any:
    """A statement as libnftables-json(5) has it."""
    match item:
        case nft.Match(left, flags, "&"):
            return {"match": {"op": "==", "left": {"&": [expression(left), flags]}, "right": flags}}
        case nft.Match():
            return {"match": {"op": item.op, "left": expression(item.left), "right": _right(item)}}
        case nft.Verdict():
            return verdict(item)
        case nft.VerdictMap(key, entries):
            kinds = _kinds(key)
            pairs = sorted(((element(one, kinds), verdict(to)) for one, to in entries), key=str)
            return {"vmap": {"key": expression(key), "data": {"set": [list(pair) for pair in pairs]}}}
        case nft.Counter():
            return {"counter": {"packets": 0, "bytes": 0}}
        case nft.CounterRef(target):
            return {"counter": target}
        case nft.Mangle(key, new):
            return {"mangle": {"key": expression(key), "value": new if isinstance(new, int) else expression(new)}}
        case nft.Dnat(family, address, port):
            return {"dnat": {"family": family, "addr": address, "port": port}}
    raise ValueError(f"not modelled, so it can not be written: {item}")


def _hook(item: nft.Hook | None) -> dict[str, Any]:
    if item is None:
        return {}
    device = {"dev": item.device} if item.device else {}
    return {"type": item.type, "hook": item.hook, **device, "prio": item.priority, "policy": item.policy}


def table(item: nft.Table) -> list[dict[str, Any]]:
    """The `add` commands that make the table, in an order that nft takes."""
    place = {"family": item.family, "table": item.name}
    commands: list[dict[str, Any]] = [{"table": {"family": item.family, "name": item.name}}]
    commands += [{"counter": {**place, "name": one.name}} for one in item.counters]
    for one in item.sets:
        kind = list(one.type) if len(one.type) > 1 else one.type[0]
        flags = {"flags": sorted(one.flags)} if one.flags else {}
        elements = {"elem": [element(each, one.type) for each in _sorted(one.elements)]} if one.elements else {}
        commands.append({"set": {**place, "name": one.name, "type": kind, **flags, **elements}})
    commands += [{"chain": {**place, "name": chain.name, **_hook(chain.hook)}} for chain in item.chains]
    for chain in item.chains:
        for rule in chain.rules:
            comment = {"comment": rule.comment} if rule.comment else {}
            body = [statement(one) for one in rule.statements]
            commands.append({"rule": {**place, "chain": chain.name, **comment, "expr": body}})
    return [{"add": command} for command in commands]


def ruleset(tables: tuple[nft.Table, ...]) -> dict[str, Any]:
    """A document for `nft -j -f`."""
    metainfo = {"metainfo": {"json_schema_version": 1}}
    return {"nftables": [metainfo, *(command for one in tables for command in table(one))]}
