"""Verdicts on rules that copy marks between packets, flows and sockets."""

import pytest
from attrs import evolve

from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    FULL_MASK,
    AnonymousSet,
    Bitwise,
    Chain,
    Ct,
    Hook,
    Mangle,
    Match,
    Meta,
    ObjectRef,
    Payload,
    Rule,
)
from nftpolicy.netstate.routing import Sysctl
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.lemmas import flow_violations, marks_replies
from nftpolicy.proof.prover import prove
from nftpolicy.proof.spec import Spec
from tests.unit import proved_policy
from tests.unit.test_proof import FLOW, GUARD, MARK, MARKED, OUT, UPLINK, no_leak_finding, output, state

PREROUTING = Hook("filter", "prerouting", -150)
FROM_UPLINK = Match(Meta("iifname"), "wan")
ORIGINAL, REPLY = (Match(Ct("direction"), way) for way in ("original", "reply"))
FIRST = Match(Ct("status"), "confirmed", "!")
NEW = Match(Ct("state"), AnonymousSet(frozenset({"new"})), "in")
FLOW_MARKED = Match(Bitwise(FLOW, and_mask=1), 1)
MARK_FLOW = Mangle(FLOW, Bitwise(FLOW, and_mask=FULL_MASK, or_bits=1))
MARK_PACKET = Mangle(MARK, Bitwise(MARK, and_mask=FULL_MASK, or_bits=1))
BEGIN = Rule((FROM_UPLINK, ORIGINAL, FIRST, MARK_FLOW))
RESTORE = Rule((REPLY, FLOW_MARKED, MARK_PACKET))
SAVE = Rule((MARKED, Mangle(FLOW, MARK)))


def arrival(*rules):
    return Chain("arrival", tuple(rules), PREROUTING)


def with_flows(*rules, restore=RESTORE):
    return state(*GUARD, chains=(arrival(*rules), output(restore)))


def prove_flows(sample, **uplink):
    return prove(sample, Spec((evolve(UPLINK, **uplink),)))


def no_leak_verdicts(sample, **uplink):
    return {one.verdict for one in prove_flows(sample, **uplink).findings if one.property == "P1"}


