"""Parser of Ethernet frames: the kind of a frame in one word, and the few fields that tests need; the checksum. Pure."""

import functools
import ipaddress
import struct
from dataclasses import dataclass

ETH_IPV4, ETH_IPV6, ETH_ARP, ETH_VLAN = 0x0800, 0x86DD, 0x0806, 0x8100
ETH_PRIVATE = 0x88B5  # for experiments, IEEE 802
TCP, UDP, ICMP, ICMPV6, IGMP, UDPLITE = 6, 17, 1, 58, 2, 136

_EXTENSIONS = {0, 43, 60}  # hop-by-hop (MLD has one), routing, destination options: all of one shape
_FRAGMENT = 44

_ICMP_WORDS = {0: "echo-reply", 8: "echo-request", 5: "redirect"} | dict.fromkeys((3, 4, 11, 12), "icmp-error")
_ICMPV6_WORDS = (
    {128: "echo-request", 129: "echo-reply", 134: "router-advertisement", 137: "redirect"}
    | dict.fromkeys((1, 2, 3, 4), "icmp-error")
    | dict.fromkeys((133, 135, 136), "ndp")
    | dict.fromkeys((130, 131, 132, 143), "mld")
)
_PORT_WORDS = {  # only the exact pairs: anybody can send from or to one of these ports
    (4, 68, 67): "dhcpv4",
    (4, 67, 68): "dhcpv4",
    (6, 546, 547): "dhcpv6",
    (6, 547, 546): "dhcpv6",
}
_PROTOCOL_WORDS = {TCP: "tcp", UDP: "udp"}


@dataclass(frozen=True, slots=True)
class Frame:
    """Frame as it was on the wire.

    Addresses are text; those of ARP are the protocol addresses of sender and target. Fields that the frame does not
    have are None. `payload` follows the last header that was parsed; `length` is in bytes, of the whole frame.
    """

    ethertype: int
    src_mac: str
    saddr: str | None = None
    daddr: str | None = None
    l4proto: int | None = None
    sport: int | None = None
    dport: int | None = None
    icmp_type: int | None = None
    payload: bytes = b""
    length: int = 0

    @property
    def family(self) -> int | None:
        """4, 6, or None for what is not IP."""
        return {ETH_IPV4: 4, ETH_IPV6: 6}.get(self.ethertype)


def classify(frame: Frame) -> str:
    """Return the kind of a frame.

    Kinds are arp, dhcpv4, dhcpv6, ndp, mld, igmp, router-advertisement, redirect, icmp-error, echo-reply, echo-request,
    tcp, udp, other-ip and other-ethertype.
    """
    if frame.ethertype == ETH_ARP:
        return "arp"
    family = frame.family
    if family is None:
        return "other-ethertype"
    if frame.icmp_type is not None:
        return (_ICMP_WORDS if family == 4 else _ICMPV6_WORDS).get(frame.icmp_type, "other-ip")
    if frame.l4proto == UDP:
        return _PORT_WORDS.get((family, frame.sport or 0, frame.dport or 0), "udp")
    if (family, frame.l4proto) == (4, IGMP):
        return "igmp"
    return _PROTOCOL_WORDS.get(frame.l4proto or 0, "other-ip")


def parse(raw: bytes) -> Frame:
    """Parse a frame; truncated or unknown parts stay in `payload`, and no frame of 14 bytes or more is an error.

    Raises ValueError if there is no whole Ethernet header.
    """
    if len(raw) < 14:
        raise ValueError(f"a frame has 14 bytes at least, this one {len(raw)}")
    ethertype = int.from_bytes(raw[12:14], "big")
    src_mac = raw[6:12].hex(":")
    read = {ETH_IPV4: _ipv4, ETH_IPV6: _ipv6, ETH_ARP: _arp}.get(ethertype, _nothing)
    try:
        fields = read(raw[14:])
    except (struct.error, IndexError, ValueError):
        fields = _nothing(raw[14:])
    return Frame(ethertype=ethertype, src_mac=src_mac, length=len(raw), **fields)  # type: ignore[arg-type]


def _nothing(body: bytes) -> dict[str, object]:
    return {"payload": body}


@functools.lru_cache(4096)
def _address(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw))


def _arp(body: bytes) -> dict[str, object]:
    if len(body) < 28:
        return _nothing(body)
    return {"saddr": _address(body[14:18]), "daddr": _address(body[24:28]), "payload": body[28:]}


def _ipv4(body: bytes) -> dict[str, object]:
    total, offset = struct.unpack("!H", body[2:4])[0], struct.unpack("!H", body[6:8])[0] & 0x1FFF
    fields = {"saddr": _address(body[12:16]), "daddr": _address(body[16:20]), "l4proto": body[9]}
    rest = body[(body[0] & 15) * 4 : total]
    return fields | ({"payload": rest} if offset else _transport(body[9], rest))


def _ipv6(body: bytes) -> dict[str, object]:
    total = 40 + struct.unpack("!H", body[4:6])[0]
    fields: dict[str, object] = {"saddr": _address(body[8:24]), "daddr": _address(body[24:40])}
    protocol, rest, offset = body[6], body[40:total], 0
    while protocol in _EXTENSIONS or protocol == _FRAGMENT:
        if protocol == _FRAGMENT:
            size, offset = 8, offset | (struct.unpack("!H", rest[2:4])[0] >> 3)
        else:
            size = 8 + 8 * rest[1]
        protocol, rest = rest[0], rest[size:]
        if offset:
            break  # a later fragment begins in the middle of something
    fields["l4proto"] = protocol
    return fields | ({"payload": rest} if offset else _transport(protocol, rest))


def _transport(protocol: int, rest: bytes) -> dict[str, object]:
    if protocol in (UDP, UDPLITE, TCP):
        sport, dport = struct.unpack("!HH", rest[:4])
        header = (rest[12] >> 4) * 4 if protocol == TCP else 8
        return {"sport": sport, "dport": dport, "payload": rest[header:]}
    if protocol in (ICMP, ICMPV6):
        return {"icmp_type": rest[0], "payload": rest[8:]}
    return {"payload": rest}


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    even = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(even) // 2}H", even))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
