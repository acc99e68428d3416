"""A14, C10, C18: frames of AF_PACKET sockets that only say that they are exempt."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from tests.guarded_lab import Guarded, guarded_lab
from tests.lab import addresses as at
from tests.lab.frames import Frame, checksum

IPV4, ARP, IPV6, VLAN, PRIVATE, LLC = 0x0800, 0x0806, 0x86DD, 0x8100, 0x88B5, 0x0004
EAPOL, PPPOE = 0x888E, 0x8864
# Ethertypes by the word that exempts them.
TYPED = {
    "eapol": (EAPOL,),
    "pppoe": (0x8863, PPPOE),
    "lldp": (0x88CC,),
    "lacp": (0x8809,),
    "ptp": (0x88F7,),
    "mpls": (0x8847, 0x8848),
    "batman-adv": (0x4305,),
    "wake-on-lan": (0x0842,),
}
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_LEAST_ETHERTYPE = 0x0600  # below, the field is the length of an IEEE 802.3 frame
BROADCAST, NODE = b"\xff" * 6, bytes.fromhex(at.NODE_WAN_MAC.replace(":", ""))


@dataclass(frozen=True)
class Sent:
    """A frame: the ethertype that its socket says, and all bytes behind the MAC addresses but the payload."""

    says: int
    head: bytes
    bypass: bool = False
    size: int = 46  # of the payload, in bytes


def eth(*ethertypes: int) -> bytes:
    return b"".join(struct.pack("!H", one) for one in ethertypes)


def ipv4(destination: str, sport: int, dport: int, size: int = 46) -> bytes:
    ends = ip_address(at.NEIGHBOUR[4]).packed + ip_address(destination).packed
    start = struct.pack("!BBHHHBBH", 0x45, 0, 28 + size, 0, 0, 64, 17, 0) + ends
    start = start[:10] + struct.pack("!H", checksum(start)) + start[12:]
    return start + struct.pack("!HHHH", sport, dport, 8 + size, 0)


def ipv6(source: str, destination: str, protocol: int, head: bytes, hops: int = 64, size: int = 46) -> bytes:
    ends = ip_address(source).packed + ip_address(destination).packed
    return struct.pack("!IHBB", 6 << 28, len(head) + size, protocol, hops) + ends + head


UDP6 = ipv6(at.NEIGHBOUR[6], at.HOME[6], 17, struct.pack("!HHHH", 9, 9, 54, 0))
DHCP = ipv4("255.255.255.255", 68, 67)
DHCP6 = ipv6("fe80::50", "ff02::1:2", 17, struct.pack("!HHHH", 546, 547, 54, 0))
SOLICIT = ipv6("fe80::50", "ff02::2", 58, struct.pack("!BBHI", 133, 0, 0, 0), 255)
ADVERT = ipv6("fe80::50", at.NEIGHBOUR[6], 58, struct.pack("!BBHI", 136, 0, 0, 0), 255)
ARP_FORMAT = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1)
ARP_REQUEST = ARP_FORMAT + NODE + bytes(14)
ARP_SENDER = ARP_FORMAT + NODE + bytes(10)  # the IP address of the target follows
_TARGET, _TOKEN = 4, 8  # bytes

EXEMPT = {
    "ARP": Sent(ARP, eth(ARP) + ARP_SENDER, size=_TARGET),
    "DHCPv4": Sent(IPV4, eth(IPV4) + DHCP),
    "DHCPv6": Sent(IPV6, eth(IPV6) + DHCP6),
    "router solicitation": Sent(IPV6, eth(IPV6) + SOLICIT),
}
STP = b"\x42\x42\x03"  # of an IEEE 802.2 header
FRAMES = {f"{word} {number:#06x}": Sent(number, eth(number)) for word, numbers in TYPED.items() for number in numbers}
FRAMES |= {"stp 802.2": Sent(LLC, eth(49) + STP)}
LOOKALIKES = {
    **FRAMES,
    "bytes behind ARP": Sent(ARP, eth(ARP) + ARP_REQUEST),
    "padding behind ARP": Sent(ARP, eth(ARP) + ARP_REQUEST, size=18),
    "ARP that ends too early": Sent(ARP, eth(ARP) + ARP_SENDER[:-2], size=_TARGET),
    "ARP of another hardware": Sent(ARP, eth(ARP, 6) + ARP_SENDER[2:], size=_TARGET),
    "ARP of another protocol": Sent(ARP, eth(ARP, 1, IPV6) + ARP_SENDER[4:], size=_TARGET),
    "IPv4 with the ethertype of ARP": Sent(ARP, eth(ARP) + ipv4(at.HOME[4], 9, 9)),
    "IPv4 with the ethertype and length of ARP": Sent(ARP, eth(ARP) + ipv4(at.HOME[4], 9, 9)[:24], size=_TARGET),
    "IPv4 as ARP": Sent(ARP, eth(IPV4) + ipv4(at.HOME[4], 9, 9)),
    "IPv6 as ARP": Sent(ARP, eth(IPV6) + UDP6),
    "IPv4 as ARP, past the queue": Sent(ARP, eth(IPV4) + ipv4(at.HOME[4], 9, 9), bypass=True),
    "IPv4 as EAPOL": Sent(EAPOL, eth(IPV4) + ipv4(at.HOME[4], 9, 9)),
    "IPv4 as PPPoE": Sent(PPPOE, eth(IPV4) + ipv4(at.HOME[4], 9, 9)),
    "IPv4 as 802.2": Sent(LLC, eth(IPV4) + ipv4(at.HOME[4], 9, 9)),
    "802.2": Sent(LLC, eth(49) + b"\xaa\xaa\x03"),
    "private with the header of STP": Sent(PRIVATE, eth(PRIVATE) + STP),
    "802.2 as ARP": Sent(ARP, eth(49) + b"\xaa\xaa\x03"),
    "private as ARP": Sent(ARP, eth(PRIVATE)),
    "private as ARP, short": Sent(ARP, eth(PRIVATE), size=8),
    "private as IPv4, with DHCP": Sent(IPV4, eth(PRIVATE) + DHCP),
    "private as IPv4, with DHCP, past the queue": Sent(IPV4, eth(PRIVATE) + DHCP, bypass=True),
    "private as IPv6, with a solicitation": Sent(IPV6, eth(PRIVATE) + SOLICIT),
    "IPv6 as IPv4, with DHCP": Sent(IPV4, eth(IPV6) + DHCP),
    "ARP in a VLAN": Sent(ARP, eth(VLAN, 7, ARP) + ARP_REQUEST),
    "ARP in a VLAN as VLAN": Sent(VLAN, eth(VLAN, 7, ARP) + ARP_REQUEST),
    "DHCPv4 in a VLAN": Sent(VLAN, eth(VLAN, 7, IPV4) + DHCP),
    "DHCPv4 to one": Sent(IPV4, eth(IPV4) + ipv4("203.0.113.9", 68, 67)),
    "neighbour advertisement to one": Sent(IPV6, eth(IPV6) + ADVERT),
}


def send(device: str, frames: dict[bytes, Sent]) -> None:
    for payload, sent in frames.items():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as made:
            if sent.bypass:
                made.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            with contextlib.suppress(OSError):  # ENOBUFS: a frame past the queue is dropped at egress
                made.sendto(BROADCAST + NODE + sent.head + payload, (device, sent.says))


def arrivals(made: Guarded, device: str, frames: dict[str, Sent]) -> set[str]:
    """Return the frames that the home receives."""
    tokens = {name: os.urandom(min(_TOKEN, one.size)) for name, one in frames.items()}
    made.lab.wan.drain()
    made.lab.node.call(send, device, {tokens[name].ljust(one.size, b"."): one for name, one in frames.items()})
    made.lab.wan.wait_for(lambda _: False, 0.3)
    received = [frame.payload + _target(frame) for frame in made.lab.wan.frames()]
    return {name for name in frames if any(tokens[name] in payload for payload in received)}


def _target(frame: Frame) -> bytes:
    """Return the IP address that an ARP frame asks for."""
    return ip_address(frame.daddr).packed if frame.ethertype == ARP and frame.daddr else b""


@pytest.fixture(scope="module", params=[False, True], ids=["device", "bridge"])
def made(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with guarded_lab(bridge=request.param) as made:
        yield made


def test_C10_frames_of_another_ethertype_are_dropped(made: Guarded) -> None:
    devices = dict.fromkeys((at.WAN, made.lab.wan_port))
    for device in devices:
        assert arrivals(made, device, LOOKALIKES) == set(), device
    with made.off():
        for device in devices:
            missing = set(LOOKALIKES) - arrivals(made, device, LOOKALIKES)
            assert missing == set(), f"inconclusive: not sent by {device} without the policy either"


@pytest.mark.parametrize("word", (*TYPED, "stp"))
def test_C18_frames_of_an_exempt_ethertype_leave(made: Guarded, word: str) -> None:
    text = made.file.read_text()
    assert text.count('["arp"') == 1
    made.file.write_text(text.replace('["arp"', f'["{word}", "arp"'))
    made.apply()
    try:
        passed = {name for name in FRAMES if name.startswith(f"{word} ")}
        for device in dict.fromkeys((at.WAN, made.lab.wan_port)):
            assert arrivals(made, device, FRAMES) == passed, device
    finally:
        made.file.write_text(text)
        made.apply()


def test_C10_exempt_frames_leave(made: Guarded) -> None:
    for device in dict.fromkeys((at.WAN, made.lab.wan_port)):
        assert set(EXEMPT) - arrivals(made, device, EXEMPT) == set(), device


@pytest.mark.parametrize("made", [True], ids=["bridge"], indirect=True, scope="module")
def test_C18_bridge_sends_its_own_bpdus(made: Guarded) -> None:
    text = made.file.read_text()

    def is_sent(seconds: float) -> bool:
        made.lab.wan.drain()
        return made.lab.wan.wait_for(lambda frame: frame.ethertype < _LEAST_ETHERTYPE, seconds) is not None

    made.lab.node.ip(f"link set {at.WAN} type bridge stp_state 1 hello_time 100 forward_delay 200")
    try:
        assert is_sent(10), "the control: sent by default"
        assert text.count("table   = 1\n") == 1
        made.file.write_text(text.replace("table   = 1\n", "table = 1\nstp = false\n"))
        made.apply()
        assert not is_sent(1.5)
    finally:
        made.file.write_text(text)
        made.apply()
        made.lab.node.ip(f"link set {at.WAN} type bridge stp_state 0")
