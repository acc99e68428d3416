"""The flush filter at tc: it passes what the link guard passes, and nothing else leaves when nft is flushed."""

import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from nftpolicy.integration.openwrt.flush_filter import pass_filter
from nftpolicy.policy.load import load
from tests.guarded_lab import GLUON, gluon, wan_routes_in_main
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.sniffer import Sniffer
from tests.lab.topology import Lab
from tests.leaks.test_race_windows import FLOOD, flooding

from .router import CONFIG, Router, wait_for_monitors
from .test_fw4 import needs_lab, settled

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("able")]

FLUSHES = int(os.environ.get("NFTPOLICY_FLUSHES", "5"))
MARK = 1
USER = 901
SENDERS = f"""
[service.updates]
uplink = "wan"
user   = {USER}
marks  = "uid-rule"

[forward.client]
uplink     = "wan"
from       = ["{at.CLIENT}"]
source     = ["{at.CLIENT_NET[4]}"]
masquerade = true
"""
FLUSH_COMMANDS = (
    "flush ruleset",
    "".join(f"{verb} table {family} nftpolicy\n" for family in ("inet", "netdev") for verb in ("add", "delete")),
)
MARKED = b"with the mark of the uplink"


def ip(protocol: int, destination: str, body: bytes, ttl: int = 64, fragment: int = 0) -> bytes:
    addresses = socket.inet_aton("192.0.2.77") + socket.inet_aton(destination)
    return (
        b"\x08\x00"
        + struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, fragment, ttl, protocol, 0)
        + addresses
        + body
    )


def udp(sport: int, dport: int, payload: bytes = FLOOD) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def ip6(protocol: int, destination: str, body: bytes, hops: int = 255, source: str = "fe80::1") -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + addresses + body


def icmpv6(kind: int, code: int = 0) -> bytes:
    return struct.pack("!BBHI", kind, code, 0, 0) + bytes(20)


ARP = bytes.fromhex("0806 0001 0800 06 04 0001") + bytes(20)
HOP_BY_HOP = bytes.fromhex("3a 00 05 02 00 00 01 00")  # ICMPv6 follows; router alert
REPORT = HOP_BY_HOP + icmpv6(143)
PASSED = {
    "arp": ARP,
    "dhcpv4": ip(17, "255.255.255.255", udp(68, 67)),
    "dhcpv6": ip6(17, "ff02::1:2", udp(546, 547)),
    "solicitation": ip6(58, "ff02::1:ff00:1", icmpv6(135)),
    "router solicitation": ip6(58, "ff02::2", icmpv6(133), source="::"),
    "mld report": ip6(0, "ff02::16", REPORT, hops=1),
    "mld 1 report": ip6(0, "ff02::fb", HOP_BY_HOP + icmpv6(131), hops=1, source="::"),
    "igmp report": ip(2, "224.0.0.22", b"\x22" + bytes(15), ttl=1),
    "igmp 2 report": ip(2, "239.1.2.3", b"\x16" + bytes(7), ttl=1),
}
DROPPED = {
    "arp with a tail": ARP + b"x",
    "unicast dhcpv4": ip(17, "192.0.2.1", udp(68, 67)),
    "dns": ip(17, "255.255.255.255", udp(5000, 53)),
    "fragment": ip(17, "255.255.255.255", udp(68, 67), fragment=1),
    "tcp": ip(6, "255.255.255.255", udp(68, 67)),
    "dhcpv6 from elsewhere": ip6(17, "ff02::1:2", udp(546, 547), source="2001:db8::1"),
    "advertised router": ip6(58, "ff02::1", icmpv6(134)),
    "code 1": ip6(58, "ff02::1:ff00:1", icmpv6(135, 1)),
    "site group": ip6(58, "ff05::1", icmpv6(136)),
    "group next to all routers": ip6(58, "ff02::3", icmpv6(133)),
    "hop limit": ip6(58, "ff02::1:ff00:1", icmpv6(135), hops=254),
    "mld report to another group": ip6(0, "ff02::17", REPORT, hops=1),
    "mld behind a long header": ip6(0, "ff02::16", b"\x3a\x01" + REPORT[2:] + bytes(8), hops=1),
    "igmp with ttl": ip(2, "224.0.0.22", b"\x22" + bytes(15), ttl=2),
    "eapol": b"\x88\x8e" + bytes(40),
    "lldp": b"\x88\xcc" + bytes(40),
    "short": b"\x08\x00E",
    "echo": ip6(58, "ff02::1", icmpv6(128)),
}