PROVED = {
    "marked where it begins": with_flows(BEGIN),
    "confirmed as a masked number": with_flows(
        Rule((FROM_UPLINK, ORIGINAL, Match(Bitwise(Ct("status"), and_mask=8), 0), MARK_FLOW))
    ),
    "restored as a whole": with_flows(BEGIN, restore=Rule((REPLY, FLOW_MARKED, Mangle(MARK, FLOW)))),
    "restored to forwarded replies": state(*GUARD, chains=(arrival(BEGIN, RESTORE),)),
    "a save that no rule restores": state(*GUARD, chains=(output(SAVE),)),
    "a restore of other bits": state(
        *GUARD, chains=(output(SAVE, Rule((Mangle(MARK, Bitwise(FLOW, and_mask=0xFE)),))),)
    ),
}
UNKNOWN = {
    "marked packets mark the flow": with_flows(SAVE),
    "packets that leave marked mark the flow": state(
        *GUARD, Rule((OUT, MARKED, MARK_FLOW)), chains=(output(RESTORE),)
    ),
    "saved and restored in the same chain": state(*GUARD, chains=(output(SAVE, Rule((FLOW_MARKED, MARK_PACKET))),)),
    "saved and restored whole": state(*GUARD, chains=(output(SAVE, Rule((Mangle(MARK, FLOW),))),)),
    "restored with no save": state(*GUARD, chains=(output(Rule((Mangle(MARK, FLOW),))),)),
    "restored by a mask with no save": state(
        *GUARD, chains=(output(Rule((Mangle(MARK, Bitwise(FLOW, and_mask=0xFF)),))),)
    ),
    "restored in both directions": with_flows(BEGIN, restore=Rule((FLOW_MARKED, MARK_PACKET))),
    "restored in the original direction": with_flows(BEGIN, restore=Rule((ORIGINAL, FLOW_MARKED, MARK_PACKET))),
    "each packet from the uplink marks the flow": with_flows(Rule((FROM_UPLINK, MARK_FLOW))),
    "each original packet from the uplink marks the flow": with_flows(Rule((FROM_UPLINK, ORIGINAL, MARK_FLOW))),
    "each packet before a reply marks the flow": with_flows(Rule((FROM_UPLINK, ORIGINAL, NEW, MARK_FLOW))),
    "the first packet by any device marks the flow": with_flows(Rule((ORIGINAL, FIRST, MARK_FLOW))),
    "later packets mark the flow": with_flows(
        Rule((FROM_UPLINK, ORIGINAL, Match(Ct("status"), "confirmed", "in"), MARK_FLOW))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROVED)
def test_flow_that_began_at_the_uplink_is_proved(name):
    assert no_leak_verdicts(PROVED[name]) == {"proved"}


@pytest.mark.parametrize("name", UNKNOWN)
def test_flow_that_began_elsewhere_is_not_proved(name):
    finding = no_leak_finding(prove_flows(UNKNOWN[name]), "sockets")
    assert (finding.verdict, finding.examples) == ("unknown", ())
    assert "inet t" in finding.detail
    # The control: without the rules that mark packets the same guard is proved.
    table = UNKNOWN[name].tables[0]
    chains = tuple(
        evolve(one, rules=tuple(rule for rule in one.rules if not marks_packets(rule))) for one in table.chains
    )
    sample = evolve(UNKNOWN[name], tables=(evolve(table, chains=chains), *UNKNOWN[name].tables[1:]))
    assert no_leak_verdicts(sample) == {"proved"}


def marks_packets(rule):
    return any(isinstance(one, Mangle) and one.key == MARK for one in rule.statements)


@pytest.mark.parametrize(
    ("number", "verdict", "words"),
    [(0, "proved", ""), (1, "unknown", "1 flow carries"), (3, "unknown", "3 flows carry")],
)
def test_flow_that_no_rule_marks_is_not_believed(number, verdict, words):
    finding = no_leak_finding(prove_flows(with_flows(), marked_flows=number), "sockets")
    assert finding.verdict == verdict
    assert words in finding.detail


@pytest.mark.parametrize(
    ("number", "assumption"),
    [
        (None, "a flow from before these rules carries the mark of uplink wan only if it began at the uplink"),
        (0, None),
        (2, "2 flows carry the mark of uplink wan, and began there"),
    ],
)
def test_earlier_flows_are_an_assumption(number, assumption):
    proof = prove_flows(with_flows(BEGIN), marked_flows=number)
    assert no_leak_finding(proof, "sockets").verdict == "proved"
    assert [one for one in proof.assumptions if "mark of uplink" in one] == ([assumption] if assumption else [])
    assert not [one for one in prove_flows(state(*GUARD), marked_flows=number).assumptions if "uplink wan" in one]


def test_expected_flow_is_an_assumption():
    helper = Rule((Match(Payload("tcp", "dport"), 21), ObjectRef("ct helper", "ftp")))
    proof = prove_flows(with_flows(BEGIN, helper), marked_flows=0)
    assert any("conntrack helper expects (inet t arrival)" in one for one in proof.assumptions)
    assert not any("helper" in one for one in prove_flows(with_flows(BEGIN), marked_flows=0).assumptions)


def test_marked_sockets_are_an_assumption():
    proof = prove_flows(state(*GUARD), marked_sockets=2)
    assert "2 sockets carry the mark of uplink wan, and their programs may use it" in proof.assumptions


# --- sockets that inherit the mark of the SYN that they accept -----------------------------------

ACCEPT_SYSCTL = "net/ipv4/tcp_fwmark_accept"
TCP_ONLY, UDP_ONLY = (Match(Meta("l4proto"), protocol) for protocol in ("tcp", "udp"))


def with_sysctl(sample, value):
    return evolve(sample, sysctls=(Sysctl(ACCEPT_SYSCTL, value),))


ANY_OWNER = {
    "all but one user": Match(Meta("skuid"), 5, "!="),
    "many users": Match(Meta("skuid"), "1000-65535"),
}


@pytest.mark.parametrize("name", ANY_OWNER)
def test_guard_that_passes_many_owners_is_not_proved(name):
    guard = (Rule((OUT, ANY_OWNER[name], MARKED, ACCEPT)), Rule((OUT, DROP)))
    sample = state(*guard, chains=(arrival(Rule((FROM_UPLINK, MARK_PACKET))),))
    assert no_leak_finding(prove_flows(with_sysctl(sample, "1")), "sockets").verdict == "unknown"
    assert no_leak_verdicts(with_sysctl(sample, "0")) == {"proved"}


MARKS_ARRIVING_TCP = {
    "all packets": Rule((FROM_UPLINK, MARK_PACKET)),
    "TCP": Rule((FROM_UPLINK, TCP_ONLY, MARK_PACKET)),
    "a flow": Rule((FROM_UPLINK, FLOW_MARKED, Mangle(MARK, FLOW))),
    "UDP, and a marked socket of this machine connects by lo": Rule((FROM_UPLINK, UDP_ONLY, MARK_PACKET)),
    "none, and a marked socket of this machine connects by lo": Rule(()),
}


@pytest.mark.parametrize("name", MARKS_ARRIVING_TCP)
def test_accepted_socket_with_the_mark_is_not_proved(name):
    sample = state(*GUARD, chains=(arrival(MARKS_ARRIVING_TCP[name]),))
    finding = no_leak_finding(prove_flows(with_sysctl(sample, "1")), "sockets")
    assert finding.verdict == "unknown"
    assert "tcp_fwmark_accept" in finding.detail
    assert no_leak_verdicts(with_sysctl(sample, "0")) == {"proved"}
    unread = prove_flows(sample)
    assert no_leak_finding(unread, "sockets").verdict == "proved"
    assert "sysctl net.ipv4.tcp_fwmark_accept is 0" in unread.assumptions


def test_policy_needs_no_assumption_about_accepted_sockets():
    """Judge the owner of such a socket by the guard instead."""
    sample = evolve(proved_policy.beside(MARKS_ARRIVING_TCP["TCP"], hook="prerouting", kind="filter"), sysctls=())
    assert not any(
        "tcp_fwmark_accept" in each for each in prove(sample, proved_policy.SPEC, usability=False).assumptions
    )


OWNED = (Match(Meta("skgid"), 800), MARKED, ACCEPT)
HARMLESS = {
    "a guard that passes one group": state(
        Rule((OUT, *OWNED)),
        Rule((OUT, Match(Meta("skuid"), "0-4294967294"), DROP)),
        *GUARD,
        chains=(arrival(Rule((FROM_UPLINK, MARK_PACKET))),),
    ),
    "a guard that passes replies only": state(
        Rule((OUT, REPLY, MARKED, ACCEPT)),
        Rule((OUT, Match(Meta("skuid"), "0-4294967294"), DROP)),
        chains=(arrival(Rule((FROM_UPLINK, MARK_PACKET))),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_accepted_socket_without_use_of_the_mark_is_proved(name):
    assert no_leak_verdicts(with_sysctl(HARMLESS[name], "1")) == {"proved"}


FLOW_UNMARKED = Match(Bitwise(FLOW, and_mask=1), 0)


def context_of(rule):
    return ProofContext(state(*GUARD, chains=(arrival(rule),)), UPLINK.devices, (UPLINK.mask,))


@pytest.mark.parametrize(
    ("matches", "unsafe"),
    [((), True), ((FLOW_UNMARKED,), True), ((FLOW_MARKED,), False), ((FROM_UPLINK, ORIGINAL, FIRST), False)],
)
def test_write_to_an_unmarked_flow_is_a_violation(matches, unsafe):
    assert bool(flow_violations(context_of(Rule((*matches, MARK_FLOW))), 4, UPLINK)) is unsafe


@pytest.mark.parametrize(
    ("matches", "marks"),
    [
        ((), True),
        ((FLOW_MARKED,), True),
        ((FLOW_UNMARKED,), False),
        ((FROM_UPLINK, FLOW_MARKED), False),
        ((MARKED, FLOW_MARKED), False),
    ],
)
def test_reply_of_a_marked_flow_gets_the_mark_by_a_rule(matches, marks):
    assert marks_replies(context_of(Rule((*matches, MARK_PACKET))), 4, UPLINK) is marks
