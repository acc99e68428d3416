# SPDX-License-Identifier: BSD-2-Clause
"""Time before the VPN: an NTP client is a service of its own, and its packets leave by the WAN only.

The client is NTPsec's ntpdig, which queries and prints, and sets no clock. It cannot mark its sockets; `nftpolicy run`
preloads the library that does, as the package for Gluon does for wgpeerselector.
"""

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    OTHER_GID,
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
from tests.lab.topology import Lab

pytestmark = pytest.mark.slow

GID, NTP = SERVICE_GID, 123
ASK = ("ntpdig", "-t", "1")
_SINCE_1900 = 2208988800  # seconds from the era of NTP to that of Unix (RFC 5905 figure 4)


def policy(lab: Lab) -> str:
    """Return the shipped policy with the lab's lease."""
    return replaced(ROOT / "rulesets" / "gluon-wireguard.toml", {"lease": f'"{lab.wan_lease}"'})


def server() -> None:
    """Answer with the time (RFC 5905 7.3: leap 0, version 4, mode 4, stratum 1)."""
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", NTP))
    while True:
        asked, peer = made.recvfrom(1024)
        seconds, part = divmod(time.time(), 1)
        now = struct.pack("!II", int(seconds) + _SINCE_1900, int(part * 2**32))
        made.sendto(struct.pack("!BBbb8x4s", 0x24, 1, 6, -20, b"LAB") + now + asked[40:48] + now + now, peer)


@pytest.fixture(scope="module")
def node() -> Iterator[Guarded]:
    with guarded_lab(policy, resolver=True) as made:
        made.lab.server.spawn(server)
        yield made


def by_run(node: Guarded, name: str) -> tuple[int, str]:
    """Query an address or a name for the time as the service; return the exit status and the output."""
    done = node.nftpolicy("run", "wgpeerselector", "--", *ASK, name, check=False)
    return done.returncode, done.stdout + done.stderr


def by_group(node: Guarded, name: str, gid: int, mark: bool = False) -> tuple[int, str]:
    """Query with the group only; with `mark` with the library, so that the sockets carry the mark."""
    if mark:
        words = ["run", "wgpeerselector", "--", "setpriv", "--regid", str(gid), "--clear-groups", *ASK, name]
        done = node.nftpolicy(*words, check=False)
    else:
        done = node.lab.node.run([*ASK, name], gid=gid, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", [at.SERVER[4], at.SERVER[6], at.VPN], ids=["ipv4", "ipv6", "name"])
def test_ntp_client_with_mark_uses_wan(node: Guarded, name: str) -> None:
    lab = node.lab
    lab.wan.drain(), lab.mesh_sniffer.drain()
    with watching(lab) as watch:
        status, said = by_run(node, name)
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert (status, "no-leap" in said) == (0, True), said
    assert {frame.saddr for frame in lab.wan.frames() if frame.dport == NTP} <= {lab.wan_address(4), lab.wan_address(6)}
    assert [frame for frame in lab.wan.frames() if frame.dport == NTP]
    assert [frame for frame in lab.mesh_sniffer.frames() if frame.dport == NTP] == []


@pytest.mark.parametrize("gid", [GID, OTHER_GID], ids=["its-group", "another"])
def test_ntp_client_without_mark_is_dropped(node: Guarded, gid: int) -> None:
    lab = node.lab
    wan_routes_in_main(lab)
    try:
        before = node.counters()["inet/wan.dropped"]
        lab.wan.drain()
        status, said = by_group(node, at.SERVER[4], gid)
        assert status != 0, said
        assert [frame for frame in lab.wan.frames() if frame.dport == NTP] == []
        assert node.counters()["inet/wan.dropped"] > before
        with node.off():
            tries = [by_group(node, at.SERVER[4], gid)]
            while tries[-1][0] != 0 and len(tries) < 5:  # a client that gives up soon, on a busy machine
                tries.append(by_group(node, at.SERVER[4], gid))
            assert tries[-1][0] == 0, f"inconclusive: {tries}"
    finally:
        no_wan_routes_in_main(lab)


def test_ntp_client_in_other_group_is_dropped(node: Guarded) -> None:
    lab = node.lab
    before = node.counters()["inet/wan.unentitled"]
    lab.wan.drain(), lab.mesh_sniffer.drain()
    status, said = by_group(node, at.SERVER[4], OTHER_GID, mark=True)
    assert status != 0, said
    assert node.counters()["inet/wan.unentitled"] > before
    for sniffer in (lab.wan, lab.mesh_sniffer):
        assert [frame for frame in sniffer.frames() if frame.dport == NTP] == []


def test_ntp_client_while_wan_is_down_sends_nothing(node: Guarded) -> None:
    lab = node.lab
    lab.wan_down()
    try:
        lab.mesh_sniffer.drain()
        status, said = by_run(node, at.SERVER[4])
        assert status != 0, said
        assert [frame for frame in lab.mesh_sniffer.frames() if frame.dport == NTP] == []
        status, said = by_group(node, at.SERVER[4], GID)
        assert status == 0, f"inconclusive: {said}"  # unmarked, it asks by the mesh
    finally:
        lab.wan_up()
