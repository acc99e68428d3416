# SPDX-License-Identifier: BSD-2-Clause
"""Parser of captured packets, from the network header on. Pure."""

from __future__ import annotations

from ipaddress import ip_address

from attrs import frozen

from ...kernel.ip_packet import ACK, ICMP, ICMPV6, SYN, TCP, UDP
from ...kernel.packet_sender import ETHERTYPES

_VLANS = frozenset((0x8100, 0x88A8))  # ethertypes of 802.1Q and 802.1ad
_VLAN_TAG_SIZE = 4  # bytes: tag, ethertype
# IPv4 header, RFC 791.
_IPV4_SIZE, _IPV4_TTL, _IPV4_PROTOCOL, _IPV4_SOURCE, _IPV4_DESTINATION = 20, 8, 9, 12, 16
_IHL_MASK, _IHL_UNIT = 0x0F, 4
# IPv6 header, RFC 8200.
_IPV6_SIZE, _IPV6_NEXT_HEADER, _IPV6_HOP_LIMIT, _IPV6_SOURCE, _IPV6_DESTINATION = 40, 6, 7, 8, 24
_EXTENSIONS, _FRAGMENT = frozenset((0, 43, 60)), 44  # hop-by-hop, routing, destination options
_EXTENSION_UNIT = 8  # bytes; also the size of a fragment header
# TCP header, RFC 9293.
_TCP_SIZE, _TCP_FLAGS = 20, 13
_PORTS_SIZE = 4
_NAMES = {TCP: "TCP SYN", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6"}


@frozen
class ObservedPacket:
    """Outermost IP packet of a captured frame.

    `payload` follows the IP header and its extensions. `protocol` is None for a frame that is not
    IP; its `payload` is the whole frame.
    """

    ethertype: int
    payload: bytes
    protocol: int | None = None
    source: str = ""
    destination: str = ""
    hop_limit: int = 0

    @property
    def ports(self) -> tuple[int, int] | None:
        """Source and destination port of TCP and UDP; None for other protocols."""
        if self.protocol not in (TCP, UDP) or len(self.payload) < _PORTS_SIZE:
            return None
        return int.from_bytes(self.payload[:2], "big"), int.from_bytes(self.payload[2:4], "big")

    def __str__(self) -> str:
        if self.protocol is None:
            return f"a frame of type {self.ethertype:#06x}"
        name = _NAMES.get(self.protocol, f"protocol {self.protocol}")
        if self.protocol == TCP and len(self.payload) > _TCP_FLAGS and self.payload[_TCP_FLAGS] & ACK:
            name = "TCP SYN/ACK"
        source, destination = self.source, self.destination
        if self.ports:
            sport, dport = self.ports
            source, destination = f"{_host(source)}:{sport}", f"{_host(destination)}:{dport}"
        return f"{name} {source} > {destination}, hop limit {self.hop_limit}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def parse_packet(ethertype: int, data: bytes) -> ObservedPacket:
    """Parse a frame from behind its link header on. A truncated packet counts as not IP."""
    ethertype, data = _without_vlan_tags(ethertype, data)
    if ethertype == ETHERTYPES[4] and len(data) >= _IPV4_SIZE:
        return ObservedPacket(
            ethertype,
            data[(data[0] & _IHL_MASK) * _IHL_UNIT :],
            data[_IPV4_PROTOCOL],
            str(ip_address(data[_IPV4_SOURCE : _IPV4_SOURCE + 4])),
            str(ip_address(data[_IPV4_DESTINATION : _IPV4_DESTINATION + 4])),
            data[_IPV4_TTL],
        )
    if ethertype == ETHERTYPES[6] and len(data) >= _IPV6_SIZE:
        protocol, payload = _skip_extensions(data[_IPV6_NEXT_HEADER], data[_IPV6_SIZE:])
        return ObservedPacket(
            ethertype,
            payload,
            protocol,
            str(ip_address(data[_IPV6_SOURCE : _IPV6_SOURCE + 16])),
            str(ip_address(data[_IPV6_DESTINATION : _IPV6_DESTINATION + 16])),
            data[_IPV6_HOP_LIMIT],
        )
    return ObservedPacket(ethertype, data)


def _without_vlan_tags(ethertype: int, data: bytes) -> tuple[int, bytes]:
    while ethertype in _VLANS and len(data) >= _VLAN_TAG_SIZE:
        ethertype, data = int.from_bytes(data[2:4], "big"), data[_VLAN_TAG_SIZE:]
    return ethertype, data


def _skip_extensions(protocol: int, data: bytes) -> tuple[int, bytes]:
    while len(data) >= _EXTENSION_UNIT and (protocol in _EXTENSIONS or protocol == _FRAGMENT):
        size = _EXTENSION_UNIT if protocol == _FRAGMENT else _EXTENSION_UNIT * (1 + data[1])
        protocol, data = data[0], data[size:]
    return protocol, data


def may_be_syn(ethertype: int, data: bytes) -> bool:
    """Return True if the frame may be a TCP SYN.

    A quick test, since it runs on all captured traffic.
    """
    ethertype, data = _without_vlan_tags(ethertype, data)
    if ethertype == ETHERTYPES[4] and len(data) >= _IPV4_SIZE + _TCP_SIZE:
        protocol, size = data[_IPV4_PROTOCOL], (data[0] & _IHL_MASK) * _IHL_UNIT
    elif ethertype == ETHERTYPES[6] and len(data) >= _IPV6_SIZE + _TCP_SIZE:
        protocol, size = data[_IPV6_NEXT_HEADER], _IPV6_SIZE
    else:
        return False
    flags_offset = size + _TCP_FLAGS
    return protocol == TCP and len(data) > flags_offset and data[flags_offset] & (SYN | ACK) == SYN
