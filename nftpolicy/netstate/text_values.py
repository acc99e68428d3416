# SPDX-License-Identifier: BSD-2-Clause
"""Words, values and expressions of nft text, each through the gate."""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import nft
from .nft import Element, Expression

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*\Z")
_WORD = re.compile(r"[A-Za-z0-9_.:/*%@-]+\Z")
_QUOTED_WORD = re.compile(r"[A-Za-z0-9_.:/*%@-]+(\\\*)?\Z")
_CT_KEYS = frozenset({"ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr"})
_OPERATORS = frozenset({"^", "<<", ">>", "&", "|"})
_MOMENT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2} )?[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?|[A-Z][a-z]+")
# Types whose values are names, which the grammar wants quoted; of flags, which can be combined; of time.
QUOTED, FLAGS, TIMES = frozenset({"ifname", "iface_index"}), frozenset({"tcp_flag", "ct_state", "ct_status"}), "time"
_TYPES: dict[Expression, str] = {
    **dict.fromkeys((nft.Meta("iifname"), nft.Meta("oifname")), "ifname"),
    **dict.fromkeys((nft.Meta("iif"), nft.Meta("oif")), "iface_index"),
    **dict.fromkeys((nft.Meta("time"), nft.Meta("hour"), nft.Meta("day")), TIMES),
    nft.Payload("tcp", "flags"): "tcp_flag",
    nft.Ct("state"): "ct_state",
    nft.Ct("status"): "ct_status",
}


def gate(pattern: re.Pattern[str], text: str) -> str:
    """The text if it is of the pattern, or ValueError."""
    if not pattern.match(text):
        raise ValueError(f"{text!r} can not be written in an nft ruleset")
    return text


def one_of(words: frozenset[str], text: str) -> str:
    """The text if it is one of the words, or ValueError."""
    if text not in words:
        raise ValueError(f"{text!r} can not be written in an nft ruleset")
    return text


def name(text: str) -> str:
    """An nft identifier, or ValueError."""
    return gate(_NAME, text)


def word(text: str) -> str:
    """A word of nft's grammar, or ValueError."""
    return gate(_WORD, text)


def quoted(text: str) -> str:
    """A name in quotes."""
    return f'"{gate(_QUOTED_WORD, text)}"'


def value(item: nft.Value, quoted: bool = False) -> str:
    """One value of a match or an element."""
    if isinstance(item, int):
        return str(item)
    return f'"{gate(_QUOTED_WORD, item)}"' if quoted else gate(_WORD, item)


def typed(item: nft.Value, kind: str) -> str:
    """One value of a type."""
    if kind == "iface_index":
        return value(item, not str(item).isdigit())
    if kind in QUOTED:
        return "*" if item == "*" else value(item, True)
    if isinstance(item, str) and kind in FLAGS:
        return " | ".join(map(word, item.split(",")))
    if isinstance(item, str) and kind == TIMES:
        moments = [found[0] for found in _MOMENT.finditer(item)]
        if "-".join(moments) != item:
            raise ValueError(f"{item!r} can not be written in an nft ruleset")
        return "-".join(f'"{moment}"' for moment in moments)
    return value(item)


def element(item: Element, types: tuple[str, ...]) -> str:
    """One set element, its parts joined as nft joins them."""
    if isinstance(item, tuple):
        return " . ".join(typed(part, kind) for part, kind in zip(item, types, strict=True))
    return typed(item, types[0])


def types_of(expression: Expression) -> tuple[str, ...]:
    """nft's data types as far as rendering needs them: "ifname" for names, else "value"."""
    if isinstance(expression, nft.Concat):
        return tuple(kind for part in expression.parts for kind in types_of(part))
    while isinstance(expression, nft.Bitwise):
        expression = expression.of
    return (_TYPES.get(expression, "value"),)


def constant(item: nft.Value, of: Expression) -> str:
    """A mask, or bits to put in."""
    if isinstance(item, int):
        return f"{item:#x}"
    (kind,) = types_of(of)
    return f"({typed(item, kind)})" if "," in item else typed(item, kind)


def entries(pairs: Iterable[str]) -> str:
    """Entries between braces."""
    return "{ " + ", ".join(sorted(pairs)) + " }"


def expression(item: Expression) -> str:
    """An expression as nft reads it."""
    match item:
        case nft.Meta(key):
            return f"meta {word(key)}"
        case nft.Ct(key, direction):
            key = key if key in _CT_KEYS else word(key)
            return f"ct {key}" if direction is None else f"ct {word(direction)} {key}"
        case nft.Payload(protocol, field):
            return f"{word(protocol)} {word(field)}"
        case nft.RawPayload(base, offset, length):
            return f"@{word(base)},{int(offset)},{int(length)}"
        case nft.Fib(result, keys):
            return f"fib {' . '.join(word(key) for key in keys)} {word(result)}"
        case nft.Socket(key):
            return f"socket {word(key)}"
        case nft.Rt(key, family):
            return f"rt {word(key)}" if family is None else f"rt {word(family)} {word(key)}"
        case nft.Option():
            return _option(item)
        case nft.Bitwise(of, keep, put):
            kept = inner(of) if keep == nft.FULL else f"{inner(of)} & {constant(keep, of)}"
            return f"{kept} | {constant(put, of)}" if put else kept
        case nft.Binary(op, left, right):
            other = constant(right, left) if isinstance(right, int | str) else inner(right)
            return f"{inner(left)} {one_of(_OPERATORS, op)} {other}"
        case nft.Concat(parts):
            return " . ".join(map(expression, parts))
        case nft.Lookup(key, nft.MapRef(target)):
            return f"{expression(key)} map @{name(target)}"
        case nft.Lookup(key, pairs):
            types = types_of(key)
            listed = (f"{element(one, types)} : {element(to, ('value', 'value'))}" for one, to in pairs)
            return f"{expression(key)} map {entries(listed)}"
    raise ValueError(f"not modelled, so it can not be written: {item}")


def inner(item: Expression) -> str:
    """An expression inside another one."""
    return f"({expression(item)})" if isinstance(item, nft.Binary | nft.Bitwise) else expression(item)


def _option(item: nft.Option) -> str:
    field = "" if item.field is None else f" {word(item.field)}"
    if item.kind == "exthdr":
        return f"{word(item.name)}{field}" if field else f"exthdr {word(item.name)}"
    return f"{one_of(frozenset({'tcp option', 'ip option'}), item.kind)} {word(item.name)}{field}"
