# SPDX-License-Identifier: BSD-2-Clause
"""The tests that nft adds to a rule and leaves out of its listing.

A header field by nft's name implies tests of the protocol. The decoder of the kernel's ruleset gives
such a name only to fields for which the rule has these tests. So a listed rule and an executed rule
are the same program if both have the same tests once the implied ones are added. The order of tests
without another statement between them has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from .. import nft

_NETWORKS = {"ip": ("ipv4", "ip"), "ip6": ("ipv6", "ip6"), "arp": (None, "arp")}  # nfproto, ethertype
_TRANSPORTS: dict[str, nft.Value] = {
    "tcp": "tcp", "udp": "udp", "udplite": 136, "sctp": "sctp", "dccp": 33, "esp": "esp", "ah": 51, "comp": 108,
    "icmp": "icmp", "icmpv6": "ipv6-icmp", "igmp": "igmp",
}  # fmt: skip
_CONTROL_NETWORKS = {"icmp": "ip", "igmp": "ip", "icmpv6": "ip6"}
_OPTION_NETWORKS = {"ip option": "ip", "exthdr": "ip6"}
# nft tests that the frame has an Ethernet header; the kernel cannot load a field of one that has none.
_IS_ETHERNET = nft.Match(nft.Meta("iiftype"), 1)

RuleProgram = tuple[object, ...]


def program_of(rule: nft.Rule, family: str) -> RuleProgram:
    """Return what a rule of a table of `family` does, in a form that is equal for equal programs."""
    steps: list[object] = []
    tests: set[nft.Match] = set()
    for statement in rule.statements:
        tests.update(_implied(statement, family))
        if isinstance(statement, nft.Match):
            tests.add(_plain_match(statement))
            continue
        steps += (frozenset(tests - {_IS_ETHERNET}), _plain(statement))
        tests = set()
    if tests:
        steps.append(frozenset(tests - {_IS_ETHERNET}))
    return (*steps, rule.comment)


def as_executed(listed: nft.Table, executed: nft.Table | None) -> nft.Table:
    """Return a listed table with each part as the kernel executes it where the listing shows something else.

    So a comparison of tables by their listing finds the parts of which the listing hides something.
    """
    if executed is None:
        return evolve(listed, unknown=(*listed.unknown, "a table that the kernel does not execute"))
    chains = {chain.name: chain for chain in listed.chains}
    return evolve(
        executed,
        chains=tuple(_chain_as_executed(chains.get(chain.name), chain, executed.family) for chain in executed.chains),
    )


def _chain_as_executed(listed: nft.Chain | None, executed: nft.Chain, family: str) -> nft.Chain:
    if listed is None or len(listed.rules) != len(executed.rules):
        return executed
    rules = tuple(
        listed_rule if program_of(listed_rule, family) == program_of(executed_rule, family) else executed_rule
        for listed_rule, executed_rule in zip(listed.rules, executed.rules, strict=True)
    )
    return evolve(executed, rules=rules)


def _implied(statement: nft.Statement, family: str) -> Iterator[nft.Match]:
    """Yield the tests that the header fields of a statement imply."""
    match statement:
        case nft.Match(left):
            yield from _of_expression(left, family)
        case nft.VerdictMap(key) | nft.VerdictMapRef(key) | nft.SetUpdate(_, _, key):
            yield from _of_expression(key, family)
        case nft.Mangle(key, value):
            yield from _of_expression(key, family)
            yield from _of_expression(value, family)
        case nft.Dnat(_, address, port) | nft.Snat(_, address, port):
            yield from _of_expression(address, family)
            yield from _of_expression(port, family)
        case nft.Reject("icmp"):
            yield from _network_test("ip", family)
        case nft.Reject("icmpv6"):
            yield from _network_test("ip6", family)
        case nft.Reject("tcp reset"):
            yield nft.Match(nft.Meta("l4proto"), "tcp")


def _of_expression(item: object, family: str) -> Iterator[nft.Match]:
    match item:
        case nft.Payload(protocol):
            network = _CONTROL_NETWORKS.get(protocol, protocol)
            yield from _network_test(network, family)
            if protocol in _TRANSPORTS:
                yield nft.Match(nft.Meta("l4proto"), _TRANSPORTS[protocol])
        case nft.Option(kind) if kind in _OPTION_NETWORKS:
            yield from _network_test(_OPTION_NETWORKS[kind], family)
        case nft.Bitwise(operand):
            yield from _of_expression(operand, family)
        case nft.Binary(_, left, right):
            yield from _of_expression(left, family)
            yield from _of_expression(right, family)
        case nft.Concat(parts):
            for part in parts:
                yield from _of_expression(part, family)
        case nft.Lookup(key):
            yield from _of_expression(key, family)


def _network_test(network: str, family: str) -> Iterator[nft.Match]:
    if network not in _NETWORKS or family == network:
        return
    nfproto, ethertype = _NETWORKS[network]
    if family == "inet" and nfproto is not None:
        yield nft.Match(nft.Meta("nfproto"), nfproto)
    else:
        yield nft.Match(nft.Meta("protocol"), ethertype)


def _plain_match(match: nft.Match) -> nft.Match:
    """Return a match in one of the forms that mean the same."""
    op = "==" if match.op == "in" and isinstance(match.right, nft.SetRef | nft.AnonymousSet) else match.op
    return nft.Match(_plain_expression(match.left), match.right, op)


def _plain_expression(item: nft.Expression) -> nft.Expression:
    """Return an expression with masks that do not name the bits that are set anyway."""
    if isinstance(item, nft.Bitwise) and isinstance(item.and_mask, int) and isinstance(item.or_bits, int):
        return nft.Bitwise(_plain_expression(item.operand), item.and_mask & ~item.or_bits, item.or_bits)
    return item


def _plain(statement: nft.Statement) -> nft.Statement:
    """Return a statement in one of the forms that mean the same."""
    if isinstance(statement, nft.Mangle) and isinstance(statement.value, nft.Bitwise):
        return nft.Mangle(statement.key, _plain_expression(statement.value))
    if isinstance(statement, nft.Log):
        return nft.Log(tuple(sorted(option for option in statement.options if option not in _LOG_DEFAULTS)))
    return statement


_LOG_DEFAULTS = (("level", "warn"), ("group", 0), ("snaplen", 0), ("queue-threshold", 0))
