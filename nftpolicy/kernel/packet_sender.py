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
from ipaddress import ip_address
from itertools import groupby

from attrs import frozen

from .child_process import ChildProcess
from .errors import ChildFailed
from .netlink.constants import ADDRESS_FAMILY
from .packet_capture import link_info

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
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
_ECHO_REQUESTS = {4: 8, 6: 128}  # ICMP and ICMPv6 types
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
        shot = packets[index]
        return shot.open_as_user, shot.uid, shot.gid

    outcomes: dict[int, SendOutcome] = {}
    for _, group in groupby(sorted(range(len(packets)), key=sender), key=sender):
        indexes = list(group)
        results = _send_in_child([packets[index] for index in indexes], wait)
        outcomes.update(zip(indexes, results, strict=True))
    return [outcomes[index] for index in range(len(packets))]


def _send_in_child(shots: list[ProbePacket], meanwhile: Callable[[int], None]) -> list[SendOutcome]:
    """Send the packets of one sender."""
    opened: list[socket.socket] = []  # of the child; they stay open until it ends, because the kernel may need them

    def work() -> bytes:
        return json.dumps([(outcome.stage, outcome.error) for outcome in _send_all(shots, opened)]).encode()

    with ChildProcess(work, seconds=_TIME_LIMIT) as child:
        complete = False
        while not complete:
            meanwhile(child.descriptor)
            complete = child.read_available()
        try:
            return [SendOutcome(*outcome) for outcome in json.loads(child.result())]
        except (ChildFailed, ValueError):
            return [SendOutcome("open", "ECHILD")] * len(shots)


def _send_all(shots: list[ProbePacket], opened: list[socket.socket]) -> Iterator[SendOutcome]:
    uid, gid, opens_as_user = shots[0].uid, shots[0].gid, shots[0].open_as_user
    try:
        if uid or gid:
            os.setgroups([])
        if not opens_as_user:
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
    except OSError as error:  # a user namespace without such a user
        yield from [SendOutcome("open", _errno_name(error))] * len(shots)
        return
    for shot in shots:
        yield _send(shot, opened)


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _send(shot: ProbePacket, opened: list[socket.socket]) -> SendOutcome:
    try:
        sender = _open(shot)
        opened.append(sender)
        sender.setblocking(False)
        if shot.mark:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", shot.mark))
        if shot.form in FRAME_SOCKETS:
            send = _frame(sender, shot)
        else:
            _limit_hops(sender, shot)
            _METHODS[shot.method](sender, shot)
            send = _packet(sender, shot)
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


def _open(shot: ProbePacket) -> socket.socket:
    if shot.form in FRAME_SOCKETS:
        return socket.socket(socket.AF_PACKET, FRAME_SOCKETS[shot.form])
    kind, protocols = _SOCKETS[shot.form]
    domain = socket.AF_INET6 if shot.method == "mapped" else ADDRESS_FAMILY[shot.family]
    if not shot.open_as_user:
        return socket.socket(domain, kind, protocols[shot.family])
    # The kernel takes the owner of a socket from the effective ids. The real ids stay root, so that
    # they can return.
    os.setegid(shot.gid)
    os.seteuid(shot.uid)
    try:
        return socket.socket(domain, kind, protocols[shot.family])
    finally:
        os.seteuid(0)
        os.setegid(0)


def _limit_hops(sender: socket.socket, shot: ProbePacket) -> None:
    if shot.family == 4:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _HOP_LIMIT)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_UNICAST_HOPS, _HOP_LIMIT)
    if shot.form == "tcp" or shot.method == "mapped":  # without multicast
        return
    if shot.family == 4:
        sender.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_TTL, _HOP_LIMIT)
        sender.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_LOOP, 0)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_HOPS, _HOP_LIMIT)
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_LOOP, 0)


# --- ways in which a socket selects its device, or gets one -------------------------


def _device_index(shot: ProbePacket) -> int:
    return socket.if_nametoindex(shot.device or "")


def _bind_device(sender: socket.socket, shot: ProbePacket) -> None:
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, (shot.device or "").encode())


def _bind_source(sender: socket.socket, shot: ProbePacket) -> None:
    sender.bind((shot.source or "", 0))


def _set_unicast_device(sender: socket.socket, shot: ProbePacket) -> None:
    index = struct.pack("!I", _device_index(shot))
    sender.setsockopt(_LEVELS[shot.family], _UNICAST_IF[shot.family], index)


