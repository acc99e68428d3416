# SPDX-License-Identifier: BSD-2-Clause
"""nft values as text for `nft -f`: the one gate through which words reach libnftables.

Every name and value is checked against what nft's grammar can carry, so that no policy
can smuggle a statement of its own into the ruleset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import nft
from .changes import Elements, NftOperation, Rules
from .nft import Element, Expression, Statement

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*\Z")
_WORD = re.compile(r"[A-Za-z0-9_.:/*%@-]+\Z")
_COMMENT = re.compile(r"[A-Za-z0-9_.:/*%@ ,+()\[\]-]{1,120}\Z")
_LETTERS = re.compile(r"[a-z]+\Z")
_VERDICTS = frozenset({"accept", "drop", "return", "continue", "jump", "goto"})
_OPERATORS = frozenset({"==", "!=", "<", ">", "<=", ">=", "in", "&"})
_VERBS = frozenset({"add", "delete", "flush"})
_ELEMENTS = re.compile(r"[A-Za-z0-9_.:/*%@, -]+\Z")
# Set types whose values are names, which the grammar wants quoted.
_QUOTED = frozenset({"ifname"})


def _gate(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.match(text):
        raise ValueError(f"{text!r} can not be written in an nft ruleset")
    return text


def _one_of(words: frozenset[str], text: str) -> str:
    if text not in words:
        raise ValueError(f"{text!r} can not be written in an nft ruleset")
    return text


def name(text: str) -> str:
    """An nft identifier, or ValueError."""
    return _gate(_NAME, text)


def value(item: nft.Value, quoted: bool = False) -> str:
    """One value of a match or an element."""
    if isinstance(item, int):
        return str(item)
    return f'"{_gate(_WORD, item)}"' if quoted else _gate(_WORD, item)


def element(item: Element, types: tuple[str, ...]) -> str:
    """One set element, its parts joined as nft joins them."""
    if isinstance(item, tuple):
        return " . ".join(value(part, kind in _QUOTED) for part, kind in zip(item, types, strict=True))
    return value(item, types[0] in _QUOTED)


def types_of(expression: Expression) -> tuple[str, ...]:
    """nft's data types as far as rendering needs them: "ifname" for names, else "value"."""
    if isinstance(expression, nft.Concat):
        return tuple(kind for part in expression.parts for kind in types_of(part))
    is_name = isinstance(expression, nft.Meta) and expression.key in ("iifname", "oifname")
    return ("ifname",) if is_name else ("value",)


def expression(item: Expression) -> str:
    """An expression as nft reads it."""
    match item:
        case nft.Meta(key):
            return f"meta {_gate(_WORD, key)}"
        case nft.Ct(key, None):
            return f"ct {_gate(_WORD, key)}"
        case nft.Ct(key, direction):
            return f"ct {_gate(_WORD, direction)} {_gate(_WORD, key)}"
        case nft.Payload(protocol, field):
            return f"{_gate(_WORD, protocol)} {_gate(_WORD, field)}"
        case nft.Fib(result, keys):
            return f"fib {' . '.join(_gate(_WORD, key) for key in keys)} {_gate(_WORD, result)}"
        case nft.Bitwise(of, keep, put):
            kept = expression(of) if keep == nft.FULL else f"{expression(of)} & {keep:#x}"
            return f"{kept} | {put:#x}" if put else kept
        case nft.Concat(parts):
            return " . ".join(map(expression, parts))
    raise ValueError(f"not modelled, so it can not be written: {item}")


def verdict(item: nft.Verdict) -> str:
    """accept, drop, goto CHAIN, ..."""
    kind = _one_of(_VERDICTS, item.kind)
    return kind if item.target is None else f"{kind} {name(item.target)}"


def _match(item: nft.Match) -> str:
    types = types_of(item.left)
    match item.right:
        case nft.SetRef(target):
            right = f"@{name(target)}"
        case nft.AnonymousSet(elements):
            right = "{ " + ", ".join(sorted(element(one, types) for one in elements)) + " }"
        case nft.UnknownExpression():
            raise ValueError(f"not modelled, so it can not be written: {item}")
        case plain:
            right = value(plain, types[0] in _QUOTED)
    if item.op == "&":  # all of these flags are set
        return f"{expression(item.left)} & {right} == {right}"
    # A masked comparison needs its operator.
    _one_of(_OPERATORS, item.op)
    explicit = item.op not in ("==", "in") or isinstance(item.left, nft.Bitwise)
    return f"{expression(item.left)} {item.op + ' ' if explicit else ''}{right}"


def _mangle(item: nft.Mangle) -> str:
    new = f"{item.value:#x}" if isinstance(item.value, int) else expression(item.value)
    return f"{expression(item.key)} set {new}"


