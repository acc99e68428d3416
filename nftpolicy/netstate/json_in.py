# SPDX-License-Identifier: BSD-2-Clause
"""libnftables JSON, as `nft -j list ruleset` prints it, back into values.

Whatever this version does not know becomes an Unknown value that carries the JSON; it is
never left out, so that a proof over the result can say what it did not understand.
"""

from __future__ import annotations

import json
import re
from typing import Any

from attrs import evolve

from . import nft
from .nft import Element, Expression, Statement
from .state import Counters, Counts

_VERDICTS = frozenset({"accept", "drop", "return", "continue", "jump", "goto"})


def _raw(item: Any) -> str:
    return json.dumps(item, sort_keys=True, separators=(",", ":"))


def _value(item: Any) -> nft.Value | None:
    """A scalar, or None if it is not one that we know."""
    if isinstance(item, bool) or item is None:
        return None
    if isinstance(item, int | str):
        return item
    if isinstance(item, dict):
        match item:
            case {"prefix": {"addr": str(address), "len": int(length)}}:
                return f"{address}/{length}"
            case {"range": [int() | str() as low, int() | str() as high]}:
                return f"{low}-{high}"
            case {"elem": {"val": inner}}:
                return _value(inner)
    return None


def element(item: Any) -> Element | None:
    """A set element, or None if it is not one that we know."""
    if isinstance(item, dict) and "elem" in item:
        return element(item["elem"].get("val"))
    if isinstance(item, dict) and "concat" in item:
        parts = tuple(_value(part) for part in item["concat"])
        return None if None in parts else parts  # type: ignore[return-value]
    return _value(item)


def expression(item: Any) -> Expression:
    """An expression; unknown ones are kept as such."""
    match item:
        case {"meta": {"key": str(key), **rest}} if not rest:
            return nft.Meta(key)
        case {"ct": {"key": str(key), **rest}} if not rest.keys() - {"dir"}:
            return nft.Ct(key, rest.get("dir"))
        case {"payload": {"protocol": str(protocol), "field": str(field), **rest}} if not rest:
            return nft.Payload(protocol, field)
        case {"fib": {"result": str(result), "flags": [*keys], **rest}} if not rest and all(
            isinstance(key, str) for key in keys
        ):
            return nft.Fib(result, tuple(keys))
        case {"&": [inner, int(keep)]}:
            return nft.Bitwise(expression(inner), keep=keep)
        case {"|": [inner, int(put)]}:
            of = expression(inner)
            if isinstance(of, nft.Bitwise) and not of.put:
                return nft.Bitwise(of.of, of.keep, put)
            return nft.Bitwise(of, put=put)
        case {"concat": [*parts]}:
            return nft.Concat(tuple(map(expression, parts)))
    return nft.UnknownExpression(_raw(item))


def _right(item: Any) -> nft.Right:
    if isinstance(item, str) and item.startswith("@"):
        return nft.SetRef(item[1:])
    if isinstance(item, dict) and isinstance(item.get("set"), list):
        elements = [element(one) for one in item["set"]]
        if None not in elements:
            return nft.AnonymousSet(frozenset(elements))  # type: ignore[arg-type]
    plain = _value(item)
    return nft.UnknownExpression(_raw(item)) if plain is None else plain


def _are_protocols(expression: Expression) -> tuple[bool, ...]:
    """For each value that the expression reads: whether it is an IP protocol."""
    if isinstance(expression, nft.Concat):
        return tuple(one for part in expression.parts for one in _are_protocols(part))
    named = expression == nft.Meta("l4proto") or (
        isinstance(expression, nft.Payload) and (expression.protocol, expression.name) in _PROTOCOL_FIELDS
    )
    return (named,)


_PROTOCOL_FIELDS = {("ip", "protocol"), ("ip6", "nexthdr")}


def _named(item: Element, protocols: tuple[bool, ...]) -> Element:
    """The element with its protocols by name, whether or not this machine has /etc/protocols."""
    if isinstance(item, tuple):
        return tuple(
            nft.PROTOCOLS.get(part, part) if is_protocol and isinstance(part, int) else part
            for part, is_protocol in zip(item, protocols, strict=False)
        )
    return nft.PROTOCOLS.get(item, item) if protocols[0] and isinstance(item, int) else item


def _match(left: Expression, right: nft.Right, op: str) -> nft.Match:
    protocols = _are_protocols(left)
    if any(protocols) and isinstance(right, nft.AnonymousSet):
        right = nft.AnonymousSet(frozenset(_named(one, protocols) for one in right.elements))
    elif any(protocols) and isinstance(right, int):
        right = nft.PROTOCOLS.get(right, right)
    return nft.Match(left, right, op)


def _verdict(item: Any) -> nft.Verdict | None:
    if isinstance(item, dict) and len(item) == 1:
        ((kind, body),) = item.items()
        if kind in _VERDICTS:
            return nft.Verdict(kind, body["target"] if isinstance(body, dict) else None)
    return None


def _masked_flags(body: dict[str, Any]) -> nft.Match | None:
    """`tcp flags & rst == rst`: symbolic bits, which we keep as a match on the field."""
    match body:
        case {
            "op": "==",
            "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, str(mask)]},
            "right": right,
        }:
            if right == mask:
                return nft.Match(nft.Payload("tcp", "flags"), mask, "&")
    return None


