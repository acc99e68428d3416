"""P1 and P3 about the addresses of an uplink: what leaves has one of them, and what the policy names is usable."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import ACCEPT, Fib, Match, Payload, Rule, UnknownStatement
from nftpolicy.netstate.routing import IpRule, Route
from nftpolicy.netstate.state import Device
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import describe_packet

TEXT = """\
name = "p"
inside = ["tun0"]
[uplink.wan]
devices = ["eth0"]
mark = "0x1/0xff"
table = 7
answer = ["ssh"]
ADDRESSES
[service.vpn]
uplink = "wan"
group = 800
"""
ADDRESSES = 'addresses = ["203.0.113.0/28", "2001:db8:6::/56"]'
FOREIGN = "packets that leave by eth0 from an address of another device"


def policy(addresses=""):
    return load(TEXT.replace("ADDRESSES", addresses).encode())[0]


def compiled(addresses="", replace=lambda rules: rules):
    """Return the compiled state, with the rules of chain wan.source replaced."""
    state = compile_policy(policy(addresses))
    tables = tuple(
        evolve(
            table,
            chains=tuple(
                evolve(chain, rules=replace(chain.rules)) if chain.name == "wan.source" else chain
                for chain in table.chains
            ),
        )
        for table in state.tables
    )
    return evolve(state, tables=tables)


def source_finding(state, spec=None):
    findings = prove(state, spec or build_spec(policy())).findings
    return next(one for one in findings if one.subject == FOREIGN)


@pytest.mark.parametrize("addresses", ["", ADDRESSES])
def test_compiled_policy_sends_from_its_addresses_only(addresses):
    proof = prove(compiled(addresses), build_spec(policy(addresses)))
    assert [(one.property, one.subject) for one in proof.findings if one.verdict != "proved"] == []
    assert FOREIGN in {one.subject for one in proof.findings}


def test_guard_without_the_test_is_refuted_by_a_packet():
    finding = source_finding(compiled(replace=lambda rules: ()))
    assert finding.verdict == "refuted"
    assert "source 192.0.2.18" in describe_packet(finding.examples[0].packet)  # of tun0
    assert {one.packet.family for one in finding.examples} == {4, 6}


def test_source_that_the_policy_does_not_name_is_refuted():
    assert source_finding(compiled(ADDRESSES)).verdict != "proved"
    state = compiled(replace=lambda rules: (Rule((Match(Payload("ip", "saddr"), "192.0.2.18"), ACCEPT)), *rules))
    finding = source_finding(state)
    assert finding.verdict == "refuted"
    assert [one.packet.family for one in finding.examples] == [4]


def test_no_address_yet_is_no_foreign_source():
    with_unspecified = Rule((Match(Payload("ip6", "saddr"), "::"), ACCEPT))
    assert source_finding(compiled(replace=lambda rules: (with_unspecified, *rules))).verdict == "proved"


def test_address_of_the_device_is_no_foreign_source():
    own = Rule((Match(Fib("type", ("saddr", "oif")), "local"), ACCEPT))
    assert source_finding(compiled(replace=lambda rules: (own, *rules))).verdict == "proved"
    of_any_device = Rule((Match(Fib("type", ("saddr",)), "local"), ACCEPT))
    assert source_finding(compiled(replace=lambda rules: (of_any_device, *rules))).verdict == "refuted"


def test_unsupported_test_of_the_source_is_unknown():
    finding = source_finding(compiled(replace=lambda rules: (Rule((UnknownStatement("strange"), ACCEPT)), *rules)))
    assert finding.verdict == "unknown"


# --- usable -------------------------------------------------------------------------------------


def live(addresses, *routes):
    """Return the state of a machine with eth0 and tun0, with local routes alone."""
    state = compiled(addresses)
    devices = tuple(
        Device(name, tuple(prefix for _, prefix, device in routes if device == name)) for name in ("lo", "eth0", "tun0")
    )
    kernel = tuple(Route(family, 255, prefix, "local", device=device) for family, prefix, device in routes)
    default = tuple(Route(family, table, "default", device=device) for family in (4, 6) for table, device in LEADS)
    rules = (IpRule(family, priority, "lookup", table) for family in (4, 6) for priority, table in KERNEL_RULES)
    in_order = tuple(sorted([*state.rules, *rules], key=lambda rule: (rule.family, rule.priority)))
    return evolve(state, devices=devices, rules=in_order, routes=(*state.routes, *kernel, *default))


KERNEL_RULES = ((0, 255), (32766, 254))
LEADS = ((7, "eth0"), (254, "tun0"))
ON_TUNNEL = (
    (4, "127.0.0.0/8", "lo"),
    (6, "::1/128", "lo"),
    (4, "10.9.0.2/32", "tun0"),
    (6, "2001:db8:9::2/128", "tun0"),
)
ON_UPLINK = ((4, "192.0.2.2/32", "eth0"),)


def test_uplink_without_address_is_skipped_with_a_note():
    proof = prove(live("", *ON_TUNNEL, *ON_UPLINK), build_spec(policy()))
    assert [one.subject for one in proof.findings if one.verdict != "proved"] == []
    notes = [one for one in proof.assumptions if one.startswith("eth0 has no address now to send from")]
    assert notes
    assert all(note.endswith("(IPv6)") for note in notes)


def test_addresses_that_no_device_has_are_not_tried():
    proof = prove(live(ADDRESSES, *ON_TUNNEL, *ON_UPLINK), build_spec(policy(ADDRESSES)))
    assert not [one for one in proof.findings if one.subject == "addresses"]
    here = (4, "203.0.113.5/32", "lo")
    proof = prove(live(ADDRESSES, *ON_TUNNEL, *ON_UPLINK, here), build_spec(policy(ADDRESSES)))
    assert {one.verdict for one in proof.findings if one.subject == "addresses"} == {"proved"}


# --- policy -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["0.0.0.0/0", "::/0", "127.0.0.1", "fe80::/64", "224.0.0.0/4", "ff02::1", "0.0.0.0", "::1"]
)
def test_addresses_that_are_not_routed_are_refused(word):
    with pytest.raises(PolicyError, match=r"uplink\.wan\.addresses"):
        policy(f'addresses = ["{word}"]')


def test_addresses_are_networks_listed_once():
    with pytest.raises(PolicyError, match="twice"):
        policy('addresses = ["192.0.2.1", "192.0.2.1"]')
    with pytest.raises(PolicyError):
        policy('addresses = ["192.0.2.1/24"]')
