"""Storm of packets without the uplink's mark, from every kind of sender.

A sender's packets carry its number in the payload, or, where the kernel writes the packet, in a port. All senders send
in a network namespace of their own, each a few packets, to test addresses (RFC 5737, RFC 3849).
"""

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator

from attrs import frozen

from nftpolicy.model.packet import Packet

from .storm_machine import Machine
from .storm_packets import (
    ACK,
    ARP,
    DOMAIN,
    ETHERTYPE,
    FAR,
    FIRST_PORT,
    FORWARDED,
    ICMP,
    ICMPV6,
    MARK,
    MESH,
    MULTICAST,
    NEAR,
    NOBODY,
    OWN,
    RAW,
    SYN,
    TCP,
    UDP,
    WAN,
    datagram,
    echo,
    ip_packet,
    segment,
    token,
    with_checksum,
)

_IP_HDRINCL, _IPV6_HDRINCL, _IP_OPTIONS, _IP_TOS, _IP_TTL, _IPV6_TCLASS, _IPV6_UNICAST_HOPS = 3, 36, 4, 1, 2, 67, 16
_IP_MULTICAST_IF, _IPV6_MULTICAST_IF, _IP_FREEBIND, _IPV6_FREEBIND = 32, 17, 15, 78


@frozen
class Sender:
    """Sender of one packet; `send` gets its number and the machine.

    `reply`: the packet answers one that came by the uplink.
    """

    name: str
    send: Callable[[int, "Machine"], None]
    reply: bool = False


# --- senders ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _socket(
    family: int, kind: int, protocol: int = 0, uid: int = 0, mark: int = 0, gid: int | None = None
) -> Iterator[socket.socket]:
    """A socket of a user. Its mark is set as root."""
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        made = socket.socket(DOMAIN[family], kind, protocol)
    finally:
        os.seteuid(0)
        os.setegid(0)
    with made:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        yield made


def _udp(
    family: int,
    target: str,
    dport: int = 9,
    uid: int = NOBODY,
    mark: int = 0,
    device: str = "",
    source: str = "",
    sport: int | None = None,
    option: tuple[int, int, bytes | int] | None = None,
) -> Callable[[int, Machine], None]:
    def send(number: int, machine: Machine) -> None:
        with _socket(family, socket.SOCK_DGRAM, uid=uid, mark=mark) as made:
            if device:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if option:
                made.setsockopt(*option)
            made.bind((source, FIRST_PORT + number if sport is None else sport))
            made.sendto(token(number), (target, dport))

    return send


def send_datagram(packet: Packet, source: str, target: str, number: int) -> None:
    """Send the UDP datagram of a model's packet by a socket of its user."""
    with _socket(packet.family, socket.SOCK_DGRAM, uid=packet.uid, mark=packet.mark, gid=packet.gid) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if packet.bound:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, packet.bound.encode())
        made.setsockopt(*((0, _IP_FREEBIND, 1) if packet.family == 4 else (41, _IPV6_FREEBIND, 1)))
        made.bind((source, packet.sport))
        made.sendto(token(number), (target, packet.dport))


def _multicast(family: int) -> Callable[[int, Machine], None]:
    def send(number: int, machine: Machine) -> None:
        with _socket(family, socket.SOCK_DGRAM, uid=NOBODY) as made:
            index = machine.index[WAN]
            if family == 4:
                made.setsockopt(0, _IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), index))
            else:
                made.setsockopt(41, _IPV6_MULTICAST_IF, index)
            made.sendto(token(number), (MULTICAST[family], 9))

    return send


def _tcp(family: int, dport: int = 443, uid: int = NOBODY, mark: int = 0) -> Callable[[int, Machine], None]:
    def send(number: int, machine: Machine) -> None:
        with _socket(family, socket.SOCK_STREAM, uid=uid, mark=mark) as made:
            made.bind(("", FIRST_PORT + number))
            with contextlib.suppress(BlockingIOError):
                made.connect((FAR[family], dport))

    return send


def _raw(family: int, protocol: int, mark: int = 0, body: bytes = b"") -> Callable[[int, Machine], None]:
    def send(number: int, machine: Machine) -> None:
        with _socket(family, socket.SOCK_RAW, protocol, mark=mark) as made:
            made.sendto(body + token(number), (FAR[family], 0))

    return send


