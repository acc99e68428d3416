# SPDX-License-Identifier: BSD-2-Clause
"""Encoder of nft text: statements."""

from __future__ import annotations

import re

from .. import nft
from ..nft import Element, Expression, Statement
from .nft_text_values import (
    FLAG_TYPES,
    braced_list,
    constant_text,
    element_text,
    expression_text,
    grammar_word,
    identifier,
    quoted_name,
    require,
    require_one_of,
    typed_value_text,
    unsupported_error,
    value_text,
    value_types,
)

_VERDICTS = frozenset({"accept", "drop", "return", "continue", "jump", "goto"})
_OPERATORS = frozenset({"==", "!=", "<", ">", "<=", ">=", "in", "&", "!"})
_LETTERS = re.compile(r"[a-z]+\Z")
_SENTENCE = re.compile(r"[A-Za-z0-9_.:/*%@ ,+()\[\]=<>!?~|-]{0,127}\Z")
_LOG_FLAGS = frozenset({"all", "skuid", "ether", "tcp sequence", "tcp options", "ip options"})
_UPDATES = frozenset({"add", "update", "delete"})
_NAT_TYPE_FLAGS = frozenset({"prefix", "interval", "netmap", "concat"})
_REJECTS = frozenset({"icmp", "icmpv6", "icmpx"})
# Statements that apply named objects of the table.
OBJECT_STATEMENTS = {
    "counter": "counter name",
    "limit": "limit name",
    "quota": "quota name",
    "synproxy": "synproxy name",
    "ct helper": "ct helper set",
    "ct timeout": "ct timeout set",
    "ct expectation": "ct expectation set",
    "secmark": "meta secmark set",
}
# nft_synproxy_eval: breaks for other protocols, drops or steals SYN and ACK, lets other segments continue.
SYNPROXY_RESULTS = frozenset({"continue", "break", "drop"})
# Statements whose text is nft's syntax: those without a key, and what follows "OBJECT KEY" of a map of objects.
_SYNTAX = re.compile(
    r"synproxy( mss [0-9]+)?( wscale [0-9]+)?( timestamp)?( sack-perm)?\Z|reset [a-z]+ option [a-z0-9-]+\Z"
)
_MAP = re.compile(r'map (@[A-Za-z_][A-Za-z0-9_./-]*|\{ ([A-Za-z0-9_.:/*%@, -]|"[A-Za-z0-9_.:/*%@\\-]*")* \})\Z')


def verdict_text(item: nft.Verdict) -> str:
    """Return a verdict: accept, drop, goto CHAIN, ..."""
    kind = require_one_of(_VERDICTS, item.kind)
    return kind if item.target is None else f"{kind} {identifier(item.target)}"


def _match(item: nft.Match) -> str:
    types = value_types(item.left)
    left, is_masked = expression_text(item.left), isinstance(item.left, nft.Bitwise | nft.Binary)
    # "==" can be omitted, except in a masked comparison and in a test of all flags.
    explicit = item.op not in ("==", "in") or is_masked
    match item.right:
        case nft.SetRef(target):
            right = f"@{identifier(target)}"
        case nft.AnonymousSet(elements):
            right = braced_list(element_text(item, types) for item in elements)
        case nft.UnknownExpression():
            raise unsupported_error(item)
        case plain if types[0] in FLAG_TYPES and item.op in ("in", "!") and isinstance(plain, str):
            right = ",".join(map(grammar_word, plain.split(",")))
        case int(label) if types[0] == "ct_label" and item.op in ("in", "!"):
            right = str(label)
        case plain if types[0] in FLAG_TYPES and isinstance(plain, str) and item.op != "&":
            right, explicit = constant_text(plain, item.left), True
        case plain if types[0] in FLAG_TYPES:
            right, explicit = value_text(plain), True
        case plain:
            right = typed_value_text(plain, types[0])
    if item.op == "&":  # all of these flags are set
        return f"{left} & {right} == {right}"
    if item.left == nft.Socket("cgroupv2"):
        left = f"{left} level {right.strip('/').count('/') + 1}"
        right = f'"{right}"'
    require_one_of(_OPERATORS, item.op)
    return f"{left} {item.op} {right}" if explicit else f"{left} {right}"


def _value_or_expression(item: Expression | nft.Value) -> str:
    return value_text(item) if isinstance(item, int | str) else expression_text(item)


