# SPDX-License-Identifier: BSD-2-Clause
"""nft values as libnftables JSON (libnftables-json(5)), for tools that want it.

nft 1.0.6 loses some things silently when it reads JSON (a named priority, for one), so
numbers are written where nft allows a choice, and `apply` sends text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from . import nft
from .nft import Element, Expression, Statement

_INTERVAL = re.compile(r"([0-9]+)-([0-9]+)\Z")
_ADDRESSES = re.compile(r"([0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*)-([0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*)\Z")
_ADDRESS = frozenset({"ipv4_addr", "ipv6_addr"})
_FLAGS = (nft.Payload("tcp", "flags"), nft.Ct("state"), nft.Ct("status"), nft.Ct("event"))


def value(item: nft.Value, kind: str) -> Any:
    """One value; prefixes and intervals become objects."""
    if isinstance(item, int):
        return item
    if kind in _ADDRESS and "/" in item:
        address, length = item.split("/")
        return {"prefix": {"addr": address, "len": int(length)}}
    if kind in _ADDRESS and (ends := _ADDRESSES.match(item)):
        return {"range": list(ends.groups())}
    if kind == "flags" and "," in item:
        return {"|": item.split(",")}
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
    if isinstance(expression, nft.Bitwise):
        return _kinds(expression.of)
    if expression in _FLAGS:
        return ("flags",)
    named = {"iifname": "ifname", "oifname": "ifname", "iif": "ifname", "oif": "ifname"}
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
        case nft.RawPayload(base, offset, length):
            return {"payload": {"base": base, "offset": offset, "len": length}}
        case nft.Socket(key):
            # nft 1.0.6 can not read the level of a cgroup that this stands for.
            return {"socket": {"key": key}}
        case nft.Rt(key, family):
            return {"rt": {"key": key, **({"family": family} if family else {})}}
        case nft.Option(kind, name, field):
            return {kind: {"name": name, **({"field": field} if field else {})}}
        case nft.Bitwise(of, keep, put):
            (kind,) = _kinds(of)
            kept = expression(of) if keep == nft.FULL else {"&": [expression(of), value(keep, kind)]}
            return {"|": [kept, value(put, kind)]} if put else kept
        case nft.Binary(op, left, right):
            return {op: [expression(left), right if isinstance(right, int | str) else expression(right)]}
        case nft.Lookup(key, nft.MapRef(target)):
            return {"map": {"key": expression(key), "data": f"@{target}"}}
        case nft.Lookup(key, entries):
            return {"map": {"key": expression(key), "data": {"set": _pairs(entries, _kinds(key))}}}
        case nft.Concat(parts):
            return {"concat": [expression(part) for part in parts]}
    raise ValueError(f"not modelled, so it can not be written: {item}")


def _sorted(elements: frozenset[Element]) -> list[Element]:
    return sorted(elements, key=lambda one: tuple(map(str, one)) if isinstance(one, tuple) else (str(one),))


def _data(item: Element) -> Any:
    """What a map holds, whose type is that of its use."""
    kind = "ipv4_addr" if isinstance(item, str) else "mark"
    return {"concat": [_data(part) for part in item]} if isinstance(item, tuple) else value(item, kind)


def _pairs(entries: Iterable[tuple[Element, Any]], kinds: tuple[str, ...]) -> list[Any]:
    pairs = ((element(one, kinds), verdict(to) if isinstance(to, nft.Verdict) else _data(to)) for one, to in entries)
    return sorted(map(list, pairs), key=str)


def _right(item: nft.Match) -> Any:
    kinds = _kinds(item.left)
    if item.right in ("exists", "missing"):
        return item.right == "exists"
    if kinds == ("flags",) and isinstance(item.right, str) and "," in item.right:
        return item.right.split(",")
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
            return {"vmap": {"key": expression(key), "data": {"set": _pairs(entries, _kinds(key))}}}
        case nft.VerdictMapRef(key, target):
            return {"vmap": {"key": expression(key), "data": f"@{target}"}}
        case nft.Counter():
            return {"counter": {"packets": 0, "bytes": 0}}
        case nft.CounterRef(target):
            return {"counter": target}
        case nft.Mangle(key, new):
            return {"mangle": {"key": expression(key), "value": _written(new, _kinds(key)[0])}}
        case nft.Dnat() | nft.Snat():
            of = {"family": item.family, "addr": _part(item.address), "port": _part(item.port)}
            kinds = item.flags & {"prefix", "interval", "concat"}
            more = {"type_flags": next(iter(kinds))} if kinds else {}
            flags = _flags(item.flags - kinds)
            name = "dnat" if isinstance(item, nft.Dnat) else "snat"
            return {name: {**{key: part for key, part in of.items() if part is not None}, **flags, **more}}
        case nft.Masquerade(port, flags) | nft.Redirect(port, flags):
            name = "masquerade" if isinstance(item, nft.Masquerade) else "redirect"
            return {name: {**({} if port is None else {"port": _part(port)}), **_flags(flags)} or None}
    return _other(item)


def _written(item: Expression | nft.Value, kind: str) -> Any:
    if not isinstance(item, int | str):
        return expression(item)
    found = value(item, kind)
    return found["|"] if isinstance(found, dict) and "|" in found else found


def _part(item: Expression | nft.Value | None) -> Any:
    """An address or a port."""
    return item if item is None else _data(item) if isinstance(item, int | str) else expression(item)


def _flags(flags: frozenset[str]) -> dict[str, Any]:
    return {"flags": sorted(flags)} if flags else {}


def _known(**fields: Any) -> dict[str, Any]:
    return {key: field for key, field in fields.items() if field is not None and field is not False}


def _other(item: Statement) -> Any:
    match item:
        case nft.ObjectRef(kind, target):
            return {kind: target}
        case nft.Reject(type_, code):
            return {"reject": _known(type=type_, expr=code)}
        case nft.Log(options):
            return {"log": {key: _log_flags(option) if key == "flags" else option for key, option in options} or None}
        case nft.Notrack():
            return {"notrack": None}
        case nft.Queue(number, flags):
            return {"queue": {**_known(num=_part(number)), **_flags(flags)} or None}
        case nft.Limit(rate, per, burst, over, unit, burst_unit):
            units = {} if unit == "packets" else {"rate_unit": unit, "burst_unit": burst_unit}
            return {"limit": {"rate": rate, "per": per, "burst": burst, **units, **_known(inv=over)}}
        case nft.Quota(amount, unit, over):
            return {"quota": {"val": amount, "val_unit": unit, **_known(inv=over)}}
        case nft.Connections(count, over):
            return {"ct count": {"val": count, **_known(inv=over)}}
        case nft.SetUpdate(op, target, key, timeout, statements):
            of = expression(key) if timeout is None else {"elem": {"val": expression(key), "timeout": timeout}}
            more = {"stmt": [statement(one) for one in statements]} if statements else {}
            return {"set": {"op": op, "elem": of, "set": f"@{target}", **more}}
        case nft.FlowAdd(target):
            return {"flow": {"op": "add", "flowtable": f"@{target}"}}
        case nft.Dup(address, device):
            return {"dup": _known(addr=address, dev=device)}
        case nft.Fwd(device, family, address):
            return {"fwd": _known(dev=device, family=family, addr=address)}
        case nft.Tproxy(family, address, port):
            return {"tproxy": _known(family=family, addr=address, port=port)}
    raise ValueError(f"not modelled, so it can not be written: {item}")


def _log_flags(flags: nft.Value) -> Any:
    return flags.split(",") if isinstance(flags, str) and "," in flags else flags


def _hook(item: nft.Hook | None) -> dict[str, Any]:
    if item is None:
        return {}
    device: dict[str, Any] = {"dev": sorted(item.devices)} if item.devices else {}
    device = {"dev": item.device} if item.device else device
    return {"type": item.type, "hook": item.hook, **device, "prio": item.priority, "policy": item.policy}


def _more(item: nft.Set | nft.Map) -> dict[str, Any]:
    return {**_flags(item.flags), **_known(timeout=item.timeout)}


def _type(kinds: tuple[str, ...]) -> Any:
    return list(kinds) if len(kinds) > 1 else kinds[0]


def _object(item: nft.Named) -> dict[str, Any]:
    match item.body:
        case nft.Limit():
            return {"limit": {"name": item.name, **statement(item.body)["limit"]}}
        case nft.Quota(amount, unit, over):
            if unit != "bytes":
                raise ValueError(f"a quota is listed in bytes: {item}")
            return {"quota": {"name": item.name, "bytes": amount, "used": 0, "inv": over}}
    helper = item.body
    return {
        "ct helper": {"name": item.name, **_known(type=helper.type, protocol=helper.protocol, l3proto=helper.family)}
    }


def _before_chains(item: nft.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"counter": {"name": one.name}} for one in item.counters]
    found += map(_object, item.objects)
    for one in item.sets:
        elements = {"elem": [element(each, one.type) for each in _sorted(one.elements)]} if one.elements else {}
        found.append({"set": {"name": one.name, "type": _type(one.type), **_more(one), **elements}})
    for flow in item.flowtables:
        body = {"hook": flow.hook, "prio": flow.priority, "dev": sorted(flow.devices)}
        found.append({"flowtable": {"name": flow.name, **body}})
    return found


def _map(item: nft.Map) -> dict[str, Any]:
    body = {"type": _type(item.type), "map": _type(item.data), **_more(item)}
    entries = {"elem": _pairs(item.elements, item.type)} if item.elements else {}
    return {"map": {"name": item.name, **body, **entries}}


def table(item: nft.Table) -> list[dict[str, Any]]:
    """The `add` commands that make the table, in an order that nft takes."""
    place = {"family": item.family, "table": item.name}
    commands: list[dict[str, Any]] = [{"table": {"family": item.family, "name": item.name, **_flags(item.flags)}}]
    chains = [{"chain": {"name": chain.name, **_hook(chain.hook)}} for chain in item.chains]
    # Verdict maps lead to chains.
    for one in (*_before_chains(item), *chains, *map(_map, item.maps)):
        ((kind, body),) = one.items()
        commands.append({kind: {**place, **body}})
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
