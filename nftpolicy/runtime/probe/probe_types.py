# SPDX-License-Identifier: BSD-2-Clause
"""Probe types of the leak test, their destinations, and the factory of the probes of one run.

No destination belongs to a host. Each address is reserved for documentation:

- 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24 (RFC 5737), 2001:db8::/32 (RFC 3849);
- multicast: 233.252.0.0/24 (RFC 5771, MCAST-TEST-NET), ff02::db8:0:0/96 and ff0e::db8:0:0/96 (RFC
  6676);
- 00:00:5e:00:53:01 (RFC 9542), where a frame needs a MAC address.

The exception, which neighbours receive, is 255.255.255.255 on port 9 (discard, RFC 863); routers do
not forward it. All probes have a hop limit of 1: the first router drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network

from attrs import field, frozen

from ...kernel.ip_packet import ACK, ICMP, ICMPV6, SYN, TCP, UDP
from ...kernel.packet_sender import (
    ETHERTYPES,
    EXPERIMENTAL_PROTOCOL,
    FORMS_WITH_PORTS,
    FRAME_SOCKETS,
    ProbePacket,
)
from ...model.packet import FORWARD, FRAME, SOCKET, CtInfo, Packet, parse_address
from .observed_packet import ObservedPacket

Random = Callable[[int], bytes]

DISCARD, DNS, QUIC = 9, 53, 443
FAMILIES = (4, 6)
DOCUMENTATION = {
    4: tuple(map(ip_network, ("198.51.100.0/24", "203.0.113.0/24", "192.0.2.0/24"))),
    6: (ip_network("2001:db8::/32"),),
}
GROUPS = {4: ip_network("233.252.0.0/24"), 6: ip_network("ff0e::db8:0:0/96")}
ON_LINK_GROUP = ip_network("ff02::db8:0:0/96")
BROADCAST = "255.255.255.255"

# Senders: root, a user of no service, and the same user with an uplink's mark that it is not
# entitled to.
ROOT, STRANGER, THIEF = "root", "stranger", "thief"
_ANY_SENDER = (ROOT, STRANGER)
_ROOT_ONLY = (ROOT,)

OTHER_MACHINE = "another machine"  # the sender of forwarded packets
ARRIVING = "arriving"  # the method of packets of another machine, see arrivals.py

TOKEN_SIZE, RUN_TOKEN_SIZE = 16, 8  # bytes; the probes of a run share the first ones
_PORT_BITS_SIZE = 4  # random bytes for ports
# DNS query of one question; the token is its first label.
_DNS_HEAD = bytes.fromhex("4e5001000001000000000000") + bytes((TOKEN_SIZE,))
_DNS_TAIL = b"\7invalid\0\0\1\0\1"
# QUIC long header of version 1; the token is the connection ID (RFC 9000).
_QUIC_HEAD = b"\xc3\0\0\0\1" + bytes((TOKEN_SIZE,))
_QUIC_TAIL = bytes(2)
_TRANSPORT_HEADER = {
    "udp": 8,
    "ping": 8,
    "echo": 8,
    "header": 8,
    "frame": 8,
    "raw-frame": 8,
}  # bytes, by form
# Ranges of random ports: first one, size.
_TCP_DPORTS, _SPORTS = (1024, 64000), (32768, 28000)
_HOP_LIMIT = 1
_TRIES = 8  # to find an unused address


@frozen
class ProbeType:
    """Type of probe. `form` and `method` are those of kernel/packet_sender.py.

    `by_device`: sent by each device of an uplink, not once by the device that the routes choose.
    `by_bridge_port`: also by each port of a bridge. `foreign_source`: its source address is not one
    of this host. `is_large`: larger than the MTU.
    """

    name: str
    title: str
    form: str = "udp"
    method: str = ""
    destination: str = "documentation"
    families: tuple[int, ...] = FAMILIES
    senders: tuple[str, ...] = _ANY_SENDER
    dport: int = DISCARD
    head: bytes = b""
    tail: bytes = b""
    by_device: bool = True
    by_bridge_port: bool = False
    is_large: bool = False
    foreign_source: bool = False


PROBE_TYPES: tuple[ProbeType, ...] = (
    # The routes choose the device.
    ProbeType("udp", "UDP", by_device=False),
    ProbeType("tcp", "TCP SYN", form="tcp", by_device=False),
    ProbeType("ping", "ICMP echo, ping socket", form="ping", by_device=False),
    ProbeType("echo", "ICMP echo, raw socket", form="echo", senders=_ROOT_ONLY, by_device=False),
    ProbeType("raw", f"IP protocol {EXPERIMENTAL_PROTOCOL}, raw socket", form="raw",
              senders=_ROOT_ONLY, by_device=False),
    ProbeType("header", "own IP header, foreign source", form="header", senders=_ROOT_ONLY, foreign_source=True,
         by_device=False),
    ProbeType("dns", "DNS query (UDP 53)", dport=DNS, head=_DNS_HEAD, tail=_DNS_TAIL, by_device=False),
    ProbeType("quic", "QUIC (UDP 443)", dport=QUIC, head=_QUIC_HEAD, tail=_QUIC_TAIL, by_device=False),
    ProbeType("mapped", "UDP, IPv4 by an IPv6 socket", method="mapped", families=(4,), by_device=False),
    ProbeType("options", "UDP, IP options or hop-by-hop", method="options", senders=_ROOT_ONLY, by_device=False),
    ProbeType("fragments", "UDP, fragments", is_large=True, by_device=False),
    # The socket names the uplink's device or address.
    ProbeType("source", "UDP from the uplink's address", method="source"),
    ProbeType("source-tcp", "TCP SYN from the uplink's address", form="tcp", method="source"),
    ProbeType("bound", "UDP, SO_BINDTODEVICE", method="bound"),
    ProbeType("bound-tcp", "TCP SYN, SO_BINDTODEVICE", form="tcp", method="bound"),
    ProbeType("bound-group", "UDP multicast, SO_BINDTODEVICE", method="bound", destination="group"),
    ProbeType("bound-echo", "ICMP echo multicast, SO_BINDTODEVICE", form="echo", method="bound", destination="group",
         senders=_ROOT_ONLY),
    ProbeType("bound-raw", f"IP protocol {EXPERIMENTAL_PROTOCOL} multicast, SO_BINDTODEVICE", form="raw",
              method="bound",
         destination="group", senders=_ROOT_ONLY),
    ProbeType("bound-header", "own IP header multicast, SO_BINDTODEVICE", form="header", method="bound",
         destination="group", senders=_ROOT_ONLY, foreign_source=True),
    ProbeType("unentitled", "UDP, SO_BINDTODEVICE, foreign mark", method="bound", senders=(THIEF,)),
    ProbeType("unicast-if", "UDP, IP_UNICAST_IF", method="unicast-if"),
    ProbeType("pktinfo", "UDP, IP_PKTINFO", method="pktinfo"),
    ProbeType("pktinfo-group", "UDP multicast, IP_PKTINFO", method="pktinfo", destination="group"),
    ProbeType("group", "UDP multicast, IP_MULTICAST_IF", method="multicast-if", destination="group"),
    ProbeType("zone", "UDP to a link-local group", method="zone", destination="on-link-group", families=(6,)),
    ProbeType("broadcast", "UDP broadcast", method="broadcast", destination="broadcast", families=(4,)),
    # Frames, which bypass the IP layer.
    ProbeType("frame", "AF_PACKET, SOCK_DGRAM", form="frame", senders=_ROOT_ONLY, by_bridge_port=True,
         foreign_source=True),
    ProbeType("raw-frame", "AF_PACKET, SOCK_RAW", form="raw-frame", senders=_ROOT_ONLY, by_bridge_port=True,
         foreign_source=True),
    ProbeType("other-frame", "AF_PACKET, not IP", form="frame", families=(0,), senders=_ROOT_ONLY,
         by_bridge_port=True),
)  # fmt: skip


@frozen
class ProbeSender:
    """User, group and mark of a sender.

    `open_as_user`: the socket is opened by that user and group, but marked and used with root's
    privileges.
    """

    uid: int = 0
    gid: int = 0
    open_as_user: bool = False
    mark: int = 0


@frozen
class SenderIds:
    """IDs and mark of the senders.

    `stranger`: UID and GID of no service. `mark`: an uplink's mark; 0 if there is none.
    """

    stranger: int
    mark: int = 0

    def sender(self, user: str) -> ProbeSender:
        """Return the sender ROOT, STRANGER or THIEF."""
        if user == ROOT:
            return ProbeSender()
        if user == THIEF:
            return ProbeSender(self.stranger, self.stranger, True, self.mark)
        return ProbeSender(self.stranger, self.stranger)


def unused_id(used_ids: Collection[int]) -> int:
    """Return a number that is neither a UID nor a GID of a service: 65534 if it is free."""
    return next(candidate for candidate in range(65534, 0, -1) if candidate not in used_ids)


@frozen
class ProbeDevice:
    """Device to send by, its bridge ports, its addresses by family, and its MTU in bytes."""

    device: str
    ports: tuple[str, ...] = ()
    source: Mapping[int, str] = field(factory=dict)
    mtu: int = 1500


@frozen
class Probe:
    """Probe packet with its type.

    `token` identifies it, `offset` is the token's offset behind the IP header.
    """

    probe_type: ProbeType
    sender: str
    packet: ProbePacket
    token: bytes
    offset: int = 0

    @property
    def device(self) -> str | None:
        """Device that the probe names; None if the routes choose."""
        return self.packet.device


@frozen
class AddressPool:
    """Random addresses that belong to no host. Networks of this host (`own`) are avoided."""

    random: Random
    own: tuple[IPv4Network | IPv6Network, ...] = ()

    def destination(self, to: str, family: int) -> str:
        """Return an address for a probe type's `to`."""
        if to == "broadcast":
            return BROADCAST
        if to != "documentation":
            return self._host_in(ON_LINK_GROUP if to == "on-link-group" else GROUPS[family])
        networks = DOCUMENTATION[family or 4]
        free = [
            network
            for network in networks
            if not any(network.version == own.version and network.overlaps(own) for own in self.own)
        ]
        return self._host_in((free or networks)[0])

    def unused_host(self, network: IPv4Network | IPv6Network, used: Collection[str]) -> str | None:
        """Return an address in a network that is not in `used`; None if none was found."""
        if network.num_addresses <= 2:
            return next((str(address) for address in network if str(address) not in used), None)
        addresses = (self._host_in(network) for _ in range(_TRIES))
        return next((address for address in addresses if address not in used), None)

    def _host_in(self, network: IPv4Network | IPv6Network) -> str:
        host = int.from_bytes(self.random(16), "big") % (network.num_addresses - 2) + 1
        return str(network.network_address + host)


