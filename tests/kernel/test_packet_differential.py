"""The walk of the model against the kernel: generated states, really sent packets, and where each came out.

NFTPOLICY_DIFFERENTIAL is the number of packets, NFTPOLICY_SEED that of the first state. A disagreement names the
seed of its state; what was found by one is kept below as a case of its own.
"""

import os
from collections import Counter
from collections.abc import Callable

import pytest
from attrs import evolve, frozen

from nftpolicy.model import hooks, walk
from nftpolicy.model.packet import FORWARD, FRAME, ICMP, ICMPV6, KERNEL, SOCKET, TCP, UDP, Flow, Packet, shown
from nftpolicy.model.routing import Routed, Router
from nftpolicy.model.sending import Sending
from nftpolicy.model.walk import Model, Walk
from nftpolicy.netstate.state import NetState

from .generated import Chance
from .packets import FAMILIES, HERE, MARKS, REPLY, RESET, Key, Seen, World, key

pytestmark = pytest.mark.kernel

PACKETS = int(os.environ.get("NFTPOLICY_DIFFERENTIAL", "400"))
SEED = int(os.environ.get("NFTPOLICY_SEED", "1"))
OF_ONE_STATE = 20


# What was sent, what was seen, and whether that is what the model says


@frozen
class Sample:
    """Packets that were sent in one state of the kernel, and where they came out."""

    seed: int
    state: NetState
    packets: tuple[Packet, ...]
    answers: tuple[str, ...]
    seen: dict[Key, list[Seen]]


@frozen
class Disagreement:
    """What the kernel did with a packet, and what the model says of it."""

    seed: int
    walk: Walk
    answer: str
    seen: tuple[Seen, ...]

    def __str__(self) -> str:
        walk = self.walk
        lines = [f"seed {self.seed}: {walk.packet}", f"kernel: {self.answer}, {self.seen}"]
        lines += [f"model: {walk.outcome} {walk.device}, mark {walk.mark}, doubts {walk.doubts}"]
        return "\n  ".join([*lines, *(f"{one.kind}: {one.text} -> {one.effect}" for one in walk.decisions)])


def send(world: World, seed: int, state: NetState, packets: list[Packet]) -> Sample:
    """Send the packets in that state."""
    packets = [world.fresh(packet) for packet in packets]
    found, answers = world.send(state, packets)
    expected = sum(walk.outcome in ("leaves", "delivered") for walk in walks(found, packets))
    return Sample(seed, found, tuple(packets), tuple(answers), world.seen(expected))


def walks(state: NetState, packets: list[Packet] | tuple[Packet, ...]) -> list[Walk]:
    """The walks of packets, and behind them those of the kernel's answers."""
    model = Model(state)
    found = [model.walk(packet) for packet in packets]
    return found + [model.walk(answer) for one in found for answer in _answers(one, state)]


def _answers(asked: Walk, state: NetState) -> list[Packet]:
    """What the kernel itself answers to a ping, or to a SYN for a closed port, that has come to it from outside."""
    packet = asked.packet
    if packet.origin != FORWARD or asked.outcome != "delivered" or asked.doubts or packet.protocol == UDP:
        return []
    if (asked.destination, asked.dport) != (packet.destination, packet.dport):
        return []  # its answer is translated back, which no walk shows
    reflects = f"net/ipv{packet.family}/fwmark_reflect"
    is_reflected = any((one.path, one.value) == (reflects, "1") for one in state.sysctls)
    answer = evolve(
        packet,
        source=packet.destination,
        destination=packet.source,
        origin=KERNEL,
        iif=None,
        mark=asked.mark if is_reflected else 0,
        flow=Flow("established", "reply", asked.flow_mark),
    )
    if packet.protocol == TCP:
        fields = {**packet.fields, ("tcp", "flags"): RESET}
        return [evolve(answer, sport=packet.dport, dport=packet.sport, fields=fields)]
    fields = {**packet.fields, ({4: "icmp", 6: "icmpv6"}[packet.family], "type"): REPLY[packet.family][1]}
    return [evolve(answer, bound=packet.iif if packet.family == 6 else None, fields=fields)]


def disagreements(sample: Sample) -> list[Disagreement]:
    """All in which the model is not right about a sample."""
    found = walks(sample.state, sample.packets)
    answers = (*sample.answers, *["an answer of the kernel"] * (len(found) - len(sample.answers)))
    return [
        Disagreement(sample.seed, one, answer, tuple(sample.seen.get(key(one.packet), ())))
        for one, answer in zip(found, answers, strict=True)
        if not _agrees(one, sample.seen.get(key(one.packet), []))
    ]


