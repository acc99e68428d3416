# SPDX-License-Identifier: BSD-2-Clause
"""Verdicts where a rule writes headers, a set has statements or changes, or a header is not readable."""

import pytest
from attrs import evolve

from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    AnonymousSet,
    Bitwise,
    Chain,
    Concat,
    Ct,
    Hook,
    Limit,
    Mangle,
    Map,
    Match,
    Meta,
    Option,
    Payload,
    RawPayload,
    Rule,
    Set,
    SetRef,
    SetUpdate,
    Table,
    Undecided,
    UnknownStatement,
    Verdict,
    VerdictMapRef,
)
from nftpolicy.netstate.state import Device
from nftpolicy.proof.exemption_spec import exemption
from nftpolicy.proof.prover import prove
from nftpolicy.proof.spec import Spec, UplinkSpec
from tests.unit import test_proof
from tests.unit.test_proof import FULL_MASK, GUARD, MARK, MARKED, OUT, UNMARKED, UPLINK, no_leak_finding

LIMIT = Limit(1, "second", 5, True)
DADDR, SADDR = Payload("ip", "daddr"), Payload("ip", "saddr")
TO = "192.0.2.77"
IPV4 = Match(Meta("nfproto"), "ipv4")
DROP_IPV6 = Rule((OUT, Match(Meta("nfproto"), "ipv6"), DROP))


def state(*rules, **parts):
    """Return a state without a guard at the link layer."""
    return test_proof.state(*rules, link=None, **parts)


def verdict(sample, uplink=UPLINK, subject="sockets") -> str:
    return no_leak_finding(prove(sample, Spec((uplink,))), subject).verdict


def two_chains(first, second, between=10):
    """Return a state with two base chains of postrouting, the second at a later priority."""
    hooks = Hook("filter", "postrouting", 300), Hook("filter", "postrouting", 300 + between)
    chains = tuple(
        Chain(f"c{at}", tuple(rules), hook) for at, (rules, hook) in enumerate(zip((first, second), hooks, strict=True))
    )
    return state(others=(Table("inet", "two", chains),))


# --- statements of elements, and sets that change ---------------------------------------


def _set(**more) -> Set:
    return Set("s", ("nf_proto",), frozenset({"ipv4", "ipv6"}), **more)


LOOKUP = (OUT, UNMARKED, Match(Meta("nfproto"), SetRef("s")), DROP)
CHANGING = {
    "elements with statements": _set(statements=(LIMIT,), conditional_elements=frozenset({"ipv4"})),
    "the flag dynamic": _set(flags=frozenset({"dynamic"})),
    "a timeout": _set(timeout=60),
}


@pytest.mark.parametrize("named", CHANGING.values(), ids=CHANGING)
def test_drop_by_a_set_that_may_not_match_is_not_proved(named):
    assert verdict(state(Rule(LOOKUP), sets=(_set(),))) == "proved"
    assert verdict(state(Rule(LOOKUP), sets=(named,))) == "unknown"


@pytest.mark.parametrize("operation", ["add", "update", "delete"])
def test_set_that_a_rule_changes_is_not_constant(operation):
    update = Rule((SetUpdate(operation, "s", Meta("nfproto")),))
    assert verdict(state(Rule(LOOKUP), sets=(_set(),), chains=(Chain("learn", (update,)),))) == "unknown"


def test_set_that_an_unknown_statement_names_is_not_constant():
    update = Rule((UnknownStatement('{"map":{"map":"@s","op":"add"}}'),))
    assert verdict(state(Rule(LOOKUP), sets=(_set(),), chains=(Chain("learn", (update,)),))) == "unknown"


def test_negated_lookup_of_a_conditional_element_is_exact():
    """An element that is found ends the rule, whatever its statements do."""
    named = Set("s", ("nf_proto",), frozenset({5}), conditional_elements=frozenset({5}))
    rule = Rule((OUT, UNMARKED, Match(Meta("nfproto"), SetRef("s"), "!="), DROP))
    assert verdict(state(rule, sets=(named,))) == "proved"


