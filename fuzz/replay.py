"""Packets of a refutation, sent as they are: from a socket, an AF_PACKET socket, or another host.

A packet that no sender here can make is not sent: one of a flow with earlier packets, one from a device that the
machine does not have, or one with header fields that are not in the tables below.
"""

import contextlib
import socket
import struct
from collections.abc import Mapping, Sequence

from nftpolicy.model.conntrack import can_begin_flow
from nftpolicy.model.packet import FORWARD, FRAME, SOCKET, CtInfo, Packet, format_address
from nftpolicy.proof.verdict import describe_packet

from . import storm
from .storm_machine import PATIENT, Machine, fs_owner
from .storm_packets import (
    ARP,
    DOMAIN,
    ETHERTYPE,
    ICMP,
    ICMPV6,
    LINK_LOCAL,
    MESH,
    OWN,
    RAW,
    SYN,
    TCP,
    UDP,
    WAN,
    checksum,
    ip_header,
    token,
    with_checksum,
)

_NUMBER = 999  # of the packets that are sent again
_HEADER_INCLUDED = {4: (socket.IPPROTO_IP, 3), 6: (socket.IPPROTO_IPV6, 36)}  # IP_HDRINCL, IPV6_HDRINCL
# Field -> offset and length in bits, in the IP header and in that of the transport.
_NETWORK_FIELDS = {
    ("ip", "frag-off"): (48, 16), ("ip", "dscp"): (8, 6), ("ip", "ecn"): (14, 2),
    ("ip", "id"): (32, 16), ("ip", "ttl"): (64, 8),
    ("ip6", "dscp"): (4, 6), ("ip6", "ecn"): (10, 2), ("ip6", "flowlabel"): (12, 20), ("ip6", "hoplimit"): (56, 8),
}  # fmt: skip
_HOPS = (("ip", "ttl"), ("ip6", "hoplimit"))
_TRANSPORT_FIELDS = {
    ("tcp", "flags"): (104, 8), ("tcp", "window"): (112, 16), ("tcp", "sequence"): (32, 32),
    ("tcp", "ackseq"): (64, 32), ("icmp", "type"): (0, 8), ("icmp", "code"): (8, 8), ("icmp", "id"): (32, 16),
    ("icmp", "sequence"): (48, 16), ("icmpv6", "type"): (0, 8), ("icmpv6", "code"): (8, 8),
    ("icmpv6", "id"): (32, 16), ("icmpv6", "sequence"): (48, 16), ("igmp", "type"): (0, 8),
}  # fmt: skip
_NEEDS_CHUNKS = (33, 47, 132, 136)  # DCCP, GRE, SCTP, UDPLITE: without more than ports, conntrack says "invalid"
_ETHER_TYPE = ("ether", "type")


def replay(machine: Machine, packets: Sequence[Packet]) -> dict[str, bool]:
    """Send the packets that can be sent; return whether each left by the uplink, by its description."""
    results: dict[str, bool] = {}
    for packet in packets:
        if not can_send(packet):
            continue
        machine.arrivals()
        with contextlib.suppress(OSError):
            _send(machine, packet)
        has_left = _NUMBER in machine.arrivals() or _NUMBER in machine.arrivals(PATIENT)
        results[describe_packet(packet, with_details=True)] = has_left
    return results


def can_send(packet: Packet) -> bool:
    """Return True if a sender can make the packet."""
    known = {*_NETWORK_FIELDS, *_TRANSPORT_FIELDS}
    if packet.origin == FRAME:  # which connection tracking does not see
        return packet.fields.keys() <= known | {_ETHER_TYPE} and packet.bound in (None, WAN)
    if (
        packet.protocol in _NEEDS_CHUNKS
        or packet.flow != CtInfo("new" if can_begin_flow(packet.family, packet.protocol, packet.fields) else "invalid")
        or packet.ethertype is not None
        or packet.cgroup is not None
    ):
        return False
    if packet.origin == FORWARD:  # the model does not say whether hops are counted before or after
        return packet.iif == MESH and packet.fields.keys() <= known - {*_HOPS}
    return (
        packet.origin == SOCKET and packet.fields.keys() <= known and not (packet.protocol == UDP and not packet.dport)
    )


