# SPDX-License-Identifier: BSD-2-Clause
"""Encoder of rulesets as libnftables JSON (libnftables-json(5)), for other tools.

nft 1.0.6 silently drops some properties when it reads JSON (a named priority, for example), so
numbers are used where nft allows both, and `apply` sends text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .. import nft
from ..nft import Element, Expression, Statement
from ..nft.symbols import ETHERTYPE_NUMBERS
from .nft_text_values import unsupported_error

_INTERVAL = re.compile(r"([0-9]+)-([0-9]+)\Z")
_ADDRESSES = re.compile(r"([0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*)-([0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*)\Z")
_IPSEC = re.compile(r"ipsec (?P<direction>in|out)( spnum (?P<spnum>[0-9]+))? (?P<family>ip6? )?(?P<key>[a-z]+)\Z")
_ADDRESS = frozenset({"ipv4_addr", "ipv6_addr"})
_DEVICE_KEYS = frozenset({"iifname", "oifname", "iif", "oif"})
_FLAG_FIELDS = (nft.Payload("tcp", "flags"), nft.Ct("state"), nft.Ct("status"), nft.Ct("event"))


def encode_value(item: nft.Value, kind: str) -> Any:
    """Return one value; prefixes and intervals become objects."""
    if isinstance(item, int):
        return item
    if kind == "ethertype" and item in ETHERTYPE_NUMBERS:
        return ETHERTYPE_NUMBERS[item]
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


def encode_element(item: Element, types: tuple[str, ...]) -> Any:
    """Return one set element."""
    if isinstance(item, tuple):
        return {"concat": [encode_value(part, kind) for part, kind in zip(item, types, strict=True)]}
    return encode_value(item, types[0])


def _data_types(item: Expression) -> tuple[str, ...]:
    """Return the data types of an expression's values, as far as `value` distinguishes them."""
    if isinstance(item, nft.Concat):
        return tuple(data_type for part in item.parts for data_type in _data_types(part))
    if isinstance(item, nft.Bitwise):
        return _data_types(item.operand)
    if item in _FLAG_FIELDS:
        return ("flags",)
    if item == nft.Payload("ether", "type"):
        return ("ethertype",)
    if isinstance(item, nft.Payload):
        return ("ipv6_addr",) if item.name in ("saddr", "daddr") else ("inet_service",)
    if isinstance(item, nft.Meta) and item.key in _DEVICE_KEYS:
        return ("ifname",)
    return ("mark",)


def encode_expression(item: Expression) -> Any:
    """Return an expression as libnftables-json(5) defines it. Raises ValueError."""
    match item:
        case nft.Meta(key):
            return {"meta": {"key": key}}
        case nft.Ct(key, None):
            return {"ct": {"key": key}}
        case nft.Ct(key, direction):
            return {"ct": {"key": key, "dir": direction}}
        case nft.Payload("ether", "type"):  # by this name nft would test the input device too
            return {"payload": {"base": "ll", "offset": 96, "len": 16}}
        case nft.Payload(protocol, field):
            return {"payload": {"protocol": protocol, "field": field}}
        case nft.Fib(result, keys):
            return {"fib": {"result": result, "flags": list(keys)}}
        case nft.RawPayload(base, offset, length):
            return {"payload": {"base": base, "offset": offset, "len": length}}
        case nft.Socket(key):
            # nft 1.0.6 cannot read the level of a cgroup, which this value needs.
            return {"socket": {"key": key}}
        case nft.Rt(key, family):
            return {"rt": {"key": key, **({"family": family} if family else {})}}
        case nft.OpaqueExpression(text) if ipsec := _IPSEC.match(text):
            family, number = ipsec["family"], ipsec["spnum"]
            chosen = {**({"family": family.strip()} if family else {}), **({"spnum": int(number)} if number else {})}
            return {"ipsec": {"key": ipsec["key"], "dir": ipsec["direction"], **chosen}}
        case nft.Option(kind, name, field) if not (field or "").startswith("@"):
            return {kind: {"name": name, **({"field": field} if field else {})}}
        case nft.Bitwise(operand, mask, bits):
            (data_type,) = _data_types(operand)
            masked = encode_expression(operand)
            if mask != nft.FULL_MASK:
                masked = {"&": [masked, encode_value(mask, data_type)]}
            return {"|": [masked, encode_value(bits, data_type)]} if bits else masked
        case nft.Binary(op, left, right):
            return {op: [encode_expression(left), right if isinstance(right, int | str) else encode_expression(right)]}
        case nft.Lookup(key, nft.MapRef(target)):
            return {"map": {"key": encode_expression(key), "data": f"@{target}"}}
        case nft.Lookup(key, frozenset() as entries):
            return {"map": {"key": encode_expression(key), "data": {"set": _pairs(entries, _data_types(key))}}}
        case nft.Concat(parts):
            return {"concat": [encode_expression(part) for part in parts]}
    raise unsupported_error(item)