@pytest.mark.parametrize("dropped", [53, 55])
def test_negated_set_of_concatenations_is_exact(dropped):
    """Drop all but two elements, and one of them; the other one leaves."""
    both = AnonymousSet(frozenset({(TO, 53), (TO, 55)}))
    others = Rule((Match(Concat((DADDR, Payload("udp", "dport"))), both, "!="), DROP))
    chain = Chain("udp", (others, Rule((Match(Payload("udp", "dport"), dropped), DROP))))
    readable = (OUT, UNMARKED, IPV4, Match(Payload("udp", "dport"), "0-65535"))
    sample = state(Rule((*readable, Verdict("goto", "udp"))), Rule((OUT, UNMARKED, DROP)), chains=(chain,))
    found = no_leak_finding(prove(sample, Spec((UPLINK,))), "sockets")
    assert found.verdict == "refuted"
    assert {example.packet.dport for example in found.examples} == {53, 55} - {dropped}


def test_conditional_entry_of_a_verdict_map_may_not_apply():
    entries = frozenset({("wan", Verdict("drop"))})
    rules = Rule((MARKED, ACCEPT)), Rule((VerdictMapRef(Meta("oifname"), "by"),))
    certain = Map("by", ("ifname",), ("verdict",), entries)
    uncertain = Map("by", ("ifname",), ("verdict",), entries, conditional_elements=frozenset({"wan"}))
    assert verdict(state(*rules, maps=(certain,))) == "proved"
    assert verdict(state(*rules, maps=(uncertain,))) == "unknown"


# --- tests for several connection states ---------------------------------------------------

STATES = "established,invalid,new,related,untracked"  # of which a packet has one


@pytest.mark.parametrize(("op", "expected"), [("in", "proved"), ("==", "refuted"), ("!", "refuted"), ("!=", "unknown")])
def test_all_states_at_once_are_not_one_state(op, expected):
    """`ct state established | related` compares with both bits, which no packet has; a list tests for one of them."""
    assert verdict(state(Rule((OUT, UNMARKED, Match(Ct("state"), STATES, op), DROP)))) == expected


def test_set_of_states_has_whole_values():
    def with_states(*elements):
        right = AnonymousSet(frozenset(elements))
        return verdict(state(Rule((OUT, UNMARKED, Match(Ct("state"), right, "in"), DROP))))

    assert with_states(*STATES.split(",")) == "proved"
    assert with_states(STATES) == "refuted"


# --- writes into headers -----------------------------------------------------------------

WRITES = {
    "the field": Mangle(DADDR, "192.0.2.1"),
    "its bits": Mangle(RawPayload("nh", 128, 32), 0xC0000201),
    "some of its bits": Mangle(RawPayload("nh", 152, 8), 1),
    "bits from before it": Mangle(RawPayload("nh", 64, 96), 1),
    "from the link header on": Mangle(RawPayload("ll", 240, 32), 1),
}
OTHER_WRITES = {
    "another field": Mangle(Payload("ip", "ttl"), 1),
    "bits before it": Mangle(RawPayload("nh", 96, 32), 1),
    "a port": Mangle(Payload("udp", "dport"), 9),
    "the link header": Mangle(RawPayload("ll", 0, 48), 1),
}


def _rewriting(write: Mangle):
    first = (Rule((OUT, UNMARKED, Match(DADDR, TO), write, ACCEPT)), Rule((OUT, UNMARKED, DROP)))
    second = (Rule((OUT, UNMARKED, Match(DADDR, TO), DROP)),)
    return two_chains(first, second)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_later_chain_sees_the_written_header(write):
    assert verdict(_rewriting(write)) != "proved"


@pytest.mark.parametrize("write", OTHER_WRITES.values(), ids=OTHER_WRITES)
def test_later_chain_sees_the_other_fields_unchanged(write):
    assert verdict(_rewriting(write)) == "proved"


