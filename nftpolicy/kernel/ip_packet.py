# SPDX-License-Identifier: BSD-2-Clause
"""Bytes of whole IP packets, for programs that write their own headers. Pure."""

from __future__ import annotations

import struct
from ipaddress import ip_address

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
SYN, ACK = 2, 16  # flags of TCP, RFC 9293
_ECHO_REQUESTS = {4: 8, 6: 128}  # ICMP and ICMPv6 types
_CHECKSUM_OFFSETS = {ICMP: 2, ICMPV6: 2, TCP: 16, UDP: 6}  # bytes in the protocol's header
_IPV4_CHECKSUM = 10
_WINDOW = 1024


def udp_segment(sport: int, dport: int, payload: bytes) -> bytes:
    """Return a UDP datagram without its checksum."""
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def tcp_segment(sport: int, dport: int, flags: int, payload: bytes) -> bytes:
    """Return a TCP segment without options and without its checksum."""
    return struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 5 << 4, flags, _WINDOW, 0, 0) + payload


def echo_request(family: int, payload: bytes) -> bytes:
    """Return an echo request of ICMP or ICMPv6 without its checksum."""
    return struct.pack("!BBHHH", _ECHO_REQUESTS[family], 0, 0, 1, 1) + payload


def ip_packet(family: int, source: str, destination: str, protocol: int, segment: bytes, hop_limit: int) -> bytes:
    """Return an IP packet, with the checksum of its segment: ICMP, ICMPv6, TCP or UDP."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    # ICMP has no pseudo-header. That of IPv4 gives the same sum as that of IPv6, RFC 8200 section 8.1.
    pseudo_header = b"" if protocol == ICMP else addresses + struct.pack("!II", len(segment), protocol)
    segment = _insert(segment, _CHECKSUM_OFFSETS[protocol], checksum(pseudo_header + segment) or 0xFFFF)
    if family == 6:
        return struct.pack("!IHBB", 6 << 28, len(segment), protocol, hop_limit) + addresses + segment
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, hop_limit, protocol, 0) + addresses
    return _insert(header, _IPV4_CHECKSUM, checksum(header)) + segment


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    even = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(even) // 2}H", even))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _insert(data: bytes, offset: int, number: int) -> bytes:
    return data[:offset] + struct.pack("!H", number) + data[offset + 2 :]
