"""C-E: moments in which a guard could be open: while it changes, and when links come and go."""

import errno
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guarded_lab import (
    OTHER_GID,
    SERVICE_GID,
    Guarded,
    gluon,
    guarded_lab,
    run_probes,
    wan_routes_in_main,
    watching,
)
from tests.lab import addresses as at
from tests.lab import leak_probes
from tests.lab.netns import veth, wait_until
from tests.lab.sniffer import Sniffer
from tests.lab.topology import Lab

FLOOD = b"flooding without a pause"
REFUSALS = "/run/lab/refusals"


def flood(mark: int, payload: bytes) -> None:
    """Send without end, by routes and by the device, in both families; record packets that the kernel refuses."""
    refusals = Path(REFUSALS).open("w", buffering=1)  # noqa: SIM115 - ends with the process
    sockets = []
    for family, domain in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        for device in (None, at.WAN):
            made = socket.socket(domain, socket.SOCK_DGRAM)
            made.setblocking(False)
            if mark:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if device:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            sockets.append((made, (at.SERVER[family], 9)))
    while True:
        for made, target in sockets:
            try:
                made.sendto(payload, target)
            except OSError as error:
                refusals.write(f"{errno.errorcode[error.errno or 0]}\n")
        time.sleep(0.0003)


@contextmanager
def flooding(lab: Lab, mark: int = 0, gid: int = OTHER_GID, payload: bytes = FLOOD) -> Iterator[None]:
    process = lab.node.spawn(flood, mark, payload, gid=gid, keep_caps=True)
    try:
        yield
    finally:
        lab.node.end(process)


@pytest.fixture(scope="module")
def hostile() -> Iterator[Guarded]:
    """Node with the WAN's routes in main too, so that every packet that is not stopped leaves by it."""
    with guarded_lab() as made:
        wan_routes_in_main(made.lab)
        yield made


@pytest.fixture
def made(hostile: Guarded) -> Iterator[Guarded]:
    """The same; each test begins with the shipped policy in force."""
    hostile.file.write_text(gluon(hostile.lab))
    hostile.apply()
    yield hostile


def variants(made: Guarded) -> list[str]:
    """Policies that differ in guard, sets, exemptions, answers, ip rules and tables; the shipped policy is the last."""
    text = gluon(made.lab)
    changes = [
        ("group  = 800", "group  = 801"),
        ('"arp", "dhcpv4"', '"arp"'),
        ('answer  = ["ssh", "ping"]', 'answer  = ["http"]'),
        ("table   = 1", "table   = 7"),
        ('mark    = "0x1/0x1"', 'mark    = "0x1/0x3"'),
        ('inside = ["bat0"', 'inside = ["vx0", "bat0"'),
    ]
    assert all(text.count(old) == 1 for old, _ in changes)
    return [*(text.replace(old, new) for old, new in changes), text]


def test_E1_policy_change_leaks_nothing(made: Guarded) -> None:
    lab = made.lab
    with watching(lab) as watch, flooding(lab):
        lab.wan.drain()
        for text in variants(made):
            made.file.write_text(text)
            assert "applied in" in made.apply()
        assert [frame for frame in lab.wan.frames() if FLOOD in frame.payload] == []
        assert watch.unmarked == 0
        with made.off():
            assert lab.wan.wait_for(lambda frame: FLOOD in frame.payload, 2), "inconclusive: there was no flood"
        lab.wan.wait_for(lambda _: False, 0.05)
        lab.wan.drain()
        assert lab.wan.wait_for(lambda frame: FLOOD in frame.payload, 0.3) is None
    assert lab.wan.dropped == 0


def test_E1_control_deleted_and_reloaded_guard_leaks(made: Guarded) -> None:
    """Control of the test above: the method of other tools."""
    lab = made.lab
    tables = ("inet nftpolicy", "netdev nftpolicy")
    listing = "".join(lab.node.run(["nft", "-s", "list", "table", *one.split()]).stdout for one in tables)
    with flooding(lab):
        lab.wan.drain()
        for _ in range(20):
            lab.node.nft("".join(f"delete table {one}\n" for one in tables))
            lab.node.nft(listing)
        assert lab.wan.wait_for(lambda frame: FLOOD in frame.payload, 1)


