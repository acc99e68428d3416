# SPDX-License-Identifier: BSD-2-Clause
"""wg-quick beside the shipped policy for it: all traffic in the tunnel, its own rules, and a server known by name.

WireGuard runs in user space (wireguard-go), since not every kernel has it: its group is the service.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import OTHER_GID, POLICY, ROOT, Guarded, guarded_lab, replaced, run_probes, watching
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.daemons import FOLDER, tool
from tests.lab.topology import Lab
from tests.leaks.test_race_windows import FLOOD, flooding
from tests.vpn_programs import INSIDE, LENGTH, WIREGUARD, of, set_wg, wireguard

MARK, GID, TABLE = 0xCA6C, 851, 51
WATCHED = f"{MARK:#x}/0xffffffff"
CONFIG = f"{FOLDER}/wg0.conf"
ENVIRONMENT = {"WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go", "WG_ENDPOINT_RESOLUTION_RETRIES": "1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (tool("wg-quick") and tool("wireguard-go")), reason="needs wg-quick and wireguard-go"),
]


def policy(lab: Lab) -> str:
    """Return the shipped policy for a program in place of the kernel, as its comment says."""
    text = replaced(
        ROOT / "rulesets" / "laptop-wireguard.toml", {"devices": f'["{at.WAN}"]', "lease": f'"{lab.wan_lease}"'}
    )
    kept = [line for line in text.partition("[service.names]")[0].splitlines() if not line.startswith("sport ")]
    return "\n".join(kept).replace("kernel = true", f"group = {GID}")


def forwarding(lab: Lab, value: int) -> None:
    """Switch forwarding on or off, in both families."""
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        lab.node.sysctl(key, value)


def config(lab: Lab, private: str, public: str) -> str:
    """Return a configuration as providers write it."""
    addresses = ", ".join(f"{INSIDE[family][0]}/{LENGTH[family]}" for family in at.FAMILIES)
    return (
        f"[Interface]\nPrivateKey = {private}\nAddress = {addresses}\n"
        f"[Peer]\nPublicKey = {public}\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = {at.VPN}:{WIREGUARD}\n"
    )


class WgQuick:
    """The script in the node of a lab."""

    def __init__(self, made: Guarded) -> None:
        self.made, self.node = made, made.lab.node

    def run(self, verb: str, gid: int = GID, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.node.run(["wg-quick", verb, CONFIG], gid=gid, check=check, timeout=60, env=ENVIRONMENT)

    @contextmanager
    def up(self) -> Iterator[None]:
        self.run("up")
        try:
            yield
        finally:
            self.run("down")

    def state(self) -> str:
        """Return the ip rules, routes and rulesets of the node."""
        texts = [self.node.run(["nft", "-s", "list", "ruleset"]).stdout]
        for family in at.FAMILIES:
            texts.append(self.node.run(["ip", f"-{family}", "rule"]).stdout)
            texts.append(self.node.run(["ip", f"-{family}", "route", "show", "table", "all"]).stdout)
        return "\n".join(sorted(line.partition(" expires")[0] for text in texts for line in text.splitlines()))


@pytest.fixture(scope="module")
def laptop() -> Iterator[WgQuick]:
    """A laptop whose only network is the uplink, and a server that knows it."""
    with guarded_lab(policy, resolver=True, table=TABLE) as made:
        lab = made.lab
        lab.mesh_down()
        forwarding(lab, 0)
        with wireguard(lab.server, "wg0"):
            public = lab.server.run(["wg", "show", "wg0", "public-key"]).stdout.strip()
            private = lab.node.run(["wg", "genkey"]).stdout.strip()
            peer = lab.node.run(["wg", "pubkey"], input=private).stdout.strip()
            ends = ",".join(f"{INSIDE[family][0]}/{'32' if family == 4 else '128'}" for family in at.FAMILIES)
            set_wg(lab.server, "wg0", "peer", peer, "allowed-ips", ends)
            lab.node.outside(CONFIG).write_text(config(lab, private, public))
            yield WgQuick(made)


def assert_all_in_tunnel(laptop: WgQuick) -> None:
    """Traffic of all programs passes the tunnel, and the uplink sees WireGuard's packets alone."""
    lab = laptop.made.lab
    with flooding(lab), watching(lab, WATCHED) as watch:
        lab.wan.drain()
        for family, (_, there) in INSIDE.items():
            for address in (there, at.SERVER[family]):
                for gid in (0, OTHER_GID, GID):
                    call = lab.node.call(inbound_clients.udp, address, at.ECHO_PORT, b"inside", 8, gid=gid)
                    assert call == b"inside", (address, gid)
        run = run_probes(lab, mark=MARK, gid=GID)
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert of(lab.wan, WIREGUARD), "inconclusive: no tunnel"
    assert run.unmarked() == []
    assert not any(FLOOD in frame.payload or b"inside" in frame.payload for frame in run.frames)


