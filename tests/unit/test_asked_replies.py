"""P2: answers by UDP do not leave inside, from whatever port and address a server sends them."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import DROP, Chain, Hook, Match, Payload, Rule, SetRef, SetUpdate, Table, UnknownStatement
from nftpolicy.netstate.routing import Route
from nftpolicy.policy.load import load
from nftpolicy.proof.assumptions import add_assumed_environment
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED, Proved, Refuted, Unknown

POLICY = load(b"""
name = "p"
inside = ["tun*"]
[uplink.wan]
devices = ["eth0"]
mark = "1/1"
table = 7
answer = ["ssh", "udp/69", { name = "udp/1000-1010", source = ["192.0.2.0/24", "2001:db8:1::/64"] }]
""")[0]
STATE = compile_policy(POLICY)
SUBJECT = "answers to UDP requests by the uplink that leave by devices inside"


def result(state, policy=POLICY):
    found = [each.result for each in prove(state, build_spec(policy)).findings if each.subject == SUBJECT]
    return found[0] if found else None


def without(statement_of_rule):
    """Return the state without the rules that have such a statement."""

    def strip(chain):
        return evolve(
            chain, rules=tuple(rule for rule in chain.rules if not any(map(statement_of_rule, rule.statements)))
        )

    return evolve(STATE, tables=tuple(evolve(table, chains=tuple(map(strip, table.chains))) for table in STATE.tables))


def test_answers_stay_outside():
    assert isinstance(result(STATE), Proved)


@pytest.mark.parametrize(
    ("name", "port", "has_source"), [("wan.peers", (69, 1000), False), ("wan.askers", (40000,), True)]
)
def test_answers_without_a_drop_are_a_counterexample(name, port, has_source):
    for what in (Match, SetUpdate):

        def is_of_set(statement, what=what):
            if isinstance(statement, SetUpdate):
                return what is SetUpdate and statement.name.startswith(name)
            is_lookup = isinstance(statement, Match) and isinstance(statement.right, SetRef)
            return what is Match and is_lookup and statement.right.name.startswith(name)

        found = result(without(is_of_set))
        assert isinstance(found, Refuted | Unknown)
        if what is Match:
            packets = [found.counterexample.packet, *(each.packet for each in found.further_counterexamples)]
            assert {packet.family for packet in packets} == {4, 6}
            assert {packet.sport for packet in packets} == set(port)
            assert all((packet.source is not None) == has_source for packet in packets)


def test_policy_without_udp_answers_has_no_finding():
    policy = evolve(POLICY, uplink={"wan": evolve(POLICY.uplink["wan"], answer=POLICY.uplink["wan"].answer[:1])})
    assert result(compile_policy(policy), policy) is None


def test_requests_that_a_firewall_drops_have_no_answers():
    rule = Rule((Match(Payload("udp", "dport"), 1000, ">="), DROP))
    closed = Table("inet", "closed", (Chain("input", (Rule((DROP,)),), Hook("filter", "input", 0)),))
    assert result(evolve(STATE, tables=(*STATE.tables, closed))) is None
    part = Table("inet", "part", (Chain("input", (rule,), Hook("filter", "input", 0)),))
    assert isinstance(result(evolve(STATE, tables=(*STATE.tables, part))), Proved)


def test_unsupported_statement_is_not_taken_for_a_drop():
    """Without the guard's drop it may let the packet leave."""
    opaque = Rule((UnknownStatement('{"xt": "x"}'),))
    table = Table("inet", "late", (Chain("late", (opaque,), Hook("filter", "postrouting", 20000)),))
    state = evolve(STATE, tables=(*STATE.tables, table))
    assert isinstance(result(state), Proved), "the guard drops first"
    unguarded = without(lambda each: isinstance(each, Match) and each.right == SetRef("wan.askers4"))
    assert isinstance(result(evolve(unguarded, tables=(*unguarded.tables, table))), Unknown)


def test_device_inside_without_address_is_usable():
    """Its packets have the address of another device, from which answers do not go inside: over TCP they do."""
    policy = evolve(POLICY, inside=("tun0", "lan9"))
    compiled, spec = compile_policy(policy), build_spec(policy)
    assumed = add_assumed_environment(compiled, spec)[0]
    routes = tuple(
        route for route in assumed.routes if not (route.device == "lan9" and route.family == 4 and route.table == 255)
    )
    proof = prove(evolve(assumed, routes=(*routes, Route(4, 254, "default", device="lan9", metric=9))), spec)
    assert proof.property_verdict("P3") == PROVED
