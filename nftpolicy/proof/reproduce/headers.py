# SPDX-License-Identifier: BSD-2-Clause
"""Python expressions, as text, that build packets on the wire: headers, payloads, whole frames."""

from __future__ import annotations

from nftpolicy.model.packet import FORWARD, ICMP, ICMPV6, IGMP, TCP, UDP, Packet, format_address

from .topology import Topology

AF_CONSTANTS = {4: "socket.AF_INET", 6: "socket.AF_INET6"}
SYN, RST, ACK = 0x02, 0x04, 0x10
ARP = 0x0806
TTL, DSCP = {4: ("ip", "ttl"), 6: ("ip6", "hoplimit")}, {4: ("ip", "dscp"), 6: ("ip6", "dscp")}
ECN = {4: ("ip", "ecn"), 6: ("ip6", "ecn")}
FRAGMENT = ("ip", "frag-off")
_LENGTHS = frozenset({("meta", "length"), ("ip", "length"), ("ip6", "length"), ("udp", "length")})
# Fields that only a packet with its own header can have, if its protocol is not ICMP.
_WHOLE_FIELDS = frozenset(
    {
        ("ip", "id"),
        FRAGMENT,
        ("ip6", "flowlabel"),
        *(("tcp", name) for name in ("sequence", "ackseq", "window", "urgptr")),
    }
)
KNOWN_FIELDS = frozenset(
    {*_LENGTHS, *_WHOLE_FIELDS, *TTL.values(), *DSCP.values(), *ECN.values(), ("tcp", "flags"), ("igmp", "type"),
     *((header, name) for header in ("icmp", "icmpv6") for name in ("type", "code", "id", "sequence", "mtu")),
     ("icmp", "gateway"), ("ether", "type"), ("ether", "readable")}
)  # fmt: skip
_TOKEN_SIZE = 32  # bytes
_HEADER_SIZES = {4: 20, 6: 40}
_TRANSPORT_SIZES = {UDP: 8, TCP: 20, ICMP: 8, ICMPV6: 8, IGMP: 8}
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
    start = struct.pack("!BBHHH", 0x45, {tos}, 20 + len(body), {number}, {fragment})
    head = start + struct.pack("!BBH", {ttl}, protocol, 0) + source + destination
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body""",
    6: """\
    first = 0x60000000 | {tos} << 20 | {number}
    return struct.pack("!IHBB", first, len(body), protocol, {ttl}) + source + destination + body""",
}


def header_functions(packet: Packet) -> str:
    """Return the functions that the calls of `whole` need."""
    number = packet.fields.get(("ip", "id") if packet.family == 4 else ("ip6", "flowlabel"), 0)
    ttl, fragment = packet.fields.get(TTL[packet.family], 64), packet.fields.get(FRAGMENT, 0)
    header = _HEADER[packet.family].format(tos=traffic_class(packet), ttl=ttl, number=number, fragment=fragment)
    return _WHOLE.format(af=AF_CONSTANTS[packet.family], pseudo=_PSEUDO[packet.family], header=header)


def traffic_class(packet: Packet) -> int:
    """Return the byte of DSCP and ECN."""
    return packet.fields.get(DSCP[packet.family], 0) << 2 | packet.fields.get(ECN[packet.family], 0)


def needs_own_header(packet: Packet) -> bool:
    """Return True if a plain socket of the packet's protocol cannot set a field of it."""
    has_tcp_ecn = packet.protocol == TCP and ECN[packet.family] in packet.fields
    return has_tcp_ecn or any(name in _WHOLE_FIELDS for name in packet.fields)


def payload_text(packet: Packet) -> str:
    """Return the payload, as long as the length of the packet requires."""
    total = packet.fields.get(("meta", "length"))
    headers = _HEADER_SIZES[packet.family] + _TRANSPORT_SIZES.get(packet.protocol, 4)
    padding = 0 if total is None else total - headers - _TOKEN_SIZE
    return f"TOKEN + bytes({padding})" if padding > 0 else "TOKEN"


