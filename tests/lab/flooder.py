"""Floods of many kinds of packets at once, each identified by its destination port, with counts of sent packets.

A short window is found only by packets that are under way at that moment, so the senders are processes of their own
that never wait; they count in memory that they share with the reader.
"""

import errno
import mmap
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import addresses as at
from . import frames
from .netns import Namespace, wait_until
from .packet_senders import Job, packet_of

FIRST_PORT = 20_000  # the ports of the kinds begin here; nothing of the lab is near
PAYLOAD = b"flooding without a pause"
UDP, TCP, RAW, FRAME = "udp", "tcp", "raw", "frame"  # how it is sent: three kinds of sockets, and AF_PACKET
_PROTOCOLS = {UDP: frames.UDP, TCP: frames.TCP, RAW: frames.UDP, FRAME: frames.UDP}
_DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
_ETHERTYPE = {4: frames.ETH_IPV4, 6: frames.ETH_IPV6}
_IPV6_CHECKSUM = 7  # linux/in6.h
_WORD = 8  # bytes of a shared number
_MOST_PROCESSES = 8
_EACH = 3  # numbers of a kind: taken, refused, and the errno of the last refusal
_SOURCE = {4: at.NODE_MESH[4], 6: at.NODE_MESH[6]}  # of frames, which no routing gives a source


@dataclass(frozen=True)
class Kind:
    """Stream of packets: how it is sent, its destinations (`to`, by family), its fwmark (0: none), and its device.

    `role` is a word of the caller, as is `gid`, the group of the sender.
    """

    role: str
    how: str
    family: int
    to: Mapping[int, str]
    gid: int
    mark: int = 0
    device: str | None = None

    def __str__(self) -> str:
        by = f" by {self.device}" if self.device else ""
        return f"{self.role} {self.how}{self.family} to {self.to[self.family]}{by}"


@dataclass(frozen=True)
class Counts:
    """Packets that the kernel accepted from the senders and that it refused, by kind (their place in the flood)."""

    taken: tuple[int, ...]
    refused: tuple[int, ...]

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(_minus(self.taken, other.taken), _minus(self.refused, other.refused))


def _minus(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))


class Flood:
    """Flood of `kinds` from inside `space`, a process for each group of senders, from `resume` until `pause`.

    It ends with the namespace. `rest` is the time in seconds that each process sleeps between two rounds. The first
    kind has the destination port `port`, the next one the next port.
    """

    def __init__(self, space: Namespace, kinds: Sequence[Kind], rest: float = 0.001, port: int = FIRST_PORT) -> None:
        self.kinds, self._port = tuple(kinds), port
        self._cells = mmap.mmap(-1, _WORD * (1 + _MOST_PROCESSES + _EACH * len(kinds)))  # shared with forked processes
        self._numbers = memoryview(self._cells).cast("Q")
        self._numbers[0] = 1
        groups = sorted({kind.gid for kind in kinds})
        assert len(groups) <= _MOST_PROCESSES, "a process for each group of senders"
        for place, gid in enumerate(groups, 1):
            mine = [(index, kind) for index, kind in enumerate(kinds) if kind.gid == gid]
            space.spawn(_run, self._numbers, place, mine, rest, port, gid=gid, keep_caps=True)
        self._processes = len(groups)
        self.pause()

    def wanted(self) -> dict[tuple[int, int, int], int]:
        """Return the place of each kind by family, protocol and destination port, for a Tally."""
        return {(kind.family, _PROTOCOLS[kind.how], self._port + index): index for index, kind in enumerate(self.kinds)}

    def counts(self) -> Counts:
        """Return the counts until now, in every process that was forked after the flood was made."""
        numbers = self._numbers[1 + _MOST_PROCESSES :].tolist()
        return Counts(tuple(numbers[::_EACH]), tuple(numbers[1::_EACH]))

    def last_refusals(self) -> tuple[str, ...]:
        """Return the name of the last error of each kind; empty if there was none."""
        return tuple(errno.errorcode.get(one, "") for one in self._numbers[1 + _MOST_PROCESSES :].tolist()[2::_EACH])

    def pause(self) -> None:
        """Stop the senders, and wait until none sends; TimeoutError if one does not answer, as when it has died."""
        self._numbers[0] = 1
        wait_until(lambda: all(self._numbers[1 : 1 + self._processes]), 10, "the end of a round of the flood")

    def resume(self, rounds: int = 3) -> None:
        """Start the senders; return when every kind was sent (or refused) so many times. TimeoutError as above."""
        before = self.counts()
        self._numbers[0] = 0

        def flows() -> bool:
            now = self.counts() - before
            return all(taken + refused >= rounds for taken, refused in zip(now.taken, now.refused, strict=True))

        wait_until(flows, 10, "the flood")


