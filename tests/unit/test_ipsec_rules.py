"""Rules for packets that IPsec transforms: they decide nothing about a packet that leaves as it is."""

from ipaddress import ip_network

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.nft.transformed import without_transformed
from nftpolicy.model.packet import format_address
from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    AnonymousSet,
    Chain,
    Counter,
    Hook,
    Mangle,
    Match,
    Meta,
    OpaqueExpression,
    Rule,
    Table,
    Verdict,
)
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load
from nftpolicy.proof.concretize import remote_address
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from tests.unit.uplink_policy import WAN

SERVICE = b"""[service.ipsec]
uplink = "wan"
kernel = true
ports = ["esp"]
to = ["198.51.100.7", "2001:db8::7"]
"""
POLICY = load(WAN + SERVICE)[0]
STATE, SPEC = compile_policy(POLICY), build_spec(POLICY)
TO_ANY = Match(OpaqueExpression("ipsec out ip daddr"), "0.0.0.0-255.255.255.255")
OUT = Match(OpaqueExpression("ipsec out spi"), AnonymousSet(frozenset({1, 2})), "!=")
IN = Match(OpaqueExpression("ipsec in spi"), 1)
LAST = Hook("filter", "postrouting", 10000, "drop")
SET_MARK = Mangle(Meta("mark"), 1)


def test_example_addresses_are_no_other_end():
    """An ip rule leads all packets to the other end to the uplink: an example of what stays inside is another."""
    ends = [str(address) for address in map(format_address, (4, 6), map(remote_address, (4, 6)))]
    policy = evolve(POLICY, service={"a": evolve(POLICY.service["ipsec"], to=tuple(map(ip_network, ends)))})
    assert prove(compile_policy(policy), build_spec(policy)).verdict == "proved"


def test_other_end_of_two_uplinks_is_refused():
    other = b"""[uplink.lte]
devices = ["wwan0"]
mark = "0x2/0x3"
table = 8
[service.gre]
uplink = "lte"
kernel = true
ports = ["gre"]
to = ["198.51.100.0/24"]
"""
    text = WAN + SERVICE
    with pytest.raises(PolicyError, match="name a destination once"):
        load(text + other)
    assert load(text + other.replace(b"198.51.100", b"198.51.101"))


def verdict(*statements, chain="wan.guard", state=STATE):
    """Return the verdict of P1 with a first rule in a chain."""
    inet, *others = state.tables
    chains = tuple(
        evolve(each, rules=(Rule(statements), *each.rules)) if each.name == chain else each for each in inet.chains
    )
    found = prove(evolve(state, tables=(evolve(inet, chains=chains), *others)), SPEC).findings
    verdicts = {finding.verdict for finding in found if finding.property == "P1" and finding.deciding}
    return next(each for each in ("refuted", "unknown", "proved") if each in verdicts)


@pytest.mark.parametrize(
    "statements", [(TO_ANY, ACCEPT), (OUT, Counter(), ACCEPT), (Match(Meta("mark"), 0), OUT, ACCEPT)]
)
def test_accept_of_transformed_packets_is_proved(statements):
    assert verdict(*statements) == "proved"


@pytest.mark.parametrize(
    "statements", [(IN, ACCEPT), (TO_ANY, SET_MARK, ACCEPT), (TO_ANY, Verdict("goto", "loopback")), (ACCEPT,)]
)
def test_other_rules_with_ipsec_are_not_proved(statements):
    assert verdict(*statements) != "proved"


def rules_left(*chains):
    return [len(chain.rules) for chain in without_transformed(Table("inet", "t", chains)).chains]


@pytest.mark.parametrize(("hook", "left"), [
    (LAST, 0), (Hook("filter", "postrouting", 101), 0), (Hook("filter", "postrouting", 100), 1),
    (Hook("filter", "output", 200), 1), (Hook("filter", "forward", 200), 1), (None, 0),
])  # fmt: skip
def test_rules_of_earlier_hooks_stay(hook, left):
    """Behind them the packet may get another route."""
    assert rules_left(Chain("c", (Rule((TO_ANY, ACCEPT)),), hook)) == [left]


def test_rules_that_an_earlier_hook_calls_stay():
    called = Chain("called", (Rule((TO_ANY, ACCEPT)),))
    call = (Rule((Verdict("jump", "called"),)),)
    assert rules_left(called, Chain("last", call, LAST)) == [0, 1]
    assert rules_left(called, Chain("last", call, LAST), Chain("first", call, Hook("filter", "output", 0))) == [1, 1, 1]


@pytest.mark.parametrize("rule", [(TO_ANY, DROP), (TO_ANY,), (ACCEPT,), (TO_ANY, SET_MARK, ACCEPT), (IN, ACCEPT)])
def test_rules_with_another_effect_stay(rule):
    assert rules_left(Chain("c", (Rule(rule),), LAST)) == [1]