def assert_as_expected(laptop: WgQuick) -> None:
    assert_all_in_tunnel(laptop)
    status = laptop.made.nftpolicy("status", check=False)
    assert (status.returncode, "starved" in status.stdout) == (0, False), status.stdout + status.stderr
    proof = laptop.made.nftpolicy("verify", "--live", POLICY, check=False)
    assert (proof.returncode, "this machine forwards no" in proof.stdout) == (0, False), proof.stdout


def test_wg_quick_works_after_policy(laptop: WgQuick) -> None:
    """The server's name is asked before there is any default route; a second start follows the first."""
    with Watched(laptop.made) as watched:
        watched.wait_until_right()
        watched.wait_for("private-networks")  # errors in place of the uplink's own networks
        before = laptop.state()
        for _ in range(2):
            with laptop.up():
                assert_as_expected(laptop)
            watched.wait_until_right()
        assert not watched.events("blocked")
        assert laptop.state() == before


def test_wg_quick_works_before_policy(laptop: WgQuick) -> None:
    """Release in the end leaves the tunnel as it was."""
    with laptop.up():
        laptop.made.release()
        before = laptop.state()
        laptop.made.apply()
        with Watched(laptop.made):
            assert_as_expected(laptop)
        laptop.made.release()
        assert laptop.state() == before
        laptop.made.apply()


def send_from(address: str, port: int, target: str, payload: bytes) -> None:
    """Send a datagram with an address and port of another host."""
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((address, port))
        for _ in range(5):
            made.sendto(payload, (target, WIREGUARD))


@pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])
def test_wg_quick_flow_carries_no_forged_packet(laptop: WgQuick, family: int) -> None:
    """A host behind the laptop sends with the address and port of the tunnel's flow, whose mark wg-quick restores."""
    lab, node, mine = laptop.made.lab, laptop.node, laptop.made.lab.wan_address(family)
    assert mine is not None
    lab.client.ip(f"addr add {mine}/{128 if family == 6 else 32} dev lo" + (" nodad" if family == 6 else ""))
    rule = f"rule add fwmark {MARK} table {TABLE} pref 9"
    try:
        with laptop.up():
            peer = node.run(["wg", "show", "wg0", "peers"]).stdout.strip()
            server = f"[{at.SERVER[6]}]" if family == 6 else at.SERVER[4]
            set_wg(node, "wg0", "peer", peer, "endpoint", f"{server}:{WIREGUARD}")
            port = int(node.run(["wg", "show", "wg0", "listen-port"]).stdout)

            def forged(payload: bytes) -> bool:
                there = INSIDE[4][1]
                assert node.call(inbound_clients.udp, there, at.ECHO_PORT, b"flow", 8) == b"flow"
                # The client must know the laptop's MAC address: a request with the forged source gets no answer.
                lab.client.run(["busybox", "ping", "-c", "1", "-W", "1", at.NODE_CLIENT[family]], check=False)
                lab.wan.drain()
                lab.client.call(send_from, mine, port, at.SERVER[family], payload)
                assert node.call(inbound_clients.udp, there, at.ECHO_PORT, b"flow", 8) == b"flow"
                return any(payload in frame.payload for frame in lab.wan.frames())

            assert not forged(b"forwarding is off")
            forwarding(lab, 1)
            proof = laptop.made.nftpolicy("verify", "--live", POLICY, check=False)
            assert proof.returncode == 0, proof.stdout
            assert not forged(b"forwarding is on")
            laptop.made.release()
            for key in ("all", at.CLIENT):
                node.sysctl(f"net/ipv4/conf/{key}/accept_local", 1)
            node.ip(f"-{family} {rule}")
            assert forged(b"no policy"), "the control: IPv4 needs accept_local"
            forwarding(lab, 0)
            assert not forged(b"no policy, no forwarding")
    finally:
        forwarding(lab, 0)
        lab.client.ip("addr flush dev lo scope global")
        node.run(["ip", f"-{family}", *rule.replace("add", "del").split()], check=False)
        for key in ("all", at.CLIENT):
            node.sysctl(f"net/ipv4/conf/{key}/accept_local", 0)
        laptop.made.apply()


def test_wg_quick_down_leaks_nothing(laptop: WgQuick) -> None:
    lab = laptop.made.lab
    with flooding(lab), watching(lab, WATCHED) as watch:
        with laptop.up():
            pass
        run = run_probes(lab, mark=MARK, gid=GID)
        assert (watch.unmarked, watch.stray, run.unmarked()) == (0, 0, [])
    with laptop.made.off():
        assert run_probes(lab, mark=MARK, gid=GID).unmarked(), "inconclusive"


def test_wg_quick_in_other_group_gets_no_name(laptop: WgQuick) -> None:
    failed = laptop.run("up", OTHER_GID, check=False)
    assert failed.returncode
    assert "Name or service not known" in failed.stderr or "Temporary failure" in failed.stderr, failed.stderr
