"""Clients that connect to the node from outside, and listeners for them."""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

from . import echo_server, frames
from .limits import brief
from .netns import Namespace, wait_until

NO_ANSWER = "no answer"
_REPEAT = 1.0  # seconds


@contextlib.contextmanager
def listening(space: Namespace, port: int, uid: int | None = None, gid: int | None = None) -> Iterator[None]:
    """Run an echo service (UDP and TCP, both families) inside; it answers from the start."""
    process = space.spawn(echo_server.serve, port, uid=uid, gid=gid)
    try:
        wait_until(lambda: space.call(tcp, "::1", port, b"ready", 0.2) == b"ready", 5, f"the listener on {port}")
        yield
    finally:
        space.end(process)


def tcp(address: str, port: int, data: bytes = b"hello", seconds: float = 0.6) -> bytes | str:
    """Connect, send, read to the end and close; return the data, or NO_ANSWER, or the name of the errno.

    Runs in the namespace of the calling process, as all functions below.
    """

    def talk(made: socket.socket) -> bytes:
        made.connect((address, port))
        made.sendall(data)
        made.shutdown(socket.SHUT_WR)
        parts = []
        while part := made.recv(4096):
            parts.append(part)
        return b"".join(parts)

    return _try(socket.SOCK_STREAM, address, seconds, talk)


def udp(address: str, port: int, data: bytes = b"hello", seconds: float = 0.6) -> bytes | str:
    """Send a datagram and wait for one; ECONNREFUSED means an ICMP error.

    Who waits for more than a second expects an answer: the datagram is repeated each second, since one can be lost while
    a neighbour is resolved.
    """

    def talk(made: socket.socket) -> bytes:
        made.connect((address, port))
        end = time.monotonic() + brief(seconds)
        while (left := end - time.monotonic()) > _REPEAT:
            made.send(data)
            made.settimeout(_REPEAT)
            with contextlib.suppress(TimeoutError):
                return made.recv(4096)
        made.send(data)
        made.settimeout(max(left, 0.01))
        return made.recv(4096)

    return _try(socket.SOCK_DGRAM, address, seconds, talk)


def ping(address: str, seconds: float = 0.6, data: bytes = b"") -> bool:
    """Return True if an echo request is answered."""
    family = _domain(address)
    protocol, request, reply = (frames.ICMP, 8, 0) if family == socket.AF_INET else (socket.IPPROTO_ICMPV6, 128, 129)
    token = os.urandom(16) + data
    body = struct.pack("!HH", os.getpid() & 0xFFFF, 1) + token
    with socket.socket(family, socket.SOCK_RAW, protocol) as made:
        message = struct.pack("!BBH", request, 0, 0) + body
        if family == socket.AF_INET:
            message = struct.pack("!BBH", request, 0, frames.checksum(message)) + body
        made.sendto(message, (address, 0))
        end = time.monotonic() + brief(seconds)
        while (left := end - time.monotonic()) > 0:
            made.settimeout(left)
            try:
                answer = made.recv(65535)
            except TimeoutError:
                break
            header = (answer[0] & 15) * 4 if family == socket.AF_INET else 0
            if answer[header] == reply and answer[header + 8 :] == token:
                return True
    return False


def _domain(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _try(kind: int, address: str, seconds: float, talk: Callable[[socket.socket], bytes]) -> bytes | str:
    with socket.socket(_domain(address), kind) as made:
        made.settimeout(brief(seconds))
        try:
            return talk(made)
        except TimeoutError:
            return NO_ANSWER
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "error")
