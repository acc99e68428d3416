"""Verdicts on packets of other machines, from what the captures saw."""

import errno
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from nftpolicy.kernel.packet_sender import SendOutcome
from nftpolicy.netstate.state import Device
from nftpolicy.policy.load import load
from nftpolicy.runtime.probe import forwarded
from nftpolicy.runtime.probe.arrivals import ArrivalDevice, ArrivalTest
from nftpolicy.runtime.probe.forwarded import ForwardedJudge, absent_forwards, arrival_tests
from nftpolicy.runtime.probe.observed_packet import ObservedPacket
from nftpolicy.runtime.probe.probe_types import Probe
from nftpolicy.runtime.probe.report import ELSEWHERE, LEAKED, STOPPED, UNTESTED, ForwardedResult, ProbeTarget
from tests.unit.test_probe_arrivals import DOCKER, DOCKER0, POLICY, arrivals

LTE = """
[uplink.lte]
devices = ["wwan0"]
mark = "0x2/0x3"
table = 2
"""
WANTED = load("".join((POLICY.replace("0x1/0x1", "0x1/0x3"), LTE, DOCKER, "masquerade = true\n")).encode())[0]
TEST = arrivals(WANTED)
PROBE, CONTROL = TEST.probes[0], TEST.controls[0]
UPLINKS = {"eth0": "wan", "wwan0": "lte"}


@pytest.fixture(autouse=True)
def _forwarding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(forwarded, "disabled_forwarding", lambda device, family: None)
    yield


def packet(probe: Probe, **changes: Any) -> ObservedPacket:
    sent = probe.packet
    ports = sent.sport.to_bytes(2, "big") + changes.pop("dport", sent.dport).to_bytes(2, "big")
    fields = {"source": sent.source, "destination": sent.destination, **changes}
    return ObservedPacket(0x0800, ports + bytes(20), 17, hop_limit=1, **fields)


def judge(
    left: dict[bytes, dict[str, ObservedPacket]],
    test: ArrivalTest = TEST,
    arrived: bool = True,
    error: str | None = None,
    route: Any = errno.ENETUNREACH,
    silent: frozenset[tuple[str, str]] = frozenset(),
) -> ForwardedResult:
    """Return the verdicts, if the packets of these tokens left by these devices."""
    tokens = {probe.token for probe in test.all_probes}
    by_uplink = {
        token: {name: seen for name, seen in devices.items() if name in UPLINKS} for token, devices in left.items()
    }
    capture: Any = SimpleNamespace(
        captured_on={token: devices for token, devices in by_uplink.items() if devices},
        captured_anywhere={token: list(devices.items()) for token, devices in left.items()},
        arrived=tokens if arrived else set(),
    )
    lookups: Any = SimpleNamespace(get_route=lambda *_: route)
    outcomes = {token: SendOutcome("open" if error else "send", error) for token in tokens}
    named = frozenset(("lo", *WANTED.inside, *UPLINKS))
    return ForwardedJudge(WANTED, named, UPLINKS, outcomes, capture, silent, lookups).result(test)


@pytest.mark.parametrize(
    ("device", "verdict", "detail"),
    [
        ("eth0", LEAKED, ""),
        ("wwan0", LEAKED, ""),
        ("lan3", ELSEWHERE, "lan3"),
        ("usb7", LEAKED, "by a device that the policy does not name"),
    ],
)
def test_output_device_decides_the_verdict(device: str, verdict: str, detail: str) -> None:
    result = judge({PROBE.token: {device: packet(PROBE)}}).results[0]
    assert (result.probe, result.verdict, result.detail, result.captured_on) == (PROBE, verdict, detail, (device,))


@pytest.mark.parametrize("device", ["eth0", "wwan0", "lan3"])
def test_packet_from_uplink_may_leave_by_no_device(device: str) -> None:
    test = arrivals(WANTED, ArrivalDevice("eth0", "wan"))
    token = test.probes[0].token
    results = judge({token: {device: packet(test.probes[0])}}, test).results
    assert [result.verdict for result in results] == [LEAKED, *[STOPPED] * (len(results) - 1)]


@pytest.mark.parametrize(("device", "verdict"), [("eth0", UNTESTED), ("wwan0", LEAKED)])
def test_translated_packet_may_belong_to_a_forward(device: str, verdict: str) -> None:
    probe = next(found for found in TEST.probes if found.probe_type.title == "UDP, source in the device's network")
    translated = packet(probe, destination="192.0.2.7", dport=4500)
    result = next(found for found in judge({probe.token: {device: translated}}).results if found.probe == probe)
    assert result.verdict == verdict


@pytest.mark.parametrize(
    ("device", "source", "leaks"),
    [("eth0", "192.168.1.2", []), ("eth0", None, ["has masquerade"]), ("wwan0", "192.168.1.2", ["uses uplink wan"])],
)
def test_control_packet_leaves_by_its_uplink_alone(device: str, source: str | None, leaks: list[str]) -> None:
    seen = packet(CONTROL.probe, source=source or CONTROL.probe.packet.source)
    found = judge({CONTROL.probe.token: {device: seen}})
    assert [one.detail for one in found.results if one.verdict == LEAKED] == [f"forward docker {why}" for why in leaks]
    assert found.controls[0].captured == (device == "eth0")


def test_missing_control_packet_is_a_fault_without_a_cause() -> None:
    route = SimpleNamespace(device="eth0", gateway="192.168.1.1")
    assert "does another rule drop it?" in judge({}, route=route).faults[0]
    assert "waits for a neighbour" in judge({}, route=route, silent=frozenset({("eth0", "192.168.1.1")})).faults[-1]
    without_route = judge({})
    assert without_route.faults == ()
    reason = "have no route, or fail rp_filter (Network is unreachable)"
    assert without_route.notes == (f"forward docker: its IPv4 packets by docker0 {reason}",)


def test_packet_that_did_not_arrive_is_untested() -> None:
    found = judge({}, arrived=False)
    assert {result.verdict for result in found.results} == {UNTESTED}
    assert found.faults == (f"docker0: {len(TEST.probes)} packets of other machines did not arrive",)


def test_refused_injection_is_a_note_and_no_fault() -> None:
    found = judge({}, error="EINVAL")
    assert {result.verdict for result in found.results} == {UNTESTED}
    assert (found.faults, ["EINVAL" in note for note in found.notes]) == ((), [True])


def test_ports_and_devices_that_are_down_are_left_out() -> None:
    ethernet = Device("eth0", ("192.168.1.2/24",), link_type=1)
    links = [
        ethernet,
        Device("lo", link_type=772),
        Device("docker0", ("172.17.0.1/16",), kind="bridge", link_type=1),
        Device("veth1", master="docker0", link_type=1),
        Device("vrf0", kind="vrf", link_type=1),
        Device("lan1", master="vrf0", link_type=1),
        Device("tun0", link_type=65534),
        Device("can0", link_type=280),
        evolve(ethernet, name="eth1", up=False),
    ]
    factory: Any = SimpleNamespace(families=())
    tests = arrival_tests(WANTED, links, [ProbeTarget("wan", 1, "eth0", None)], factory)
    assert {(test.arrival.device, test.arrival.uplink) for test in tests} == {
        ("eth0", "wan"),
        *((name, "") for name in ("docker0", "vrf0", "lan1", "tun0")),
    }
    assert (absent_forwards(WANTED, tests), absent_forwards(WANTED, tests[:1])) == ((), ("docker",))
    assert DOCKER0.interfaces[0] in next(test.arrival for test in tests if test.arrival.device == "docker0").interfaces
