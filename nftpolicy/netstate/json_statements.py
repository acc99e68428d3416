# SPDX-License-Identifier: BSD-2-Clause
"""Statements of libnftables JSON, back into values. What is not known is kept as it is."""

from __future__ import annotations

from typing import Any

from . import nft
from .json_rules import Strange, constant, entries, expression, match, raw, verdict
from .nft import Statement

_OBJECTS = frozenset({"limit", "quota", "ct helper", "ct timeout", "ct expectation", "synproxy", "secmark"})


def _only(body: dict[str, Any], *keys: str) -> None:
    """Refuse what has more to it than we know."""
    if body.keys() - set(keys):
        raise Strange


def _flags(body: dict[str, Any]) -> frozenset[str]:
    listed = body.get("flags", ())
    return frozenset((listed,) if isinstance(listed, str) else listed)


def _part(body: dict[str, Any], key: str) -> Any:
    """An address or a port: a value, something to be computed, or None."""
    if body.get(key) is None:
        return None
    found = constant(body[key], nft.Meta("mark"))
    if isinstance(found, nft.UnknownExpression):
        raise Strange
    return found


def _nat(kind: str, body: dict[str, Any]) -> Statement:
    _only(body, "family", "addr", "port", "flags", "type_flags")
    flags = _flags(body) | {one for one in [body.get("type_flags")] if one}
    make = nft.Dnat if kind == "dnat" else nft.Snat
    return make(body.get("family"), _part(body, "addr"), _part(body, "port"), flags)


def limit(body: dict[str, Any]) -> nft.Limit:
    """A limit, of a rule or an object of its own."""
    _only(body, "rate", "per", "burst", "inv", "rate_unit", "burst_unit")
    return nft.Limit(
        int(body["rate"]),
        str(body["per"]),
        int(body.get("burst", 5)),
        bool(body.get("inv", False)),
        str(body.get("rate_unit", "packets")),
        str(body.get("burst_unit", "bytes")),
    )


def quota(body: dict[str, Any]) -> nft.Quota:
    """A quota of a rule."""
    _only(body, "val", "val_unit", "used", "used_unit", "inv")
    return nft.Quota(int(body["val"]), str(body.get("val_unit", "bytes")), bool(body.get("inv", False)))


def _set_update(body: dict[str, Any]) -> Statement:
    _only(body, "op", "elem", "set", "stmt")
    key, timeout = body["elem"], None
    if isinstance(key, dict) and "elem" in key:
        _only(key["elem"], "val", "timeout")
        key, timeout = key["elem"]["val"], key["elem"].get("timeout")
    if not (isinstance(body["set"], str) and body["set"].startswith("@")):
        raise Strange
    statements = tuple(statement(one) for one in body.get("stmt", ()))
    return nft.SetUpdate(str(body["op"]), body["set"][1:], expression(key), timeout, statements)


def _log(body: dict[str, Any] | None) -> Statement:
    options = dict(body or {})
    flags = options.pop("flags", ())
    if flags:
        options["flags"] = flags if isinstance(flags, str) else ",".join(flags)
    if not all(isinstance(value, int | str) for value in options.values()):
        raise Strange
    return nft.Log(tuple(sorted(options.items())))


def _queue(body: dict[str, Any] | None) -> Statement:
    body = body or {}
    _only(body, "num", "flags")
    return nft.Queue(_part(body, "num"), _flags(body))


def statement(item: Any) -> Statement:
    """A statement; unknown ones are kept as such."""
    known = verdict(item)
    if known is not None:
        return known
    match item:
        case {"match": {"op": str(), "left": _, "right": _}}:
            return match(item["match"])
        case {"vmap": {"key": key, "data": {"set": [*pairs]}}}:
            found = entries(pairs, True)
            if found is not None:
                return nft.VerdictMap(expression(key), found)
        case {"vmap": {"key": key, "data": str(target)}} if target.startswith("@"):
            return nft.VerdictMapRef(expression(key), target[1:])
        case {"counter": str(name)}:
            return nft.CounterRef(name)
        case {"counter": {"packets": _, "bytes": _}} | {"counter": None}:
            return nft.Counter()
    try:
        made = _other(item)
    except Strange:
        made = None
    return nft.UnknownStatement(raw(item)) if made is None else made


def _other(item: Any) -> Statement | None:
    if not (isinstance(item, dict) and len(item) == 1):
        return None
    ((kind, body),) = item.items()
    try:
        return _effect(kind, body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Strange from error


def _effect(kind: str, body: Any) -> Statement | None:
    match kind, body:
        case "mangle", {"key": key, "value": new}:
            of = expression(key)
            return nft.Mangle(of, constant(new, of))
        case "dnat" | "snat", dict():
            return _nat(kind, body)
        case "masquerade" | "redirect", dict() | None:
            body = body or {}
            _only(body, "port", "flags")
            make = nft.Masquerade if kind == "masquerade" else nft.Redirect
            return make(_part(body, "port"), _flags(body))
        case "reject", dict() | None:
            body = body or {"type": "icmpx", "expr": "port-unreachable"}
            _only(body, "type", "expr")
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
            return limit(body)
        case "quota", dict():
            return quota(body)
        case "ct count", {"val": int(count), **rest}:
            _only(rest, "inv")
            return nft.Connections(count, bool(rest.get("inv", False)))
        case "set", dict():
            return _set_update(body)
        case "flow", {"op": "add", "flowtable": str(name), **rest} if not rest:
            return nft.FlowAdd(name.removeprefix("@"))
        case "dup", {"addr": str(address), **rest}:
            _only(rest, "dev")
            return nft.Dup(address, rest.get("dev"))
        case "fwd", {"dev": str(device), **rest}:
            _only(rest, "family", "addr")
            return nft.Fwd(device, rest.get("family"), rest.get("addr"))
        case "tproxy", dict():
            _only(body, "family", "addr", "port")
            return nft.Tproxy(body.get("family"), body.get("addr"), _part(body, "port"))
    return None
