"""Proof of marks = "uid-rule": users who need no mark, and changes that let other users leave."""

from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.compiler.object_names import USER_RULE_PRIORITY
from nftpolicy.model.packet import FRAME
from nftpolicy.netstate.nft import (
    ACCEPT,
    Bitwise,
    Chain,
    Ct,
    Hook,
    Mangle,
    Match,
    Meta,
    Rule,
    Table,
)
from nftpolicy.netstate.routing import TABLE_MAIN, IpRule
from nftpolicy.netstate.state import Device
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED, REFUTED
from tests.finding_invariants import assert_findings_are_sound

POLICY = load((Path(__file__).parents[1] / "golden" / "11-uid-rule" / "policy.toml").read_bytes())[0]
STATE, SPEC = compile_policy(POLICY), build_spec(POLICY)
USER, OTHER = 901, 4711
MARK = 0x10
PUT_ON = Mangle(Meta("mark"), Bitwise(Meta("mark"), and_mask=0xFFFFFF1F, or_bits=MARK))


def proof_of(state):
    proof = prove(state, SPEC)
    assert_findings_are_sound(proof, SPEC)
    return proof


def foreign(*rules, hook="postrouting", kind="filter", priority=9000, device=None):
    family = "netdev" if device else "inet"
    return Table(family, f"foreign-{hook}", (Chain("c", rules, Hook(kind, hook, priority, device=device)),))


def with_tables(*tables):
    return evolve(STATE, tables=(*STATE.tables, *tables))


def without_rules(name, wanted):
    """Return the state without the rules of a chain of the IP table for which `wanted` is true."""
    (ip, link) = STATE.tables
    chains = tuple(
        evolve(one, rules=tuple(rule for rule in one.rules if one.name != name or not wanted(rule)))
        for one in ip.chains
    )
    assert chains != ip.chains
    return evolve(STATE, tables=(evolve(ip, chains=chains), link))


def asks_user(rule):
    return any(isinstance(one, Match) and one.left == Meta("skuid") for one in rule.statements)


def test_uid_rule_policy_is_proved():
    assert proof_of(STATE).verdict == PROVED


def test_rule_that_marks_another_user_is_a_leak():
    rule = Rule((Match(Meta("oifname"), "br-wan"), Match(Meta("skgid"), 800), PUT_ON))
    found = proof_of(with_tables(foreign(rule)))
    assert found.property_verdict("P1") == REFUTED
    examples = [one for finding in found.findings for one in finding.examples]
    assert any(one.packet.uid not in (901, 902) and not one.packet.mark for one in examples)


def test_rule_that_marks_only_the_user_is_no_leak():
    rule = Rule((Match(Meta("oifname"), "br-wan"), Match(Meta("skuid"), USER), PUT_ON))
    assert proof_of(with_tables(foreign(rule))).property_verdict("P1") == PROVED


def test_another_user_in_the_set_is_a_leak():
    (ip, link) = STATE.tables
    sets = tuple(
        evolve(one, elements=one.elements | {OTHER}) if one.name in ("wan.unmarked", "wan.user-anywhere") else one
        for one in ip.sets
    )
    assert sum(a != b for a, b in zip(sets, ip.sets, strict=True)) == 2
    found = proof_of(evolve(STATE, tables=(evolve(ip, sets=sets), link)))
    assert found.property_verdict("P1") == REFUTED
    leaks = [one.packet for finding in found.findings for one in finding.examples if finding.property == "P1"]
    assert any((one.uid, one.mark) == (OTHER, 0) for one in leaks)


def test_user_outside_its_destinations_is_a_leak():
    skip = Rule((Match(Meta("skuid"), 902), PUT_ON, ACCEPT))
    (ip, link) = STATE.tables
    chains = tuple(evolve(one, rules=(skip, *one.rules)) if one.name == "wan.guard" else one for one in ip.chains)
    assert proof_of(evolve(STATE, tables=(evolve(ip, chains=chains), link))).property_verdict("P1") == REFUTED


def test_mark_copied_through_the_flow_is_not_proved():
    """Copy the mark into the flow after the guard and back before it: any packet can get it."""
    into = foreign(Rule((Mangle(Ct("mark"), Meta("mark")),)), priority=15000)
    back = foreign(Rule((Mangle(Meta("mark"), Ct("mark")),)), hook="output", kind="route", priority=-140)
    assert proof_of(with_tables(into, back)).property_verdict("P1") != PROVED


def test_unmarked_frames_of_the_user_are_a_leak():
    accept = Rule((Match(Meta("skuid"), USER), ACCEPT))
    (ip, link) = STATE.tables
    chains = tuple(
        evolve(one, rules=(accept, *one.rules)) if one.hook and one.hook.device == "br-wan" else one
        for one in link.chains
    )
    found = proof_of(evolve(STATE, tables=(ip, evolve(link, chains=chains))))
    assert found.property_verdict("P1") == REFUTED
    assert any(one.packet.origin == FRAME for finding in found.findings for one in finding.examples)


def test_packets_of_the_user_at_inside_device_refute_p2():
    found = proof_of(without_rules("inside", asks_user))
    assert found.property_verdict("P2") == REFUTED
    strays = [one for finding in found.findings for one in finding.examples if finding.property == "P2"]
    assert any(one.packet.uid in (901, 902, 903) and one.device == "bat0" for one in strays)


def test_missing_mark_rule_of_the_user_refutes_p3():
    found = proof_of(without_rules("wan.guard", asks_user))
    assert (found.property_verdict("P1"), found.property_verdict("P3")) == (PROVED, REFUTED)


STARVING_RULES = {
    "no rule to the table": lambda rules: [one for one in rules if not (one.uids and one.table in (10, 20))],
    "another lookup before it": lambda rules: [
        *rules,
        *(IpRule(family, USER_RULE_PRIORITY - 1, table=TABLE_MAIN, uids=(900, 999)) for family in (4, 6)),
    ],
    "an error before it": lambda rules: [*rules, *(IpRule(family, 3, action="prohibit") for family in (4, 6))],
    "for others than the user": lambda rules: [
        evolve(one, invert=True) if one.uids == (901, 901) else one for one in rules
    ],
}


@pytest.mark.parametrize("name", STARVING_RULES)
def test_rules_that_starve_a_user_refute_p3(name):
    rules = tuple(sorted(STARVING_RULES[name](STATE.rules), key=lambda one: (one.family, one.priority)))
    found = proof_of(evolve(STATE, rules=rules))
    assert (found.property_verdict("P2"), found.property_verdict("P3")) == (PROVED, REFUTED)


@pytest.mark.parametrize("action", ["prohibit", "unreachable"])
def test_error_of_a_foreign_rule_refutes_p3_on_a_machine(action):
    """A packet without a route now is not tried on a machine with devices; an ip rule's error is there for good."""
    names = ("lo", "bat0", "br-client", "br-wan", "wwan0")
    machine = evolve(STATE, devices=tuple(Device(name) for name in names))
    assert proof_of(machine).property_verdict("P3") == PROVED
    rules = tuple(IpRule(family, 3, action=action, uids=(901, 901)) for family in (4, 6))
    starved = proof_of(evolve(machine, rules=(*rules, *STATE.rules)))
    assert starved.property_verdict("P3") == REFUTED
    assert any(f"since ip rule 3 decides: priority 3 from all uidrange 901-901 {action}" in one.detail
               for one in starved.findings)  # fmt: skip


def test_mark_rules_precede_user_rules():
    """Route a marked socket of the user by its mark."""
    assert all(one.priority < USER_RULE_PRIORITY for one in STATE.rules if one.mask)