def _vmap(item: nft.VerdictMap) -> str:
    types = types_of(item.key)
    entries = sorted(f"{element(key, types)} : {verdict(to)}" for key, to in item.entries)
    return f"{expression(item.key)} vmap {{ {', '.join(entries)} }}"


def statement(item: Statement) -> str:
    """A statement as nft reads it."""
    match item:
        case nft.Match():
            return _match(item)
        case nft.Verdict():
            return verdict(item)
        case nft.VerdictMap():
            return _vmap(item)
        case nft.Counter():
            return "counter"
        case nft.CounterRef(target):
            return f'counter name "{name(target)}"'
        case nft.Mangle():
            return _mangle(item)
        case nft.Dnat(family, address, port):
            shown = f"[{value(address)}]" if family == "ip6" else value(address)
            return f"dnat {_gate(_WORD, family)} to {shown}:{int(port)}"
    raise ValueError(f"not modelled, so it can not be written: {item}")


def rule(item: nft.Rule) -> str:
    """A rule on one line."""
    parts = [statement(one) for one in item.statements]
    if item.comment:
        parts.append(f'comment "{_gate(_COMMENT, item.comment)}"')
    return " ".join(parts)


def hook(item: nft.Hook) -> str:
    """The hook clause of a base chain."""
    device = f' device "{_gate(_WORD, item.device)}"' if item.device else ""
    words = _gate(_LETTERS, item.type), _gate(_LETTERS, item.hook), _gate(_LETTERS, item.policy)
    return f"type {words[0]} hook {words[1]}{device} priority {int(item.priority)}; policy {words[2]};"


def elements(item: nft.Set, which: Iterable[Element]) -> str:
    """The braces with the elements `which` of set `item`, sorted, so that the text is stable."""
    if len(item.type) == 1 or not _QUOTED.isdisjoint(item.type):
        return "{ " + ", ".join(sorted(element(one, item.type) for one in which)) + " }"
    # Sets of concatenations can be large, so the gate is asked once for all of them.
    row = " . ".join(["%s"] * len(item.type))
    rows = sorted([row % one for one in which])
    joined = ", ".join(rows)
    blanks = len(rows) * (2 * len(item.type) - 1) - 1
    if rows and (not _ELEMENTS.match(joined) or joined.count(" ") != blanks):
        raise ValueError(f"an element of set {item.name} can not be written in an nft ruleset")
    return f"{{ {joined} }}"


def set_body(item: nft.Set) -> str:
    """Type and flags of a set."""
    body = f"type {' . '.join(map(name, item.type))};"
    return body + (f" flags {', '.join(sorted(map(name, item.flags)))};" if item.flags else "")


def table(item: nft.Table) -> str:
    """A whole table as a file for `nft -f`, one object a paragraph."""
    lines = [f"table {name(item.family)} {name(item.name)} {{"]
    lines += [f"\tcounter {name(counter.name)} {{ }}" for counter in item.counters]
    for one in item.sets:
        lines += [
            "",
            f"\tset {name(one.name)} {{",
            *(f"\t\t{part.strip()}" for part in set_body(one).split(";") if part),
        ]
        if one.elements:
            lines.append(f"\t\telements = {elements(one, one.elements)}")
        lines.append("\t}")
    for chain in item.chains:
        lines += ["", f"\tchain {name(chain.name)} {{"]
        if chain.hook:
            lines.append(f"\t\t{hook(chain.hook)}")
        lines += [f"\t\t{rule(one)}" for one in chain.rules]
        lines.append("\t}")
    return "\n".join([*lines, "}", ""])


def operation(item: NftOperation) -> str:
    """One operation of a transaction as one command for `nft -f`."""
    where = f"{name(item.family)} {name(item.table)}"
    _one_of(_VERBS, item.verb)
    match item.object:
        case nft.Table():
            return f"{item.verb} table {where}"
        case nft.NamedCounter(target):
            return f"{item.verb} counter {where} {name(target)}"
        case nft.Set(target):
            body = f" {{ {set_body(item.object)} }}" if item.verb == "add" else ""
            return f"{item.verb} set {where} {name(target)}{body}"
        case Elements(of, which):
            return f"{item.verb} element {where} {name(of.name)} {elements(of, which)}"
        case nft.Chain(target):
            body = f" {{ {hook(item.object.hook)} }}" if item.verb == "add" and item.object.hook else ""
            return f"{item.verb} chain {where} {name(target)}{body}"
        case Rules(chain, rules):
            return "\n".join(f"add rule {where} {name(chain.name)} {rule(one)}" for one in rules)
    raise TypeError(item.object)
