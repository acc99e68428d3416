# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of libnftables JSON: values, expressions, matches and verdicts.

Unsupported JSON is kept as text in UnknownExpression.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attrs import frozen

from ...exceptions import NftpolicyError
from .. import nft
from ..nft import Element, Expression
from ..nft.symbols import DEVICE_TYPES, ICMPV6_CODES, PROTOCOL_NUMBERS
from . import nft_opaque

_MARK_BITS = 32
_PLAIN_VERDICTS = frozenset({"accept", "drop", "return", "continue"})
_FRAME_TYPE = {"payload": {"base": "ll", "offset": 96, "len": 16}}  # @ll,96,16
_ARPHRD_ETHER = DEVICE_TYPES["ether"]
# Values with one form each, whatever nft prints: by expression, as it prints them -> form.
_CANONICAL_VALUES: Mapping[Expression, Mapping[Any, nft.Value]] = {
    nft.Payload("ether", "type"): {"vlan": "8021q", **dict(nft.ETHERTYPE_NAMES.items())},
    **dict.fromkeys((nft.Meta("iiftype"), nft.Meta("oiftype")), DEVICE_TYPES),
    nft.Payload("icmpv6", "code"): ICMPV6_CODES,
    **{key: {"0": 0} for key in (nft.Meta("iif"), nft.Meta("oif"))},  # no device
}
_PROTOCOL_FIELDS = {("ip", "protocol"), ("ip6", "nexthdr")}
# Fields of flags; nft prints their values as lists of names.
_FLAGS = (nft.Payload("tcp", "flags"), nft.Ct("state"), nft.Ct("status"))


class UnsupportedJson(NftpolicyError):
    """JSON that this version does not support."""


def canonical_json(item: Any) -> str:
    """Return canonical JSON text."""
    return json.dumps(item, sort_keys=True, separators=(",", ":"))


# --- values ----------------------------------------------------------------------------


def _flags(item: Any) -> list[str]:
    """Return the names in a|b|c or [a, b, c]. Raises UnsupportedJson."""
    match item:
        case str():
            return [item]
        case {"|": [*parts], **rest} if not rest:
            return [name for part in parts for name in _flags(part)]
        case [*parts]:
            return [name for part in parts for name in _flags(part)]
    raise UnsupportedJson


def _value(item: Any) -> nft.Value | None:
    """Return a scalar, or None if it is unsupported."""
    if isinstance(item, bool) or item is None:
        return None
    if isinstance(item, int | str):
        return item
    if isinstance(item, dict) and len(item) == 1:
        match item:
            case {"prefix": {"addr": str(address), "len": int(length), **rest}} if not rest:
                return f"{address}/{length}"
            # nft writes a range of a 32-bit number as a prefix where it is one (DTYPE_F_PREFIX: mark, realm, devgroup).
            case {"prefix": {"addr": int(low), "len": int(length), **rest}} if (
                not rest and 0 <= low < 1 << 32 and 0 <= length <= 32
            ):
                size = 1 << 32 - length
                return f"{low}-{low + size - 1}" if low % size == 0 else None
            case {"range": [int() | str() as low, int() | str() as high]}:
                return f"{low}-{high}"
            case {"|": [*_]}:
                try:
                    return ",".join(sorted(_flags(item)))
                except UnsupportedJson:
                    return None
    return None


def decode_element(item: Any) -> Element | None:
    """Return an element of an anonymous set, or None if it is unsupported."""
    listed = decode_listed_element(item)
    return None if listed is None or listed.is_conditional or listed.expires else listed.element


@frozen
class ListedElement:
    """Element of a named set or map as listed.

    `is_conditional`: it has statements that can end a rule. `expires`: it has a timeout.
    """

    element: Element
    is_conditional: bool = False
    expires: bool = False


# Keys of an element. The statements "counter" and "last" never end a rule (nft_counter_eval,
# nft_last_eval).
_NEUTRAL_KEYS = frozenset({"val", "comment", "counter", "last"})
_CONDITION_KEYS = frozenset({"limit", "quota", "ct count"})
_TIMEOUT_KEYS = frozenset({"timeout", "expires"})


def decode_listed_element(item: Any) -> ListedElement | None:
    """Return an element of a named set or map, or None if it is unsupported."""
    match item:
        case {"elem": {"val": inner, **rest}} if len(item) == 1:
            counts, element = rest.get("counter"), _plain_element(inner)
            if element is None or rest.keys() - _NEUTRAL_KEYS - _CONDITION_KEYS - _TIMEOUT_KEYS:
                return None
            if isinstance(counts, dict) and set(counts) - {"packets", "bytes"}:
                return None
            return ListedElement(element, bool(rest.keys() & _CONDITION_KEYS), bool(rest.keys() & _TIMEOUT_KEYS))
    element = _plain_element(item)
    return None if element is None else ListedElement(element)


def _plain_element(item: Any) -> Element | None:
    if isinstance(item, dict) and len(item) == 1 and isinstance(item.get("concat"), list):
        parts = [_value(part) for part in item["concat"]]
        supported = tuple(part for part in parts if part is not None)
        return supported if len(supported) == len(parts) else None
    return _value(item)


