# SPDX-License-Identifier: BSD-2-Clause
"""Rules for packets that IPsec transforms.

`ipsec out` has a value for a packet whose route has a security association (nft_xfrm_get_eval_out). Behind
postrouting the kernel transforms this packet (xfrm4_output), and the result passes the hooks output and
postrouting as a packet of its own (xfrm_output_resume). The proof asks for packets that leave as they are: for
them the expression has no value, and the rule does not match, negated or not.
"""

from __future__ import annotations

from attrs import evolve

from ...netstate import nft
from ..packet import TRANSFORMED
from .chain_calls import reachable_chains

# Source NAT looks the route up again (nf_xfrm_me_harder): only behind it is a route the last one.
_SOURCE_NAT_PRIORITY = 100
_COUNTERS = (nft.Counter, nft.CounterRef)


def name_transformed(table: nft.Table) -> nft.Table:
    """Return a table in which rules that only accept packets which IPsec then transforms test a header field.

    A packet has this field, (TRANSFORMED, "ip daddr"), if it is one that IPsec transforms. A rule with another
    effect stays as it is, since the result inherits the mark, and so does one of an earlier hook.
    """
    if not any(_accepts_transformed(rule) for chain in table.chains for rule in chain.rules):
        return table
    earlier: set[str] = set()
    for chain in table.chains:
        if chain.hook and (chain.hook.hook != "postrouting" or chain.hook.priority <= _SOURCE_NAT_PRIORITY):
            earlier |= reachable_chains(table, chain)
    chains = (
        chain if chain.name in earlier else evolve(chain, rules=tuple(map(_named, chain.rules)))
        for chain in table.chains
    )
    return evolve(table, chains=tuple(chains))


def _accepts_transformed(rule: nft.Rule) -> bool:
    statements = [each for each in rule.statements if not isinstance(each, _COUNTERS)]
    tests = [each for each in statements if isinstance(each, nft.Match)]
    return statements == [*tests, nft.ACCEPT] and any(_tested_key(test) for test in tests)


def _named(rule: nft.Rule) -> nft.Rule:
    return evolve(rule, statements=tuple(map(_with_field, rule.statements))) if _accepts_transformed(rule) else rule


def _with_field(statement: nft.Statement) -> nft.Statement:
    key = _tested_key(statement)
    return (
        evolve(statement, left=nft.Payload(TRANSFORMED, key)) if key and isinstance(statement, nft.Match) else statement
    )


def _tested_key(statement: nft.Statement) -> str | None:
    """Return what a statement asks of the association of a leaving packet, such as "ip daddr"; None: nothing."""
    left = statement.left if isinstance(statement, nft.Match) else None
    if not isinstance(left, nft.OpaqueExpression) or not left.text.startswith(f"{TRANSFORMED} "):
        return None
    return left.text.removeprefix(f"{TRANSFORMED} ")