def _mangle(item: nft.Mangle) -> str:
    key = expression_text(item.key)
    if isinstance(item.value, int):
        return f"{key} set {item.value:#x}"
    if isinstance(item.value, str) and item.key == nft.Ct("event"):
        return f"{key} set {','.join(map(grammar_word, item.value.split(',')))}"
    return f"{key} set {_value_or_expression(item.value)}"


def object_map_text(key: Expression, entries: str | frozenset[tuple[Element, str]]) -> str:
    """Return the lookup of an object in a map: its name, or its entries. Raises ValueError."""
    if isinstance(entries, str):
        return f"{expression_text(key)} map @{identifier(entries)}"
    types = value_types(key)
    pairs = (f'{element_text(each, types)} : "{identifier(target)}"' for each, target in entries)
    return f"{expression_text(key)} map {braced_list(pairs)}"


def _vmap(item: nft.VerdictMap) -> str:
    types = value_types(item.key)
    pairs = (f"{element_text(key, types)} : {verdict_text(target)}" for key, target in item.entries)
    return f"{expression_text(item.key)} vmap {braced_list(pairs)}"


def _flags(flags: frozenset[str]) -> str:
    return f" {','.join(sorted(map(grammar_word, flags)))}" if flags else ""


_NatOperand = Expression | nft.Value | None  # an address or a port


def _nat_target(address: _NatOperand, port: _NatOperand) -> str:
    """Return " to ADDRESS", " to ADDRESS:PORT" or " to :PORT", with brackets around IPv6 addresses."""
    if address is None and port is None:
        return ""
    address_text = "" if address is None else _value_or_expression(address)
    if port is None:
        return f" to {address_text}"
    if isinstance(address, str) and ":" in address:
        address_text = "-".join(f"[{end}]" for end in address_text.split("-"))
    # int() guarantees that the port cannot inject nft syntax.
    port_text = _port_range(port) if isinstance(port, int | str) else expression_text(port)
    return f" to {address_text}:{port_text}"


def _port_range(port: int | str) -> str:
    return "-".join(str(int(end)) for end in str(port).split("-"))


def _nat(kind: str, item: nft.Dnat | nft.Snat) -> str:
    family = "" if item.family is None else f" {grammar_word(item.family)}"
    # Without the word, nft takes the networks of a map for intervals.
    is_network = "prefix" in item.flags or ("netmap" in item.flags and isinstance(item.address, nft.Lookup))
    types = f"{' prefix' if is_network else ''}{' interval' if 'interval' in item.flags else ''}"
    if types and not family:
        raise unsupported_error(item)
    target = _nat_target(item.address, item.port)
    return f"{kind}{family}{types}{target}{_flags(item.flags - _NAT_TYPE_FLAGS)}"


def _reject(item: nft.Reject) -> str:
    if item == nft.Reject():
        return "reject"
    if item.type == "tcp reset":
        return "reject with tcp reset"
    if item.code is None:
        raise unsupported_error(item)
    return f"reject with {require_one_of(_REJECTS, item.type)} type {value_text(item.code)}"


def _log(item: nft.Log) -> str:
    parts = ["log"]
    for key, value in sorted(item.options, key=lambda option: option[0] == "flags"):
        match key, value:
            case "prefix", str():
                parts.append(f'prefix "{require(_SENTENCE, value)}"')
            case "level", str():
                parts.append(f"level {require(_LETTERS, value)}")
            case "flags", str():
                parts += [f"flags {require_one_of(_LOG_FLAGS, flag)}" for flag in value.split(",")]
            case "group" | "snaplen" | "queue-threshold", int():
                parts.append(f"{key} {value}")
            case _:
                raise unsupported_error(item)
    return " ".join(parts)


def limit_text(item: nft.Limit) -> str:
    """Return the arguments of a limit, of a rule or an object."""
    over = "over " if item.over else ""
    if item.unit == "packets":
        return f"rate {over}{int(item.rate)}/{grammar_word(item.per)} burst {int(item.burst)} packets"
    rate = f"rate {over}{int(item.rate)} {grammar_word(item.unit)}/{grammar_word(item.per)}"
    return f"{rate} burst {int(item.burst)} {grammar_word(item.burst_unit)}" if item.burst else rate


