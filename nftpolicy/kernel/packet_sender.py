# SPDX-License-Identifier: BSD-2-Clause
"""Send single packets in every way that Linux offers, by forked processes with user and group of the sender.

Nothing stays: each process ends within seconds, and its sockets with it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from attrs import frozen

from .child_process import ChildProcess
from .errors import ChildFailed
from .ip_packet import ICMP, ICMPV6, UDP, checksum, echo_request, ip_packet, udp_segment
from .netlink.constants import ADDRESS_FAMILY
from .packet_capture import link_info

EXPERIMENTAL_PROTOCOL = 253  # for experiments, RFC 3692
ETHERTYPES = {0: 0x88B5, 4: 0x0800, 6: 0x86DD}  # 0: local experiments, IEEE 802
DOCUMENTATION_MAC = bytes.fromhex("00005e005301")  # RFC 9542: no machine has it
ARPHRD_ETHER = 1  # devices with a header in their frames
ARPHRD_RAW = (512, 519, 776, 65534)  # PPP, raw IP, sit, none: devices with IP packets as frames

_HOP_LIMIT = 1  # the first router drops the packet
_IP_OPTIONS, _IP_PKTINFO, _IP_MULTICAST_IF, _IP_MULTICAST_TTL, _IP_MULTICAST_LOOP = 4, 8, 32, 33, 34
_IPV6_UNICAST_HOPS, _IPV6_MULTICAST_IF, _IPV6_MULTICAST_HOPS, _IPV6_MULTICAST_LOOP = 16, 17, 18, 19
_IPV6_HOPOPTS, _IPV6_PKTINFO = 54, 50
_LEVELS = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_UNICAST_IF = {4: 50, 6: 76}  # IP_UNICAST_IF, IPV6_UNICAST_IF
_NO_OPERATION = b"\1\1\1\1"  # four IPv4 options without effect, RFC 791
_PADDING = bytes((0, 0, 1, 4, 0, 0, 0, 0))  # a hop-by-hop header without effect, RFC 8200
_TIME_LIMIT = 3  # seconds that a process may take
_NO_PORTS = frozenset({"ping", "echo", "raw", "header"})  # forms without a destination port

# The socket of each form of packet; "frame" and "raw-frame" use AF_PACKET.
_SOCKETS = {
    "udp": (socket.SOCK_DGRAM, {4: 0, 6: 0}),
    "tcp": (socket.SOCK_STREAM, {4: 0, 6: 0}),
    "ping": (socket.SOCK_DGRAM, {4: ICMP, 6: ICMPV6}),
    "echo": (socket.SOCK_RAW, {4: ICMP, 6: ICMPV6}),
    "raw": (socket.SOCK_RAW, {4: EXPERIMENTAL_PROTOCOL, 6: EXPERIMENTAL_PROTOCOL}),
    "header": (socket.SOCK_RAW, {4: socket.IPPROTO_RAW, 6: socket.IPPROTO_RAW}),
}
FRAME_SOCKETS = {"frame": socket.SOCK_DGRAM, "raw-frame": socket.SOCK_RAW}
FORMS_WITH_PORTS = frozenset({"udp", "tcp", "header", *FRAME_SOCKETS})  # forms that have ports


@frozen
class ProbePacket:
    """A packet to send: form and method (see `_SOCKETS`, `_METHODS`), family (0: not IP), and sender.

    `device` and `source` are for the methods and forms that need them. `open_as_user`: the socket
    is opened by `uid` and `gid`, but marked and used with the rights of root.
    """

    form: str
    family: int
    destination: str
    payload: bytes
    uid: int = 0
    gid: int = 0
    open_as_user: bool = False
    mark: int = 0
    dport: int = 9
    sport: int = 40000
    method: str = ""
    device: str | None = None
    source: str | None = None


@frozen
class SendOutcome:
    """Local result of sending a packet.

    `error` is the name of the errno, or None. `stage` is the refused step: opening the socket
    ("open") or sending the packet ("send").
    """

    stage: str = "send"
    error: str | None = None


def send_all(packets: Sequence[ProbePacket], wait: Callable[[int], None]) -> list[SendOutcome]:
    """Send all packets, in processes with user and group of their senders.

    Return their outcomes in order.
    `wait` is called to wait for a file descriptor, and may return earlier.
    """

    def sender(index: int) -> tuple[bool, int, int]:
        probe_packet = packets[index]
        return probe_packet.open_as_user, probe_packet.uid, probe_packet.gid

    outcomes: dict[int, SendOutcome] = {}
    for _, group in groupby(sorted(range(len(packets)), key=sender), key=sender):
        indexes = list(group)
        results = _send_in_child([packets[index] for index in indexes], wait)
        outcomes.update(zip(indexes, results, strict=True))
    return [outcomes[index] for index in range(len(packets))]


def _send_in_child(probe_packets: list[ProbePacket], meanwhile: Callable[[int], None]) -> list[SendOutcome]:
    """Send the packets of one sender."""
    opened: list[socket.socket] = []  # of the child; they stay open until it ends, because the kernel may need them

    def work() -> bytes:
        return json.dumps([(outcome.stage, outcome.error) for outcome in _send_all(probe_packets, opened)]).encode()

    with ChildProcess(work, seconds=_TIME_LIMIT) as child:
        while not child.has_ended():
            meanwhile(child.descriptor)
        try:
            return [SendOutcome(*outcome) for outcome in json.loads(child.result())]
        except (ChildFailed, ValueError):
            return [SendOutcome("open", "ECHILD")] * len(probe_packets)


def _send_all(probe_packets: list[ProbePacket], opened: list[socket.socket]) -> Iterator[SendOutcome]:
    uid, gid, opens_as_user = probe_packets[0].uid, probe_packets[0].gid, probe_packets[0].open_as_user
    try:
        if uid or gid:
            os.setgroups([])
        if not opens_as_user:
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
    except OSError as error:  # a user namespace without such a user
        yield from [SendOutcome("open", _errno_name(error))] * len(probe_packets)
        return
    for probe_packet in probe_packets:
        yield _send(probe_packet, opened)


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _send(probe_packet: ProbePacket, opened: list[socket.socket]) -> SendOutcome:
    try:
        sender = _open(probe_packet)
        opened.append(sender)
        sender.setblocking(False)
        if probe_packet.mark:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", probe_packet.mark))
        if probe_packet.form in FRAME_SOCKETS:
            send = _frame(sender, probe_packet)
        else:
            _limit_hops(sender, probe_packet)
            _METHODS[probe_packet.method](sender, probe_packet)
            send = _packet(sender, probe_packet)
    except OSError as error:
        return SendOutcome("open", _errno_name(error))
    try:
        send()
    except BlockingIOError as error:
        # A connection attempt is enough. A new socket has room in its buffer, so EAGAIN is a
        # refusal.
        return SendOutcome() if error.errno == errno.EINPROGRESS else SendOutcome("send", _errno_name(error))
    except OSError as error:
        return SendOutcome("send", _errno_name(error))
    return SendOutcome()


def _open(probe_packet: ProbePacket) -> socket.socket:
    if probe_packet.form in FRAME_SOCKETS:
        return socket.socket(socket.AF_PACKET, FRAME_SOCKETS[probe_packet.form])
    kind, protocols = _SOCKETS[probe_packet.form]
    domain = socket.AF_INET6 if probe_packet.method == "mapped" else ADDRESS_FAMILY[probe_packet.family]
    if not probe_packet.open_as_user:
        return socket.socket(domain, kind, protocols[probe_packet.family])
    # The kernel takes the owner of a socket from the effective ids. The real ids stay root, so that
    # they can return.
    os.setegid(probe_packet.gid)
    os.seteuid(probe_packet.uid)
    try:
        return socket.socket(domain, kind, protocols[probe_packet.family])
    finally:
        os.seteuid(0)
        os.setegid(0)


def _limit_hops(sender: socket.socket, probe_packet: ProbePacket) -> None:
    if probe_packet.family == 4:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _HOP_LIMIT)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_UNICAST_HOPS, _HOP_LIMIT)
    if probe_packet.form == "tcp" or probe_packet.method == "mapped":  # without multicast
        return
    if probe_packet.family == 4:
        sender.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_TTL, _HOP_LIMIT)
        sender.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_LOOP, 0)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_HOPS, _HOP_LIMIT)
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_LOOP, 0)


# --- ways in which a socket selects its device, or gets one -------------------------


def _device_index(probe_packet: ProbePacket) -> int:
    return socket.if_nametoindex(probe_packet.device or "")


def _bind_device(sender: socket.socket, probe_packet: ProbePacket) -> None:
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(probe_packet.device or ""))


def _bind_source(sender: socket.socket, probe_packet: ProbePacket) -> None:
    sender.bind((probe_packet.source or "", 0))


def _set_unicast_device(sender: socket.socket, probe_packet: ProbePacket) -> None:
    index = struct.pack("!I", _device_index(probe_packet))
    sender.setsockopt(_LEVELS[probe_packet.family], _UNICAST_IF[probe_packet.family], index)


def _set_multicast_device(sender: socket.socket, probe_packet: ProbePacket) -> None:
    if probe_packet.family == 4:
        request = struct.pack("=4s4si", bytes(4), bytes(4), _device_index(probe_packet))  # struct ip_mreqn
        sender.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_IF, request)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_IF, _device_index(probe_packet))


def _allow_broadcast(sender: socket.socket, probe_packet: ProbePacket) -> None:
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    _bind_device(sender, probe_packet)


def _set_options(sender: socket.socket, probe_packet: ProbePacket) -> None:
    if probe_packet.family == 4:
        sender.setsockopt(socket.IPPROTO_IP, _IP_OPTIONS, _NO_OPERATION)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_HOPOPTS, _PADDING)


def _do_nothing(sender: socket.socket, probe_packet: ProbePacket) -> None:
    pass


# `_packet` handles "pktinfo", "zone" and "mapped".
_METHODS: dict[str, Callable[[socket.socket, ProbePacket], None]] = {
    "": _do_nothing,
    "mapped": _do_nothing,
    "options": _set_options,
    "source": _bind_source,
    "bound": _bind_device,
    "unicast-if": _set_unicast_device,
    "pktinfo": _do_nothing,
    "multicast-if": _set_multicast_device,
    "zone": _do_nothing,
    "broadcast": _allow_broadcast,
}


# --- the packets --------------------------------------------------------------------


def _packet(sender: socket.socket, probe_packet: ProbePacket) -> Callable[[], object]:
    """Return the call that sends an IP packet."""
    port = 0 if probe_packet.form in _NO_PORTS else probe_packet.dport
    target: tuple[str | int, ...] = (probe_packet.destination, port)
    if probe_packet.method == "mapped":
        target = (f"::ffff:{probe_packet.destination}", port)
    elif probe_packet.method == "zone":
        target = (probe_packet.destination, port, 0, _device_index(probe_packet))
    if probe_packet.form == "tcp":
        return lambda: sender.connect(target)
    if probe_packet.method == "pktinfo":
        index = _device_index(probe_packet)
        if probe_packet.family == 4:  # struct in_pktinfo, struct in6_pktinfo
            message = (socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=i8x", index))
        else:
            message = (socket.IPPROTO_IPV6, _IPV6_PKTINFO, struct.pack("=16xi", index))
        return lambda: sender.sendmsg([probe_packet.payload], [message], 0, target)
    return lambda: sender.sendto(_body(probe_packet), target)


def _body(probe_packet: ProbePacket) -> bytes:
    if probe_packet.form in ("ping", "echo"):
        message = echo_request(probe_packet.family, probe_packet.payload)
        if probe_packet.family == 6:
            return message  # the kernel computes the checksum, also for ping sockets of IPv4
        return message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    return datagram(probe_packet) if probe_packet.form == "header" else probe_packet.payload


def datagram(probe_packet: ProbePacket) -> bytes:
    """Return a whole IP packet with UDP from `source`."""
    assert probe_packet.source is not None
    segment = udp_segment(probe_packet.sport, probe_packet.dport, probe_packet.payload)
    return ip_packet(probe_packet.family, probe_packet.source, probe_packet.destination, UDP, segment, _HOP_LIMIT)


def _frame(sender: socket.socket, probe_packet: ProbePacket) -> Callable[[], object]:
    """Return the call that sends a frame."""
    assert probe_packet.device is not None
    device = link_info(probe_packet.device)
    if device is None:
        raise OSError(errno.ENODEV, "no such device")
    if device.hardware_type != ARPHRD_ETHER and device.hardware_type not in ARPHRD_RAW:
        raise OSError(errno.EAFNOSUPPORT, "unsupported type of device")
    ethertype = ETHERTYPES[probe_packet.family]
    body = datagram(probe_packet) if probe_packet.family else probe_packet.payload.ljust(_SHORTEST_PAYLOAD, b"\0")
    if probe_packet.form == "raw-frame" and device.hardware_type == ARPHRD_ETHER:
        body = DOCUMENTATION_MAC + device.mac + struct.pack("!H", ethertype) + body
    return lambda: sender.sendto(body, (probe_packet.device, ethertype, 0, 0, DOCUMENTATION_MAC))


_SHORTEST_PAYLOAD = 46  # bytes of an Ethernet frame