def test_E2_ip_rule_change_keeps_marked_packets_on_wan(made: Guarded) -> None:
    lab = made.lab
    text = gluon(lab)
    for destination in ("default via 192.0.2.1", "192.0.2.0/24"):
        lab.node.ip(f"route add {destination} dev {at.WAN} table 7")
    lab.node.ip(f"-6 route add default via {at.HOME_LINK_LOCAL} dev {at.WAN} table 7")
    payload = b"marked, and always by the WAN"
    with watching(lab) as watch, flooding(lab, 1, SERVICE_GID, payload):
        assert lab.wan.wait_for(lambda frame: payload in frame.payload, 2), "inconclusive: there is no flood"
        lab.mesh_sniffer.drain()
        for table in (7, 1, 7, 1):
            made.file.write_text(text.replace("table   = 1", f"table   = {table}"))
            assert "applied in" in made.apply()
        assert [frame for frame in lab.mesh_sniffer.frames() if payload in frame.payload] == []
        assert lab.node.outside(REFUSALS).read_text() == ""  # new rules were there before old ones went
        assert (watch.unmarked, watch.stray) == (0, 0)
        lab.wan.drain()
    assert lab.mesh_sniffer.dropped == 0


def test_E4_guard_outlives_every_process(made: Guarded) -> None:
    """No process of nftpolicy runs between its commands; only release opens the WAN."""
    listing = made.lab.node.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).stdout
    assert "nftpolicy" not in listing
    assert run_probes(made.lab).unmarked() == []
    with made.off():
        assert run_probes(made.lab).unmarked() != [], "inconclusive"


def test_E5_killed_apply_leaks_nothing(made: Guarded) -> None:
    """An apply is killed at any moment between two policies: nothing leaves, and the next apply repairs."""
    lab, texts = made.lab, variants(made)
    with flooding(lab):
        lab.wan.drain()
        for delay in (0.25, 0.31, 0.37, 0.43):
            for text in texts[3:5]:
                made.file.write_text(text)
                process = made.start("apply")
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                process.wait()
        made.file.write_text(texts[-1])
        made.apply()
        assert [frame for frame in lab.wan.frames() if FLOOD in frame.payload] == []
        assert made.nftpolicy("status", check=False).returncode == 0
        with made.off():
            assert lab.wan.wait_for(lambda frame: FLOOD in frame.payload, 2), "inconclusive: there was no flood"


# Links that come and go


def test_E6_new_device_is_guarded(made: Guarded) -> None:
    node, other = made.lab.node, made.lab.neighbour
    veth(node, "usb0", other, "stick")
    try:
        node.ip("addr add 198.18.0.1/24 dev usb0", "-6 addr add 2001:db8:99::1/64 dev usb0 nodad")
        other.ip("addr add 198.18.0.2/24 dev stick", "-6 addr add 2001:db8:99::2/64 dev stick nodad")
        with Sniffer(other, "stick") as far:

            def leave(mark: int) -> set[int | None]:
                far.drain()
                node.call(to_stick, mark, gid=SERVICE_GID, keep_caps=True)
                far.wait_for(lambda _: False, 0.2)
                return {frame.family for frame in far.frames() if b"to the stick" in frame.payload}

            assert (leave(0), leave(1)) == (set(), set())
            assert made.counters()["inet/unnamed-device"] >= 2
            with made.off():
                assert leave(0) == {4, 6}, "inconclusive"
    finally:
        node.ip("link del usb0")


def to_stick(mark: int) -> None:
    for domain, address in ((socket.AF_INET, "198.18.0.2"), (socket.AF_INET6, "2001:db8:99::2")):
        with socket.socket(domain, socket.SOCK_DGRAM) as made:
            if mark:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"usb0")
            try:
                made.sendto(b"to the stick", (address, 9))
            except OSError:
                continue


