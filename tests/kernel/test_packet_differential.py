"""Traces of the model against the kernel: generated states, packets that are really sent, and their arrivals.

NFTPOLICY_DIFFERENTIAL is the number of packets, NFTPOLICY_SEED the seed of the first state. A disagreement names the
seed of its state; disagreements of the past are cases in test_trace_facts.py.
"""

import os
from collections import Counter
from collections.abc import Callable

import pytest

from nftpolicy.model import trace
from nftpolicy.model.fib.lookup import RouteResult
from nftpolicy.model.fib.output_route import OutputRouting
from nftpolicy.model.fib.router import Router
from nftpolicy.model.nft import chains
from nftpolicy.model.packet import FORWARD, FRAME, SOCKET, Packet

from .packet_machine import FAMILIES, PacketMachine
from .random_states import Chance
from .trace_differential import Sample, disagreements, send, traces

pytestmark = pytest.mark.kernel

PACKETS = int(os.environ.get("NFTPOLICY_DIFFERENTIAL", "1600"))
SEED = int(os.environ.get("NFTPOLICY_SEED", "1"))
OF_ONE_STATE = 20


@pytest.fixture(scope="module")
def samples(egress: None) -> list[Sample]:
    """Many packets, a few in each state."""
    made: list[Sample] = []
    machine = PacketMachine()
    try:
        while len(made) * OF_ONE_STATE < PACKETS:
            if not machine.has_identities(OF_ONE_STATE):
                machine.close()
                machine = PacketMachine()
            chance = Chance(SEED + len(made))
            state = chance.state()
            made.append(send(machine, SEED + len(made), state, [chance.packet() for _ in range(OF_ONE_STATE)]))
    finally:
        machine.close()
    return made


def test_trace_of_random_packets_agrees_with_kernel(samples: list[Sample]) -> None:
    """Packets leave or are dropped as the model says, at the device that the model says."""
    wrong = [one for sample in samples for one in disagreements(sample)]
    assert not wrong, "\n\n".join([f"{len(wrong)} disagreements", *map(str, wrong[:5])])


def test_samples_cover_every_outcome_and_origin(samples: list[Sample]) -> None:
    """Packets have every outcome and every origin in both families, and few of them are undecided."""
    found = [one for sample in samples for one in traces(sample.state, sample.packets)]
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
    plain = trace._Tracer._reroute

    def routed_again(self: trace._Tracer, *how: object) -> str | None:
        stop = plain(self, *how)
        self._view.oif = self._route.device
        return stop

    patch.setattr(trace._Tracer, "_reroute", routed_again)


def _owner_kept(patch: pytest.MonkeyPatch) -> None:
    plain = OutputRouting.reroute

    def again(self: OutputRouting, packet: Packet, *how: object) -> object:
        looked_up = self._router.lookup
        self._router = _RouterWithLookup(lambda *of, **to: looked_up(*of, **{**to, "uid": packet.uid}), self._router)
        try:
            return plain(self, packet, *how)
        finally:
            self._router = self._router.plain

    patch.setattr(OutputRouting, "reroute", again)


class _RouterWithLookup:
    """Router with another lookup."""

    def __init__(self, lookup: Callable[..., RouteResult], plain: Router) -> None:
        self.lookup, self.plain, self.reads_ports = lookup, plain, plain.reads_ports


def _no_second_lookup(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trace._Tracer, "_reroute", lambda *_: None)


def _nat_by_priority(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chains, "NAT_PRIORITIES", {})


def _always_tracked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trace, "needs_conntrack", lambda *_: True)


def _nothing_on_link(patch: pytest.MonkeyPatch) -> None:
    plain = Router.lookup

    def lookup(self: Router, family: int, *of: object, **to: object) -> RouteResult:
        found = plain(self, family, *of, **to)
        return RouteResult("none") if family == 4 and to.get("oif") and found.route is None else found

    patch.setattr(Router, "lookup", lookup)


MISTAKES = [_new_oif, _owner_kept, _no_second_lookup, _nat_by_priority, _always_tracked, _nothing_on_link]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.__name__.strip("_"))
def test_trace_of_mutated_model_disagrees(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The control: a model that is wrong in one point disagrees with the kernel about these packets."""
    mistake(monkeypatch)
    assert any(disagreements(sample) for sample in samples), "the samples would not show this mistake"