def test_chain_that_writes_is_not_judged_after_a_later_one():
    """A drop in the later chain sees what the earlier one wrote, though it is tested first."""
    bit = Match(Bitwise(MARK, and_mask=0x100), 0x100)
    clear = Mangle(MARK, Bitwise(MARK, FULL_MASK ^ 0x100))
    first = (Rule((OUT, UNMARKED, Match(Bitwise(MARK, and_mask=0x100), 0), DROP)), Rule((OUT, UNMARKED, clear, ACCEPT)))
    second = (Rule((OUT, UNMARKED, bit, DROP)),)
    assert verdict(two_chains(first, second)) != "proved"
    assert verdict(two_chains(first, second, between=0)) != "proved"
    unwritten = (first[0], Rule((OUT, UNMARKED, ACCEPT)))
    assert verdict(two_chains(unwritten, second)) == "proved"


def test_exemption_judges_the_packet_after_the_write():
    exempt = UplinkSpec("wan", ("wan",), 1, 1, exemptions=(exemption("dhcpv4"),))
    dhcp = (
        OUT,
        IPV4,
        Match(DADDR, "255.255.255.255"),
        Match(Payload("udp", "sport"), 68),
        Match(Payload("udp", "dport"), 67),
    )
    assert verdict(state(Rule((*dhcp, ACCEPT)), *GUARD), exempt) == "proved"
    rewritten = Rule((*dhcp, Mangle(Payload("udp", "dport"), 9), ACCEPT))
    assert verdict(state(rewritten, *GUARD), exempt) != "proved"


def test_mark_behind_a_rewritten_port_is_found():
    ports = [Match(Payload("udp", "dport"), port) for port in (53, 54)]
    chains = (
        Chain("out", (Rule((ports[0], Verdict("jump", "rewrite"))),), Hook("route", "output", -150)),
        Chain("rewrite", (Rule((Mangle(Payload("udp", "dport"), 54),)), Rule((ports[1], Mangle(MARK, 1))))),
    )
    assert verdict(state(*GUARD, chains=chains)) != "proved"


# --- writes that fail, and headers that cannot be read ------------------------------------


def test_failed_write_of_a_tcp_option_ends_the_rule():
    write = Mangle(Option("tcp option", "maxseg", "size"), 1360)
    assert verdict(state(Rule((OUT, UNMARKED, write, DROP)))) == "refuted"
    assert verdict(state(Rule((OUT, MARKED, ACCEPT)), Rule((OUT, write, ACCEPT)), Rule((OUT, DROP)))) == "refuted"
    only_udp = Rule((OUT, UNMARKED, Match(Meta("l4proto"), "udp"), write, ACCEPT))
    assert verdict(state(only_udp, *GUARD)) == "proved"


@pytest.mark.parametrize("write", [*WRITES.values(), *OTHER_WRITES.values()], ids=[*WRITES, *OTHER_WRITES])
def test_failed_write_of_a_header_ends_the_rule(write):
    """A packet may end before the bits that are written."""
    assert verdict(state(Rule((OUT, UNMARKED, write, DROP)))) != "proved"
    assert verdict(state(Rule((OUT, UNMARKED, write, ACCEPT)), *GUARD)) != "proved"


UNDECIDED = (
    # results; whether a guard before, with a drop behind the statement, and a guard after it are proved
    ({"continue"}, True, True),
    ({"break"}, False, True),
    ({"drop"}, False, True),
    ({"continue", "break"}, False, True),
    ({"continue", "drop"}, False, True),
    ({"accept"}, False, False),
    ({"return"}, False, False),
    ({"continue", "accept"}, False, False),
    ({"break", "return"}, False, False),
)


@pytest.mark.parametrize(
    ("results", "before", "after"),
    UNDECIDED,
    ids=lambda results: "-or-".join(sorted(results)) if isinstance(results, set) else None,
)
def test_statement_with_several_results_may_have_each(results, before, after):
    statement = Undecided("synproxy", frozenset(results))
    assert (verdict(state(Rule((OUT, UNMARKED, statement, DROP)))) == "proved") is before
    assert (verdict(state(Rule((OUT, UNMARKED, statement)), *GUARD)) == "proved") is after


