# SPDX-License-Identifier: BSD-2-Clause
"""What statements do to packets, as far as regions care, and the order in which a rule is gone through."""

from __future__ import annotations

from attrs import frozen

from ..netstate import nft
from .space import short_key
from .values import number

# Statements that decide nothing about a packet and change nothing that a rule can read.
HARMLESS = {"Counter", "CounterRef", "Log"}
TRANSLATIONS = {"Dnat", "Snat", "Masquerade", "Redirect"}
SOMETIMES = {"Limit", "Quota", "Connections", "SetUpdate", "ObjectRef"}  # hold or not, for reasons of their own


def plain(value: nft.Expression | nft.Value) -> nft.Expression | nft.Value:
    """A written value; a number as one."""
    parsed = number(value) if isinstance(value, str) else None
    return parsed[0][0] if parsed and parsed[0][0] == parsed[-1][1] else value


def kind_of(statement: nft.Statement) -> str:
    """accept, drop, return, jump, goto, nat, write, or "doubt" for what is not understood."""
    name = type(statement).__name__
    if isinstance(statement, nft.Verdict):
        return statement.kind
    return _KINDS.get(name, "doubt")


_FAMILIES = {"ip": 4, "ip6": 6, "icmp": 4, "icmpv6": 6}
_KINDS = {"Reject": "drop", "Mangle": "write", **dict.fromkeys(TRANSLATIONS, "nat")}


def family_of(statement: nft.Statement) -> int | None:
    """The family whose packets alone a translation or a rejection is for: nft adds that match, and does not list it."""
    word = statement.type if isinstance(statement, nft.Reject) else getattr(statement, "family", None)
    is_one = isinstance(statement, nft.Reject) or type(statement).__name__ in TRANSLATIONS
    return _FAMILIES.get(str(word)) if is_one else None


@frozen
class Shape:
    """A rule in the order in which it is gone through. `drops`: all that it does is to drop what matches."""

    rule: nft.Rule
    quick: tuple[nft.Match, ...]
    rest: tuple[nft.Statement, ...]
    drops: bool
    key: tuple[object, ...] = ()  # the same for rules with the same quick part; () if there is none


_QUICK = frozenset({"mark", "oifname", "iifname", "oif", "iif", "nfproto"})


def shape_of(rule: nft.Rule) -> Shape:
    """Where nothing but matches comes before the rule's end, marks and devices are asked first."""
    statements = [one for one in rule.statements if type(one).__name__ not in HARMLESS]
    if len(statements) < 2 or any(type(one) is not nft.Match for one in statements[:-1]):
        return Shape(rule, (), tuple(statements), False)
    end = statements.pop()
    quick: list[nft.Match] = []
    slow: list[nft.Statement] = []
    key: tuple[object, ...] | None = ()
    for match in statements:
        left = match.left  # type: ignore[union-attr]
        if type(left) is nft.Bitwise:
            left = left.of
        if type(left) is nft.Meta and left.key in _QUICK:
            quick.append(match)  # type: ignore[arg-type]
            short = short_key(match)  # type: ignore[arg-type]
            key = None if key is None or short is None else (*key, short)
        else:
            slow.append(match)
    drops = bool(slow) and kind_of(end) == "drop" and family_of(end) is None
    return Shape(rule, tuple(quick), tuple(slow if drops else [*slow, end]), drops, key or ())


def calls(table: nft.Table, chain: nft.Chain) -> set[str]:
    """The names of the chains that a chain calls."""
    found: set[str] = set()
    for rule in chain.rules:
        for statement in rule.statements:
            if isinstance(statement, nft.Verdict) and statement.target:
                found.add(statement.target)
            elif isinstance(statement, nft.VerdictMap):
                found.update(verdict.target for _, verdict in statement.entries if verdict.target)
            elif isinstance(statement, nft.VerdictMapRef):
                held = (one for one in table.maps if one.name == statement.name)
                verdicts = (verdict for one in held for _, verdict in one.elements)
                found.update(one.target for one in verdicts if isinstance(one, nft.Verdict) and one.target)
    return found
