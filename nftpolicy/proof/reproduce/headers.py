# SPDX-License-Identifier: BSD-2-Clause
"""Python expressions, as text, that build packets on the wire: headers, payloads, whole frames."""

from __future__ import annotations

from nftpolicy.model.packet import FORWARD, ICMP, ICMPV6, TCP, UDP, Packet, format_address

from .topology import Topology

AF_CONSTANTS = {4: "socket.AF_INET", 6: "socket.AF_INET6"}
SYN, RST, ACK = 0x02, 0x04, 0x10
ARP = 0x0806
TTL, DSCP = {4: ("ip", "ttl"), 6: ("ip6", "hoplimit")}, {4: ("ip", "dscp"), 6: ("ip6", "dscp")}
# Source of a packet from another host, if the packet has none.
_REMOTE_SOURCE = {4: "198.51.100.77", 6: "2001:db8:77::77"}
TRANSPORT_OFFSET, PROTOCOL_OFFSET = {4: 34, 6: 54}, {4: 23, 6: 20}  # offsets in a frame

_WHOLE = '''
def checksum(data):
    """Return the Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{{len(data) // 2}}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF

def whole(source, destination, protocol, body, checksum_offset=None):
    """Return the packet with its header; `checksum_offset` is in the body, in bytes."""
    source, destination = (socket.inet_pton({af}, address) for address in (source, destination))
    if checksum_offset:
        pseudo = {pseudo}
        body = body[:checksum_offset] + struct.pack("!H", checksum(pseudo + body)) + body[checksum_offset + 2:]
{header}
'''
_PSEUDO = {
    4: 'b"" if protocol == 1 else source + destination + struct.pack("!HH", protocol, len(body))',
    6: 'source + destination + struct.pack("!II", len(body), protocol)',
}
_HEADER = {
    4: """\
    head = struct.pack("!BBHIBBH", 0x45, {tos}, 20 + len(body), 0, {ttl}, protocol, 0) + source + destination
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body""",
    6: """\
    return struct.pack("!IHBB", 0x60000000 | {tos} << 20, len(body), protocol, {ttl}) + source + destination + body""",
}


def header_functions(packet: Packet) -> str:
    """Return the functions that the calls of `whole` need."""
    tos = packet.fields.get(DSCP[packet.family], 0) << 2
    ttl = packet.fields.get(TTL[packet.family], 64)
    header = _HEADER[packet.family].format(tos=tos, ttl=ttl)
    return _WHOLE.format(af=AF_CONSTANTS[packet.family], pseudo=_PSEUDO[packet.family], header=header)


def udp_expression(sport: int, dport: int, payload: str = "TOKEN") -> str:
    """Return a UDP datagram."""
    return f'struct.pack("!HHHH", {sport}, {dport}, 8 + len({payload}), 0) + {payload}'


def tcp_expression(sport: int, dport: int, flags: int, sequence: str = "1, 0", payload: str = "TOKEN") -> str:
    """Return a TCP segment; `sequence` is "sequence number, acknowledgement number"."""
    head = f'struct.pack("!HHIIBBHI", {sport}, {dport}, {sequence}, 0x50, {flags:#04x}, 0xFFFF, 0)'
    return f"{head} + {payload}" if payload else head


def icmp_expression(kind: int, code: int = 0, payload: str = "TOKEN") -> str:
    """Return an ICMP message; an echo has the identifier 1."""
    return f'struct.pack("!BBHHH", {kind}, {code}, 0, 1, 1) + {payload}'


def echo_types(packet: Packet) -> tuple[int, int]:
    """Return the types of an echo request and of its reply."""
    return (8, 0) if packet.family == 4 else (128, 129)


def icmp_type_code(packet: Packet) -> tuple[int, int]:
    """Return type and code of an ICMP packet; by default those of an echo request."""
    name = "icmp" if packet.protocol == ICMP else "icmpv6"
    echo_request = 8 if packet.protocol == ICMP else 128
    return packet.fields.get((name, "type"), echo_request), packet.fields.get((name, "code"), 0)


def transport_expression(packet: Packet) -> tuple[str, int | None]:
    """Return the transport header with payload, and the offset of its checksum or None."""
    if packet.protocol == UDP:
        return udp_expression(packet.sport, packet.dport), 6
    if packet.protocol == TCP:
        return tcp_expression(packet.sport, packet.dport, packet.fields.get(("tcp", "flags"), SYN)), 16
    if packet.protocol in (ICMP, ICMPV6):
        return icmp_expression(*icmp_type_code(packet)), 2
    return f'struct.pack("!HH", {packet.sport}, {packet.dport}) + TOKEN', None


def source_address(packet: Packet, device: str, scene: Topology) -> str:
    """Return the source of the packet, or a suitable address."""
    if packet.source is not None:
        return format_address(packet.family, packet.source)
    own = None if packet.origin == FORWARD else scene.device_address(packet.bound or device)
    return own or _REMOTE_SOURCE[packet.family]


def packet_expression(source: str, destination: str, protocol: int, inner: tuple[str, int | None]) -> str:
    """Return the call that builds a packet with its headers."""
    text, checksum_offset = inner
    return f"whole({source!r}, {destination!r}, {protocol}, {text}{f', {checksum_offset}' if checksum_offset else ''})"


def ethertype_bytes(packet: Packet) -> str:
    """Return the two bytes of the ethertype."""
    return repr(packet.protocol_number.to_bytes(2, "big"))


def mac_bytes(text: str) -> str:
    """Return the six bytes of a link-layer address."""
    return repr(bytes.fromhex(text.replace(":", "")))


def inject_line(packet: Packet, scene: Topology, arrival: str, inner: str) -> str:
    """Return the line that makes a packet arrive by a device."""
    head = f"{mac_bytes(scene.require_device(arrival).mac)} + bytes(6) + {ethertype_bytes(packet)}"
    return f"outside.sendto({head} + {inner}, ({arrival!r}, {packet.protocol_number:#06x}))"
