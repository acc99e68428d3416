# SPDX-License-Identifier: BSD-2-Clause
"""Encoder of nft text: identifiers, values and expressions, each validated against nft's grammar."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...generated_text import CheckedText
from .. import nft
from ..nft import Element, Expression
from ..nft.symbols import ETHERTYPE_NUMBERS, TCP_OPTIONS

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*\Z")
_WORD = re.compile(r"[A-Za-z0-9_.:/*@-]+\Z")
_QUOTED_WORD = re.compile(r"[A-Za-z0-9_.:/*%@-]+(\\\*)?\Z")
_DEVICE = re.compile(r'[^"\x00\t-\r ]+\Z')  # only a quote ends a string; no device has a blank in its name
_SURROGATES = re.compile("[\ud800-\udfff]")  # bytes that are not UTF-8
_CT_KEYS = frozenset({"ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr"})
_OPERATORS = frozenset({"^", "<<", ">>", "&", "|"})
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2} )?[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?|[A-Z][a-z]+")
_SECONDS = re.compile(r"[0-9]+-[0-9]+\Z")
# Data types of names, which nft's grammar requires in quotes; of flags, which can be combined; of time.
QUOTED_TYPES = frozenset({"ifname", "iface_index", "string"})
FLAG_TYPES = frozenset({"tcp_flag", "ct_state", "ct_status", "ct_label"})
_TIME_TYPE, _ETHERTYPE = "time", "ethertype"
_UNTYPED_PAIR = ("value", "value")
_OPTION_KINDS = frozenset({"tcp option", "ip option", "sctp chunk", "dccp option"})
_OPTION_FIELD = re.compile(r"[a-z][a-z0-9-]*(\[[0-9]+\])?\Z")
_RAW_OPTION_FIELD = re.compile(r"@([0-9]+,[0-9]+)\Z")
_ARP_FIELD = re.compile(r"[sd]addr (ether|ip)\Z")
_OPAQUE = re.compile(
    r"(numgen (inc|random)|symhash) mod [0-9]+( offset [0-9]+)?\Z"
    r"|osf (ttl (loose|skip) )?(name|version)\Z"
    r"|ipsec (in|out)( spnum [0-9]+)? (reqid|spi|(ip|ip6) [sd]addr)\Z"
)
_HASH_END = re.compile(r"mod [0-9]+( seed 0x[0-9a-f]+)?( offset [0-9]+)?\Z")
_TYPES: dict[Expression, str] = {
    **dict.fromkeys((nft.Meta("iifname"), nft.Meta("oifname")), "ifname"),
    **dict.fromkeys((nft.Meta("iif"), nft.Meta("oif")), "iface_index"),
    **dict.fromkeys((nft.Meta("time"), nft.Meta("hour"), nft.Meta("day")), _TIME_TYPE),
    nft.Payload("ether", "type"): _ETHERTYPE,
    nft.Payload("tcp", "flags"): "tcp_flag",
    nft.Ct("state"): "ct_state",
    nft.Ct("status"): "ct_status",
    nft.Ct("label"): "ct_label",
}


def require(pattern: re.Pattern[str], text: str) -> str:
    """Return the text if it matches the pattern. Raises ValueError."""
    if not pattern.match(text):
        raise _invalid(text)
    return text


def _invalid(text: str) -> ValueError:
    return ValueError(f"{text!r} cannot be written in an nft ruleset")


def require_one_of(words: frozenset[str], text: str) -> str:
    """Return the text if it is one of `words`. Raises ValueError."""
    if text not in words:
        raise _invalid(text)
    return text


def identifier(text: str) -> str:
    """Return an nft identifier. Raises ValueError."""
    return require(_NAME, text)


def grammar_word(text: str) -> str:
    """Return a word of nft's grammar. Raises ValueError."""
    return require(_WORD, text)


def quoted_name(text: str) -> CheckedText:
    """Return a name in quotes. Raises ValueError."""
    return CheckedText(f'"{require(_QUOTED_WORD, text)}"')


def quoted_device(name: str) -> str:
    """Return the name of a device that a chain is hooked at, in quotes. Raises ValueError."""
    return f'"{require(_DEVICE, name)}"'


def can_hook(device: str) -> bool:
    """Return True if nft text and nft's JSON can carry the name of a device, as one that a chain is hooked at.

    They cannot carry a quote, nor bytes that are not text. A "*" at the end makes it a pattern.
    """
    return bool(_DEVICE.match(device)) and not device.endswith("*") and not _SURROGATES.search(device)


def value_text(item: nft.Value, quoted: bool = False) -> str:
    """Return the text of one value of a match or an element."""
    if isinstance(item, int):
        return str(item)
    return f'"{require(_QUOTED_WORD, item)}"' if quoted else require(_WORD, item)


