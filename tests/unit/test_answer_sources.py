"""Answers to some networks alone: the proof of their policy, and of states with a fault."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.netlink.sock_diag import TCP, InetSocket
from nftpolicy.netstate.nft import Match, SetRef
from nftpolicy.policy.load import load
from nftpolicy.policy.scalars import parse_answer
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.runtime.ownership import is_answered
from tests.unit.proved_policy import prove_guard
from tests.unit.uplink_policy import WAN

POLICY = load(
    WAN
    + b"""answer = [
    { name = "ssh", source = ["192.0.2.0/24", "2001:db8::/64"] },
    { name = "ping", source = ["192.0.2.1"] },
    { name = "udp/1900", source = ["2001:db8:5::1"] },
]
"""
)[0]
UPLINK = POLICY.uplink["wan"]
STATE, SPEC = compile_policy(POLICY), build_spec(POLICY)
NARROWED = 6  # rules with a set of networks: ssh and its resets in both families, ping, UDP


def is_narrowing(statement):
    return isinstance(statement, Match) and isinstance(statement.right, SetRef) and ".answer" in statement.right.name


def without_source(number):
    """Return the state in which one rule of answers is for any destination."""
    inet, *others = STATE.tables
    (answers,) = (chain for chain in inet.chains if chain.name == "wan.answers")
    narrowed = [rule for rule in answers.rules if any(map(is_narrowing, rule.statements))]
    assert len(narrowed) == NARROWED
    wider = [one for one in narrowed[number].statements if not is_narrowing(one)]
    rules = tuple(evolve(rule, statements=tuple(wider)) if rule is narrowed[number] else rule for rule in answers.rules)
    chains = tuple(evolve(answers, rules=rules) if chain is answers else chain for chain in inet.chains)
    return evolve(STATE, tables=(evolve(inet, chains=chains), *others))


def worst(state):
    verdicts = {finding.verdict for finding in prove_guard(state, SPEC).findings if finding.deciding}
    return next(verdict for verdict in ("refuted", "unknown", "proved") if verdict in verdicts)


def test_narrowed_answers_are_proved():
    assert worst(STATE) == "proved"


@pytest.mark.parametrize("number", range(NARROWED))
def test_answer_without_its_networks_is_not_proved(number):
    assert worst(without_source(number)) != "proved"


def test_resets_go_to_any_network_beside_a_wide_answer():
    wide = evolve(UPLINK, answer=(*UPLINK.answer, parse_answer("http")))
    inet = compile_policy(evolve(POLICY, uplink={"wan": wide})).tables[0]
    resets = [rule for chain in inet.chains for rule in chain.rules if "answer.reset" in str(rule)]
    assert len(resets) == 1
    assert not any(map(is_narrowing, resets[0].statements))


@pytest.mark.parametrize(("remote", "answered"), [("192.0.2.9", True), ("198.51.100.1", False), (None, True)])
def test_socket_is_answered_by_its_peer(remote, answered):
    opened = InetSocket(
        family=4, protocol=TCP, state="established" if remote else "listen", local=None, sport=22, remote=remote,
        dport=40000, mark=0, uid=0, inode=9, cookie=1,
    )  # fmt: skip
    assert is_answered(UPLINK, opened) == answered