_Data = TypeVar("_Data")


def decode_entries(items: list[Any], decode: Callable[[Any], _Data | None]) -> frozenset[tuple[Element, _Data]] | None:
    """Return the entries of a map with data decoded by `decode`; None if one is unsupported."""
    pairs = []
    for item in items:
        if not (isinstance(item, list) and len(item) == 2):
            return None
        key, data = decode_element(item[0]), decode(item[1])
        if key is None or data is None:
            return None
        pairs.append((key, data))
    return frozenset(pairs)


# --- expressions -----------------------------------------------------------------------


def decode_expression(item: Any) -> Expression:
    """Return an expression, UnknownExpression if it is unsupported."""
    try:
        decoded = _expression(item)
    except UnsupportedJson:
        decoded = None
    return nft.UnknownExpression(canonical_json(item)) if decoded is None else decoded


def _expression(item: Any) -> Expression | None:
    if isinstance(item, dict) and len(item) != 1:
        return None
    match item:
        case {"meta": {"key": str(key), **rest}} if not rest:
            return nft.Meta(key)
        case {"ct": {"key": str(key), **rest}} if not rest.keys() - {"dir"}:
            return nft.Ct(key, _text_or_none(rest.get("dir")))
        case {"payload": {"protocol": "ether", "field": "type"}}:
            return None  # hides a test of the input device's type: see decode_ether_type
        case {"payload": {"base": "ll", "offset": 96, "len": 16, **rest}} if not rest:
            return nft.Payload("ether", "type")
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
            return nft.Rt(key, _text_or_none(rest.get("family")))
        case {"concat": [*parts]}:
            return nft.Concat(tuple(map(decode_expression, parts)))
        case {"map": {"key": key, "data": data, **rest}} if not rest:
            return _lookup(key, data)
    if isinstance(item, dict) and len(item) == 1:
        ((kind, body),) = item.items()
        match kind, body:
            case "tcp option" | "ip option" | "sctp chunk" | "exthdr", {"name": str(name), **rest} if (
                not rest.keys() - {"field"}
            ):
                return nft.Option(kind, name, _text_or_none(rest.get("field")))
            case _, [left, right]:
                return _arithmetic(kind, left, right)
            case _, dict():
                key = decode_expression(body["expr"]) if "expr" in body else None
                return nft_opaque.decode_json(kind, body, key)
    return None


def _text_or_none(item: object) -> str | None:
    """Return an optional string. Raises UnsupportedJson for other types."""
    if item is None or isinstance(item, str):
        return item
    raise UnsupportedJson


def _lookup(key: Any, data: Any) -> Expression | None:
    match data:
        case str() if data.startswith("@"):
            return nft.Lookup(decode_expression(key), nft.MapRef(data[1:]))
        case {"set": [*items], **rest} if not rest:
            pairs: frozenset[tuple[Element, Element]] | None = decode_entries(items, decode_element)
            return None if pairs is None else nft.Lookup(decode_expression(key), pairs)
    return None


def _arithmetic(op: str, left: Any, right: Any) -> Expression | None:
    operand = decode_expression(left)
    number = right if isinstance(right, int) and not isinstance(right, bool) else None
    if op == "&":
        mask = _mask(operand, right) if number is None else number
        if mask is not None:
            return nft.Bitwise(operand, and_mask=mask)
    if op == "|":
        bits = _address(operand, right) if number is None else number
        if bits is not None:
            if isinstance(operand, nft.Bitwise) and not operand.or_bits:
                return nft.Bitwise(operand.operand, operand.and_mask, bits)
            return nft.Bitwise(operand, or_bits=bits)
    if op in ("^", "<<", ">>", "&", "|"):
        constant_operand = _address(operand, right) if number is None else number
        other = _expression(right) if constant_operand is None else constant_operand
        return None if other is None else nft.Binary(op, operand, other)
    return None


def _address(operand: Expression, item: Any) -> str | None:
    """Return the item if it is a constant address and `operand` an address field, else None."""
    while isinstance(operand, nft.Bitwise):
        operand = operand.operand
    is_address_field = isinstance(operand, nft.Payload) and operand.name in ("saddr", "daddr")
    if is_address_field and isinstance(item, str) and ("." in item or ":" in item):
        return item
    return None


def _mask(operand: Expression, item: Any) -> nft.Value | None:
    if operand in _FLAGS:
        return ",".join(sorted(_flags(item)))
    return _address(operand, item)


# --- matches ---------------------------------------------------------------------------


def _right(item: Any, operand: Expression) -> nft.MatchRight:
    if isinstance(item, bool):
        return "exists" if item else "missing"
    if isinstance(item, str) and item.startswith("@"):
        return nft.SetRef(item[1:])
    if isinstance(item, dict) and len(item) == 1 and isinstance(item.get("set"), list):
        elements = [decode_element(member) for member in item["set"]]
        supported = frozenset(member for member in elements if member is not None)
        if None not in elements:
            return nft.AnonymousSet(supported)
    if isinstance(item, list) and operand in _FLAGS:
        return ",".join(sorted(_flags(item)))
    value = _value(item)
    return nft.UnknownExpression(canonical_json(item)) if value is None else value