def typed_value_text(item: nft.Value, kind: str) -> str:
    """Return the text of one value of a data type."""
    if kind == "iface_index":
        return value_text(item, not str(item).isdigit())
    if kind in QUOTED_TYPES:
        return "*" if item == "*" else value_text(item, True)
    if kind == _ETHERTYPE:
        # nft has no name behind @ll,96,16.
        number = ETHERTYPE_NUMBERS.get(item, item) if isinstance(item, str) else item
        return f"{number:#06x}" if isinstance(number, int) else value_text(number)
    if isinstance(item, str) and kind in FLAG_TYPES:
        return " | ".join(map(grammar_word, item.split(",")))
    if isinstance(item, str) and kind == _TIME_TYPE and not _SECONDS.match(item):
        times = [match[0] for match in _TIME.finditer(item)]
        if "-".join(times) != item:
            raise _invalid(item)
        return "-".join(f'"{time}"' for time in times)
    return value_text(item)


def element_text(item: Element, types: tuple[str, ...]) -> str:
    """Return the text of one set element; concatenated values are joined by " . "."""
    if isinstance(item, tuple):
        return " . ".join(typed_value_text(part, kind) for part, kind in zip(item, types, strict=True))
    return typed_value_text(item, types[0])


def value_types(expression: Expression) -> tuple[str, ...]:
    """Return nft's data types of the values of an expression, "value" for types without a special text."""
    if isinstance(expression, nft.Concat):
        return tuple(kind for part in expression.parts for kind in value_types(part))
    while isinstance(expression, nft.Bitwise):
        expression = expression.operand
    if isinstance(expression, nft.OpaqueExpression) and expression.text.startswith("osf "):
        return ("string",)
    return (_TYPES.get(expression, "value"),)


def constant_text(item: nft.Value, operand: Expression) -> str:
    """Return the text of a constant operand of a bit operation on `operand`."""
    if isinstance(item, int):
        return f"{item:#x}"
    (kind,) = value_types(operand)
    return f"({typed_value_text(item, kind)})" if "," in item else typed_value_text(item, kind)


def braced_list(pairs: Iterable[str]) -> str:
    """Return sorted entries in braces."""
    return "{ " + ", ".join(sorted(pairs)) + " }"


def expression_text(item: Expression) -> str:
    """Return an expression in nft syntax. Raises ValueError."""
    match item:
        case nft.Meta(key):
            return f"meta {grammar_word(key)}"
        case nft.Ct(key, direction):
            key = key if key in _CT_KEYS else grammar_word(key)
            return f"ct {key}" if direction is None else f"ct {grammar_word(direction)} {key}"
        case nft.Payload("ether", "type"):  # by this name nft would test the input device too
            return "@ll,96,16"
        case nft.Payload("arp", field) if _ARP_FIELD.match(field):
            return f"arp {field}"
        case nft.Payload(protocol, field):
            return f"{grammar_word(protocol)} {grammar_word(field)}"
        case nft.RawPayload(base, offset, length):
            return f"@{grammar_word(base)},{int(offset)},{int(length)}"
        case nft.Fib(result, keys):
            return f"fib {' . '.join(grammar_word(key) for key in keys)} {grammar_word(result)}"
        case nft.Socket(key):
            return f"socket {grammar_word(key)}"
        case nft.Rt(key, family):
            return f"rt {grammar_word(key)}" if family is None else f"rt {grammar_word(family)} {grammar_word(key)}"
        case nft.Option():
            return _option(item)
        case nft.OpaqueExpression(text, key):
            if key is None:
                return require(_OPAQUE, text)
            start = f"jhash {expression_text(key)} "
            return start + require(_HASH_END, text.removeprefix(start))
        case nft.Bitwise(operand, mask, bits):
            masked = inner(operand)
            if mask != nft.FULL_MASK:
                masked = f"{masked} & {constant_text(mask, operand)}"
            return f"{masked} | {constant_text(bits, operand)}" if bits else masked
        case nft.Binary(op, left, right):
            other = constant_text(right, left) if isinstance(right, int | str) else inner(right)
            return f"{inner(left)} {require_one_of(_OPERATORS, op)} {other}"
        case nft.Concat(parts):
            return " . ".join(map(expression_text, parts))
        case nft.Lookup(key, nft.MapRef(target)):
            return f"{expression_text(key)} map @{identifier(target)}"
        case nft.Lookup(key, frozenset() as pairs):
            types = value_types(key)
            texts = (f"{element_text(entry, types)} : {element_text(data, _UNTYPED_PAIR)}" for entry, data in pairs)
            return f"{expression_text(key)} map {braced_list(texts)}"
    raise unsupported_error(item)


def unsupported_error(item: object) -> ValueError:
    """Return the error for an expression or statement that has no nft text here."""
    return ValueError(f"unsupported, so it cannot be written: {item}")


def inner(item: Expression) -> str:
    """Return an expression as an operand, in parentheses if needed."""
    return f"({expression_text(item)})" if isinstance(item, nft.Binary | nft.Bitwise) else expression_text(item)


def _option(item: nft.Option) -> str:
    raw = _RAW_OPTION_FIELD.match(item.field or "")
    if raw is not None and item.kind == "tcp option":
        return f"tcp option @{grammar_word(str(TCP_OPTIONS.get(item.name, item.name)))},{raw[1]}"
    field = "" if item.field is None else f" {require(_OPTION_FIELD, item.field)}"
    if item.kind == "exthdr":
        return f"{grammar_word(item.name)}{field}" if field else f"exthdr {grammar_word(item.name)}"
    return f"{require_one_of(_OPTION_KINDS, item.kind)} {grammar_word(item.name)}{field}"
