# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of libnftables JSON: statements.

Unsupported JSON is kept as text in UnknownStatement.
"""

from __future__ import annotations

from typing import Any

from .. import nft
from ..nft import Expression, Statement
from . import xt_effects
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
# nft_synproxy_eval: breaks for other protocols, drops or steals SYN and ACK, lets other segments continue.
_SYNPROXY_RESULTS = frozenset({"continue", "break", "drop"})
# Words of an anonymous chain, which nft prints as text, without which it only tests and decides.
_WRITING = frozenset(
    {"add", "delete", "dnat", "dup", "flow", "fwd", "goto", "jump", "masquerade", "notrack", "queue", "redirect",
     "set", "snat", "synproxy", "tproxy", "update", "vmap"}
)  # fmt: skip


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
        _require_only(key, "elem")
        _require_only(key["elem"], "val", "timeout")
        key, timeout = key["elem"]["val"], key["elem"].get("timeout")
    if not (isinstance(body["set"], str) and body["set"].startswith("@")):
        raise UnsupportedJson
    statements = tuple(map(decode_statement, body.get("stmt", ())))
    return nft.SetUpdate(str(body["op"]), body["set"][1:], decode_expression(key), timeout, statements)


def _log(body: dict[str, Any] | None) -> Statement:
    options = dict(body or {})
    _require_only(options, "prefix", "group", "snaplen", "queue-threshold", "level", "flags")
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


def _by_map(kind: str, body: dict[str, Any]) -> Statement:
    """Return the use of an object that a map names: without an entry the rule does not match."""
    _require_only(body, "map")
    _require_only(body["map"], "key", "data")
    text, is_synproxy = f"{kind} by map {canonical_json(body['map'])}", kind == "synproxy"
    results = _SYNPROXY_RESULTS if is_synproxy else frozenset({"continue", "break"})
    return nft.Undecided(text, results, is_synproxy or kind.startswith("ct") or None)


def _meter(body: dict[str, Any]) -> Statement:
    _require_only(body, "name", "key", "stmt", "size")
    statements = body["stmt"] if isinstance(body["stmt"], list) else [body["stmt"]]
    return nft.SetUpdate(
        "update",
        str(body["name"]),
        decode_expression(body["key"]),
        None,
        tuple(map(decode_statement, statements)),
        True,
    )


def _anonymous_chain(text: str) -> Statement | None:
    """Return the call of an anonymous chain; None if a rule of it may write or pass the packet elsewhere."""
    kind, _, rules = text.partition(" ")
    tokens = rules.split()
    if kind not in ("jump", "goto") or tokens[:1] != ["{"] or any(_may_write(token) for token in tokens):
        return None
    results = {"continue", "accept", "drop"} | ({"return"} if kind == "goto" else set())
    return nft.Undecided(" ".join(text.split()), frozenset(results), None)


def _may_write(token: str) -> bool:
    return token.strip(";") in _WRITING or token.startswith(("@", "#", "xt"))


def _xt(body: dict[str, Any], family: str) -> Statement | None:
    """Return a match or target of xtables, of which nft prints only the name."""
    _require_only(body, "type", "name")
    match body["type"]:
        case "match":
            return xt_effects.match_statement(str(body["name"]), family)
        case "target":
            return xt_effects.target_statement(str(body["name"]), family)
    return None


def decode_statement(item: Any, family: str = "inet") -> Statement:
    """Return a statement of a table of `family`, UnknownStatement if it is unsupported."""
    decoded_verdict = decode_verdict(item)
    if decoded_verdict is not None:
        return decoded_verdict
    match item:
        case str():
            return _anonymous_chain(item) or nft.UnknownStatement(canonical_json(item))
        case _ if not (isinstance(item, dict) and len(item) == 1):
            return nft.UnknownStatement(canonical_json(item))
        case {"match": {"op": str(), "left": _, "right": _, **rest}} if not rest:
            return decode_match(item["match"])
        case {"vmap": {"key": key, "data": {"set": [*pairs], **rest}, **outer}} if not rest and not outer:
            verdicts = decode_entries(pairs, decode_verdict)
            if verdicts is not None:
                return nft.VerdictMap(decode_expression(key), verdicts)
        case {"vmap": {"key": key, "data": str(target), **rest}} if target.startswith("@") and not rest:
            return nft.VerdictMapRef(decode_expression(key), target[1:])
        case {"counter": str(name)}:
            return nft.CounterRef(name)
        case {"counter": None}:
            return nft.Counter()
        case {"counter": {"packets": _, "bytes": _, **rest}} if not rest:
            return nft.Counter()
    try:
        decoded = _other_statement(item, family)
    except UnsupportedJson:
        decoded = None
    return nft.UnknownStatement(canonical_json(item)) if decoded is None else decoded


def _other_statement(item: Any, family: str) -> Statement | None:
    ((kind, body),) = item.items()
    try:
        return _xt(body, family) if kind == "xt" else _effect(kind, body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedJson from error


def _effect(kind: str, body: Any) -> Statement | None:
    match kind, body:
        case "mangle", {"key": key, "value": new, **rest} if not rest:
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
        case "last", dict() | None:
            _require_only(body or {}, "used")
            return nft.Last()
        case "log", dict() | None:
            return _log(body)
        case "notrack", None:
            return nft.Notrack()
        case "queue", dict() | None:
            return _queue(body)
        case kind, str(name) if kind in _OBJECTS:
            return nft.ObjectRef(kind, name)
        case kind, {"map": dict()} if kind in (*_OBJECTS, "counter"):
            return _by_map(kind, body)
        case "meter", dict():
            return _meter(body)
        case "synproxy", dict():
            _require_only(body, "mss", "wscale", "flags")
            return nft.Undecided("synproxy", _SYNPROXY_RESULTS, True)
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