@pytest.mark.parametrize(
    ("match", "family", "expected"),
    [
        (Match(Meta("l4proto"), "0-255"), "ipv6", "unknown"),
        (Match(Meta("l4proto"), "0-255"), "ipv4", "proved"),
        (Match(Payload("th", "dport"), "0-65535"), "ipv4", "unknown"),
    ],
)
def test_unreadable_header_does_not_match(match, family, expected):
    other = "ipv6" if family == "ipv4" else "ipv4"
    rules = (
        Rule((OUT, UNMARKED, Match(Meta("nfproto"), other), DROP)),
        Rule((OUT, UNMARKED, match, DROP)),
        *(() if match.left == Meta("l4proto") else (Rule((OUT, UNMARKED, Match(Meta("l4proto"), "tcp", "!="), DROP)),)),
    )
    assert verdict(state(*rules)) in (expected, "refuted" if expected == "unknown" else expected)


@pytest.mark.parametrize(
    "match",
    [
        Match(Payload("th", "dport"), "0-65535"),
        Match(Payload("udp", "sport"), "0-65535"),
        Match(Payload("icmp", "type"), "0-255"),
        Match(Bitwise(Payload("tcp", "flags"), and_mask="syn"), "syn"),
    ],
)
def test_header_readable_at_postrouting_may_not_be_at_egress(match):
    rules = (Rule((OUT, UNMARKED, match, ACCEPT)), *GUARD)
    for link_rule, expected in (((UNMARKED, match, DROP), False), ((UNMARKED, DROP), True)):
        assert (verdict(test_proof.state(*rules, link=_link(Rule(link_rule)))) == "proved") is expected


def test_packet_type_of_a_forwarded_packet_is_any():
    rule = Rule((OUT, Match(Meta("pkttype"), "host"), UNMARKED, DROP))
    assert verdict(state(rule)) == "proved"
    assert verdict(state(rule), subject="forwarded") != "proved"


# --- frames --------------------------------------------------------------------------------


def _link(*rules):
    return Table("netdev", "link", (Chain("egress", rules, Hook("filter", "egress", 0, "accept", "wan")),))


def test_ip_frame_with_false_ethertype_leaks():
    """An AF_PACKET socket says any ethertype; the frame has its own."""
    said = tuple(Rule((Match(Meta("protocol"), name), UNMARKED, DROP)) for name in ("ip", "ip6"))
    own = tuple(Rule((Match(Payload("ether", "type"), number), UNMARKED, DROP)) for number in (0x0800, 0x86DD))
    both = test_proof.state(link=_link(*said, *own))
    assert verdict(both, subject="AF_PACKET") == "refuted"  # some frames have no readable link header
    proof = prove(test_proof.state(link=_link(*said)), Spec((UPLINK,)))
    found = no_leak_finding(proof, "AF_PACKET")
    assert found.verdict == "refuted"
    assert found.examples[0].packet.frame_type in (0x0800, 0x86DD)
    assert found.examples[0].packet.protocol_number not in (0x0800, 0x86DD)
    assert verdict(test_proof.state(link=_link(Rule((UNMARKED, DROP)))), subject="AF_PACKET") == "proved"


@pytest.mark.parametrize(("end", "expected"), [(None, "proved"), ("br0", "unknown")])
def test_frame_that_a_foreign_bridge_forwards_is_not_exempt(end, expected):
    """A veth of this machine ends in the bridge; its frames are not of the type "host"."""
    only_host = _link(Rule((Match(Meta("pkttype"), "host"), UNMARKED, DROP)))
    veth = Device("v0", kind="veth", link="v1"), Device("v1", master=end, kind="veth", link="v0")
    devices = (Device("wan", master="br0"), Device("br0", kind="bridge"), *veth)
    assert verdict(evolve(test_proof.state(link=only_host), devices=devices), subject="AF_PACKET") == expected


def test_bridged_frames_of_ports_are_assumed():
    with_port = UplinkSpec("wan", ("wan",), 1, 1, ports=("eth0",))
    proof = prove(test_proof.state(), Spec((with_port,)))
    assert any("forwards to eth0" in text for text in proof.assumptions)
    assert not any("forwards to" in text for text in prove(test_proof.state(), Spec((UPLINK,))).assumptions)