def ports() -> str:
    """Return the ports of all floods, as nft writes a range."""
    return f"{FIRST_PORT}-{FIRST_PORT + 999}"


def _run(numbers: memoryview, place: int, kinds: Sequence[tuple[int, Kind]], rest: float, first: int) -> None:
    senders = [(1 + _MOST_PROCESSES + _EACH * index, _sender(kind, first + index)) for index, kind in kinds]
    sleep = time.sleep
    while True:
        if numbers[0]:
            numbers[place] = 1
            sleep(0.003)
            continue
        numbers[place] = 0
        for cell, send in senders:
            try:
                send()
            except OSError as error:
                numbers[cell + 1] += 1
                numbers[cell + 2] = error.errno or 0
            else:
                numbers[cell] += 1
        sleep(rest)


def _sender(kind: Kind, port: int) -> Callable[[], object]:
    return {UDP: _udp, TCP: _tcp, RAW: _raw, FRAME: _frame}[kind.how](kind, port)


def _socket(kind: Kind, how: int, protocol: int = 0) -> socket.socket:
    made = socket.socket(_DOMAIN[kind.family], how | socket.SOCK_NONBLOCK, protocol)
    if kind.mark:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", kind.mark))
    if kind.device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, kind.device.encode())
    return made


def _udp(kind: Kind, port: int) -> Callable[[], object]:
    made, place = _socket(kind, socket.SOCK_DGRAM), (kind.to[kind.family], port)  # not connected: each is routed anew
    made.bind(("", port))  # known, since a policy may let a source port pass for every owner (`sport`)
    return lambda: made.sendto(PAYLOAD, place)


def _tcp(kind: Kind, port: int) -> Callable[[], object]:
    place = (kind.to[kind.family], port)

    def send() -> None:
        """Send one SYN, from a socket that is closed before it could send a second."""
        with _socket(kind, socket.SOCK_STREAM) as made:
            made.bind(("", port))  # one port, so that connection tracking has one entry
            try:
                made.connect(place)
            except BlockingIOError:
                return  # under way

    return send


def _raw(kind: Kind, port: int) -> Callable[[], object]:
    made = _socket(kind, socket.SOCK_RAW, socket.IPPROTO_UDP)
    if kind.family == 6:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 6)  # the kernel writes the checksum at this offset
    datagram = struct.pack("!HHHH", port, port, 8 + len(PAYLOAD), 0) + PAYLOAD
    return lambda: made.sendto(datagram, (kind.to[kind.family], 0))


def _frame(kind: Kind, port: int) -> Callable[[], object]:
    assert kind.device, "a frame needs a device"
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
    if kind.mark:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", kind.mark))
    header = struct.pack("!HHHH", port, port, 8 + len(PAYLOAD), 0)
    packet = packet_of(Job(kind.family, PAYLOAD, 0, port, _SOURCE, kind.device), kind.to, frames.UDP, header)
    macs = bytes.fromhex((at.HOME_MAC + at.NODE_WAN_MAC).replace(":", ""))
    whole, place = macs + struct.pack("!H", _ETHERTYPE[kind.family]) + packet, (kind.device, _ETHERTYPE[kind.family])
    return lambda: made.sendto(whole, place)
