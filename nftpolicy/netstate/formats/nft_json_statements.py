# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of libnftables JSON: statements.

Unsupported JSON is kept as text in UnknownStatement.
"""

from __future__ import annotations

from typing import Any

from .. import nft
from ..nft import Expression, Statement
from .nft_json_expressions import (
    UnsupportedJson,
    canonical_json,
    decode_constant,
    decode_entries,
    decode_expression,
    decode_match,
    decode_verdict,
)

_OBJECTS = frozenset({"limit", "quota", "ct helper", "ct timeout", "ct expectation", "synproxy", "secmark"})


def _require_only(body: dict[Any, Any], *keys: str) -> None:
    """Raise UnsupportedJson if the body has other keys."""
    if body.keys() - set(keys):
        raise UnsupportedJson


def _flags(body: dict[str, Any]) -> frozenset[str]:
    flags = body.get("flags", ())
    return frozenset((flags,) if isinstance(flags, str) else flags)


def _operand(body: dict[str, Any], key: str) -> Expression | nft.Value | None:
    """Return an address or a port: a constant, an expression, or None. Raises UnsupportedJson."""
    if body.get(key) is None:
        return None
    decoded = decode_constant(body[key])
    if isinstance(decoded, nft.UnknownExpression):
        raise UnsupportedJson
    return decoded


def _nat(kind: str, body: dict[str, Any]) -> Statement:
    _require_only(body, "family", "addr", "port", "flags", "type_flags")
    flags = _flags(body)
    if body.get("type_flags"):
        flags |= {body["type_flags"]}
    nat = nft.Dnat if kind == "dnat" else nft.Snat
    return nat(body.get("family"), _operand(body, "addr"), _operand(body, "port"), flags)


def decode_limit(body: dict[str, Any]) -> nft.Limit:
    """Return a limit, of a rule or a named object. Raises UnsupportedJson."""
    _require_only(body, "rate", "per", "burst", "inv", "rate_unit", "burst_unit")
    return nft.Limit(
        int(body["rate"]),
        str(body["per"]),
        int(body.get("burst", 5)),
        bool(body.get("inv", False)),
        str(body.get("rate_unit", "packets")),
        str(body.get("burst_unit", "bytes")),
    )


def decode_quota(body: dict[str, Any]) -> nft.Quota:
    """Return a quota of a rule. Raises UnsupportedJson."""
    _require_only(body, "val", "val_unit", "used", "used_unit", "inv")
    return nft.Quota(int(body["val"]), str(body.get("val_unit", "bytes")), bool(body.get("inv", False)))


def _set_update(body: dict[str, Any]) -> Statement:
    _require_only(body, "op", "elem", "set", "stmt")
    key, timeout = body["elem"], None
    if isinstance(key, dict) and "elem" in key:
        _require_only(key["elem"], "val", "timeout")
        key, timeout = key["elem"]["val"], key["elem"].get("timeout")
    if not (isinstance(body["set"], str) and body["set"].startswith("@")):
        raise UnsupportedJson
    statements = tuple(map(decode_statement, body.get("stmt", ())))
    return nft.SetUpdate(str(body["op"]), body["set"][1:], decode_expression(key), timeout, statements)


def _log(body: dict[str, Any] | None) -> Statement:
    options = dict(body or {})
    flags = options.pop("flags", ())
    if flags:
        options["flags"] = flags if isinstance(flags, str) else ",".join(flags)
    if not all(isinstance(value, int | str) for value in options.values()):
        raise UnsupportedJson
    return nft.Log(tuple(sorted(options.items())))


def _queue(body: dict[str, Any] | None) -> Statement:
    body = body or {}
    _require_only(body, "num", "flags")
    return nft.Queue(_operand(body, "num"), _flags(body))


def decode_statement(item: Any) -> Statement:
    """Return a statement, UnknownStatement if it is unsupported."""
    decoded_verdict = decode_verdict(item)
    if decoded_verdict is not None:
        return decoded_verdict
    match item:
        case {"match": {"op": str(), "left": _, "right": _}}:
            return decode_match(item["match"])
        case {"vmap": {"key": key, "data": {"set": [*pairs]}}}:
            verdicts = decode_entries(pairs, decode_verdict)
            if verdicts is not None:
                return nft.VerdictMap(decode_expression(key), verdicts)
        case {"vmap": {"key": key, "data": str(target)}} if target.startswith("@"):
            return nft.VerdictMapRef(decode_expression(key), target[1:])
        case {"counter": str(name)}:
            return nft.CounterRef(name)
        case {"counter": {"packets": _, "bytes": _}} | {"counter": None}:
            return nft.Counter()
    try:
        decoded = _other_statement(item)
    except UnsupportedJson:
        decoded = None
    return nft.UnknownStatement(canonical_json(item)) if decoded is None else decoded


def _other_statement(item: Any) -> Statement | None:
    if not (isinstance(item, dict) and len(item) == 1):
        return None
    ((kind, body),) = item.items()
    try:
        return _effect(kind, body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedJson from error


def _effect(kind: str, body: Any) -> Statement | None:
    match kind, body:
        case "mangle", {"key": key, "value": new}:
            return nft.Mangle(decode_expression(key), decode_constant(new))
        case "dnat" | "snat", dict():
            return _nat(kind, body)
        case "masquerade" | "redirect", dict() | None:
            body = body or {}
            _require_only(body, "port", "flags")
            nat = nft.Masquerade if kind == "masquerade" else nft.Redirect
            return nat(_operand(body, "port"), _flags(body))
        case "reject", dict() | None:
            body = body or {"type": "icmpx", "expr": "port-unreachable"}
            _require_only(body, "type", "expr")
            return nft.Reject(body["type"], body.get("expr"))
        case "log", dict() | None:
            return _log(body)
        case "notrack", None:
            return nft.Notrack()
        case "queue", dict() | None:
            return _queue(body)
        case kind, str(name) if kind in _OBJECTS:
            return nft.ObjectRef(kind, name)
        case "limit", dict():
            return decode_limit(body)
        case "quota", dict():
            return decode_quota(body)
        case "ct count", {"val": int(count), **rest}:
            _require_only(rest, "inv")
            return nft.CtCount(count, bool(rest.get("inv", False)))
        case "set", dict():
            return _set_update(body)
        case "flow", {"op": "add", "flowtable": str(name), **rest} if not rest:
            return nft.FlowOffload(name.removeprefix("@"))
        case "dup", {"addr": str(address)}:
            _require_only(body, "addr", "dev")
            return nft.Dup(address, body.get("dev"))
        case "fwd", {"dev": str(device)}:
            _require_only(body, "dev", "family", "addr")
            return nft.Fwd(device, body.get("family"), body.get("addr"))
        case "tproxy", dict():
            _require_only(body, "family", "addr", "port")
            return nft.Tproxy(body.get("family"), body.get("addr"), _operand(body, "port"))
    return None
