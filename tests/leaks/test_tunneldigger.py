# SPDX-License-Identifier: BSD-2-Clause
"""Tunneldigger on a mesh node: control and data of one marked UDP socket reach the broker by the WAN only."""

import socket
import sys
from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    ENVIRONMENT,
    OTHER_GID,
    PROGRAM,
    ROOT,
    SERVICE_GID,
    Guarded,
    guarded_lab,
    no_wan_routes_in_main,
    replaced,
    wan_routes_in_main,
    watching,
)
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.netns import wait_until
from tests.lab.topology import Lab
from tests.vpn_programs import (
    L2TP,
    addressed,
    broker,
    digger,
    echoes,
    of,
    running,
    wait_for_echoes,
)

pytestmark = pytest.mark.slow


def policy(lab: Lab) -> str:
    """Return the shipped policy with the lab's lease."""
    return replaced(ROOT / "rulesets" / "gluon-tunneldigger.toml", {"lease": f'"{lab.wan_lease}"'})


@pytest.fixture(scope="module")
def node() -> Iterator[Guarded]:
    with guarded_lab(policy, resolver=True) as made, broker(made.lab):
        yield made


@pytest.mark.parametrize("remote", [at.SERVER[4], at.SERVER[6], at.VPN], ids=["ipv4", "ipv6", "name"])
def test_tunneldigger_connects_by_wan_only(node: Guarded, remote: str) -> None:
    lab = node.lab
    lab.wan.drain(), lab.mesh_sniffer.drain()
    with watching(lab) as watch, digger(lab, remote, 1, SERVICE_GID):
        wait_for_echoes(lab)
        assert (watch.unmarked, watch.stray) == (0, 0)
    own = {lab.wan_address(4), lab.wan_address(6)}
    seen = {frame.saddr for frame in of(lab.wan, L2TP)}
    assert seen
    assert seen <= own
    assert of(lab.mesh_sniffer, L2TP) == []


def test_tunneldigger_by_run_is_marked(node: Guarded) -> None:
    lab, log = node.lab, "/run/lab/run.log"
    words = [
        "run",
        "tunneldigger",
        "--",
        sys.executable,
        "-m",
        "tests.tunneldigger_daemon",
        "l2tp1",
        log,
        at.VPN,
        str(L2TP),
    ]
    with running(lab.node, [PROGRAM, *words], env=ENVIRONMENT):
        wait_until(lambda: lab.node.outside("/sys/class/net/l2tp1").exists(), 15, "the device")
        addressed(lab.node, "l2tp1")
        wait_for_echoes(lab)
    assert of(lab.wan, L2TP)


def test_tunneldigger_avoids_mesh_while_wan_is_down(node: Guarded) -> None:
    lab = node.lab
    with digger(lab, at.SERVER[4], 1, SERVICE_GID) as log:
        wait_for_echoes(lab)
        lab.wan_down()
        try:
            with watching(lab) as watch:
                lab.mesh_sniffer.drain()
                wait_until(lambda: "EHOSTUNREACH" in lab.node.outside(log).read_text(), 5, "a refusal")
                assert not echoes(lab, 4, 0.3)
                assert lab.node.call(inbound_clients.udp, at.SERVER[4], at.ECHO_PORT) == b"hello", (
                    "inconclusive: no mesh"
                )
                assert watch.stray == 0
            assert of(lab.mesh_sniffer, L2TP) == []
        finally:
            lab.wan_up()
        wait_for_echoes(lab)


@pytest.mark.parametrize(
    ("mark", "gid", "counter"),
    [(0, SERVICE_GID, "inet/wan.dropped"), (1, OTHER_GID, "inet/wan.unentitled")],
    ids=["unmarked", "not-its-group"],
)
def test_tunneldigger_without_mark_or_group_is_dropped(node: Guarded, mark: int, gid: int, counter: str) -> None:
    lab = node.lab
    wan_routes_in_main(lab)
    try:
        before = node.counters()[counter]
        lab.wan.drain()
        with digger(lab, at.SERVER[4], mark, gid) as log:
            wait_until(lambda: "EPERM" in lab.node.outside(log).read_text(), 5, "a refusal")
            assert node.counters()[counter] > before
            assert of(lab.wan, L2TP) == []
            with node.off():
                assert lab.wan.wait_for(lambda frame: frame.dport == L2TP, 5), "inconclusive"
    finally:
        no_wan_routes_in_main(lab)


def test_tunneldigger_tcp_of_same_group_is_dropped(node: Guarded) -> None:
    """The `ports` of the policy are UDP ports."""
    lab = node.lab
    before = node.counters()["inet/wan.unentitled"]
    assert lab.node.call(marked_tcp, at.SERVER[4], at.ECHO_PORT, gid=SERVICE_GID) is False
    assert node.counters()["inet/wan.unentitled"] > before
    with node.off():
        wan_routes_in_main(lab)
        try:
            assert lab.node.call(marked_tcp, at.SERVER[4], at.ECHO_PORT, gid=SERVICE_GID), "inconclusive"
        finally:
            no_wan_routes_in_main(lab)


def marked_tcp(address: str, port: int) -> bool:
    """Return True if a marked connection succeeds."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
        made.settimeout(0.5)
        return made.connect_ex((address, port)) == 0