def statement(item: Any) -> Statement:
    """A statement; unknown ones are kept as such."""
    known = _verdict(item)
    if known is not None:
        return known
    match item:
        case {"match": {"op": str(op), "left": left, "right": {"prefix": {"addr": int(put), "len": int(length)}}}}:
            # How nft writes a mask whose bits are the high ones.
            return nft.Match(nft.Bitwise(expression(left), keep=nft.FULL << (32 - length) & nft.FULL), put, op)
        case {"match": {"op": str(op), "left": left, "right": right}}:
            return _masked_flags(item["match"]) or _match(expression(left), _right(right), op)
        case {"vmap": {"key": key, "data": {"set": [*pairs]}}}:
            entries = [(element(pair[0]), _verdict(pair[1])) for pair in pairs if isinstance(pair, list)]
            if len(entries) == len(pairs) and all(None not in entry for entry in entries):
                return nft.VerdictMap(expression(key), frozenset(entries))  # type: ignore[arg-type]
        case {"counter": str(name)}:
            return nft.CounterRef(name)
        case {"counter": {"packets": _, "bytes": _}} | {"counter": None}:
            return nft.Counter()
        case {"mangle": {"key": key, "value": new}}:
            return nft.Mangle(expression(key), new if isinstance(new, int) else expression(new))
        case {"dnat": {"family": str(family), "addr": str(address), "port": int(port)}}:
            return nft.Dnat(family, address, port)
    return nft.UnknownStatement(_raw(item))


def _hook(item: dict[str, Any]) -> nft.Hook | None:
    if "hook" not in item:
        return None
    return nft.Hook(
        item.get("type", "filter"), item["hook"], item.get("prio", 0), item.get("policy", "accept"), item.get("dev")
    )


def _flags(body: dict[str, Any]) -> frozenset[str]:
    listed = body.get("flags", ())
    return frozenset((listed,) if isinstance(listed, str) else listed)


class _Builder:
    """Collects the flat list of objects that nft prints into one table."""

    def __init__(self, family: str, name: str) -> None:
        self.family, self.name = family, name
        self.hooks: dict[str, nft.Hook | None] = {}
        self.rules: dict[str, list[nft.Rule]] = {}
        self.sets: list[nft.Set] = []
        self.counters: list[nft.NamedCounter] = []
        self.unknown: list[str] = []

    def chain(self, body: dict[str, Any]) -> None:
        self.hooks[body["name"]] = _hook(body)

    def rule(self, body: dict[str, Any]) -> None:
        statements = tuple(statement(one) for one in body.get("expr", ()))
        self.rules.setdefault(body["chain"], []).append(nft.Rule(statements, body.get("comment")))

    def set(self, body: dict[str, Any]) -> None:
        kind = body["type"]
        elements = [element(one) for one in body.get("elem", ())]
        if not isinstance(kind, str | list) or None in elements:
            return self.other("set", body)
        types = (kind,) if isinstance(kind, str) else tuple(kind)
        protocols = tuple(one == "inet_proto" for one in types)
        if any(protocols):
            elements = [_named(one, protocols) for one in elements if one is not None]
        self.sets.append(nft.Set(body["name"], types, frozenset(elements), _flags(body)))  # type: ignore[arg-type]
        return None

    def counter(self, body: dict[str, Any]) -> None:
        self.counters.append(nft.NamedCounter(body["name"]))

    def other(self, kind: str, body: dict[str, Any]) -> None:
        self.unknown.append(_raw({kind: body}))

    def build(self) -> nft.Table:
        chains = tuple(nft.Chain(name, tuple(self.rules.get(name, ())), hook) for name, hook in self.hooks.items())
        return nft.Table(self.family, self.name, chains, tuple(self.sets), tuple(self.counters), tuple(self.unknown))


def _objects(document: Any) -> list[tuple[str, dict[str, Any]]]:
    listed = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError('expected the JSON of "nft -j list ruleset": an object with a list "nftables"')
    found = [(kind, body) for one in listed if isinstance(one, dict) for kind, body in one.items()]
    return [(kind, body) for kind, body in found if isinstance(body, dict) and kind != "metainfo"]


def ruleset(document: Any) -> tuple[nft.Table, ...]:
    """The tables of a parsed `nft -j list ruleset`.

    Raises:
        ValueError: it is not such a document.
    """
    builders: dict[tuple[str, str], _Builder] = {}
    try:
        for kind, body in _objects(document):
            owner = (body["family"], body["name"] if kind == "table" else body["table"])
            builder = builders.setdefault(owner, _Builder(*owner))
            if kind == "table":
                if body.get("flags"):  # a dormant table hooks nowhere, an owned one goes with its owner
                    builder.other("table", body)
                continue
            known = {"chain": builder.chain, "rule": builder.rule, "set": builder.set, "counter": builder.counter}
            if kind in known:
                known[kind](body)
            else:
                builder.other(kind, body)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"not the JSON of an nft listing: {type(error).__name__} {error}") from error
    return tuple(builder.build() for builder in builders.values())


_DEVICE = re.compile(r'\n\tchain (\S+) \{\n\t\ttype \S+ hook \S+ device "([^"]+)"')


def with_devices(table: nft.Table, listing: str) -> nft.Table:
    """The table with the devices of its base chains, which nft 1.0.6 prints in text only.

    `listing` is what `nft list table FAMILY NAME` prints.
    """
    devices = dict(_DEVICE.findall(listing))
    chains = tuple(
        evolve(chain, hook=evolve(chain.hook, device=devices[chain.name]))
        if chain.hook and chain.hook.device is None and chain.name in devices
        else chain
        for chain in table.chains
    )
    return evolve(table, chains=chains)


def counters(document: Any) -> Counters:
    """The named counters of a listing, with their numbers."""
    try:
        return {
            (body["family"], body["table"], body["name"]): Counts(body["packets"], body["bytes"])
            for kind, body in _objects(document)
            if kind == "counter"
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the JSON of an nft listing: {type(error).__name__} {error}") from error