def _set_multicast_device(sender: socket.socket, shot: ProbePacket) -> None:
    if shot.family == 4:
        request = struct.pack("=4s4si", bytes(4), bytes(4), _device_index(shot))  # struct ip_mreqn
        sender.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_IF, request)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_IF, _device_index(shot))


def _allow_broadcast(sender: socket.socket, shot: ProbePacket) -> None:
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    _bind_device(sender, shot)


def _set_options(sender: socket.socket, shot: ProbePacket) -> None:
    if shot.family == 4:
        sender.setsockopt(socket.IPPROTO_IP, _IP_OPTIONS, _NO_OPERATION)
    else:
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_HOPOPTS, _PADDING)


def _do_nothing(sender: socket.socket, shot: ProbePacket) -> None:
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


def _packet(sender: socket.socket, shot: ProbePacket) -> Callable[[], object]:
    """Return the call that sends an IP packet."""
    port = 0 if shot.form in _NO_PORTS else shot.dport
    target: tuple[str | int, ...] = (shot.destination, port)
    if shot.method == "mapped":
        target = (f"::ffff:{shot.destination}", port)
    elif shot.method == "zone":
        target = (shot.destination, port, 0, _device_index(shot))
    if shot.form == "tcp":
        return lambda: sender.connect(target)
    if shot.method == "pktinfo":
        index = _device_index(shot)
        if shot.family == 4:  # struct in_pktinfo, struct in6_pktinfo
            message = (socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=i8x", index))
        else:
            message = (socket.IPPROTO_IPV6, _IPV6_PKTINFO, struct.pack("=16xi", index))
        return lambda: sender.sendmsg([shot.payload], [message], 0, target)
    return lambda: sender.sendto(_body(shot), target)


def _body(shot: ProbePacket) -> bytes:
    if shot.form in ("ping", "echo"):
        return _echo_request(shot)
    return datagram(shot) if shot.form == "header" else shot.payload


def _echo_request(shot: ProbePacket) -> bytes:
    message = struct.pack("!BBHHH", _ECHO_REQUESTS[shot.family], 0, 0, 1, 1) + shot.payload
    if shot.family == 6:
        return message  # the kernel computes the checksum, also for ping sockets of IPv4
    return message[:2] + struct.pack("!H", _checksum(message)) + message[4:]


def datagram(shot: ProbePacket) -> bytes:
    """Return a whole IP packet with UDP from `source`, for programs that write their own headers."""
    assert shot.source is not None
    source, destination = (ip_address(address).packed for address in (shot.source, shot.destination))
    size = 8 + len(shot.payload)
    ports = struct.pack("!HHH", shot.sport, shot.dport, size)
    if shot.family == 4:
        start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, _HOP_LIMIT, UDP, 0) + source + destination
        return start[:10] + struct.pack("!H", _checksum(start)) + start[12:] + ports + bytes(2) + shot.payload
    pseudo_header = source + destination + struct.pack("!II", size, UDP)
    checksum = _checksum(pseudo_header + ports + bytes(2) + shot.payload) or 0xFFFF
    header = struct.pack("!IHBB", 6 << 28, size, UDP, _HOP_LIMIT) + source + destination
    return header + ports + struct.pack("!H", checksum) + shot.payload


def _frame(sender: socket.socket, shot: ProbePacket) -> Callable[[], object]:
    """Return the call that sends a frame."""
    assert shot.device is not None
    device = link_info(shot.device)
    if device is None:
        raise OSError(errno.ENODEV, "no such device")
    if device.hardware_type != ARPHRD_ETHER and device.hardware_type not in ARPHRD_RAW:
        raise OSError(errno.EAFNOSUPPORT, "unsupported type of device")
    ethertype = ETHERTYPES[shot.family]
    body = datagram(shot) if shot.family else shot.payload.ljust(_SHORTEST_PAYLOAD, b"\0")
    if shot.form == "raw-frame" and device.hardware_type == ARPHRD_ETHER:
        body = DOCUMENTATION_MAC + device.mac + struct.pack("!H", ethertype) + body
    return lambda: sender.sendto(body, (shot.device, ethertype, 0, 0, DOCUMENTATION_MAC))


_SHORTEST_PAYLOAD = 46  # bytes of an Ethernet frame


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    even = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(even) // 2}H", even))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
