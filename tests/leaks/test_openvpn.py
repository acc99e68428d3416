# SPDX-License-Identifier: BSD-2-Clause
"""OpenVPN behind the kill switch: with --mark it connects by the uplink only, without it not."""

from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    ROOT,
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
from tests.leaks.test_race_windows import FLOOD, flooding
from tests.vpn_programs import INSIDE, OPENVPN, OpenVpn, echoes, of, wait_for_echoes

MARK, GID, TABLE = 0x1110, 851, 51
UP = "Initialization Sequence Completed"
watched = f"{MARK:#x}/0x3f10"


def policy(lab: Lab) -> str:
    """Return the shipped policy with the mesh as an inside device, so that a second path to the server exists."""
    return replaced(
        ROOT / "rulesets" / "vpn-killswitch.toml",
        {"inside": f'["tun*", "{at.MESH}"]', "devices": f'["{at.WAN}"]', "lease": f'"{lab.wan_lease}"'},
    )


@pytest.fixture(scope="module")
def desktop() -> Iterator[Guarded]:
    with guarded_lab(policy, resolver=True, table=TABLE) as made:
        yield made


@pytest.fixture(scope="module")
def vpn(desktop: Guarded) -> Iterator[OpenVpn]:
    made = OpenVpn(desktop.lab)
    with made.server():
        yield made


@pytest.mark.parametrize(
    ("remote", "proto", "family"),
    [(at.SERVER[4], "udp4", 4), (at.SERVER[6], "udp6", 6), (at.VPN, "udp4", 4), (at.VPN, "udp6", 6)],
    ids=["ipv4", "ipv6", "name-ipv4", "name-ipv6"],
)
def test_openvpn_connects_by_uplink_only(desktop: Guarded, vpn: OpenVpn, remote: str, proto: str, family: int) -> None:
    lab = desktop.lab
    lab.wan.drain(), lab.mesh_sniffer.drain()
    with watching(lab, watched) as watch, vpn.client(GID, MARK, remote, proto) as program:
        program.says(UP)
        wait_for_echoes(lab)
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert {frame.saddr for frame in of(lab.wan, OPENVPN)} == {lab.wan_address(family)}
    assert of(lab.mesh_sniffer, OPENVPN) == []


def test_openvpn_avoids_mesh_while_wan_is_down(desktop: Guarded, vpn: OpenVpn) -> None:
    lab = desktop.lab
    with vpn.client(GID, MARK, at.SERVER[4], "udp4") as program:
        program.says(UP)
        wait_for_echoes(lab)
        lab.wan_down()
        try:
            with watching(lab, watched) as watch:
                lab.mesh_sniffer.drain()
                program.says("No route to host", 5)  # it tries, and the table of the uplink says no
                assert not echoes(lab, 4, 0.2)
                assert lab.node.call(inbound_clients.udp, at.SERVER[4], at.ECHO_PORT) == b"hello", (
                    "inconclusive: no mesh"
                )
                assert watch.stray == 0
            assert of(lab.mesh_sniffer, OPENVPN) == []
        finally:
            lab.wan_up()
        wait_for_echoes(lab, 20)


def test_openvpn_redirects_default_route(desktop: Guarded, vpn: OpenVpn) -> None:
    """Its routes stand in table main, which is not asked for marked packets; the uplink's are in a table of its own."""
    lab, more = desktop.lab, f"--redirect-gateway def1 ipv6 --route-gateway {INSIDE[4][1]}"
    lab.mesh_down()
    try:
        with flooding(lab), watching(lab, watched) as watch, vpn.client(GID, MARK, at.VPN, "udp4", more) as program:
            program.says(UP)
            wait_for_echoes(lab)
            lab.wan.drain()
            there = at.SERVER[6]  # not the address of the connection, for which it refuses to tunnel packets
            assert lab.node.call(inbound_clients.udp, there, at.ECHO_PORT, b"by the tunnel", 8) == b"by the tunnel"
            assert (watch.unmarked, watch.stray) == (0, 0)
            assert of(lab.wan, OPENVPN), "inconclusive: no tunnel"
            assert not any(FLOOD in frame.payload or b"by the tunnel" in frame.payload for frame in lab.wan.frames())
            status = desktop.nftpolicy("status", check=False)
            assert status.returncode == 0, status.stdout + status.stderr
            proof = desktop.nftpolicy("verify", "--live", check=False)
            assert proof.returncode == 0, proof.stdout
    finally:
        lab.mesh_up()


def test_openvpn_without_mark_is_dropped_and_reports(desktop: Guarded, vpn: OpenVpn) -> None:
    lab = desktop.lab
    wan_routes_in_main(lab)
    try:
        before = desktop.counters()["inet/hotspot.dropped"]
        lab.wan.drain()
        with vpn.client(GID, 0, at.SERVER[4], "udp4") as program:
            program.says("Operation not permitted")
            assert desktop.counters()["inet/hotspot.dropped"] > before
            assert of(lab.wan, OPENVPN) == []
            assert UP not in program.log
            with desktop.off():
                assert lab.wan.wait_for(lambda frame: frame.dport == OPENVPN, 15), "inconclusive"
    finally:
        no_wan_routes_in_main(lab)


def test_openvpn_in_other_group_with_mark_is_dropped(desktop: Guarded, vpn: OpenVpn) -> None:
    lab = desktop.lab
    before = desktop.counters()["inet/hotspot.unentitled"]
    lab.wan.drain(), lab.mesh_sniffer.drain()
    with vpn.client(GID + 1, MARK, at.SERVER[4], "udp4") as program:
        program.says("Operation not permitted")
        wait_until(lambda: desktop.counters()["inet/hotspot.unentitled"] > before, 5, "the counter")
        assert of(lab.wan, OPENVPN) == of(lab.mesh_sniffer, OPENVPN) == []