def _sorted(elements: frozenset[Element]) -> list[Element]:
    return sorted(elements, key=_columns_as_text)


def _columns_as_text(item: Element) -> tuple[str, ...]:
    return tuple(map(str, item)) if isinstance(item, tuple) else (str(item),)


def _data(item: Element) -> Any:
    """Return the data of a map entry."""
    kind = "ipv4_addr" if isinstance(item, str) else "mark"
    return {"concat": [_data(part) for part in item]} if isinstance(item, tuple) else encode_value(item, kind)


def _pairs(entries: Iterable[tuple[Element, Element | nft.Verdict]], types: tuple[str, ...]) -> list[Any]:
    pairs = [
        [encode_element(key, types), encode_verdict(data) if isinstance(data, nft.Verdict) else _data(data)]
        for key, data in entries
    ]
    return sorted(pairs, key=str)


def _right(item: nft.Match) -> Any:
    types = _data_types(item.left)
    if item.right in ("exists", "missing"):
        return item.right == "exists"
    if types == ("flags",) and isinstance(item.right, str) and "," in item.right:
        return item.right.split(",")
    match item.right:
        case nft.SetRef(target):
            return f"@{target}"
        case nft.AnonymousSet(elements):
            return {"set": [encode_element(member, types) for member in _sorted(elements)]}
        case nft.UnknownExpression():
            raise unsupported_error(item)
        case constant:
            return encode_value(constant, types[0])


def encode_verdict(item: nft.Verdict) -> Any:
    """Return a verdict; jump and goto have a target."""
    return {item.kind: None if item.target is None else {"target": item.target}}


def encode_statement(item: Statement) -> Any:
    """Return a statement as libnftables-json(5) defines it. Raises ValueError."""
    match item:
        case nft.Match(left, flags, "&"):
            return {"match": {"op": "==", "left": {"&": [encode_expression(left), flags]}, "right": flags}}
        case nft.Match():
            return {"match": {"op": item.op, "left": encode_expression(item.left), "right": _right(item)}}
        case nft.Verdict():
            return encode_verdict(item)
        case nft.VerdictMap(key, entries):
            return {"vmap": {"key": encode_expression(key), "data": {"set": _pairs(entries, _data_types(key))}}}
        case nft.VerdictMapRef(key, target):
            return {"vmap": {"key": encode_expression(key), "data": f"@{target}"}}
        case nft.Counter():
            return {"counter": {"packets": 0, "bytes": 0}}
        case nft.CounterRef(target):
            return {"counter": target}
        case nft.Mangle(key, new):
            return {"mangle": {"key": encode_expression(key), "value": _assigned(new, _data_types(key)[0])}}
        case nft.Dnat() | nft.Snat():
            return {"dnat" if isinstance(item, nft.Dnat) else "snat": _nat(item)}
        case nft.Masquerade(port, nat_flags) | nft.Redirect(port, nat_flags):
            name = "masquerade" if isinstance(item, nft.Masquerade) else "redirect"
            return {name: {**_present(port=_operand(port)), **_flags(nat_flags)} or None}
    return _other_statement(item)


