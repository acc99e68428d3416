"""Rules for packets that IPsec transforms: they decide nothing about a packet that leaves as it is."""

from ipaddress import ip_network

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.libnft import parse_error
from nftpolicy.model.nft.transformed import name_transformed
from nftpolicy.model.packet import Packet, format_address, parse_address
from nftpolicy.model.trace import Model
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
from nftpolicy.netstate.routing import Route
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
    without = build_spec(evolve(POLICY, service={}))
    ends = [str(format_address(family, remote_address(family, without))) for family in (4, 6)]
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


@pytest.mark.parametrize("chain", ["wan.guard", "wan.mark-owner", "tunnels"])
def test_esp_without_its_rules_is_refuted(chain):
    inet, *others = STATE.tables
    chains = tuple(
        evolve(each, rules=tuple(rule for rule in each.rules if "wan.esp" not in str(rule)))
        if each.name == chain
        else each
        for each in inet.chains
    )
    found = prove(evolve(STATE, tables=(evolve(inet, chains=chains), *others)), SPEC).findings
    refuted = {finding.property for finding in found if finding.verdict == "refuted"}
    assert "P3" in refuted and "P1" not in refuted


def test_packet_to_encrypt_passes_to_the_other_end_alone():
    model = Model(evolve(STATE, routes=(*STATE.routes, Route(4, 7, device="eth0"))))
    for end, outcome in (("198.51.100.7", "leaves"), ("198.51.100.8", "dropped")):
        fields = {("ipsec out", "ip daddr"): parse_address(end)}
        packet = Packet(4, parse_address("192.0.2.77"), mark=1, uid=4711, fields=fields)
        assert model.trace(packet).outcome == outcome


@pytest.mark.parametrize(("rule", "named"), [("ipsec out ip daddr @wan.esp4 accept", True), ("osf name Linux", False)])
def test_missing_module_is_named(rule, named):
    error = (
        f"/proc/self/fd/4:4:2-6: Error: Could not process rule: No such file or directory\nadd rule inet t c {rule}\n"
    )
    reason, line = parse_error(f"{error}    ^^^^^\n")
    assert (reason.startswith("No such file or directory"), line) == (True, 4)
    assert ("needs the kernel module nft_xfrm" in reason) is named


def rules_left(*chains):
    """Return by chain how many rules still have an expression without a value."""
    table = name_transformed(Table("inet", "t", chains))
    return [sum("Opaque" in str(rule) or len(rule.statements) == 1 for rule in chain.rules) for chain in table.chains]


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