def marked_udp(lab: Lab) -> tuple[list[str], list[str]]:
    """Return the sightings of marked packets of the service: WAN and mesh."""
    run = run_probes(lab, [leak_probes.Probe("udp", family, marked=True) for family in at.FAMILIES])
    return sorted(str(sent.probe) for sent in run.wan), sorted(str(sent.probe) for sent in run.mesh)


def test_E8_wan_down_keeps_marked_packets_off_mesh() -> None:
    every = ["udp/ipv4/marked", "udp/ipv6/marked"]
    with guarded_lab() as made:
        made.release()
        mark_rules = [f"-{family} rule add fwmark 1/1 lookup 1 priority 100" for family in at.FAMILIES]
        made.lab.node.ip(*mark_rules)
        assert marked_udp(made.lab) == (every, []), "inconclusive"
        made.lab.wan_down()
        assert marked_udp(made.lab) == ([], every), "inconclusive: ip rules without an end fall through"
        made.lab.node.ip(*(line.replace(" add ", " del ") for line in mark_rules))
        made.apply()
        for _ in range(2):
            with watching(made.lab) as watch:
                assert marked_udp(made.lab) == ([], [])
                assert watch.stray == 0
            made.lab.wan_up()
            assert marked_udp(made.lab) == (every, [])
            made.lab.wan_down()
        # A flush of the table deletes our last route too; the ip rules end there as well.
        for family in at.FAMILIES:
            made.lab.node.ip(f"-{family} route flush table 1")
            said = made.lab.node.run(["ip", "route", "get", at.SERVER[family], "mark", "1"], check=False)
            assert (said.returncode, at.MESH in said.stdout) == (2, False)
            made.lab.node.run(["ip", "route", "get", at.SERVER[family]])  # inconclusive if this fails
        with watching(made.lab) as watch:
            assert marked_udp(made.lab) == ([], [])
            assert watch.stray == 0


def test_E8_lease_reaches_bridge_with_br_netfilter() -> None:
    """An OFFER is for an address that the node does not have yet, and the bridge shows it to prerouting first."""
    with guarded_lab(bridge=True) as made:
        switch = "/proc/sys/net/bridge/bridge-nf-call-iptables"
        if made.lab.node.run(["test", "-e", switch], check=False).returncode:
            pytest.skip("needs br_netfilter in the kernel")
        made.lab.node.sysctl("net.bridge.bridge-nf-call-iptables", 1)
        made.lab.wan_down()
        made.lab.node.ip(f"-4 addr flush dev {at.WAN}")
        assert made.lab.wan_address(4) is None
        with watching(made.lab) as watch:
            made.lab.wan_up()
            assert (watch.unmarked, watch.stray) == (0, 0)
        assert made.lab.wan_address(4)


def test_E8_lease_is_taken_and_renewed_through_guard() -> None:
    with guarded_lab(netifd_rules=True) as made:
        before = made.counters()
        made.lab.wan_down()
        made.lab.wan.drain()
        with watching(made.lab) as watch:
            made.lab.wan_up()
            wait_until(lambda: made.lab.wan_address(6), 3, "an IPv6 address")
            assert watch.unmarked == 0
        after = made.counters()
        assert after["netdev/wan.exempt.dhcpv4"] >= before["netdev/wan.exempt.dhcpv4"] + 2
        assert after["inet/wan.exempt.ndp"] > before["inet/wan.exempt.ndp"]
        # Renewal: by unicast, which is dropped, and then by broadcast.
        made.lab.node.outside(made.lab.wan_lease).unlink()
        made.lab.renew_lease()
        wait_until(made.lab.lease, 20, "a renewed lease")
        assert made.counters()["netdev/wan.exempt.dhcpv4"] > after["netdev/wan.exempt.dhcpv4"]
