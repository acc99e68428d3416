# SPDX-License-Identifier: BSD-2-Clause
"""Values, expressions and matches of libnftables JSON, back into values. What is not known is kept as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from . import nft
from .nft import Element, Expression

_VERDICTS = frozenset({"accept", "drop", "return", "continue", "jump", "goto"})
_PROTOCOL_FIELDS = {("ip", "protocol"), ("ip6", "nexthdr")}
# Fields that are sets of flags, whose values nft writes as lists of names.
_FLAGS = (nft.Payload("tcp", "flags"), nft.Ct("state"), nft.Ct("status"))


class Strange(Exception):
    """Something that this version does not know."""


def raw(item: Any) -> str:
    """The canonical JSON of something."""
    return json.dumps(item, sort_keys=True, separators=(",", ":"))


# --- values ----------------------------------------------------------------------------


def _flags(item: Any) -> list[str]:
    """The names in a|b|c or [a, b, c]."""
    match item:
        case str():
            return [item]
        case {"|": [*parts], **rest} if not rest:
            return [name for part in parts for name in _flags(part)]
        case [*parts]:
            return [name for part in parts for name in _flags(part)]
    raise Strange


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
            # nft writes a range of a 32-bit number as a prefix where it is one (DTYPE_F_PREFIX: mark, realm, devgroup).
            case {"prefix": {"addr": int(low), "len": int(length)}} if 0 <= low < 1 << 32 and 0 <= length <= 32:
                size = 1 << 32 - length
                return f"{low}-{low + size - 1}" if low % size == 0 else None
            case {"range": [int() | str() as low, int() | str() as high]}:
                return f"{low}-{high}"
            case {"elem": {"val": inner}}:
                return _value(inner)
            case {"|": [*_]}:
                try:
                    return ",".join(sorted(_flags(item)))
                except Strange:
                    return None
    return None


def element(item: Any) -> Element | None:
    """A set element, or None if it is not one that we know."""
    if isinstance(item, dict) and "elem" in item:
        return element(item["elem"].get("val"))
    if isinstance(item, dict) and "concat" in item:
        parts = tuple(_value(part) for part in item["concat"])
        return None if None in parts else parts  # type: ignore[return-value]
    return _value(item)


def _pairs(items: list[Any], data: Callable[[Any], Any]) -> frozenset[tuple[Any, Any]] | None:
    """Entries of a map, or None."""
    found = [(element(one[0]), data(one[1])) for one in items if isinstance(one, list) and len(one) == 2]
    known = len(found) == len(items) and all(key is not None and value is not None for key, value in found)
    return frozenset(found) if known else None


def entries(items: list[Any], verdicts: bool) -> frozenset[tuple[Any, Any]] | None:
    """Entries of a map or a verdict map, or None if there is one that we don't know."""
    return _pairs(items, verdict if verdicts else element)


# --- expressions -----------------------------------------------------------------------


def expression(item: Any) -> Expression:
    """An expression; unknown ones are kept as such."""
    try:
        found = _expression(item)
    except Strange:
        found = None
    return nft.UnknownExpression(raw(item)) if found is None else found


def _expression(item: Any) -> Expression | None:
    match item:
        case {"meta": {"key": str(key), **rest}} if not rest:
            return nft.Meta(key)
        case {"ct": {"key": str(key), **rest}} if not rest.keys() - {"dir"}:
            return nft.Ct(key, rest.get("dir"))
        case {"payload": {"protocol": str(protocol), "field": str(field), **rest}} if not rest:
            return nft.Payload(protocol, field)
        case {"payload": {"base": str(base), "offset": int(offset), "len": int(length), **rest}} if not rest:
            return nft.RawPayload(base, offset, length)
        case {"fib": {"result": str(result), "flags": [*keys], **rest}} if not rest and all(
            isinstance(key, str) for key in keys
        ):
            return nft.Fib(result, tuple(keys))
        case {"fib": {"result": str(result), "flags": str(key), **rest}} if not rest:
            return nft.Fib(result, (key,))
        case {"socket": {"key": str(key), **rest}} if not rest:
            return nft.Socket(key)
        case {"rt": {"key": str(key), **rest}} if not rest.keys() - {"family"}:
            return nft.Rt(key, rest.get("family"))
        case {"concat": [*parts]}:
            return nft.Concat(tuple(map(expression, parts)))
        case {"map": {"key": key, "data": data, **rest}} if not rest:
            return _lookup(key, data)
    if isinstance(item, dict) and len(item) == 1:
        ((kind, body),) = item.items()
        match kind, body:
            case "tcp option" | "ip option" | "exthdr", {"name": str(name), **rest} if not rest.keys() - {"field"}:
                return nft.Option(kind, name, rest.get("field"))
            case _, [left, right]:
                return _arithmetic(kind, left, right)
    return None


def _lookup(key: Any, data: Any) -> Expression | None:
    match data:
        case str() if data.startswith("@"):
            return nft.Lookup(expression(key), nft.MapRef(data[1:]))
        case {"set": [*items]}:
            known = entries(items, False)
            return None if known is None else nft.Lookup(expression(key), known)
    return None


