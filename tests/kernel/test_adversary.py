"""The proof against an adversary: random kernel states, and a storm of packets that are really sent in each.

`script/adversary --states N --seed S` runs more of them.
"""

import os
from collections.abc import Iterator

import pytest
from attrs import evolve

from fuzz import adversary, adversary_judge, storm
from fuzz.adversary_draw import CHAINS, Part
from fuzz.adversary_states import State, draw_state, weaken
from fuzz.replay import replay
from fuzz.storm_machine import Machine
from fuzz.storm_packets import FAR, FORWARDED, MESH, WAN
from nftpolicy.model.packet import FORWARD, FRAME, ICMP, ICMPV6, TCP, Packet, parse_address
from nftpolicy.netstate.state import NetState
from nftpolicy.proof.verdict import PROVED, REFUTED, UNKNOWN, Proof

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


def judge(machine: Machine, state: State) -> adversary_judge.Judgement:
    (result,) = machine.node.call(adversary_judge.judge_states, machine, [(0, state)])
    assert isinstance(result, adversary_judge.Judgement)
    return result


def test_every_sender_gets_out_without_a_guard(machine: Machine) -> None:
    assert adversary.missing_senders(machine) == []


def test_nothing_gets_out_of_a_closed_state(machine: Machine) -> None:
    judgement = judge(machine, CLOSED)
    assert (judgement.verdict, judgement.escaped) == (PROVED, frozenset())


def test_proof_of_random_states_agrees_with_packets(machine: Machine) -> None:
    tally = adversary.attack(machine, range(1, STATES + 1))
    assert [f"seed {fault.seed}: {fault.fault}\n{fault.state}" for fault in tally.faults] == []
    assert tally.aborted + tally.refused <= STATES // 10
    assert min(tally.verdicts.values()) >= STATES // 10, tally.verdicts
    assert set(tally.weakened) == {PROVED, REFUTED, UNKNOWN}
    assert set(tally.kinds) >= {*CHAINS, "flow", "iptables", "route4"}
    # Rules with a limit or a random number let some out by chance.
    assert len(tally.escapes) >= len(storm.SENDERS) // 2, "most kinds of senders have to get out of some state"


@pytest.mark.parametrize("verdict", [PROVED, REFUTED])
def test_adversary_sees_a_prover_that_guesses(machine: Machine, verdict: str, monkeypatch) -> None:
    """A prover that proves everything, or that keeps the packet of an open state, is seen to be wrong."""
    refutation = judge_proof(machine, State(()))
    guess = Proof(()) if verdict == PROVED else refutation
    monkeypatch.setattr(adversary_judge, "prove", lambda *_, **__: guess)
    judgement = judge(machine, State(()) if verdict == PROVED else CLOSED)
    assert judgement.verdict == verdict
    assert judgement.fault is not None


def judge_proof(machine: Machine, state: State) -> Proof:
    """Return the proof of the state itself."""
    return machine.node.call(_proof, state)


def _proof(state: State) -> Proof:
    nft = adversary_judge.Nft()
    assert nft.load("flush ruleset\n" + state.text()) is None
    spec = adversary_judge.spec_of_uplinks(adversary_judge.UPLINKS)
    return adversary_judge.prove(adversary_judge.Linux().read_all(), spec, usability=False)


# A part of each program that takes the packets of a closed state, or their marks, past the guard.
OPENINGS = {
    "iptables": Part("iptables mangle", "-A OUTPUT -j MARK --set-mark 1"),
    "ip6tables": Part("ip6tables mangle", "-A OUTPUT -j MARK --set-mark 1"),
    "iptables-legacy": Part("iptables-legacy mangle", "-A OUTPUT -j MARK --set-mark 1"),
    "ip6tables-legacy": Part("ip6tables-legacy mangle", "-A OUTPUT -j MARK --set-mark 1"),
    "tc": Part(
        "tc", "filter add dev mesh ingress protocol all u32 match u32 0 0 action mirred egress redirect dev wan"
    ),
}


