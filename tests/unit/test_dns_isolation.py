"""P5: the sockets that reach the resolver, and where the queries of a service go."""

import pytest

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import (
    Dnat,
    Match,
    Meta,
    Payload,
    Rule,
)
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from tests.unit.proved_policy import (
    IPV4,
    MARKED,
    SPEC,
    STATE,
    TEXT,
    WAN,
    beside,
    udp,
    with_first_rule,
)

# --- P5 ------------------------------------------------------------------------------------------------


def p5(state):
    return {one.subject: one.verdict for one in prove(state, SPEC, usability=False).findings if one.property == "P5"}


BYPASS, REDIRECT, CLIENTS, OUTSIDE = (
    "DNS queries of a service that leave for another server",
    "DNS queries of a service that are redirected to another address than its resolver",
    "sockets of no service that reach the resolver",
    "packets from outside that reach the resolver",
)
ROUTE = "DNS queries of a service that have no route before they are redirected"
TO_RESOLVER = Match(Payload("ip", "daddr"), "192.0.2.54")


def test_dns_isolation_has_all_findings():
    assert p5(STATE) == dict.fromkeys((BYPASS, REDIRECT, CLIENTS, OUTSIDE, ROUTE), "proved")


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_queries_from_outside_are_not_proved(protocol):
    dport = Match(Payload(protocol, "dport"), 54)
    state = with_first_rule(STATE, TO_RESOLVER, dport, hooks=("input",))
    assert {subject for subject, verdict in p5(state).items() if verdict != "proved"} == {OUTSIDE}
    for narrow in (Match(Meta("iifname"), "lan"), Match(Meta("iifname"), "usb0")):
        assert p5(with_first_rule(STATE, TO_RESOLVER, dport, narrow, hooks=("input",)))[OUTSIDE] != "proved"
    from_lo = with_first_rule(STATE, TO_RESOLVER, dport, Match(Meta("iifname"), "lo"), hooks=("input",))
    assert set(p5(from_lo).values()) == {"proved"}
    other_port = with_first_rule(STATE, TO_RESOLVER, Match(Payload(protocol, "dport"), 55), hooks=("input",))
    assert set(p5(other_port).values()) == {"proved"}


@pytest.mark.parametrize(("address", "family"), [("::1", "ip6"), ("192.0.2.54", "ip")])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_clients_of_no_service_are_not_proved(address, family, protocol):
    query = (
        Match(Meta("oifname"), "lo"),
        Match(Payload(family, "daddr"), address),
        Match(Payload(protocol, "dport"), 54),
    )
    for owner in (Match(Meta("skuid"), 901), Match(Meta("skgid"), 801)):
        assert p5(with_first_rule(STATE, *query, owner))[CLIENTS] != "proved"
    for owner in (Match(Meta("skuid"), 900), Match(Meta("skgid"), 800)):
        assert p5(with_first_rule(STATE, *query, owner))[CLIENTS] == "proved"
    assert p5(with_first_rule(STATE, *query))[CLIENTS] != "proved"


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_queries_of_a_service_to_another_server_are_not_proved(protocol):
    query = Match(Payload(protocol, "dport"), 53)
    for owner in (Match(Meta("skuid"), 900), Match(Meta("skgid"), 800)):
        assert p5(with_first_rule(STATE, WAN, MARKED, owner, query, hooks=("postrouting",)))[BYPASS] != "proved"
        lo = Match(Meta("oifname"), "lo")
        assert p5(with_first_rule(STATE, lo, owner, query, hooks=("postrouting",)))[BYPASS] != "proved"
    other = (Match(Meta("skuid"), 901), Match(Meta("skgid"), 801))
    assert p5(with_first_rule(STATE, WAN, MARKED, *other, query, hooks=("postrouting",)))[BYPASS] == "proved"
    for owner in other:  # the socket may match a service by its other number
        assert p5(with_first_rule(STATE, WAN, MARKED, owner, query, hooks=("postrouting",)))[BYPASS] != "proved"


def test_redirection_to_another_address_is_not_proved():
    def redirect(address, port):
        query = (Match(Meta("skuid"), 900), *udp(dport=53))
        return beside(Rule((IPV4, *query, Dnat("ip", address, port))), kind="nat", priority=-300)

    assert p5(redirect("192.0.2.54", 54))[REDIRECT] == "proved"
    of_packet = Payload("ip", "saddr")
    for address, port in (("192.0.2.55", 54), ("192.0.2.54", 55), ("192.0.2.54", None), (of_packet, 54)):
        assert p5(redirect(address, port))[REDIRECT] != "proved"


def test_loopback_resolver_has_no_finding_from_outside():
    text = (TEXT % '"arp"').replace('"192.0.2.54:54"', '"127.0.0.1:54"')
    policy = load(text.encode())[0]
    proof = prove(compile_policy(policy), build_spec(policy), usability=False)
    assert OUTSIDE not in {one.subject for one in proof.findings}
    assert proof.verdict == "proved"
