# SPDX-License-Identifier: BSD-2-Clause
"""Sends single packets in every way that Linux knows, by forked children with the ids of whom they stand for.

Nothing stays: each child ends within seconds and takes its sockets along.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from itertools import groupby

from attrs import frozen

from .rtmessages import AF
from .tap import card

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
PROTOCOL = 253  # for experiments, RFC 3692
ETHERTYPES = {0: 0x88B5, 4: 0x0800, 6: 0x86DD}  # 0: local experiments, IEEE 802
NOBODYS_MAC = bytes.fromhex("00005e005301")  # for documentation, RFC 9542: no machine has it
LINKED = 1  # ARPHRD_ETHER: devices whose frames have a header
BARE = (512, 519, 776, 65534)  # PPP, raw IP, sit, none: devices whose frames are IP packets

_HOPS = 1  # so that the first router drops it
_IP_OPTIONS, _IP_PKTINFO, _IP_UNICAST_IF, _IP_MULTICAST_IF, _IP_MULTICAST_TTL, _IP_MULTICAST_LOOP = 4, 8, 50, 32, 33, 34
_IPV6_UNICAST_HOPS, _IPV6_MULTICAST_IF, _IPV6_MULTICAST_HOPS, _IPV6_MULTICAST_LOOP = 16, 17, 18, 19
_IPV6_HOPOPTS, _IPV6_PKTINFO, _IPV6_UNICAST_IF = 54, 50, 76
_NO_OPERATION = b"\1\1\1\1"  # four IPv4 options that say nothing, RFC 791
_PADDING = bytes((0, 0, 1, 4, 0, 0, 0, 0))  # a hop-by-hop header that says nothing, RFC 8200
_LONGEST = 3  # seconds until a child that hangs is killed

# The socket of each form of packet; "frame" and "raw-frame" are AF_PACKET's.
_SOCKETS = {
    "udp": (socket.SOCK_DGRAM, {4: 0, 6: 0}),
    "tcp": (socket.SOCK_STREAM, {4: 0, 6: 0}),
    "ping": (socket.SOCK_DGRAM, {4: ICMP, 6: ICMPV6}),
    "echo": (socket.SOCK_RAW, {4: ICMP, 6: ICMPV6}),
    "raw": (socket.SOCK_RAW, {4: PROTOCOL, 6: PROTOCOL}),
    "header": (socket.SOCK_RAW, {4: socket.IPPROTO_RAW, 6: socket.IPPROTO_RAW}),
}
FRAMES = {"frame": socket.SOCK_DGRAM, "raw-frame": socket.SOCK_RAW}
PORTS = frozenset({"udp", "tcp", "header", *FRAMES})  # forms that have ports


@frozen
class Shot:
    """One packet to send: its form and way (see `_SOCKETS`, `_WAYS`), its family (0: not IP), and who sends it.

    `device` and `source` are for the ways and forms that name them. `lent`: the socket is opened by `uid` and
    `gid`, but marked and used with root's rights.
    """

    form: str
    family: int
    destination: str
    payload: bytes
    uid: int = 0
    gid: int = 0
    lent: bool = False
    mark: int = 0
    dport: int = 9
    sport: int = 40000
    way: str = ""
    device: str | None = None
    source: str | None = None


@frozen
class Outcome:
    """What became of a shot on this side: `refused` is the errno's name, `at` says whether it was the socket ("open")
    or the packet ("send") that was refused."""

    at: str = "send"
    refused: str | None = None


def fire(shots: Sequence[Shot], meanwhile: Callable[[int], None]) -> list[Outcome]:
    """Send all of them, in children with their senders' ids. `meanwhile` is called to wait for a file descriptor, and
    may come back earlier."""
    order = sorted(range(len(shots)), key=lambda index: (shots[index].lent, shots[index].uid, shots[index].gid))
    found: dict[int, Outcome] = {}
    for _, group in groupby(order, key=lambda index: (shots[index].lent, shots[index].uid, shots[index].gid)):
        indexes = list(group)
        outcomes = _in_child([shots[index] for index in indexes], meanwhile)
        found.update(zip(indexes, outcomes, strict=True))
    return [found[index] for index in range(len(shots))]


def _in_child(shots: list[Shot], meanwhile: Callable[[int], None]) -> list[Outcome]:
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        _be_child(shots, sender)
    os.close(sender)
    try:
        parts = []
        while True:
            meanwhile(receiver)
            if select.select([receiver], [], [], 0)[0]:
                parts.append(os.read(receiver, 65536))
                if not parts[-1]:
                    break
    finally:
        os.close(receiver)
        os.kill(child, signal.SIGKILL)  # it is not reaped yet: the number is its own
        os.waitpid(child, 0)
    try:
        return [Outcome(*one) for one in json.loads(b"".join(parts))]
    except ValueError:  # it ended before its time
        return [Outcome("open", "ECHILD")] * len(shots)


def _be_child(shots: list[Shot], sender: int) -> None:
    """Never returns: the stack is the parent's."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LONGEST)
        kept: list[socket.socket] = []  # open until all is sent: the kernel may need them
        answers = [(one.at, one.refused) for one in _all(shots, kept)]
        os.write(sender, json.dumps(answers).encode())
    finally:
        os._exit(0)