def _send(machine: Machine, packet: Packet) -> None:
    if packet.origin == FORWARD:
        machine.inject(str(packet.iif), packet.family, _whole(packet))
    elif packet.origin == FRAME:
        is_ip = packet.protocol_number in ETHERTYPE.values() and packet.frame_type != ARP
        content = _whole(packet) if is_ip else token(_NUMBER).rjust(64, b"\0")
        owner = (packet.uid, packet.gid)
        machine.send_frame(packet.frame_type, content, packet.mark, packet.protocol_number, owner)
    elif packet.protocol == UDP and packet.sport and not packet.fields:  # for a socket, port 0 is any port
        storm.send_datagram(packet, *_ends(packet, ""), _NUMBER)
    else:
        _send_raw(packet)


def _send_raw(packet: Packet) -> None:
    """Send a packet with its header by a raw socket, whose file belongs to the packet's user."""
    with fs_owner((packet.uid, packet.gid)):
        made = socket.socket(DOMAIN[packet.family], socket.SOCK_RAW, RAW)
    with made:
        made.setsockopt(*_HEADER_INCLUDED[packet.family], 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", packet.mark))
        if packet.bound:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, packet.bound.encode())
        made.sendto(_whole(packet), (_ends(packet)[1], 0))


def _ends(packet: Packet, unnamed: str | None = None) -> tuple[str, str]:
    """Return source and destination; `unnamed` is the source of a packet without one, by default the uplink's."""
    family, destination = packet.family, format_address(packet.family, packet.destination)
    own = LINK_LOCAL if destination.startswith("fe80:") else OWN[family][WAN]
    default = own if unnamed is None else unnamed
    source = default if packet.source is None else format_address(family, packet.source)
    return source, destination


def _whole(packet: Packet) -> bytes:
    """Return the packet with its IP header."""
    source, destination = _ends(packet)
    body, checksum_offset = _transport(packet)
    body = _with_fields(body, packet.fields, _TRANSPORT_FIELDS)
    if checksum_offset is not None:
        body = with_checksum(packet.family, source, destination, packet.protocol, body, checksum_offset)
    header = ip_header(packet.family, source, destination, packet.protocol, len(body))
    header = _with_fields(header, packet.fields, _NETWORK_FIELDS)
    if packet.family == 4:
        header = header[:10] + bytes(2) + header[12:]
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return header + body


def _transport(packet: Packet) -> tuple[bytes, int | None]:
    """Return the transport header with the token behind it, and the offset of its checksum."""
    content = token(_NUMBER)
    ports = struct.pack("!HH", packet.sport, packet.dport)
    if packet.protocol == TCP:
        return ports + struct.pack("!IIBBHHH", 1, 0, 0x50, SYN, 8192, 0, 0) + content, 16
    if packet.protocol == UDP:
        return ports + struct.pack("!HH", 8 + len(content), 0) + content, 6
    if packet.protocol in (ICMP, ICMPV6):
        kind = 8 if packet.protocol == ICMP else 128
        return struct.pack("!BBHHH", kind, 0, 0, 0, 1) + content, 2
    return ports + bytes(4) + content, None


def _with_fields(
    header: bytes, fields: Mapping[tuple[str, str], int], offsets: Mapping[tuple[str, str], tuple[int, int]]
) -> bytes:
    """Return a header with the values of the fields that `offsets` has."""
    number, size = int.from_bytes(header, "big"), 8 * len(header)
    for field, value in fields.items():
        if field in offsets:
            offset, length = offsets[field]
            shift = size - offset - length
            number = number & ~(((1 << length) - 1) << shift) | value << shift
    return number.to_bytes(len(header), "big")