def _ping(family: int, kind: int | None = None) -> Callable[[int, Machine], None]:
    def send(number: int, machine: Machine) -> None:
        protocol = ICMP if family == 4 else ICMPV6
        with _socket(family, socket.SOCK_RAW, protocol) as made:
            made.sendto(echo(family, OWN[family][WAN], FAR[family], number, kind), (FAR[family], 0))

    return send


def _whole(family: int, build: Callable[[int], bytes]) -> Callable[[int, Machine], None]:
    """Send an IP packet with its header by a raw socket."""

    def send(number: int, machine: Machine) -> None:
        with _socket(family, socket.SOCK_RAW, RAW) as made:
            made.setsockopt(0 if family == 4 else 41, _IP_HDRINCL if family == 4 else _IPV6_HDRINCL, 1)
            made.sendto(build(number), (FAR[family], 0))

    return send


def _plain(family: int, source: str = "", dport: int = 9, hops: int = 64) -> Callable[[int], bytes]:
    def build(number: int) -> bytes:
        here = source or OWN[family][WAN]
        body = datagram(family, here, FAR[family], 40000 + number, dport, number)
        return ip_packet(family, here, FAR[family], UDP, body, hops)

    return build


def _fragment(offset: int, more: bool) -> Callable[[int], bytes]:
    def build(number: int) -> bytes:
        content = token(number).ljust(24, b".")
        return ip_packet(4, OWN[4][WAN], FAR[4], UDP, content, fragment=(more << 13) | offset)

    return build


def _extended(header: int, content: bytes) -> Callable[[int], bytes]:
    """Build an IPv6 packet with one extension header before UDP."""

    def build(number: int) -> bytes:
        body = datagram(6, OWN[6][WAN], FAR[6], 40000 + number, 9, number)
        return ip_packet(6, OWN[6][WAN], FAR[6], header, bytes([UDP]) + content + body)

    return build


def _frame(family: int, claimed: int, mark: int = 0) -> Callable[[int, Machine], None]:
    """Send an IP packet by an AF_PACKET socket that claims an ethertype; 0: the kernel reads it in the frame."""

    def send(number: int, machine: Machine) -> None:
        machine.send_frame(ETHERTYPE[family], _plain(family)(number), mark, claimed)

    return send


def _by_device(family: int, device: str) -> Callable[[int, Machine], None]:
    """Send an IP packet as a frame of another device, which a state may have."""

    def send(number: int, machine: Machine) -> None:
        machine.send_frame(ETHERTYPE[family], _plain(family)(number), device=device)

    return send


def _forwarded(family: int, protocol: int, target: str = "", fragment: int = 0) -> Callable[[int, Machine], None]:
    def send(number: int, machine: Machine) -> None:
        source, destination = FORWARDED[family], target or FAR[family]
        if protocol == UDP:
            body = datagram(family, source, destination, 41000 + number, 9, number)
        elif protocol == TCP:
            body = segment(family, source, destination, FIRST_PORT + number, 443, SYN)
        elif protocol in (ICMP, ICMPV6):
            body = echo(family, source, destination, number)
        else:
            body = token(number)
        machine.inject(MESH, family, ip_packet(family, source, destination, protocol, body, fragment=fragment))

    return send


def _answer(family: int, protocol: int, arrival: str = MESH) -> Callable[[int, Machine], None]:
    """Make the kernel answer a packet whose source is routed by the uplink."""

    def send(number: int, machine: Machine) -> None:
        source, destination = FAR[family], OWN[family][arrival]
        if protocol == UDP:
            body = datagram(family, source, destination, 42000, 42, number)
        elif protocol == TCP:
            body = segment(family, source, destination, FIRST_PORT + number, 42, SYN)
        else:
            body = echo(family, source, destination, number)
        machine.inject(arrival, family, ip_packet(family, source, destination, protocol, body))

    return send