def protocol_columns(item: Expression) -> tuple[bool, ...]:
    """Return for each value of an expression True if it is an IP protocol."""
    if isinstance(item, nft.Concat):
        return tuple(flag for part in item.parts for flag in protocol_columns(part))
    if isinstance(item, nft.Payload):
        return ((item.protocol, item.name) in _PROTOCOL_FIELDS,)
    return (item == nft.Meta("l4proto"),)


def name_protocols(item: Element, protocols: tuple[bool, ...]) -> Element:
    """Return the element with names that no machine decides: nft prints those of /etc/protocols, or numbers."""
    if isinstance(item, tuple):
        return tuple(
            _name_protocol(part) if is_protocol else part for part, is_protocol in zip(item, protocols, strict=False)
        )
    return _name_protocol(item) if protocols[0] else item


def _name_protocol(value: nft.Value) -> nft.Value:
    number = PROTOCOL_NUMBERS.get(value, value) if isinstance(value, str) else value
    return nft.PROTOCOL_NAMES.get(number, number) if isinstance(number, int) else value


def decode_match(body: dict[str, Any]) -> nft.Match:
    """Return a match; an unsupported side is an UnknownExpression."""
    match body:
        case {
            "op": str(op),
            "left": left_json,
            "right": {"prefix": {"addr": int(value), "len": int(length), **rest}, **outer},
        } if not rest and not outer and 0 <= length <= _MARK_BITS:
            # nft prints a mask of high bits as a prefix, of types of 32 bits only (DTYPE_F_PREFIX).
            mask = nft.FULL_MASK << (_MARK_BITS - length) & nft.FULL_MASK
            return nft.Match(nft.Bitwise(decode_expression(left_json), and_mask=mask), value, op)
    left, op = decode_expression(body["left"]), body["op"]
    operand = left.operand if isinstance(left, nft.Bitwise) else left
    try:
        right = _right(body["right"], operand)
    except UnsupportedJson:
        right = nft.UnknownExpression(canonical_json(body["right"]))
    if (
        op == "=="
        and isinstance(right, int | str)
        and left == nft.Bitwise(nft.Payload("tcp", "flags"), and_mask=right)
        and "," not in str(right)
    ):
        return nft.Match(operand, right, "&")  # `tcp flags & rst == rst`
    protocols = protocol_columns(left)
    if any(protocols) and isinstance(right, nft.AnonymousSet):
        right = nft.AnonymousSet(frozenset(name_protocols(member, protocols) for member in right.elements))
    elif any(protocols) and isinstance(right, int):
        right = nft.PROTOCOL_NAMES.get(right, right)
    return nft.Match(left, _canonical(left, right), op)


def _canonical(left: Expression, right: nft.MatchRight) -> nft.MatchRight:
    """Return the right side of a match with the canonical form of its values."""
    forms = _CANONICAL_VALUES.get(left) if isinstance(left, nft.Meta | nft.Payload) else None
    if forms is None:
        return right
    if isinstance(right, nft.AnonymousSet):
        return nft.AnonymousSet(frozenset(forms.get(member, member) for member in right.elements))
    return forms.get(right, right) if isinstance(right, int | str) else right


def decode_ether_type(item: Any, family: str) -> tuple[nft.Match, ...]:
    """Return the matches behind `ether type` in a listing of a table; empty: the JSON is another statement.

    Outside of the bridge family, the listing omits the match before it: the type of the input device
    (netlink_delinearize.c, payload_dependency_kill).
    """
    match item:
        case {"match": {"left": {"payload": {"protocol": "ether", "field": "type", **rest}, **outer}} as body} if (
            not rest and not outer and len(item) == 1 and body.keys() == {"op", "left", "right"}
        ):
            matched = decode_match({**body, "left": _FRAME_TYPE})
        case _:
            return ()
    return (matched,) if family == "bridge" else (nft.Match(nft.Meta("iiftype"), _ARPHRD_ETHER), matched)


def decode_verdict(item: Any) -> nft.Verdict | None:
    """Return a verdict, or None if the JSON is not a verdict."""
    if isinstance(item, dict) and len(item) == 1:
        ((kind, body),) = item.items()
        match body:
            case None if kind in _PLAIN_VERDICTS:
                return nft.Verdict(kind)
            case {"target": str(target), **rest} if kind in ("jump", "goto") and not rest:
                return nft.Verdict(kind, target)
    return None


def decode_constant(item: Any) -> Expression | nft.Value:
    """Return the operand of a statement: a constant or an expression."""
    if isinstance(item, list) or _is_flag_list(item):
        return ",".join(sorted(_flags(item)))
    value = _value(item)
    return decode_expression(item) if value is None else value


def _is_flag_list(item: Any) -> bool:
    """Return True for {"|": [names]}."""
    if not (isinstance(item, dict) and isinstance(item.get("|"), list)):
        return False
    try:
        return bool(_flags(item))
    except UnsupportedJson:
        return False