def _arithmetic(op: str, left: Any, right: Any) -> Expression | None:
    of = expression(left)
    number = right if isinstance(right, int) and not isinstance(right, bool) else None
    if op == "&":
        mask = _mask(of, right) if number is None else number
        if mask is not None:
            return nft.Bitwise(of, keep=mask)
    if op == "|":
        put = number if number is not None or not _is_wide(of, right) else right
        if put is not None:
            plain = isinstance(of, nft.Bitwise) and not of.put
            return nft.Bitwise(of.of, of.keep, put) if plain else nft.Bitwise(of, put=put)
    if op in ("^", "<<", ">>", "&", "|"):
        other = right if number is not None or _is_wide(of, right) else _expression(right)
        return None if other is None else nft.Binary(op, of, other)
    return None


def _is_wide(of: Expression, item: Any) -> bool:
    """Whether a constant is an address of a kind that `of` reads."""
    while isinstance(of, nft.Bitwise):
        of = of.of
    is_address = isinstance(of, nft.Payload) and of.name in ("saddr", "daddr")
    return is_address and isinstance(item, str) and ("." in item or ":" in item)


def _mask(of: Expression, item: Any) -> nft.Value | None:
    if of in _FLAGS:
        return ",".join(sorted(_flags(item)))
    return item if _is_wide(of, item) else None


# --- matches ---------------------------------------------------------------------------


def _right(item: Any, of: Expression) -> nft.Right:
    if isinstance(item, bool):
        return "exists" if item else "missing"
    if isinstance(item, str) and item.startswith("@"):
        return nft.SetRef(item[1:])
    if isinstance(item, dict) and isinstance(item.get("set"), list):
        elements = [element(one) for one in item["set"]]
        if None not in elements:
            return nft.AnonymousSet(frozenset(elements))  # type: ignore[arg-type]
    if isinstance(item, list) and of in _FLAGS:
        return ",".join(sorted(_flags(item)))
    plain = _value(item)
    return nft.UnknownExpression(raw(item)) if plain is None else plain


def _are_protocols(expression: Expression) -> tuple[bool, ...]:
    """For each value that the expression reads: whether it is an IP protocol."""
    if isinstance(expression, nft.Concat):
        return tuple(one for part in expression.parts for one in _are_protocols(part))
    named = expression == nft.Meta("l4proto") or (
        isinstance(expression, nft.Payload) and (expression.protocol, expression.name) in _PROTOCOL_FIELDS
    )
    return (named,)


def named(item: Element, protocols: tuple[bool, ...]) -> Element:
    """The element with its protocols by name, whether or not this machine has /etc/protocols."""
    if isinstance(item, tuple):
        return tuple(
            nft.PROTOCOLS.get(part, part) if is_protocol and isinstance(part, int) else part
            for part, is_protocol in zip(item, protocols, strict=False)
        )
    return nft.PROTOCOLS.get(item, item) if protocols[0] and isinstance(item, int) else item


def match(body: dict[str, Any]) -> nft.Match:
    """A match; what is unknown of it is kept as such."""
    match body:
        case {"op": str(op), "left": left, "right": {"prefix": {"addr": int(put), "len": int(length)}}}:
            # How nft writes a mask whose bits are the high ones.
            return nft.Match(nft.Bitwise(expression(left), keep=nft.FULL << (32 - length) & nft.FULL), put, op)
    left, op = expression(body["left"]), body["op"]
    of = left.of if isinstance(left, nft.Bitwise) else left
    try:
        right = _right(body["right"], of)
    except Strange:
        right = nft.UnknownExpression(raw(body["right"]))
    if op == "==" and left == nft.Bitwise(nft.Payload("tcp", "flags"), keep=right) and "," not in str(right):
        return nft.Match(of, right, "&")  # `tcp flags & rst == rst`
    protocols = _are_protocols(left)
    if any(protocols) and isinstance(right, nft.AnonymousSet):
        right = nft.AnonymousSet(frozenset(named(one, protocols) for one in right.elements))
    elif any(protocols) and isinstance(right, int):
        right = nft.PROTOCOLS.get(right, right)
    return nft.Match(left, right, op)


def verdict(item: Any) -> nft.Verdict | None:
    """A verdict, or None if it is none."""
    if isinstance(item, dict) and len(item) == 1:
        ((kind, body),) = item.items()
        if kind in _VERDICTS:
            return nft.Verdict(kind, body["target"] if isinstance(body, dict) else None)
    return None


def constant(item: Any, of: Expression) -> Expression | nft.Value:
    """What is written into `of`: a plain value or something to be computed."""
    if isinstance(item, list) or (isinstance(item, dict) and isinstance(item.get("|"), list) and _names(item)):
        return ",".join(sorted(_flags(item)))
    plain = _value(item)
    return expression(item) if plain is None else plain


def _names(item: Any) -> bool:
    try:
        return bool(_flags(item))
    except Strange:
        return False