def quota_text(item: nft.Quota) -> str:
    """Return the arguments of a quota, of a rule or an object."""
    return f"{'over ' if item.over else ''}{int(item.amount)} {grammar_word(item.unit)}"


def _set_update(item: nft.SetUpdate) -> str:
    timeout = (
        ""
        if item.timeout is None
        else f" timeout {value_text(item.timeout)}{'s' if isinstance(item.timeout, int) else ''}"
    )
    statements = "".join(f" {statement_text(inner)}" for inner in item.statements)
    data = "" if item.data is None else f" : {_update_data(item.data)}"
    contents = f"{expression_text(item.key)}{timeout}{statements}{data}"
    op = "meter " if item.is_meter else f"{require_one_of(_UPDATES, item.op)} @"
    return f"{op}{identifier(item.name)} {{ {contents} }}"


def _update_data(item: Expression | Element) -> str:
    if isinstance(item, tuple):
        return element_text(item, ("value",) * len(item))
    return _value_or_expression(item)


def _device(item: Expression | nft.Value) -> str:
    return quoted_name(item) if isinstance(item, str) else _value_or_expression(item)


def _other_destination(item: nft.Dup | nft.Fwd | nft.Tproxy) -> str:
    match item:
        case nft.Dup(address, device):
            # Without an IP address (netdev), `address` is a device.
            device_text = "" if device is None else f" device {_device(device)}"
            return f"dup to {_value_or_expression('' if address is None else address)}{device_text}"
        case nft.Fwd(device, None, _):
            return f"fwd to {_device(device)}"
        case nft.Fwd(device, str(family), address):
            target = _value_or_expression("" if address is None else address)
            return f"fwd {grammar_word(family)} to {target} device {_device(device)}"
        case nft.Tproxy(family, address, port):
            family_text = "" if family is None else f" {grammar_word(family)}"
            return f"tproxy{family_text}{_nat_target(address, port)}"
    raise unsupported_error(item)


def _queue(item: nft.Queue) -> str:
    if item.number is None:
        return "queue"
    flags = f" flags{_flags(item.flags)}" if item.flags else ""
    return f"queue{flags} to {_value_or_expression(item.number)}"


def _undecided(item: nft.Undecided) -> str:
    if item.key is None:
        return require(_SYNTAX, item.text)
    for statement in OBJECT_STATEMENTS.values():
        start = f"{statement} {expression_text(item.key)} "
        if item.text.startswith(start):
            return start + require(_MAP, item.text.removeprefix(start))
    raise unsupported_error(item)


def statement_text(item: Statement) -> str:
    """Return a statement in nft syntax. Raises ValueError."""
    match item:
        case nft.Match():
            return _match(item)
        case nft.Verdict():
            return verdict_text(item)
        case nft.VerdictMap():
            return _vmap(item)
        case nft.VerdictMapRef(key, target):
            return f"{expression_text(key)} vmap @{identifier(target)}"
        case nft.Counter():
            return "counter"
        case nft.CounterRef(target):
            return f'counter name "{identifier(target)}"'
        case nft.ObjectRef(kind, target) if kind in OBJECT_STATEMENTS:
            return f'{OBJECT_STATEMENTS[kind]} "{identifier(target)}"'
        case nft.Mangle():
            return _mangle(item)
        case nft.Dnat():
            return _nat("dnat", item)
        case nft.Snat():
            return _nat("snat", item)
        case nft.Masquerade(port, flags):
            return f"masquerade{_nat_target(None, port)}{_flags(flags)}"
        case nft.Redirect(port, flags):
            return f"redirect{_nat_target(None, port)}{_flags(flags)}"
        case nft.Reject():
            return _reject(item)
        case nft.Log():
            return _log(item)
        case nft.Notrack():
            return "notrack"
        case nft.Queue():
            return _queue(item)
        case nft.Limit():
            return f"limit {limit_text(item)}"
        case nft.Quota():
            return f"quota {quota_text(item)}"
        case nft.CtCount(count, over):
            return f"ct count {'over ' if over else ''}{int(count)}"
        case nft.SetUpdate():
            return _set_update(item)
        case nft.FlowOffload(target):
            return f"flow add @{identifier(target)}"
        case nft.Dup() | nft.Fwd() | nft.Tproxy():
            return _other_destination(item)
        case nft.Undecided(is_syntax=True):
            return _undecided(item)
    raise unsupported_error(item)
