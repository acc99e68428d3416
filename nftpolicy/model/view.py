# SPDX-License-Identifier: BSD-2-Clause
"""A packet as nft sees it at one hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import Factory, mutable

from .packet import ETHERTYPES, ICMP, ICMPV6, Packet

SYN, ACK = 2, 16
_COMMON = {
    ("ip", "ttl"): 64,
    ("ip6", "hoplimit"): 64,
    **{(protocol, name): 0 for protocol in ("ip", "ip6") for name in ("dscp", "ecn")},
    ("ip", "frag-off"): 0,
    ("ip", "hdrlength"): 5,
}


# Types by protocol: of a question, of an answer, and of an error.
_OF_ICMP = {ICMP: ("icmp", 8, 0, 3), ICMPV6: ("icmpv6", 128, 129, 1)}


@mutable
class View:
    """What rules read of a packet, and what they have written. Addresses are integers.

    The walk makes one per packet and changes `iif` and `oif` from hook to hook. `uid` and `gid` are None for
    a packet without a socket. `status` holds the names of `ct status` ("dnat", "snat", ...).
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
    ethertype: int | None = None  # None: that of the family
    fields: Mapping[tuple[str, str], int] = Factory(dict)
    origin: str = "socket"
    status: frozenset[str] = frozenset()
    # Written by rules. `new_source` is None for an address that only the walk can know (masquerade), and so is the
    # destination of what was redirected as it arrived.
    dnat: bool = False
    snat: bool = False
    new_source: int | None = None
    redirected: bool = False
    notrack: bool = False
    # Answers fib expressions: (result, keys, view) -> a type's or a device's name, None if it is not known.
    fib: Callable[[str, tuple[str, ...], View], str | None] | None = None

    @classmethod
    def of(cls, packet: Packet, source: int, iif: str | None = None, oif: str | None = None) -> View:
        """The packet as its first hook sees it; `source` is the address that the kernel chose if it had none."""
        flow, owned = packet.flow, packet.has_socket
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
            packet.uid if owned else None,
            packet.gid if owned else None,
            packet.cgroup if owned else None,
            packet.ethertype,
            packet.fields,
            packet.origin,
        )

    def header(self, protocol: str, name: str) -> int | None:
        """A header field. What the packet leaves open is as it commonly is; None: that can't be said."""
        value = self.fields.get((protocol, name), _COMMON.get((protocol, name)))
        if value is not None:
            # What is passed on has lost one hop before its hooks.
            passed_on = self.iif is not None and self.oif is not None and name in ("ttl", "hoplimit")
            return value - 1 if passed_on else value
        if (protocol, name) == ("tcp", "flags"):
            return SYN if (self.ct_state, self.ct_direction) == ("new", "original") else ACK
        if name in ("type", "code") and self.protocol in _OF_ICMP:
            of, question, answer, error = _OF_ICMP[self.protocol]
            if of == protocol:
                of_flow = answer if self.ct_direction == "reply" else question
                return 0 if name == "code" else error if self.ct_state == "related" else of_flow
        return None

    @property
    def protocol_number(self) -> int:
        """The ethertype."""
        return self.ethertype if self.ethertype is not None else ETHERTYPES[self.family]