def _all(shots: list[Shot], kept: list[socket.socket]) -> Iterator[Outcome]:
    uid, gid, lent = shots[0].uid, shots[0].gid, shots[0].lent
    try:
        if uid or gid:
            os.setgroups([])
        if not lent:
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
    except OSError as error:  # a user namespace without such a user
        yield from [Outcome("open", _name(error))] * len(shots)
        return
    for shot in shots:
        yield _emit(shot, kept)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _emit(shot: Shot, kept: list[socket.socket]) -> Outcome:
    try:
        made = _opened(shot)
        kept.append(made)
        made.setblocking(False)
        if shot.mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", shot.mark))
        if shot.form in FRAMES:
            send = _frame(made, shot)
        else:
            _few_hops(made, shot)
            _WAYS[shot.way](made, shot)
            send = _packet(made, shot)
    except OSError as error:
        return Outcome("open", _name(error))
    try:
        send()
    except BlockingIOError as error:
        # A connection under way is all that is wanted; no room in a new socket's buffer can't be.
        return Outcome() if error.errno == errno.EINPROGRESS else Outcome("send", _name(error))
    except OSError as error:
        return Outcome("send", _name(error))
    return Outcome()


def _opened(shot: Shot) -> socket.socket:
    if shot.form in FRAMES:
        return socket.socket(socket.AF_PACKET, FRAMES[shot.form])
    kind, protocols = _SOCKETS[shot.form]
    domain = socket.AF_INET6 if shot.way == "mapped" else AF[shot.family]
    if not shot.lent:
        return socket.socket(domain, kind, protocols[shot.family])
    # Whose a socket is, the kernel takes from who opens it. The real ids stay root's, and so the way back open.
    os.setegid(shot.gid)
    os.seteuid(shot.uid)
    try:
        return socket.socket(domain, kind, protocols[shot.family])
    finally:
        os.seteuid(0)
        os.setegid(0)


def _few_hops(made: socket.socket, shot: Shot) -> None:
    if shot.family == 4:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _HOPS)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_UNICAST_HOPS, _HOPS)
    if shot.form == "tcp" or shot.way == "mapped":  # which have no groups
        return
    if shot.family == 4:
        made.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_TTL, _HOPS)
        made.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_LOOP, 0)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_HOPS, _HOPS)
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_LOOP, 0)


# --- the ways a socket can choose its device, or have it chosen ------------------------------------


def _number(shot: Shot) -> int:
    return socket.if_nametoindex(shot.device or "")


def _bound(made: socket.socket, shot: Shot) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, (shot.device or "").encode())


def _source(made: socket.socket, shot: Shot) -> None:
    made.bind((shot.source or "", 0))


def _unicast_if(made: socket.socket, shot: Shot) -> None:
    level, option = {4: (socket.IPPROTO_IP, _IP_UNICAST_IF), 6: (socket.IPPROTO_IPV6, _IPV6_UNICAST_IF)}[shot.family]
    made.setsockopt(level, option, struct.pack("!I", _number(shot)))