def send_frames(frames: Sequence[bytes], mark: int = 0) -> None:
    """Send each frame three times by an AF_PACKET socket; its number is in its source address."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        for number, frame in enumerate(frames):
            (ethertype,) = struct.unpack_from("!H", frame)
            for _ in range(3):
                with suppress(OSError):  # ENOBUFS: dropped
                    sender.sendto(b"\x02\0\0\0\0\x99\x02\0\0\0\xee" + bytes([number]) + frame, (at.WAN, ethertype))
                time.sleep(0.001)


def flood_frames(payload: bytes) -> None:
    """Send UDP frames without end by an AF_PACKET socket."""
    frame = b"\x02\0\0\0\0\x99\x02\0\0\0\xee\xff" + ip(17, at.SERVER[4], udp(9, 9, payload))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        while True:
            with suppress(OSError):  # ENOBUFS: dropped
                sender.sendto(frame, (at.WAN, 0x0800))
            time.sleep(0.0003)


def send_marked() -> None:
    """Send UDP packets with the mark without end, slowly: all of them arrive."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        while True:
            with suppress(OSError):  # EPERM: of the block, if the guard is gone again while the runner checks it
                sender.sendto(MARKED, (at.SERVER[4], 9))
            time.sleep(0.01)


@pytest.fixture(scope="module")
def field() -> Iterator[tuple[Lab, Router]]:
    """Lab whose node is a router with tc, and its WAN a bridge."""
    with Lab(bridge=True, groups={"gluon-mesh-vpn": 800}) as lab:
        wan_routes_in_main(lab)
        router = Router(lab.node, load((gluon(lab) + SENDERS).encode())[0])
        router.real("tc")
        router.nftpolicy("apply")
        yield lab, router


def arrived(lab: Lab, mark: int = 0) -> set[str]:
    """Return the names of the frames that reach the WAN."""
    names = [*PASSED, *DROPPED]
    settled(lab)
    lab.node.call(send_frames, [*PASSED.values(), *DROPPED.values()], mark, gid=0)
    time.sleep(0.1)
    numbers = {int(frame.src_mac[-2:], 16) for frame in lab.wan.frames() if frame.src_mac.startswith("02:00:00:00:ee")}
    return {names[number] for number in numbers}


@needs_lab
def test_flush_filter_passes_packets_of_link_guard(field: tuple[Lab, Router]) -> None:
    lab, router = field
    router.nftpolicy("apply")
    assert "flush filter" not in router.nftpolicy("status").stdout
    shaped = lab.node.outside(f"{CONFIG}/sqm.uci")
    shaped.write_text(f"config queue 'wan'\n\toption interface '{at.WAN}'\n")
    router.nftpolicy("reconcile")
    shaped.unlink()
    for device in (at.WAN, at.WAN_PORT):
        assert "clsact" not in lab.node.run(["tc", "qdisc", "show", "dev", device]).stdout, "SQM has its place"
        assert f"lets packets pass on {device}" in router.nftpolicy("status").stdout
    # The link guard reads the ports of a later fragment in its data, as nft's short way of loading does.
    assert arrived(lab) - {"fragment"} == set(PASSED), "the link guard"
    lab.node.nft("flush ruleset\n")
    assert arrived(lab) == {*PASSED, *DROPPED}, "control"
    router.nftpolicy("reconcile")
    lab.node.nft("flush ruleset\n")
    assert arrived(lab) == set(PASSED), "the flush filter"
    assert arrived(lab, MARK) == {*PASSED, *DROPPED}


def served(lab: Lab, seconds: float) -> tuple[bool, bool, bool]:
    """Return whether a user without marks, a host behind the router and one that pings its address get replies."""
    job = (inbound_clients.udp, at.SERVER[4], at.ECHO_PORT, FLOOD, seconds)
    return (
        lab.node.call(*job, uid=USER) == FLOOD,
        lab.client.call(*job) == FLOOD,
        lab.home.call(inbound_clients.ping, lab.wan_address(4), seconds),
    )


@needs_lab
def test_flush_filter_with_packets_that_nft_marks(field: tuple[Lab, Router]) -> None:
    """Those of users without marks, forwarded ones, and replies: with the guard they pass, and are held without it."""
    lab, router = field
    router.nftpolicy("apply")
    assert "flush filter" not in router.nftpolicy("status").stdout
    assert served(lab, 5) == (True, True, True)
    lab.node.nft("flush ruleset\n")
    settled(lab)
    assert served(lab, 0.2) == (False, False, False)
    assert not any(FLOOD in frame.payload for frame in lab.wan.frames())
    router.nftpolicy("release")
    served(lab, 0.2)
    assert sum(FLOOD in frame.payload for frame in lab.wan.frames()) > 1, "the control"


