"""C-A: local sockets that bypass the routing decision. C-D13 and D14 are of the same kind.

The node of most of these tests has the WAN's routes in its main table as well, where they win: only the guard is
between a packet and the WAN. Each probe was seen to leave this node before the policy was applied.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.guarded_lab import Guarded, Run, gluon, guarded_lab, run_probes, wan_routes_in_main, watching
from tests.lab import addresses as at
from tests.lab import leak_probes, packet_senders
from tests.lab.packet_senders import Job
from tests.lab.topology import Lab


@dataclass(frozen=True)
class ProbeResults:
    """Result of every probe without the policy (`open`) and with it (`shut`)."""

    open: Run
    shut: Run
    unmarked: int  # packets that our own counters saw leave

    def stops(self, leak: str) -> None:
        """Check a leak class: no unmarked probe leaves, all leave without a guard, and the marked probes leave."""
        own = [sent for sent in self.shut.sents if sent.probe.leak == leak]
        assert own, f"inconclusive: no probe of {leak} can be sent here"
        left = {sent.probe for sent in self.open.wan}
        assert [str(sent.probe) for sent in own if sent.probe not in left] == [], "inconclusive: the control failed"
        leaks = [sent for sent in own if sent in self.shut.wan and not sent.probe.marked]
        assert [str(sent.probe) for sent in leaks] == []
        lost = [sent for sent in own if sent not in self.shut.wan and sent.probe.marked]
        assert [str(sent.probe) for sent in lost] == []
        assert self.unmarked == 0


@pytest.fixture(scope="module", params=[False, True], ids=["port", "bridge"])
def probe_results(request: pytest.FixtureRequest) -> Iterator[ProbeResults]:
    with guarded_lab(bridge=request.param) as made:
        made.release()
        wan_routes_in_main(made.lab)
        without = run_probes(made.lab)
        made.apply()
        with watching(made.lab) as watch:
            yield ProbeResults(without, run_probes(made.lab), watch.unmarked)


def test_A1_wan_default_route_in_main_does_not_leak(probe_results: ProbeResults) -> None:
    probe_results.stops("A1")


def test_A3_socket_bound_to_wan_address_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A3")


def test_A5_socket_bound_to_device_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A5")


def test_A6_pktinfo_device_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A6")


def test_A7_unicast_if_device_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A7")


def test_A8_dontroute_to_neighbour_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A8")


def test_A9_multicast_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A9")


def test_A10_broadcast_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A10")


def test_A11_link_local_neighbour_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A11")


def test_A12_mapped_ipv4_address_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A12")


def test_A13_raw_socket_with_own_header_is_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A13")


def test_A14_packet_socket_frames_are_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("A14")


def test_D13_fragments_are_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("D13")


def test_D1_forwarded_packets_are_dropped(probe_results: ProbeResults) -> None:
    probe_results.stops("D1")


def test_probe_kinds_all_have_a_test(probe_results: ProbeResults) -> None:
    tested = {name.split("_")[1] for name in globals() if name.startswith("test_")}
    assert {kind.leak for kind in leak_probes.KINDS.values()} - tested == set()
    assert probe_results.shut.unexplained() == []


# The rules of netifd, with their three ways to the WAN


@pytest.fixture(scope="module")
def netifd() -> Iterator[Guarded]:
    with Lab(netifd_rules=True) as lab:
        yield Guarded(lab, gluon(lab))


def both(made: Guarded, kind: str) -> tuple[list[str], list[str]]:
    """Return the unmarked probes of a kind that leave by the WAN: without and with the policy."""
    which = [probe for probe in leak_probes.matrix() if probe.kind == kind and not probe.marked]
    made.release()
    without = run_probes(made.lab, which).unmarked()
    made.apply()
    return without, run_probes(made.lab, which).unmarked()


def test_A2_fall_through_to_wan_table_does_not_leak(netifd: Guarded) -> None:
    netifd.lab.mesh_default(False)
    try:
        without, guarded = both(netifd, "udp")
    finally:
        netifd.lab.mesh_default(True)
    assert without == ["udp/ipv4/unmarked", "udp/ipv6/unmarked"], "inconclusive"
    assert guarded == []


def test_A3_netifd_rule_from_wan_address_does_not_leak(netifd: Guarded) -> None:
    without, guarded = both(netifd, "udp-source")
    assert without == ["udp-source/ipv4/unmarked", "udp-source/ipv6/unmarked"], "inconclusive"
    assert guarded == []


def test_A4_netifd_rule_to_wan_network_does_not_leak(netifd: Guarded) -> None:
    def leave() -> list[int]:
        netifd.lab.wan.drain()
        netifd.lab.node.call(to_neighbours, b"by the rule to the network")
        return [
            family
            for family in at.FAMILIES
            if netifd.lab.wan.wait_for(lambda one, f=family: one.family == f and b"by the rule" in one.payload, 0.3)
        ]

    netifd.release()
    assert leave() == [4, 6], "inconclusive"
    netifd.apply()
    assert leave() == []


def to_neighbours(payload: bytes) -> None:
    jobs = [Job(family, payload, 0, 0, {}, at.WAN) for family in at.FAMILIES]
    for job in jobs:
        try:
            job.udp().sendto(payload, job.neighbour)
        except OSError:
            continue


# Protocols

PROTOCOLS = range(256)


def every_protocol(payload: bytes, sources: dict[int, str]) -> None:
    """Send a packet of each of the 256 protocols, in both families."""
    for family in at.FAMILIES:
        for protocol in PROTOCOLS:
            job = Job(family, payload, 0, 0, sources, at.WAN)
            made = job.open({4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_RAW, socket.IPPROTO_RAW)
            if family == 6:
                made.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
            try:
                made.sendto(packet_senders.packet_of(job, at.SERVER, protocol), (at.SERVER[family], 0))
            except OSError:
                continue
            finally:
                made.close()


def test_D14_every_ip_protocol_is_dropped() -> None:
    with guarded_lab() as made:
        made.release()
        wan_routes_in_main(made.lab)
        sources = {family: made.lab.wan_address(family) or "" for family in at.FAMILIES}

        def leave(payload: bytes) -> dict[int, int]:
            made.lab.wan.drain()
            made.lab.node.call(every_protocol, payload, sources)
            made.lab.wan.wait_for(lambda _: False, 0.3)
            frames = [frame for frame in made.lab.wan.frames() if payload in frame.payload]
            return {family: sum(frame.family == family for frame in frames) for family in at.FAMILIES}

        without = leave(bytes(24) + b"each of them")
        assert all(count >= 240 for count in without.values()), f"inconclusive: {without}"
        made.apply()
        with watching(made.lab) as watch:
            assert leave(bytes(24) + b"each of them") == {4: 0, 6: 0}
            assert watch.unmarked == 0
