# SPDX-License-Identifier: BSD-2-Clause
"""Management port of a server: a service reaches its one destination, administrators connect, all else is dropped."""

import re
import struct
from collections.abc import Iterator

import pytest

from tests.guarded_lab import OTHER_GID, ROOT, Guarded, guarded_lab, replaced, run_probes, watching
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.topology import Lab
from tests.vpn_programs import cgroups

pytestmark = pytest.mark.slow

MARK, TABLE, BACKUP, LOG = 0x30, 102, 871, 872
watched = f"{MARK:#x}/0xf0"
families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])


def policy(lab: Lab) -> str:
    """Return the shipped policy; the backup destination is a host of the lab, and the devices are the lab's."""
    text = replaced(
        ROOT / "rulesets" / "server-egress.toml",
        {"inside": f'["{at.MESH}", "{at.CLIENT}"]', "devices": f'["{at.WAN}"]'},
    )
    # The lab's addresses come by DHCP; what the policy's own routes are for is shown below.
    text = text.replace('exempt   = ["arp", "ndp"]', 'exempt   = ["arp", "ndp", "dhcpv4"]')
    text, count = re.subn(r'\["192.0.2.20", "2001:db8:1::20"\]', f'["{at.NEIGHBOUR[4]}", "{at.NEIGHBOUR[6]}"]', text)
    assert count == 1
    return text


@pytest.fixture(scope="module")
def server() -> Iterator[Guarded]:
    with cgroups() as placed, guarded_lab(lambda lab: placed(policy(lab)), table=TABLE) as made:
        made.lab.neighbour.sysctl("net/ipv4/ip_unprivileged_port_start", 0)
        with inbound_clients.listening(made.lab.neighbour, 22), inbound_clients.listening(made.lab.neighbour, 2222):
            yield made


def by_socat(lab: Lab, address: str, port: int, gid: int, mark: int | None = MARK, seconds: float = 3) -> str:
    """Return the answer on a connection that socat marks before it connects, or the last words of socat."""
    where = f"[{address}]" if ":" in address else address
    option = f",setsockopt-listen=1:36:x{struct.pack('=I', mark).hex()}" if mark is not None else ""
    done = lab.node.run(
        ["socat", "-t1", "-", f"TCP:{where}:{port},connect-timeout={seconds}{option}"],
        input="hello",
        gid=gid,
        check=False,
    )
    return done.stdout or done.stderr.strip().rpartition(": ")[2]


@families
def test_service_reaches_its_destination_only(server: Guarded, family: int) -> None:
    lab, place = server.lab, at.NEIGHBOUR[family]
    lab.wan.drain()
    with watching(lab, watched) as watch:
        assert by_socat(lab, place, 22, BACKUP) == "hello"
        before = server.counters()["inet/management.unentitled"]
        for gid, address, port in (
            (BACKUP, place, 2222),  # another port
            (BACKUP, at.SERVER[family], at.ECHO_PORT),  # another place
            (LOG, place, 22),  # another service
            (OTHER_GID, place, 22),  # another group
        ):
            assert by_socat(lab, address, port, gid, seconds=0.2) != "hello"
        assert server.counters()["inet/management.unentitled"] >= before + 4
        assert (watch.unmarked, watch.stray) == (0, 0)
    seen = {(frame.daddr, frame.dport) for frame in lab.wan.frames() if frame.saddr == lab.wan_address(family)}
    assert {(where, port) for where, port in seen if port is not None} == {(place, 22)}


@families
def test_run_marks_program_without_mark(server: Guarded, family: int) -> None:
    place = at.NEIGHBOUR[family]
    where = f"TCP:[{place}]:22" if family == 6 else f"TCP:{place}:22"
    log = server.nftpolicy(
        "run", "log", "--", "socat", "-u", "OPEN:/etc/hostname", f"{where},connect-timeout=0.2", check=False
    )
    assert log.returncode != 0  # not its place
    words = ["run", "backup", "--", "socat", "-t1", "SYSTEM:echo hello; cat >&2", f"{where},connect-timeout=3"]
    assert server.nftpolicy(*words).stderr == "hello\n"


@families
def test_service_without_mark_is_dropped(server: Guarded, family: int) -> None:
    lab, place = server.lab, at.NEIGHBOUR[family]
    lab.node.ip(f"-{family} route add {place} dev {at.WAN} metric 1")
    try:
        before = server.counters()["inet/management.dropped"]
        assert by_socat(lab, place, 22, BACKUP, None, 0.2) != "hello"
        assert server.counters()["inet/management.dropped"] > before
        with server.off():
            assert by_socat(lab, place, 22, BACKUP, None) == "hello", "inconclusive"
    finally:
        lab.node.ip(f"-{family} route del {place} dev {at.WAN} metric 1")


def test_server_uplink_drops_packets_of_other_groups(server: Guarded) -> None:
    lab = server.lab
    with watching(lab, watched) as watch:
        run = run_probes(lab, mark=MARK, gid=OTHER_GID)
        assert (watch.unmarked, watch.stray) == (0, 0)
    # Frames of AF_PACKET are not asked for their owner, and those of the matrix that are marked pass.
    assert {sent.probe.kind.partition("_")[0].partition("-")[0] for sent in run.wan} <= {"packet"}
    with server.off():
        opened = run_probes(lab, mark=MARK, gid=OTHER_GID)
    assert {sent.probe.kind for sent in opened.wan} > {sent.probe.kind for sent in run.wan}, "inconclusive"


@families
def test_management_port_answers_administrators_only(server: Guarded, family: int) -> None:
    lab, address = server.lab, server.lab.wan_address(family)
    lab.node.sysctl("net/ipv4/ip_unprivileged_port_start", 0)
    with (
        inbound_clients.listening(lab.node, 22),
        inbound_clients.listening(lab.node, 8080),
        watching(lab, watched) as watch,
    ):
        assert lab.neighbour.call(inbound_clients.tcp, address, 22) == b"hello"
        assert lab.neighbour.call(inbound_clients.ping, address)
        for knock in (inbound_clients.tcp, inbound_clients.udp):
            assert lab.neighbour.call(knock, address, 8080, b"", 0.2) == inbound_clients.NO_ANSWER
        assert (
            lab.mesh.call(inbound_clients.tcp, at.NODE_MESH[family], 8080) == b"hello"
        )  # the public side is as open as ever
        assert (watch.unmarked, watch.stray) == (0, 0)


@families
def test_policy_routes_use_policy_gateways(server: Guarded, family: int) -> None:
    listed = server.lab.node.run(["ip", f"-{family}", "route", "show", "table", str(TABLE), "proto", "78"]).stdout
    assert f"default via {at.HOME[family]} dev {at.WAN} metric 1024 onlink" in listed