@needs_lab
def test_flush_filter_floods_during_flushes_leak_nothing(field: tuple[Lab, Router]) -> None:
    """By routes, by the device and by AF_PACKET. Marked packets of programs keep passing."""
    lab, router = field
    router.nftpolicy("apply")
    watch = router.start("watch")
    wait_for_monitors(lab.node)
    senders = [lab.node.spawn(send_marked, gid=800, keep_caps=True), lab.node.spawn(flood_frames, FLOOD)]
    try:
        with flooding(lab):
            settled(lab)
            for number in range(FLUSHES):
                lab.node.nft(FLUSH_COMMANDS[number % len(FLUSH_COMMANDS)])
                assert lab.wan.wait_for(lambda frame: MARKED in frame.payload, 10), f"the guard stops all: {number}"
                wait_until(lambda: "policy drop" in lab.node.run(["nft", "list", "ruleset"]).stdout, 10, "the guard")
                assert sum(FLOOD in frame.payload for frame in lab.wan.drain()) == 0, number
            watch.terminate()
            watch.wait()
            router.nftpolicy("release")
            time.sleep(1)
    finally:
        for sender in senders:
            lab.node.end(sender)
    assert any(FLOOD in frame.payload for frame in lab.wan.frames()), "inconclusive: there was no flood"
    assert "bpf" not in lab.node.run(["tc", "filter", "show", "dev", at.WAN, "egress"]).stdout


VLAN_POLICY = """
name   = "vlan"
inside = ["br-lan"]

[uplink.wan]
devices = ["eth0.2"]
mark    = "1/1"
table   = 1
exempt  = ["arp"]
"""
# Frames by the device below, with their tags; those of the uplink's VLAN are dropped.
OF_UPLINK = {
    "tag": "81000002",
    "with a priority": "8100e002",
    "of a provider": "88a80002",
    "behind a 0": "8100000081000002",
}
OF_OTHERS = {"another VLAN": "81000003", "next multiple": "81001003", "no tag": ""}


def tagged(device: str) -> None:
    """Send an ARP request with each tag; its number is in its source address."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        for number, tags in enumerate((*OF_UPLINK.values(), *OF_OTHERS.values())):
            frame = b"\xff" * 6 + b"\x02\0\0\0\xee" + bytes([number]) + bytes.fromhex(tags) + ARP
            with suppress(OSError):  # ENOBUFS: dropped
                sender.sendto(frame, (device, 0x0806))


def test_device_below_a_vlan_sends_no_frame_with_its_tag() -> None:
    with Namespace("router") as space, Namespace("switch") as switch:
        for device, peer in (("eth0", "uplink"), ("lan1", "host")):
            veth(space, device, switch, peer)
        router = Router(space, load(VLAN_POLICY.encode())[0])
        router.real("tc")
        router.nftpolicy("apply")
        names = [*OF_UPLINK, *OF_OTHERS]

        def sent(by: Namespace, device: str) -> set[str]:
            by.call(tagged, device)
            time.sleep(0.1)
            return {
                names[int(one.src_mac[-2:], 16)] for one in seen.drain() if one.src_mac.startswith("02:00:00:00:ee")
            }

        with Sniffer(switch, "uplink") as seen:
            assert sent(space, "eth0") == set(OF_OTHERS)
            # A bridge forwards the tag beside the frame, as a VLAN device sends it.
            space.ip(
                "link add br0 type bridge", "link set br0 up", "link set eth0 master br0", "link set lan1 master br0"
            )
            assert sent(switch, "host") >= {"tag", *OF_OTHERS}
            space.ip("link set eth0 nomaster")
            router.nftpolicy("release")
            assert sent(space, "eth0") == {*OF_UPLINK, *OF_OTHERS}, "the control"


def test_flush_filter_refuses_owners_of_sockets() -> None:
    text = GLUON.read_text() + '[lan.nas]\nuplink = "wan"\nuser = 0\nto = ["192.168.1.0/24"]\nports = ["tcp/445"]\n'
    assert pass_filter(load(GLUON.read_bytes())[0], "wan")
    assert pass_filter(load(text.encode())[0], "wan") is None