@pytest.mark.parametrize("program", OPENINGS)
def test_part_of_a_program_opens_a_closed_state(machine: Machine, program: str) -> None:
    """Such a part is loaded, lets packets out, and is gone with its state."""
    judgement = judge(machine, State((*CLOSED.parts, OPENINGS[program])))
    assert judgement.state.parts[-1] == OPENINGS[program], "not loaded"
    assert judgement.escaped != frozenset()
    assert judgement.verdict != PROVED
    after = judge(machine, CLOSED)
    assert (after.verdict, after.escaped) == (PROVED, frozenset())


def test_marked_flow_from_before_the_state_is_seen(machine: Machine) -> None:
    restore = Part("inet foreign output", "ct mark 1 meta mark set 1")
    judgement = judge(machine, State((*CLOSED.parts, restore, Part("flow", "1 udp4 to port 9"))))
    assert judgement.escaped != frozenset()
    assert judgement.verdict != PROVED


def test_ip_rule_and_route_of_a_state_move_packets(machine: Machine) -> None:
    parts = (
        Part("route4", "rule add pref 10 ipproto udp table 102"),
        Part("route4", "route add unreachable default table 102 proto 99"),
    )
    unreachable = judge(machine, State(parts))
    assert unreachable.state.parts == parts
    udp = next(number for number, sender in enumerate(storm.SENDERS) if sender.name == "udp4 to port 9")
    assert udp not in unreachable.escaped
    assert udp in judge(machine, State(())).escaped


def test_programs_remove_every_part_of_a_state(machine: Machine) -> None:
    """Nothing of a state is left for the next one: no device, rule, route, filter, sysctl or legacy rule."""
    judge(machine, State(()))
    begin = machine.node.call(_read_state)
    machine.node.call(adversary_judge.judge_states, machine, [(seed, draw_state(seed)) for seed in range(3000, 3060)])
    judge(machine, State(()))
    assert machine.node.call(_read_state) == begin


def _read_state() -> NetState:
    state = adversary_judge.Linux().read_all()
    return evolve(state, looks=tuple(evolve(look, contents="") for look in state.looks))


REPLAYED = [
    packet
    for family, far in ((4, parse_address(FAR[4])), (6, parse_address(FAR[6])))
    for packet in (
        Packet(family, far),
        Packet(family, far, protocol=TCP),
        Packet(family, far, protocol=253),
        Packet(family, far, protocol=ICMP if family == 4 else ICMPV6, uid=1000, gid=1000),
        Packet(family, far, fields={("ip" if family == 4 else "ip6", "dscp"): 46}),
        Packet(family, far, parse_address(FORWARDED[family]), origin=FORWARD, iif=MESH),
        Packet(family, far, parse_address(FORWARDED[family]), protocol=TCP, origin=FORWARD, iif=MESH),
        Packet(family, far, protocol=TCP, origin=FRAME, fields={("tcp", "flags"): 1}),
        Packet(
            family, far, origin=FRAME, ethertype=0x0806, fields={("ether", "type"): 0x0800 if family == 4 else 0x86DD}
        ),
    )
] + [
    Packet(4, parse_address(FAR[4]), fields={("ip", "frag-off"): 0}),
    Packet(4, parse_address(FAR[4]), origin=FRAME, ethertype=0x88B5),
]


def test_packet_of_a_refutation_is_sent_again(machine: Machine) -> None:
    judge(machine, State(()))
    left = machine.node.call(replay, machine, REPLAYED)
    assert [packet for packet, has_left in left.items() if not has_left] == []
    assert len(left) == len(REPLAYED)
    groups = [Packet(6, parse_address(f"ff1{scope}::9"), bound=WAN) for scope in range(4)]
    assert list(machine.node.call(replay, machine, groups).values()) == [False, False, True, True]
    assert not any(machine.node.call(_replay_in, machine, CLOSED).values())


def _replay_in(machine: Machine, state: State) -> dict[str, bool]:
    adversary_judge.Nft().load("flush ruleset\n" + state.text())
    return replay(machine, REPLAYED)


def test_states_of_a_seed_are_the_same() -> None:
    assert draw_state(7) == draw_state(7)
    assert len({str(draw_state(seed)) for seed in range(50)}) > 45


def test_weaker_state_differs_in_one_part() -> None:
    for seed in range(50):
        state = draw_state(seed)
        weaker = weaken(state, seed)
        assert weaker == weaken(state, seed)
        assert abs(len(weaker.parts) - len(state.parts)) <= 3
