"""Services that may send echo requests: the proof of their policy, and of states with a fault."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import Match, Payload
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from tests.unit.proved_policy import prove_guard
from tests.unit.uplink_policy import WAN

POLICY = load(
    WAN
    + b"""answer = ["ping"]
[service.monitor]
uplink = "wan"
user = 901
ports = ["ping", "udp/53"]
[service.near]
uplink = "wan"
group = 902
ports = ["ping"]
to = ["198.51.100.0/24", "2001:db8::7"]
"""
)[0]
STATE, SPEC = compile_policy(POLICY), build_spec(POLICY)
PINGED = 4  # rules that accept echo requests


def without_type(number):
    """Return the state in which one rule of echo requests accepts all packets of its sockets."""
    inet, *others = STATE.tables
    chains, seen = [], 0
    for chain in inet.chains:
        rules = []
        for rule in chain.rules if chain.name == "wan.mark-owner" else ():
            first, *rest = rule.statements
            if isinstance(first, Match) and isinstance(first.left, Payload) and first.right == "echo-request":
                seen += 1
                rules.append(evolve(rule, statements=tuple(rest)) if seen == number else rule)
            else:
                rules.append(rule)
        chains.append(evolve(chain, rules=tuple(rules)) if rules else chain)
    assert seen == PINGED
    return evolve(STATE, tables=(evolve(inet, chains=tuple(chains)), *others))


def test_ping_policy_is_proved():
    findings = prove_guard(STATE, SPEC).findings
    assert {finding.verdict for finding in findings if finding.deciding} == {"proved"}


@pytest.mark.parametrize("number", range(1, PINGED + 1))
def test_rule_without_type_of_message_is_refuted(number):
    findings = prove_guard(without_type(number), SPEC).findings
    assert "refuted" in {finding.verdict for finding in findings if finding.deciding and finding.property == "P1"}


def test_ping_is_one_set_for_each_kind_of_destination():
    names = {item.name for item in STATE.tables[0].sets}
    assert names >= {"wan.user-ping", "wan.user-ports", "wan.group-to4-ping-ranges", "wan.group-to6-ping"}