def udp_expression(sport: int, dport: int, payload: str = "TOKEN") -> str:
    """Return a UDP datagram."""
    return f'struct.pack("!HHHH", {sport}, {dport}, 8 + len({payload}), 0) + {payload}'


def tcp_expression(
    sport: int,
    dport: int,
    flags: int,
    sequence: str = "1, 0",
    payload: str = "TOKEN",
    window: int = 0xFFFF,
    urgent: int = 0,
) -> str:
    """Return a TCP segment; `sequence` is "sequence number, acknowledgement number"."""
    ports, end = f"{sport}, {dport}", f"{window:#06x}, {urgent}"
    head = f'struct.pack("!HHIIBBHI", {ports}, {sequence}, 0x50, {flags:#04x}, {end})'
    return f"{head} + {payload}" if payload else head


def icmp_expression(kind: int, code: int = 0, payload: str = "TOKEN", second_half: str = "1, 1") -> str:
    """Return an ICMP message; an echo has the identifier 1. `second_half` of its header is two numbers."""
    return f'struct.pack("!BBHHH", {kind}, {code}, 0, {second_half}) + {payload}'


def echo_types(packet: Packet) -> tuple[int, int]:
    """Return the types of an echo request and of its reply."""
    return (8, 0) if packet.family == 4 else (128, 129)


def icmp_type_code(packet: Packet) -> tuple[int, int]:
    """Return type and code of an ICMP packet; by default those of an echo request."""
    name = "icmp" if packet.protocol == ICMP else "icmpv6"
    echo_request = 8 if packet.protocol == ICMP else 128
    return packet.fields.get((name, "type"), echo_request), packet.fields.get((name, "code"), 0)


def _icmp_second_half(packet: Packet) -> str:
    """Return the second half of an ICMP header, as two numbers of 16 bits."""
    fields = {name: value for (_, name), value in packet.fields.items()}
    upper, lower = fields.get("id", 1), fields.get("sequence", 1)
    if "mtu" in fields and packet.protocol == ICMP:
        upper, lower = 0, fields["mtu"]
    elif "mtu" in fields or "gateway" in fields:
        upper, lower = divmod(fields.get("mtu", fields.get("gateway", 0)), 1 << 16)
    return f"{upper}, {lower}"


def transport_expression(packet: Packet) -> tuple[str, int | None]:
    """Return the transport header with payload, and the offset of its checksum or None."""
    payload = payload_text(packet)
    if packet.protocol == UDP:
        return udp_expression(packet.sport, packet.dport, payload), 6
    if packet.protocol == TCP:
        field = {name: value for (header, name), value in packet.fields.items() if header == "tcp"}
        sequence = f"{field.get('sequence', 1)}, {field.get('ackseq', 0)}"
        flags, window, urgent = field.get("flags", SYN), field.get("window", 0xFFFF), field.get("urgptr", 0)
        return tcp_expression(packet.sport, packet.dport, flags, sequence, payload, window, urgent), 16
    if packet.protocol in (ICMP, ICMPV6):
        return icmp_expression(*icmp_type_code(packet), payload, _icmp_second_half(packet)), 2
    if packet.protocol == IGMP:
        return f'struct.pack("!BBHI", {packet.fields.get(("igmp", "type"), 0x16)}, 0, 0, 0) + {payload}', 2
    return f'struct.pack("!HH", {packet.sport}, {packet.dport}) + {payload}', None


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
    """Return the two bytes of the ethertype in the link header."""
    return repr(packet.frame_type.to_bytes(2, "big"))


def mac_bytes(text: str) -> str:
    """Return the six bytes of a link-layer address."""
    return repr(bytes.fromhex(text.replace(":", "")))


def inject_line(packet: Packet, scene: Topology, arrival: str, inner: str) -> str:
    """Return the line that makes a packet arrive by a device."""
    head = f"{mac_bytes(scene.require_device(arrival).mac)} + bytes(6) + {ethertype_bytes(packet)}"
    return f"outside.sendto({head} + {inner}, ({arrival!r}, {packet.protocol_number:#06x}))"