def _multicast_if(made: socket.socket, shot: Shot) -> None:
    if shot.family == 4:
        wanted = struct.pack("=4s4si", bytes(4), bytes(4), _number(shot))
        made.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_IF, wanted)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_IF, _number(shot))


def _broadcast(made: socket.socket, shot: Shot) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    _bound(made, shot)


def _options(made: socket.socket, shot: Shot) -> None:
    if shot.family == 4:
        made.setsockopt(socket.IPPROTO_IP, _IP_OPTIONS, _NO_OPERATION)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_HOPOPTS, _PADDING)


def _nothing(made: socket.socket, shot: Shot) -> None:
    pass


# "pktinfo", "zone" and "mapped" are said with the packet.
_WAYS: dict[str, Callable[[socket.socket, Shot], None]] = {
    "": _nothing,
    "mapped": _nothing,
    "options": _options,
    "source": _source,
    "bound": _bound,
    "unicast-if": _unicast_if,
    "pktinfo": _nothing,
    "multicast-if": _multicast_if,
    "zone": _nothing,
    "broadcast": _broadcast,
}


# --- the packets -----------------------------------------------------------------------------------


def _packet(made: socket.socket, shot: Shot) -> Callable[[], object]:
    port = 0 if shot.form in ("ping", "echo", "raw", "header") else shot.dport
    target: tuple[str | int, ...] = (shot.destination, port)
    if shot.way == "mapped":
        target = (f"::ffff:{shot.destination}", port)
    elif shot.way == "zone":
        target = (shot.destination, port, 0, _number(shot))
    if shot.form == "tcp":
        return lambda: made.connect(target)
    if shot.way == "pktinfo":
        kind = {4: _IP_PKTINFO, 6: _IPV6_PKTINFO}[shot.family]
        info = struct.pack("=i8x" if shot.family == 4 else "=16xi", _number(shot))
        level = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}[shot.family]
        return lambda: made.sendmsg([shot.payload], [(level, kind, info)], 0, target)
    return lambda: made.sendto(_body(shot), target)


def _body(shot: Shot) -> bytes:
    if shot.form in ("ping", "echo"):
        return _echo(shot)
    return datagram(shot) if shot.form == "header" else shot.payload


def _echo(shot: Shot) -> bytes:
    message = struct.pack("!BBHHH", {4: 8, 6: 128}[shot.family], 0, 0, 1, 1) + shot.payload
    # The kernel computes it for IPv6 and for ping sockets.
    return message[:2] + struct.pack("!H", _checksum(message)) + message[4:] if shot.family == 4 else message


def datagram(shot: Shot) -> bytes:
    """A whole IP packet with UDP from `source`, as programs write it that make their own headers."""
    assert shot.source is not None
    source, destination = (ip_address(one).packed for one in (shot.source, shot.destination))
    size = 8 + len(shot.payload)
    ports = struct.pack("!HHH", shot.sport, shot.dport, size)
    if shot.family == 4:
        start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, _HOPS, UDP, 0) + source + destination
        return start[:10] + struct.pack("!H", _checksum(start)) + start[12:] + ports + bytes(2) + shot.payload
    pseudo = source + destination + struct.pack("!II", size, UDP)
    checksum = _checksum(pseudo + ports + bytes(2) + shot.payload) or 0xFFFF
    head = struct.pack("!IHBB", 6 << 28, size, UDP, _HOPS) + source + destination
    return head + ports + struct.pack("!H", checksum) + shot.payload


def _frame(made: socket.socket, shot: Shot) -> Callable[[], object]:
    assert shot.device is not None
    found = card(shot.device)
    if found is None:
        raise OSError(errno.ENODEV, "no such device")
    if found.kind != LINKED and found.kind not in BARE:
        raise OSError(errno.EAFNOSUPPORT, "a device whose frames are not known here")
    ethertype = ETHERTYPES[shot.family]
    body = datagram(shot) if shot.family else shot.payload.ljust(46, b"\0")
    if shot.form == "raw-frame" and found.kind == LINKED:
        body = NOBODYS_MAC + found.mac + struct.pack("!H", ethertype) + body
    return lambda: made.sendto(body, (shot.device, ethertype, 0, 0, NOBODYS_MAC))


def _checksum(data: bytes) -> int:
    even = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(even) // 2}H", even))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