def _nat(item: nft.Dnat | nft.Snat) -> dict[str, Any]:
    target = {"family": item.family, "addr": _operand(item.address), "port": _operand(item.port)}
    type_flags = item.flags & {"prefix", "interval", "concat"}
    body = {
        **{key: part for key, part in target.items() if part is not None},
        **_flags(item.flags - type_flags),
    }
    if type_flags:
        body["type_flags"] = next(iter(type_flags))
    return body


def _assigned(item: Expression | nft.Value, data_type: str) -> Any:
    if not isinstance(item, int | str):
        return encode_expression(item)
    encoded = encode_value(item, data_type)
    return encoded["|"] if isinstance(encoded, dict) and "|" in encoded else encoded


def _operand(item: Expression | nft.Value | None) -> Any:
    """Return an address or a port."""
    if item is None:
        return None
    return _data(item) if isinstance(item, int | str) else encode_expression(item)


def _flags(flags: frozenset[str]) -> dict[str, Any]:
    return {"flags": sorted(flags)} if flags else {}


def _present(**fields: Any) -> dict[str, Any]:
    """Return the fields that are neither None nor False."""
    return {key: field for key, field in fields.items() if field is not None and field is not False}


def _other_statement(item: Statement) -> Any:
    match item:
        case nft.ObjectRef(kind, target):
            return {kind: target}
        case nft.Reject(type_, code) if type_ != "unreach":
            return {"reject": _present(type=type_, expr=code)}
        case nft.Log(options):
            log = {key: _log_flags(option) if key == "flags" else option for key, option in options}
            return {"log": log or None}
        case nft.Notrack():
            return {"notrack": None}
        case nft.Queue(number, flags):
            return {"queue": {**_present(num=_operand(number)), **_flags(flags)} or None}
        case nft.Limit(rate, per, burst, over, unit, burst_unit):
            units = {} if unit == "packets" else {"rate_unit": unit, "burst_unit": burst_unit}
            return {"limit": {"rate": rate, "per": per, "burst": burst, **units, **_present(inv=over)}}
        case nft.Quota(amount, unit, over):
            return {"quota": {"val": amount, "val_unit": unit, **_present(inv=over)}}
        case nft.CtCount(count, over):
            return {"ct count": {"val": count, **_present(inv=over)}}
        case nft.SetUpdate(_, target, key, None, statements, is_meter=True):
            return {
                "meter": {
                    "name": target,
                    "key": encode_expression(key),
                    "stmt": list(map(encode_statement, statements)),
                }
            }
        case nft.SetUpdate(op, target, key, timeout, statements, is_meter=False, data=None):
            elem = encode_expression(key)
            if timeout is not None:
                elem = {"elem": {"val": elem, "timeout": timeout}}
            stmt = {"stmt": list(map(encode_statement, statements))} if statements else {}
            return {"set": {"op": op, "elem": elem, "set": f"@{target}", **stmt}}
        case nft.FlowOffload(target):
            return {"flow": {"op": "add", "flowtable": f"@{target}"}}
        case nft.Dup(address, device):
            return {"dup": _present(addr=_operand(address), dev=_operand(device))}
        case nft.Fwd(device, family, address):
            return {"fwd": _present(dev=_operand(device), family=family, addr=_operand(address))}
        case nft.Tproxy(family, address, port):
            return {"tproxy": _present(family=family, addr=_operand(address), port=_operand(port))}
    raise unsupported_error(item)


def _log_flags(flags: nft.Value) -> Any:
    return flags.split(",") if isinstance(flags, str) and "," in flags else flags