@frozen
class ProbeFactory:
    """Factory of the probes of one run. `run_token` is the beginning of every token."""

    addresses: AddressPool
    run_token: bytes
    families: tuple[int, ...] = FAMILIES

    def routed_probes(self, ids: SenderIds, mtu: int) -> Iterator[Probe]:
        """Yield the probes for which the routes choose the device."""
        for kind in PROBE_TYPES:
            if not kind.by_device:
                yield from self._probes(kind, ids, ProbeDevice("", mtu=mtu), None)

    def device_probes(self, target: ProbeDevice, ids: SenderIds) -> Iterator[Probe]:
        """Yield the probes that name one device, or its ports."""
        for kind in PROBE_TYPES:
            if not kind.by_device or (not ids.mark and THIEF in kind.senders):
                continue
            for device in (target.device, *(target.ports if kind.by_bridge_port else ())):
                yield from self._probes(kind, ids, target, device)

    def _probes(self, kind: ProbeType, ids: SenderIds, target: ProbeDevice, device: str | None) -> Iterator[Probe]:
        for family in kind.families:
            if family and family not in self.families:
                continue
            source = target.source.get(family)
            if kind.method == "source" and not source:
                continue
            for user in kind.senders:
                yield self.build(kind, family, user, ids.sender(user), device, source, target.mtu)

    def build(
        self,
        kind: ProbeType,
        family: int,
        user: str,
        sender: ProbeSender,
        device: str | None = None,
        source: str | None = None,
        mtu: int = 1500,
    ) -> Probe:
        """Return one probe of a type."""
        random = self.addresses.random
        token = self.run_token + random(TOKEN_SIZE - len(self.run_token))
        payload = token * (mtu // TOKEN_SIZE + 8) if kind.is_large else kind.head + token + kind.tail
        port_bits = int.from_bytes(random(_PORT_BITS_SIZE), "big")
        # A SYN has no payload: its destination address and port identify it.
        first, count = _TCP_DPORTS
        dport = first + port_bits % count if kind.form == "tcp" else kind.dport
        first, count = _SPORTS
        probe_packet = ProbePacket(
            kind.form,
            family,
            self.addresses.destination(kind.destination, family),
            payload,
            uid=sender.uid,
            gid=sender.gid,
            open_as_user=sender.open_as_user,
            mark=sender.mark,
            dport=dport,
            sport=first + port_bits % count,
            method=kind.method,
            device=device,
            source=self.addresses.destination("documentation", family) if kind.foreign_source else source,
        )
        offset = _TRANSPORT_HEADER.get(kind.form, 0) + len(kind.head) if family else 0
        return Probe(kind, user, probe_packet, token, offset)


# --- for explain ----------------------------------------------------------------------

_NAMES_DEVICE = frozenset({"bound", "unicast-if", "pktinfo", "multicast-if", "zone", "broadcast"})
_PROTOCOLS = {
    "udp": UDP,
    "tcp": TCP,
    "header": UDP,
    "raw": EXPERIMENTAL_PROTOCOL,
    "syn-ack": TCP,
    **dict.fromkeys(FRAME_SOCKETS, UDP),
}


def explain_packet(probe: Probe, observed: ObservedPacket | None = None) -> Packet | None:
    """Return a probe as a packet for `explain`; None if it is not an IP packet."""
    probe_packet = probe.packet
    if not probe_packet.family:
        return None
    if probe_packet.method == ARRIVING:
        return _arriving_packet(probe_packet)
    is_frame = probe_packet.form in FRAME_SOCKETS
    protocol = _PROTOCOLS.get(probe_packet.form, {4: ICMP, 6: ICMPV6}[probe_packet.family])
    sport = observed.ports[0] if observed and observed.ports else probe_packet.sport
    with_ports = probe_packet.form in FORMS_WITH_PORTS
    names_source = probe.probe_type.foreign_source or probe_packet.method == "source"
    return Packet(
        probe_packet.family,
        parse_address(probe_packet.destination),
        parse_address(probe_packet.source) if names_source and probe_packet.source else None,
        protocol,
        sport if with_ports else 0,
        probe_packet.dport if with_ports else 0,
        FRAME if is_frame else SOCKET,
        probe_packet.mark,
        probe_packet.uid,
        probe_packet.gid,
        bound=probe_packet.device if is_frame or probe_packet.method in _NAMES_DEVICE else None,
        ethertype=ETHERTYPES[probe_packet.family] if is_frame else None,
        fields={("ip", "ttl") if probe_packet.family == 4 else ("ip6", "hoplimit"): _HOP_LIMIT},
    )


def _arriving_packet(probe_packet: ProbePacket) -> Packet:
    protocol = _PROTOCOLS.get(probe_packet.form, {4: ICMP, 6: ICMPV6}[probe_packet.family])
    with_ports = probe_packet.form != "echo"
    return Packet(
        probe_packet.family,
        parse_address(probe_packet.destination),
        parse_address(probe_packet.source or ""),
        protocol,
        probe_packet.sport if with_ports else 0,
        probe_packet.dport if with_ports else 0,
        FORWARD,
        iif=probe_packet.device,
        # Connection tracking knows no request to a SYN/ACK.
        flow=CtInfo("invalid") if probe_packet.form == "syn-ack" else CtInfo(),
        fields={("tcp", "flags"): SYN | ACK} if probe_packet.form == "syn-ack" else {},
    )
