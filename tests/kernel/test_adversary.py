"""The proof against an adversary: random kernel states, and a storm of packets that are really sent in each.

`script/adversary --states N --seed S` runs more of them.
"""

import os
from collections.abc import Iterator

import pytest

from fuzz import adversary, storm
from fuzz.adversary_rules import Part
from fuzz.adversary_states import State, draw_state
from fuzz.storm_machine import Machine
from nftpolicy.proof.verdict import PROVED, REFUTED, Proof

pytestmark = pytest.mark.kernel

STATES = int(os.environ.get("NFTPOLICY_ADVERSARY", "150"))
CLOSED = State(
    (
        Part("inet guard last", 'oifname "wan" meta mark & 1 == 0 drop'),
        Part("netdev guard wire", "meta mark & 1 == 0 drop"),
    )
)


@pytest.fixture(scope="module")
def machine(egress: None) -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


def judge(machine: Machine, state: State) -> adversary.Judgement:
    (result,) = machine.node.call(adversary.judge_states, machine, [(0, state)])
    assert isinstance(result, adversary.Judgement)
    return result


def test_every_sender_gets_out_without_a_guard(machine: Machine) -> None:
    escaped = judge(machine, State(())).escaped
    assert [sender.name for number, sender in enumerate(storm.SENDERS) if number not in escaped] == []


def test_nothing_gets_out_of_a_closed_state(machine: Machine) -> None:
    judgement = judge(machine, CLOSED)
    assert (judgement.verdict, judgement.escaped) == (PROVED, frozenset())


def test_proof_of_random_states_agrees_with_packets(machine: Machine) -> None:
    tally = adversary.attack(machine, range(1, STATES + 1))
    faults = [f"seed {fault.seed}: {fault.fault}\n{fault.state.text()}" for fault in tally.faults]
    assert faults == []
    assert tally.aborted + tally.refused <= STATES // 10
    assert min(tally.verdicts.values()) >= STATES // 10, tally.verdicts
    # Rules with a limit or a random number let some out by chance.
    assert len(tally.escapes) >= len(storm.SENDERS) // 2, "most kinds of senders have to get out of some state"


@pytest.mark.parametrize("verdict", [PROVED, REFUTED])
def test_adversary_sees_a_prover_that_guesses(machine: Machine, verdict: str, monkeypatch) -> None:
    """A prover that proves everything, or that keeps the packet of an open state, is seen to be wrong."""
    refutation = judge_proof(machine, State(()))
    guess = Proof(()) if verdict == PROVED else refutation
    monkeypatch.setattr(adversary, "prove", lambda *_, **__: guess)
    judgement = judge(machine, State(()) if verdict == PROVED else CLOSED)
    assert judgement.verdict == verdict
    assert judgement.fault is not None


def judge_proof(machine: Machine, state: State) -> Proof:
    """Return the proof of the state itself."""
    return machine.node.call(_proof, state)


def _proof(state: State) -> Proof:
    nft = adversary.Nft()
    assert nft.load("flush ruleset\n" + state.text()) is None
    spec = adversary.spec_of_uplinks(adversary.UPLINKS)
    return adversary.prove(adversary.Linux().read_all(), spec, usability=False)


def test_states_of_a_seed_are_the_same() -> None:
    assert draw_state(7) == draw_state(7)
    assert len({draw_state(seed).text() for seed in range(50)}) > 45