def _hook(item: nft.Hook | None) -> dict[str, Any]:
    if item is None:
        return {}
    device: dict[str, Any] = {"dev": sorted(item.devices)} if item.devices else {}
    device = {"dev": item.device} if item.device else device
    return {"type": item.type, "hook": item.hook, **device, "prio": item.priority, "policy": item.policy}


def _options(item: nft.Set | nft.Map) -> dict[str, Any]:
    size = item.size if isinstance(item, nft.Set) else None
    return {**_flags(item.flags), **_present(timeout=item.timeout, size=size)}


def _type(types: tuple[str, ...]) -> Any:
    return list(types) if len(types) > 1 else types[0]


def _object(item: nft.NamedObject) -> dict[str, Any]:
    match item.body:
        case nft.Limit():
            return {"limit": {"name": item.name, **encode_statement(item.body)["limit"]}}
        case nft.Quota(amount, unit, over):
            if unit != "bytes":
                raise ValueError(f"a named quota needs the unit bytes: {item}")
            return {"quota": {"name": item.name, "bytes": amount, "used": 0, "inv": over}}
    helper = item.body
    body = _present(type=helper.type, protocol=helper.protocol, l3proto=helper.family)
    return {"ct helper": {"name": item.name, **body}}


def _objects_before_chains(item: nft.Table) -> list[dict[str, Any]]:
    encoded: list[dict[str, Any]] = [{"counter": {"name": counter.name}} for counter in item.counters]
    encoded += map(_object, item.objects)
    encoded += map(_set, item.sets)
    for flowtable in item.flowtables:
        body = {"hook": flowtable.hook, "prio": flowtable.priority, "dev": sorted(flowtable.devices)}
        encoded.append({"flowtable": {"name": flowtable.name, **body}})
    return encoded


def _set(nft_set: nft.Set) -> dict[str, Any]:
    _require_plain_elements(nft_set)
    body = {"name": nft_set.name, "type": _type(nft_set.type), **_options(nft_set)}
    if nft_set.elements:
        body["elem"] = [encode_element(member, nft_set.type) for member in _sorted(nft_set.elements)]
    return {"set": body}


def _require_plain_elements(item: nft.Set | nft.Map) -> None:
    if item.statements or item.conditional_elements:
        raise ValueError(f"elements with statements are not supported: {item.name}")


def _map(item: nft.Map) -> dict[str, Any]:
    _require_plain_elements(item)
    body = {"type": _type(item.type), "map": _type(item.data), **_options(item)}
    entries = {"elem": _pairs(item.elements, item.type)} if item.elements else {}
    return {"map": {"name": item.name, **body, **entries}}


def encode_table(item: nft.Table) -> list[dict[str, Any]]:
    """Return the `add` commands that create the table, in an order that nft accepts."""
    location = {"family": item.family, "table": item.name}
    commands: list[dict[str, Any]] = [{"table": {"family": item.family, "name": item.name, **_flags(item.flags)}}]
    chains = [{"chain": {"name": chain.name, **_hook(chain.hook)}} for chain in item.chains]
    # Maps come last, since verdict maps refer to chains.
    for encoded in (*_objects_before_chains(item), *chains, *map(_map, item.maps)):
        ((kind, body),) = encoded.items()
        commands.append({kind: {**location, **body}})
    for chain in item.chains:
        for rule in chain.rules:
            comment = {"comment": rule.comment} if rule.comment else {}
            expr = list(map(encode_statement, rule.statements))
            commands.append({"rule": {**location, "chain": chain.name, **comment, "expr": expr}})
    return [{"add": command} for command in commands]


def encode_ruleset(tables: tuple[nft.Table, ...]) -> dict[str, Any]:
    """Return a document for `nft -j -f`."""
    metainfo = {"metainfo": {"json_schema_version": 1}}
    commands = [command for item in tables for command in encode_table(item)]
    return {"nftables": [metainfo, *commands]}
