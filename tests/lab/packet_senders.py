"""Senders of one packet. Each function sends one payload, from the namespace and with the ids of its process."""

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import addresses as at
from . import frames

DISCARD = 9  # the port that all probes go to
MULTICAST_SITE = {4: "239.1.2.3", 6: "ff05::1234"}
MULTICAST_LINK = {4: "224.0.0.251", 6: "ff02::1234"}
PROTOCOL = 253  # for experiments, RFC 3692

_IP_UNICAST_IF, _IP_PKTINFO, _IP_MULTICAST_IF = 50, 8, 32
_IPV6_UNICAST_IF, _IPV6_PKTINFO, _IPV6_HDRINCL = 76, 50, 36
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
_LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_ETHERTYPE = {4: frames.ETH_IPV4, 6: frames.ETH_IPV6}


@dataclass
class Job:
    """Parameters of a sender; it keeps the sockets open, so that the kernel has time to send."""

    family: int
    payload: bytes
    mark: int
    sport: int  # for TCP, which cannot carry the payload
    source: Mapping[int, str]  # the node's addresses on the WAN
    port: str  # the lowest device of the WAN
    sockets: list[socket.socket] = field(default_factory=list)

    def open(self, domain: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a marked or unmarked socket that never waits."""
        made = socket.socket(domain, kind, protocol)
        self.sockets.append(made)
        made.setblocking(False)
        if self.mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
        return made

    def udp(self) -> socket.socket:
        return self.open(_DOMAIN[self.family], socket.SOCK_DGRAM)

    @property
    def server(self) -> tuple[str, int]:
        return at.SERVER[self.family], DISCARD

    @property
    def neighbour(self) -> tuple[str, int]:
        return at.NEIGHBOUR[self.family], DISCARD


def _bind_device(made: socket.socket, device: str = at.WAN) -> socket.socket:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    return made


# Sockets that leave the choice to the routes


def udp(job: Job) -> None:
    job.udp().sendto(job.payload, job.server)


def udp_connected(job: Job) -> None:
    made = job.udp()
    made.connect(job.server)
    made.send(job.payload)


def udp_source(job: Job) -> None:
    made = job.udp()
    made.bind((job.source[job.family], 0))
    made.sendto(job.payload, job.server)


def udp_source_pktinfo(job: Job) -> None:
    source = ipaddress.ip_address(job.source[job.family]).packed
    info = struct.pack("=i4s4x", 0, source) if job.family == 4 else struct.pack("=16si", source, 0)
    _send_with_pktinfo(job, info, job.server)


def udp_fragments(job: Job) -> None:
    job.udp().sendto(job.payload * 200, job.server)  # every fragment can be recognised


def udp_mapped(job: Job) -> None:
    job.open(socket.AF_INET6, socket.SOCK_DGRAM).sendto(job.payload, (f"::ffff:{at.SERVER[4]}", DISCARD))


def udplite(job: Job) -> None:
    job.open(_DOMAIN[job.family], socket.SOCK_DGRAM, frames.UDPLITE).sendto(job.payload, job.server)


def tcp(job: Job) -> None:
    _connect(job, job.open(_DOMAIN[job.family], socket.SOCK_STREAM), job.server)


def ping(job: Job) -> None:
    _echo_request(job, socket.SOCK_DGRAM)


def ping_raw(job: Job) -> None:
    _echo_request(job, socket.SOCK_RAW)


def raw_protocol(job: Job) -> None:
    job.open(_DOMAIN[job.family], socket.SOCK_RAW, PROTOCOL).sendto(job.payload, (job.server[0], 0))


def raw_header(job: Job) -> None:
    made = job.open(_DOMAIN[job.family], socket.SOCK_RAW, socket.IPPROTO_RAW)
    made.setsockopt(_LEVEL[job.family], {4: socket.IP_HDRINCL, 6: _IPV6_HDRINCL}[job.family], 1)
    made.sendto(_datagram(job, at.SERVER), (job.server[0], 0))


# Sockets that name the device


def udp_bound(job: Job) -> None:
    _bind_device(job.udp()).sendto(job.payload, job.neighbour)


def tcp_bound(job: Job) -> None:
    _connect(job, _bind_device(job.open(_DOMAIN[job.family], socket.SOCK_STREAM)), job.neighbour)


def udp_pktinfo(job: Job) -> None:
    number = socket.if_nametoindex(at.WAN)
    info = struct.pack("=i8x", number) if job.family == 4 else struct.pack("=16xi", number)
    _send_with_pktinfo(job, info, job.neighbour)


def udp_unicast_if(job: Job) -> None:
    made = job.udp()
    option = {4: _IP_UNICAST_IF, 6: _IPV6_UNICAST_IF}[job.family]
    made.setsockopt(_LEVEL[job.family], option, struct.pack("!I", socket.if_nametoindex(at.WAN)))
    made.sendto(job.payload, job.neighbour)


def udp_dontroute(job: Job) -> None:
    made = job.udp()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
    made.sendto(job.payload, job.neighbour)


# To many at once, or to this link only


def multicast_site(job: Job) -> None:
    _multicast(job, MULTICAST_SITE[job.family])


def multicast_link(job: Job) -> None:
    _multicast(job, MULTICAST_LINK[job.family])


def multicast_scope(job: Job) -> None:
    job.udp().sendto(job.payload, (MULTICAST_LINK[6], DISCARD, 0, socket.if_nametoindex(at.WAN)))


def unicast_scope(job: Job) -> None:
    job.udp().sendto(job.payload, (at.HOME_LINK_LOCAL, DISCARD, 0, socket.if_nametoindex(at.WAN)))


def broadcast_limited(job: Job) -> None:
    made = _bind_device(job.udp())
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    made.sendto(job.payload, ("255.255.255.255", DISCARD))


def broadcast_directed(job: Job) -> None:
    made = job.udp()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    made.sendto(job.payload, (at.HOME_BROADCAST, DISCARD))


# Frames


def packet(job: Job) -> None:
    _packet(job, at.WAN, _ETHERTYPE[job.family], _datagram(job, at.NEIGHBOUR))


def packet_bypass(job: Job) -> None:
    _packet(job, at.WAN, _ETHERTYPE[job.family], _datagram(job, at.NEIGHBOUR), bypass=True)


def packet_port(job: Job) -> None:
    _packet(job, job.port, _ETHERTYPE[job.family], _datagram(job, at.NEIGHBOUR))


def packet_private(job: Job) -> None:
    _packet(job, at.WAN, frames.ETH_PRIVATE, job.payload.ljust(46, b"\0"))


# Parts


def _connect(job: Job, made: socket.socket, target: tuple[str, int]) -> None:
    made.bind(("", job.sport))
    with contextlib.suppress(BlockingIOError):  # under way, which is all that a probe wants
        made.connect(target)


def _send_with_pktinfo(job: Job, info: bytes, target: tuple[str, int]) -> None:
    kind = {4: _IP_PKTINFO, 6: _IPV6_PKTINFO}[job.family]
    job.udp().sendmsg([job.payload], [(_LEVEL[job.family], kind, info)], 0, target)


def _echo_request(job: Job, kind: int) -> None:
    protocol, number = {4: (frames.ICMP, 8), 6: (frames.ICMPV6, 128)}[job.family]
    message = struct.pack("!BBHHH", number, 0, 0, 1, 1) + job.payload
    if job.family == 4:  # the kernel computes it for IPv6, and for ping sockets
        message = message[:2] + struct.pack("!H", frames.checksum(message)) + message[4:]
    job.open(_DOMAIN[job.family], kind, protocol).sendto(message, (job.server[0], 0))


def _multicast(job: Job, group: str) -> None:
    made, number = job.udp(), socket.if_nametoindex(at.WAN)
    if job.family == 4:
        made.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), number))
    else:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
    made.sendto(job.payload, (group, DISCARD))


def _packet(job: Job, device: str, ethertype: int, body: bytes, bypass: bool = False) -> None:
    made = job.open(socket.AF_PACKET, socket.SOCK_RAW)
    if bypass:
        made.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    target, source = (bytes.fromhex(mac.replace(":", "")) for mac in (at.NEIGHBOUR_MAC, at.NODE_WAN_MAC))
    made.sendto(target + source + struct.pack("!H", ethertype) + body, (device, ethertype))


def _datagram(job: Job, target: Mapping[int, str]) -> bytes:
    """Return a whole IP packet with UDP, from the WAN's address."""
    source, destination = (ipaddress.ip_address(a[job.family]).packed for a in (job.source, target))
    size = 8 + len(job.payload)
    ports = struct.pack("!HHHH", DISCARD, DISCARD, size, 0)
    if job.family == 6:
        pseudo = source + destination + struct.pack("!II", size, frames.UDP)
        ports = ports[:6] + struct.pack("!H", frames.checksum(pseudo + ports + job.payload) or 0xFFFF)
    return packet_of(job, target, frames.UDP, ports)


def packet_of(job: Job, target: Mapping[int, str], protocol: int, header: bytes = b"") -> bytes:
    """Return a whole IP packet of any protocol, with the header of that protocol before the payload."""
    source, destination = (ipaddress.ip_address(a[job.family]).packed for a in (job.source, target))
    body = header + job.payload
    if job.family == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + source + destination + body
    start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + source + destination
    return start[:10] + struct.pack("!H", frames.checksum(start)) + start[12:] + body
