# SPDX-License-Identifier: BSD-2-Clause
"""Effects of statements on regions, and rules prepared for evaluation: cheap matches first."""

from __future__ import annotations

from typing import TypeAlias

from attrs import frozen

from ...netstate import nft
from .field_values import parse_number

# Statements that neither decide about a packet nor change what a rule can read.
NEUTRAL = (nft.Counter, nft.CounterRef, nft.Last, nft.Log, nft.NeutralTarget)
NAT_STATEMENTS = (nft.Dnat, nft.Snat, nft.Masquerade, nft.Redirect)
# Statements that hold or not for reasons that are not modelled.
NONDETERMINISTIC = (
    nft.Limit, nft.Quota, nft.CtCount, nft.SetUpdate, nft.ObjectRef, nft.Tproxy, nft.UnmodelledMatch
)  # fmt: skip
VerdictMapStatement: TypeAlias = nft.VerdictMap | nft.VerdictMapRef

_WITH_FAMILY = (nft.Dnat, nft.Snat)
_SINGLE_VALUE = (str, int)
_FAMILIES = {"ip": 4, "ip6": 6, "icmp": 4, "icmpv6": 6}
_EFFECTS: dict[type, str] = {
    nft.Reject: "drop",
    nft.Mangle: "write",
    **dict.fromkeys(NAT_STATEMENTS, "nat"),
}


def as_number(value: nft.Expression | nft.Value) -> nft.Expression | nft.Value:
    """Return a written value; a numeral as a number."""
    parsed = parse_number(value) if isinstance(value, str) else None
    return parsed[0][0] if parsed and parsed[0][0] == parsed[-1][1] else value


_UNDECIDED_VERDICTS = (nft.ACCEPT, nft.DROP, nft.Verdict("return"))


def possible_verdicts(statement: nft.Undecided) -> list[nft.Verdict]:
    """Return the verdicts that a statement may have."""
    return [verdict for verdict in _UNDECIDED_VERDICTS if verdict.kind in statement.results]


def effect_of(statement: nft.Statement) -> str:
    """Return accept, drop, return, continue, jump, goto, nat, write, or "unsupported"."""
    if isinstance(statement, nft.Verdict):
        return statement.kind
    return _EFFECTS.get(type(statement), "unsupported")


def restricted_family(statement: nft.Statement) -> int | None:
    """Return the only family that a NAT or reject statement applies to; None: any.

    nft adds a match on that family and omits it in its listing.
    """
    if isinstance(statement, nft.Reject):
        return _FAMILIES.get(statement.type)
    if isinstance(statement, _WITH_FAMILY):
        return _FAMILIES.get(str(statement.family))
    return None


@frozen
class PreparedRule:
    """A rule in the order of evaluation.

    All of its statements but the last one are matches, or it has no matches here. `only_drops`: the rule only drops
    the packets that match; it has no remaining statement here.
    """

    rule: nft.Rule
    cheap_matches: tuple[nft.Match, ...]
    other_matches: tuple[nft.Match, ...]
    remaining: tuple[nft.Statement, ...]
    only_drops: bool
    cache_key: tuple[object, ...] = ()  # equal for rules with the same cheap matches; () if there is none


_CHEAP_KEYS = frozenset({"mark", "oifname", "iifname", "oif", "iif", "nfproto"})


def prepare_rule(rule: nft.Rule) -> PreparedRule:
    """Prepare a rule: if only matches precede its end, matches of marks and devices come first."""
    *before, end = [each for each in rule.statements if not isinstance(each, NEUTRAL)] or [nft.Verdict("continue")]
    cheap: list[nft.Match] = []
    slow: list[nft.Match] = []
    key: tuple[object, ...] | None = ()
    for match in before:
        if not isinstance(match, nft.Match):
            return PreparedRule(rule, (), (), (*before, end), False)
        left = match.left.operand if isinstance(match.left, nft.Bitwise) else match.left
        if isinstance(left, nft.Meta) and left.key in _CHEAP_KEYS:
            cheap.append(match)
            match_key = match_cache_key(match)
            key = None if key is None or match_key is None else (*key, match_key)
        else:
            slow.append(match)
    drops = bool(slow) and effect_of(end) == "drop" and restricted_family(end) is None
    return PreparedRule(rule, tuple(cheap), tuple(slow), () if drops else (end,), drops, key or ())


def match_cache_key(match: nft.Match) -> tuple[object, ...] | None:
    """Return a cache key for a match that rules repeat (device, mark, owner), or None."""
    left, right = match.left, match.right
    if not isinstance(right, _SINGLE_VALUE):
        return None
    if isinstance(left, nft.Meta):
        return left.key, match.op, right
    if isinstance(left, nft.Bitwise) and isinstance(left.operand, nft.Meta):
        return left.operand.key, left.and_mask, left.or_bits, match.op, right
    return None