def _taken_flow(family: int, after: int) -> Callable[[int, Machine], None]:
    """Send as the marked owner of a flow, then as another user with the same addresses and ports."""

    def send(number: int, machine: Machine) -> None:
        port = 43000 + number
        with _socket(family, socket.SOCK_DGRAM, mark=MARK) as made:
            made.bind((OWN[family][WAN], port))
            for _ in range(after):
                made.sendto(b"permitted", (FAR[family], 9))
        with _socket(family, socket.SOCK_DGRAM, uid=NOBODY) as made:
            made.bind((OWN[family][WAN], port))
            made.sendto(token(number), (FAR[family], 9))

    return send


def _answered_flow(family: int) -> Callable[[int, Machine], None]:
    """Send without the mark in a flow that a packet from the uplink began."""

    def send(number: int, machine: Machine) -> None:
        port = 44000 + number
        with _socket(family, socket.SOCK_DGRAM, uid=NOBODY) as made:
            made.bind((OWN[family][WAN], port))
            source = FAR[family]
            body = struct.pack("!HHHH", 9, port, 12, 0) + b"call"
            body = with_checksum(family, source, OWN[family][WAN], UDP, body, 6)
            machine.inject(WAN, family, ip_packet(family, source, OWN[family][WAN], UDP, body))
            made.sendto(token(number), (FAR[family], 9))

    return send


def _forwarded_multicast(number: int, machine: Machine) -> None:
    body = datagram(4, FORWARDED[4], MULTICAST[4], 41000, 9, number)
    packet = ip_packet(4, FORWARDED[4], MULTICAST[4], UDP, body)
    machine.inject(MESH, 4, packet, bytes.fromhex("01005e010203"))


def _accepted(family: int) -> Callable[[int, Machine], None]:
    """Accept a connection from the uplink, and connect the accepted socket to somebody else (connect(2), AF_UNSPEC)."""

    def send(number: int, machine: Machine) -> None:
        port, here, there = FIRST_PORT + number, OWN[family][WAN], FAR[family]

        def arrive(flags: int, *numbers: int) -> None:
            tcp = segment(family, there, here, 45000, port, flags, (numbers[0], numbers[1]))
            machine.inject(WAN, family, ip_packet(family, there, here, TCP, tcp))

        with _socket(family, socket.SOCK_STREAM, uid=NOBODY) as listener:
            listener.bind((here, port))
            listener.listen()
            arrive(SYN, 1, 0)
            answer = machine.sent_by(port, SYN | ACK)
            if answer is None:
                return
            arrive(ACK, 2, struct.unpack("!I", answer[4:8])[0] + 1 & 0xFFFFFFFF)
            with listener.accept()[0] as accepted:
                accepted.setblocking(False)
                libc = ctypes.CDLL(None, use_errno=True)
                libc.connect(accepted.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16)
                with contextlib.suppress(BlockingIOError):
                    accepted.connect((there[:-1] + "7", 443))

    return send


