# SPDX-License-Identifier: BSD-2-Clause
"""wg-quick beside the shipped policy for it: all traffic in the tunnel, its own rules, and a server known by name.

WireGuard runs in user space (wireguard-go), since not every kernel has it: its group is the service.
"""

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
    assert "refuted" not in proof.stdout, proof.stdout


def test_wg_quick_works_after_policy(laptop: WgQuick) -> None:
    """The server's name is asked before there is any default route; a second start follows the first."""
    before = laptop.state()
    with Watched(laptop.made) as watched:
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
