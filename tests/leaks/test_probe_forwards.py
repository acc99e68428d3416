"""`nftpolicy probe` and packets of other machines: forwards, published ports, and holes cut for them.

The client is a host of a forward, the device "primary0" one of no forward. Main has the routes of the WAN, so that
each packet that is not stopped leaves by it. The last tests damage the guard.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.guarded_lab import ENVIRONMENT, POLICY, PROGRAM, guarded_lab, wan_routes_in_main
from tests.lab import addresses as at
from tests.leaks.test_forward import FORWARD, OTHER, PORT, PUBLISH, Forwarding, with_other
from tests.leaks.test_probe import HELD, INCONCLUSIVE, LEAKS

TUNNEL = "tun7"
RESTRICTED = FORWARD + f'ports = ["udp/{at.ECHO_PORT}"]\n'
DROPPED = "table inet stop {{ chain stopping {{ type filter hook forward priority 0; iifname {} drop; }}; }}"


@pytest.fixture(scope="module")
def forwarding() -> Iterator[Forwarding]:
    with contextlib.ExitStack() as stack:
        guarded = stack.enter_context(guarded_lab())
        with_other(guarded.lab, stack)
        guarded.lab.node.ip(f"tuntap add {TUNNEL} mode tun", f"link set {TUNNEL} up")  # a device without MAC addresses
        wan_routes_in_main(guarded.lab)
        found = Forwarding(guarded)
        found.policy(RESTRICTED, PUBLISH)
        yield found


def probe(forwarding: Forwarding) -> tuple[int, dict[str, Any]]:
    """Run the leak test; again, at most twice, if a neighbour is not known at the moment."""
    for _ in range(3):
        done = forwarding.guarded.nftpolicy("probe", "--json", POLICY, check=False)
        assert done.stdout, done.stderr
        report = json.loads(done.stdout)
        if not any("neighbour" in line for line in report["uncertain"]):
            break
    return done.returncode, report


def of_device(report: dict[str, Any], device: str) -> dict[str, Any]:
    return next(found for found in report["forwarded"] if found["device"] == device)


def leaking(report: dict[str, Any]) -> dict[str, set[str]]:
    """Return the kinds of leaking packets by device of arrival."""
    leaks = {
        arrival["device"]: {found["title"] for found in arrival["probes"] if found["result"] == "leaked"}
        for arrival in report["forwarded"]
    }
    return {device: titles for device, titles in leaks.items() if titles}


def listing(forwarding: Forwarding) -> str:
    run = forwarding.lab.node.run
    commands = (
        ["nft", "-s", "list", "ruleset"],
        ["ip", "link"],
        ["ip", "rule"],
        ["ip", "route", "show", "table", "all"],
    )
    return "".join(run(list(command)).stdout for command in commands)


def test_held_policy_lets_only_control_packets_leave(forwarding: Forwarding) -> None:
    before = listing(forwarding)
    forwarding.lab.wan.drain()
    status, report = probe(forwarding)
    assert (status, report["notes"], leaking(report)) == (HELD, [], {}), report["uncertain"]
    assert listing(forwarding) == before
    client = of_device(report, at.CLIENT)
    seen = {(control["forward"], control["family"]) for control in client["controls"] if control["seen"]}
    assert seen == {("client", 4), ("client", 6)}
    assert f"TCP SYN/ACK from port {PORT}, source in the device's network" in {one["title"] for one in client["probes"]}
    for device in (at.CLIENT, OTHER, TUNNEL, at.WAN):
        assert {one["result"] for one in of_device(report, device)["probes"]} == {"stopped"}, device
    assert not any(frame.saddr and frame.saddr.startswith("203.0.113.") for frame in forwarding.lab.wan.frames())


def test_dropped_control_packets_are_inconclusive(forwarding: Forwarding) -> None:
    forwarding.lab.node.nft(DROPPED.format(f'"{at.CLIENT}"'))
    try:
        status, report = probe(forwarding)
    finally:
        forwarding.lab.node.nft("delete table inet stop")
    assert status == INCONCLUSIVE
    assert [line for line in report["uncertain"] if "forward client" in line] == report["uncertain"] != []


def test_switched_off_forwarding_is_a_note(forwarding: Forwarding) -> None:
    forwarding.lab.node.sysctl("net/ipv4/ip_forward", 0)
    try:
        status, report = probe(forwarding)
    finally:
        forwarding.lab.node.sysctl("net/ipv4/ip_forward", 1)
    assert (status, report["uncertain"]) == (HELD, [])
    assert report["notes"] == [
        "forwarding is off (net.ipv4.ip_forward = 0): no IPv4 packet of another machine can leave"
    ]
    details = {one["detail"] for one in of_device(report, OTHER)["probes"] if one["family"] == 4}
    assert details == {"forwarding is off"}


def test_refused_arrival_is_a_note(forwarding: Forwarding) -> None:
    without_bpf = ["setpriv", "--bounding-set=-bpf,-sys_admin", PROGRAM, "probe", "--json", POLICY]
    done = forwarding.lab.node.run(without_bpf, env=ENVIRONMENT, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["uncertain"]) == (HELD, []), done.stderr
    assert ["EPERM" in note for note in report["notes"]] == [True]
    assert {one["result"] for arrival in report["forwarded"] for one in arrival["probes"]} == {"not tested"}


def test_accepted_forwarded_packets_are_leaks(forwarding: Forwarding) -> None:
    node, client = forwarding.lab.node, f'iifname "{at.CLIENT}" tcp sport {PORT} accept'
    node.nft(f'insert rule inet nftpolicy wan.guard iifname "{OTHER}" accept\n')
    node.nft(f"insert rule inet nftpolicy wan.guard {client}\ndelete table netdev nftpolicy\n")
    status, report = probe(forwarding)
    assert (status, set(leaking(report))) == (LEAKS, {at.CLIENT, OTHER})
    assert {title.split(",")[0] for title in leaking(report)[at.CLIENT]} == {f"TCP SYN/ACK from port {PORT}"}
    leak = next(one for one in of_device(report, at.CLIENT)["probes"] if one["result"] == "leaked")
    assert leak["seen"] == [at.WAN]
    explained = forwarding.guarded.nftpolicy(*shlex.split(leak["explain"])[1:], check=False).stdout
    assert f"leaves by {at.WAN}" in explained


def test_packets_of_all_devices_leak_without_guard(forwarding: Forwarding) -> None:
    forwarding.lab.node.nft("flush ruleset\n")
    status, report = probe(forwarding)
    assert (status, set(leaking(report))) == (LEAKS, {at.CLIENT, OTHER, TUNNEL, at.MESH, at.WAN})