def _senders() -> Iterator[Sender]:
    for family in (4, 6):
        level, tos = (0, _IP_TOS) if family == 4 else (41, _IPV6_TCLASS)
        hops = (0, _IP_TTL, 1) if family == 4 else (41, _IPV6_UNICAST_HOPS, 1)
        for port in (9, 53, 123, 443):
            yield Sender(f"udp{family} to port {port}", _udp(family, FAR[family], port))
        yield Sender(f"udp{family} of root from port 68 to 67", _udp(family, FAR[family], 67, uid=0, sport=68))
        yield Sender(f"udp{family} of user 1000", _udp(family, FAR[family], uid=1000))
        yield Sender(f"udp{family} of root", _udp(family, FAR[family], uid=0))
        for mark in (2, 0x10, 0xFFFFFFFE):
            yield Sender(f"udp{family} with mark {mark:#x}", _udp(family, FAR[family], mark=mark))
        yield Sender(f"udp{family} bound to the uplink", _udp(family, FAR[family], device=WAN))
        yield Sender(f"udp{family} to a neighbour", _udp(family, NEAR[family]))
        yield Sender(f"udp{family} with the mesh's address", _udp(family, FAR[family], source=OWN[family][MESH]))
        yield Sender(f"udp{family} with a traffic class", _udp(family, FAR[family], option=(level, tos, 0xB8)))
        yield Sender(f"udp{family} with one hop", _udp(family, FAR[family], option=hops))
        yield Sender(f"udp{family} to a multicast group", _multicast(family))
        yield Sender(f"tcp{family} SYN", _tcp(family))
        yield Sender(f"tcp{family} SYN to port 22", _tcp(family, 22, uid=0))
        yield Sender(f"tcp{family} SYN with mark 2", _tcp(family, mark=2))
        yield Sender(f"echo request {family}", _ping(family))
        yield Sender(f"icmp{family} of another type", _ping(family, 13 if family == 4 else 135))
        for protocol in (47, 50, 132, 253):
            yield Sender(f"ip{family} protocol {protocol}", _raw(family, protocol))
        yield Sender(f"ip{family} header of a raw socket", _whole(family, _plain(family)))
        yield Sender(f"ip{family} header with a foreign source", _whole(family, _plain(family, FAR[family][:-1] + "8")))
        yield Sender(f"ip{family} header with one hop", _whole(family, _plain(family, hops=1)))
        yield Sender(f"frame of IPv{family}", _frame(family, ETHERTYPE[family]))
        yield Sender(f"frame of IPv{family} that claims ARP", _frame(family, ARP))
        yield Sender(f"frame of IPv{family} that claims the other family", _frame(family, ETHERTYPE[10 - family]))
        yield Sender(f"frame of IPv{family} that claims nothing", _frame(family, 0))
        yield Sender(f"frame of IPv{family} with mark 2", _frame(family, ETHERTYPE[family], mark=2))
        for protocol in (UDP, TCP, ICMP if family == 4 else ICMPV6, 253):
            yield Sender(f"forwarded IPv{family} of protocol {protocol}", _forwarded(family, protocol))
        yield Sender(f"forwarded IPv{family} to a neighbour", _forwarded(family, UDP, NEAR[family]))
        for protocol in (UDP, TCP, ICMP if family == 4 else ICMPV6):
            yield Sender(f"answer {family} to protocol {protocol} of the mesh", _answer(family, protocol))
            yield Sender(f"answer {family} to protocol {protocol} of the uplink", _answer(family, protocol, WAN), True)
        for device in ("macv", "br0", "pair0", "vx"):
            yield Sender(f"frame of IPv{family} by {device}", _by_device(family, device))
        yield Sender(f"udp{family} in a flow of another user", _taken_flow(family, 1))
        yield Sender(f"udp{family} in an older flow of another user", _taken_flow(family, 3))
        yield Sender(f"udp{family} in a flow from outside", _answered_flow(family), True)
        yield Sender(f"tcp{family} of an accepted socket", _accepted(family))
    yield Sender("forwarded multicast", _forwarded_multicast)
    yield Sender("udp4 to all", _udp(4, "255.255.255.255", device=WAN))
    for device in ("macv", "br0", "vx"):
        yield Sender(f"udp4 bound to {device}", _udp(4, FAR[4], device=device))
    yield Sender("udp4 to all of the net", _udp(4, "192.0.2.255"))
    yield Sender("udp4 with an option", _udp(4, FAR[4], option=(0, _IP_OPTIONS, b"\1\1\1\1")))
    yield Sender("first fragment", _whole(4, _fragment(0, True)))
    yield Sender("later fragment", _whole(4, _fragment(185, False)))
    yield Sender("forwarded fragment", _forwarded(4, 253, fragment=185))
    yield Sender("udp6 behind a hop-by-hop header", _whole(6, _extended(0, bytes((0, 1, 4, 0, 0, 0, 0)))))
    yield Sender("udp6 behind destination options", _whole(6, _extended(60, bytes((0, 1, 4, 0, 0, 0, 0)))))
    yield Sender("udp6 behind a fragment header", _whole(6, _extended(44, struct.pack("!BHI", 0, 0, 7))))
    yield Sender("udp6 in a later fragment", _whole(6, _extended(44, struct.pack("!BHI", 0, 185 << 3, 8))))


SENDERS = tuple(_senders())


def send_storm(machine: Machine, numbers: range | list[int]) -> dict[int, str]:
    """Send the packets of the senders with these numbers; return the errors of those that could not."""
    errors = {}
    for number in numbers:
        try:
            SENDERS[number].send(number, machine)
        except OSError as error:
            errors[number] = str(error.strerror)
    return errors
