# SPDX-License-Identifier: BSD-2-Clause
"""A packet as nft sees it at one hook (struct nft_pktinfo)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import Factory, mutable

from .packet import ETHERTYPES, ICMP, ICMPV6, Packet

SYN, ACK = 2, 16
# Header fields that a packet leaves open, as they commonly are.
_COMMON = {
    ("ip", "ttl"): 64,
    ("ip6", "hoplimit"): 64,
    **{(protocol, name): 0 for protocol in ("ip", "ip6") for name in ("dscp", "ecn")},
    ("ip", "hdrlength"): 5,
}


# By protocol: its name, and the types of an echo request, an echo reply and "destination
# unreachable".
_ICMP_TYPES = {ICMP: ("icmp", 8, 0, 3), ICMPV6: ("icmpv6", 128, 129, 1)}


@mutable
class PacketView:
    """The packet data that rules read and write. Addresses are integers.

    A trace makes one per packet and changes `iif` and `oif` from hook to hook. `uid` and `gid` are
    None for a packet without a socket. `status` holds the names of `ct status` ("dnat", "snat",
    ...), without "confirmed": `is_confirmed` is None if that bit is not known.
    """

    family: int
    source: int
    destination: int
    protocol: int
    sport: int
    dport: int
    mark: int = 0
    ct_mark: int = 0
    ct_state: str = "new"
    ct_direction: str = "original"
    iif: str | None = None
    oif: str | None = None
    uid: int | None = None
    gid: int | None = None
    cgroup: str | None = None
    ethertype: int | None = None  # None: the ethertype of the family
    fields: Mapping[tuple[str, str], int] = Factory(dict)
    origin: str = "socket"
    status: frozenset[str] = frozenset()
    is_confirmed: bool | None = None
    # Written by rules. `new_source` is None for an address that only the trace can determine
    # (masquerade), and so is the destination of a packet that a prerouting chain redirected.
    dnat: bool = False
    snat: bool = False
    new_source: int | None = None
    is_redirected: bool = False
    is_diverted: bool = False  # assigned to a local socket (tproxy)
    notrack: bool = False
    link_types: Mapping[str, int] = Factory(dict)  # hardware types of devices that are not Ethernet, by name
    # Evaluates fib expressions: (result, keys, view) -> name of a type or a device, None if not
    # known.
    fib: Callable[[str, tuple[str, ...], PacketView], str | None] | None = None

    @classmethod
    def from_packet(cls, packet: Packet, source: int, iif: str | None = None, oif: str | None = None) -> PacketView:
        """Return the packet as its first hook sees it.

        `source` is the address that the kernel selected.
        """
        flow, has_socket = packet.flow, packet.has_socket
        return cls(
            packet.family,
            source,
            packet.destination,
            packet.protocol,
            packet.sport,
            packet.dport,
            packet.mark,
            flow.mark,
            flow.state,
            flow.direction,
            iif,
            oif,
            packet.uid if has_socket else None,
            packet.gid if has_socket else None,
            packet.cgroup if has_socket else None,
            packet.ethertype,
            packet.fields,
            packet.origin,
            is_confirmed=flow.has_earlier_packet,
        )

    def drop_socket(self) -> None:
        """Remove the socket's data, as the loopback device does (skb_orphan)."""
        self.uid = self.gid = self.cgroup = None

    def header_field(self, protocol: str, name: str) -> int | None:
        """Return a header field, with the common value if the packet leaves it open.

        None: not known.
        """
        value = self.fields.get((protocol, name), _COMMON.get((protocol, name)))
        if value is not None:
            # The kernel decrements the hop limit of a forwarded packet before its hooks.
            is_forwarded = self.iif is not None and self.oif is not None
            return value - 1 if is_forwarded and name in ("ttl", "hoplimit") else value
        if (protocol, name) == ("tcp", "flags"):
            return SYN if (self.ct_state, self.ct_direction) == ("new", "original") else ACK
        if name in ("type", "code") and self.protocol in _ICMP_TYPES:
            own_protocol, request, reply, error = _ICMP_TYPES[self.protocol]
            if own_protocol != protocol:
                return None
            if name == "code":
                return 0
            if self.ct_state == "related":
                return error
            return reply if self.ct_direction == "reply" else request
        return None

    @property
    def protocol_number(self) -> int:
        """Return the ethertype."""
        return self.ethertype if self.ethertype is not None else ETHERTYPES[self.family]
