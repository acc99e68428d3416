"""Test addresses of the storm, the packets that it builds, and the recognition of a sender in a frame."""

import socket
import struct

from tests.lab.frames import checksum

NOBODY = 65534
MARK = 1  # the uplink's mark, and its mask
WAN, MESH = "wan", "mesh"
MACS = {WAN: "02:00:5e:00:53:61", MESH: "02:00:5e:00:53:62"}
FAR_MAC = bytes.fromhex("02005e005370")
OWN = {
    4: {WAN: "192.0.2.2", MESH: "203.0.113.2"},
    6: {WAN: "2001:db8:1::2", MESH: "2001:db8:3::2"},
}
LINK_LOCAL = "fe80::5eff:fe00:5361"  # of the uplink, from its MACS (RFC 4291, appendix A)
GATEWAYS = {4: {WAN: "192.0.2.1", MESH: "203.0.113.1"}, 6: {WAN: "2001:db8:1::1", MESH: "2001:db8:3::1"}}
FAR = {4: "198.51.100.9", 6: "2001:db8:9::9"}  # behind the uplink
NEAR = {4: "192.0.2.77", 6: "2001:db8:1::77"}  # on the uplink's link
FORWARDED = {4: "203.0.113.50", 6: "2001:db8:3::50"}  # a host in the mesh
MULTICAST = {4: "239.1.2.3", 6: "ff0e::123"}


_TOKEN = b"nftpolicy storm "
FIRST_PORT = 20000  # source port of sender 0
MOST_SENDERS = 1000
DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
ARP = 0x0806
TCP, UDP, ICMP, ICMPV6, RAW = 6, 17, 1, 58, 255
SYN, RST, ACK, FLAGS = 0x02, 0x04, 0x10, 0x3F


def token(number: int) -> bytes:
    """Return the payload that names a sender."""
    return _TOKEN + struct.pack("!H", number)


def packed(family: int, address: str) -> bytes:
    """Return an address in network byte order."""
    return socket.inet_pton(DOMAIN[family], address)


def ip_packet(
    family: int, source: str, destination: str, protocol: int, body: bytes, hops: int = 64, fragment: int = 0
) -> bytes:
    """Return an IP packet; `fragment` is the field with flags and offset (IPv4 only)."""
    return ip_header(family, source, destination, protocol, len(body), hops, fragment) + body


def ip_header(
    family: int, source: str, destination: str, protocol: int, size: int, hops: int = 64, fragment: int = 0
) -> bytes:
    """Return the header of an IP packet with `size` bytes behind it."""
    ends = packed(family, source) + packed(family, destination)
    if family == 6:
        return struct.pack("!IHBB", 6 << 28, size, protocol, hops) + ends
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 7, fragment, hops, protocol, 0) + ends
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:]


def with_checksum(family: int, source: str, destination: str, protocol: int, body: bytes, at: int) -> bytes:
    """Return a transport packet with its checksum at an offset."""
    pseudo = b""
    if protocol != ICMP:
        pseudo = packed(family, source) + packed(family, destination) + struct.pack("!II", len(body), protocol)
    value = checksum(pseudo + body) or 0xFFFF
    return body[:at] + struct.pack("!H", value) + body[at + 2 :]


def datagram(family: int, source: str, destination: str, sport: int, dport: int, number: int) -> bytes:
    """Return a UDP datagram of a sender."""
    content = token(number)
    body = struct.pack("!HHHH", sport, dport, 8 + len(content), 0) + content
    return with_checksum(family, source, destination, UDP, body, 6)


def segment(
    family: int, source: str, destination: str, sport: int, dport: int, flags: int, numbers: tuple[int, int] = (1, 0)
) -> bytes:
    """Return a TCP segment without options."""
    body = struct.pack("!HHIIBBHHH", sport, dport, *numbers, 0x50, flags, 8192, 0, 0)
    return with_checksum(family, source, destination, TCP, body, 16)


def echo(family: int, source: str, destination: str, number: int, kind: int | None = None) -> bytes:
    """Return an echo request of a sender, or an ICMP packet of another type."""
    protocol, request = (ICMP, 8) if family == 4 else (ICMPV6, 128)
    body = struct.pack("!BBHHH", request if kind is None else kind, 0, 0, number, 1) + token(number)
    return with_checksum(family, source, destination, protocol, body, 2)


def sender_number(frame: bytes) -> int | None:
    """Return the number of the sender of a frame; None for a frame of somebody else."""
    at = frame.find(_TOKEN)
    if at >= 0:
        number: int = struct.unpack_from("!H", frame, at + len(_TOKEN))[0]
        return number
    tcp = segment_of(frame)
    if tcp is None or tcp[13] & FLAGS not in (SYN, RST, RST | ACK):
        return None
    sport, dport = struct.unpack("!HH", tcp[:4])
    # A SYN to a sender's port is the sender's own stimulus, from outside, which a router may send back there.
    for port in (sport,) if tcp[13] & FLAGS == SYN else (sport, dport):
        if FIRST_PORT <= port < FIRST_PORT + MOST_SENDERS:
            return int(port) - FIRST_PORT
    return None


def segment_of(frame: bytes) -> bytes | None:
    """Return the TCP segment in a frame, or None."""
    if frame[12:14] == b"\x08\x00" and frame[23] == TCP:
        return frame[14 + (frame[14] & 15) * 4 :]
    if frame[12:14] == b"\x86\xdd" and frame[20] == TCP:
        return frame[54:]
    return None