def _agrees(walk: Walk, seen: list[Seen]) -> bool:
    if walk.outcome == "unknown":
        return True
    if _is_for_many(walk.packet.family, walk.destination) and walk.packet.origin == SOCKET:
        seen = [one for one in seen if one.where != HERE]  # a copy comes back to the machine
    if walk.doubts and walk.outcome != "leaves":  # all that is known is that it does not leave
        return all(one.where == HERE for one in seen)
    if walk.outcome not in ("leaves", "delivered"):
        return not seen
    if len(seen) != 1:
        return False
    (one,) = seen
    where, mark = (HERE, walk.mark) if walk.outcome == "delivered" else (walk.device, walk.mark & (MARKS - 1))
    return (
        (one.where, one.mark, one.dport) == (where, mark, walk.dport)
        and one.destination in (None, walk.destination)
        and (walk.source is None or one.source in (None, walk.source))
    )


def _is_for_many(family: int, address: int) -> bool:
    return address >> {4: 28, 6: 120}[family] == {4: 0xE, 6: 0xFF}[family] or (
        family == 4 and shown(4, address) in ("255.255.255.255", "192.0.2.255")
    )


# By chance


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Many packets, a few in each state."""
    made: list[Sample] = []
    world = World()
    try:
        while len(made) * OF_ONE_STATE < PACKETS:
            if not world.room(OF_ONE_STATE):
                world.close()
                world = World()
            chance = Chance(SEED + len(made))
            state = chance.state()
            made.append(send(world, SEED + len(made), state, [chance.packet() for _ in range(OF_ONE_STATE)]))
    finally:
        world.close()
    return made


def test_the_walk_agrees_with_the_kernel(samples: list[Sample]) -> None:
    """Every packet comes out where the model says, as the model says, or nowhere if it says so."""
    wrong = [one for sample in samples for one in disagreements(sample)]
    assert not wrong, "\n\n".join([f"{len(wrong)} disagreements", *map(str, wrong[:5])])


def test_the_samples_mean_something(samples: list[Sample]) -> None:
    """There are packets with each outcome and of each origin in both families, and few of which nothing is known."""
    found = [one for sample in samples for one in walks(sample.state, sample.packets)]
    outcomes = Counter(one.outcome for one in found)
    print(dict(outcomes))
    for outcome in ("leaves", "dropped", "delivered", "unroutable"):
        assert outcomes[outcome] >= PACKETS * 0.02, f"hardly any packet is {outcome}: {outcomes}"
    assert outcomes["unknown"] <= PACKETS * 0.02, f"of too many nothing is known: {outcomes}"
    for origin in (SOCKET, FRAME, FORWARD):
        for family in FAMILIES:
            left = [one for one in found if (one.packet.origin, one.packet.family) == (origin, family)]
            assert any(one.outcome == "leaves" for one in left), f"no {origin} packet of IPv{family} leaves"


def _new_oif(patch: pytest.MonkeyPatch) -> None:
    plain = walk._Run._routed_again

    def routed_again(self: walk._Run, *how: object) -> str | None:
        stop = plain(self, *how)
        self._view.oif = self._way.device
        return stop

    patch.setattr(walk._Run, "_routed_again", routed_again)


def _owner_kept(patch: pytest.MonkeyPatch) -> None:
    plain = Sending.again

    def again(self: Sending, packet: Packet, *how: object) -> object:
        looked_up = self._router.lookup
        self._router = _Renamed(lambda *of, **to: looked_up(*of, **{**to, "uid": packet.uid}), self._router)
        try:
            return plain(self, packet, *how)
        finally:
            self._router = self._router.plain

    patch.setattr(Sending, "again", again)


class _Renamed:
    """A router with another look-up."""

    def __init__(self, lookup: Callable[..., Routed], plain: Router) -> None:
        self.lookup, self.plain, self.reads_ports = lookup, plain, plain.reads_ports


def _no_second_look_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walk._Run, "_routed_again", lambda *_: None)


def _nat_by_priority(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hooks, "NAT", {})


def _always_tracked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walk, "tracks", lambda *_: True)


def _nothing_on_link(patch: pytest.MonkeyPatch) -> None:
    plain = Router.lookup

    def lookup(self: Router, family: int, *of: object, **to: object) -> Routed:
        found = plain(self, family, *of, **to)
        return Routed("none") if family == 4 and to.get("oif") and found.route is None else found

    patch.setattr(Router, "lookup", lookup)


MISTAKES = [_new_oif, _owner_kept, _no_second_look_up, _nat_by_priority, _always_tracked, _nothing_on_link]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.__name__.strip("_"))
def test_a_mistake_in_the_model_is_seen(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The control: a model that is wrong in one point disagrees with the kernel about these packets."""
    mistake(monkeypatch)
    assert any(disagreements(sample) for sample in samples), "the samples would not show this mistake"
