# SPDX-License-Identifier: BSD-2-Clause
"""Netlink sockets: requests with their answers, and notifications (netlink(7)).

All dumps of nftpolicy follow one policy. The kernel marks a dump that a change has interrupted with
NLM_F_DUMP_INTR; entries may then be missing or listed twice. Such a dump is repeated up to
DUMP_TRIES times. Then DumpInterrupted is raised: a partial list never reaches the caller. Only
`NetlinkSocket.stream` yields messages before the end of the dump, to callers that read again.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from ..errors import DumpInterrupted
from .constants import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_GET_STRICT_CHK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGHDR,
    SOL_NETLINK,
)

DUMP_TRIES = 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.064  # seconds; doubled with each try, together about 0.9 s
_RECEIVE_SIZE = 1 << 18  # bytes; the kernel fills at most 32 KiB of it unless one object is larger
_NOTIFICATION_SIZE = 1 << 17  # bytes
_ERROR_CODE = struct.Struct("=i")

Message = tuple[bytes, int, int]  # a buffer, and the offsets of the message's body and end in it
Result = TypeVar("Result")


class NetlinkSocket:
    """A socket for requests to one netlink protocol, in the network namespace of the calling thread.

    A context manager.

    Raises:
        OSError: the kernel has no such protocol.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. Can be called twice."""
        self._socket.close()

    def bind(self) -> None:
        """Get a port number now, not with the first request, so that a monitor can ignore its changes."""
        self._socket.bind((0, 0))

    def enable_strict_checks(self) -> None:
        """Let the kernel apply the filters of a dump request (Linux 4.20 and later)."""
        with suppress(OSError):
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    def dump(self, message_type: int, body: bytes) -> list[Message]:
        """Return all messages of a dump.

        Raises:
            DumpInterrupted: changes interrupted each of DUMP_TRIES tries.
            OSError: the kernel refused; with its errno.
        """
        return repeat_until_consistent(lambda: self.dump_once(message_type, body), f"message type {message_type}")

    def dump_once(self, message_type: int, body: bytes) -> list[Message] | None:
        """Return all messages of a dump, or None if a change interrupted it. Raises OSError."""
        try:
            return list(self.stream(message_type, body))
        except InterruptedError:
            return None

    def stream(self, message_type: int, body: bytes) -> Iterator[Message]:
        """Yield the messages of a dump as they arrive. The socket takes no other request before the end.

        Raises:
            InterruptedError: at the end, if a change interrupted the dump: it is incomplete.
            OSError: the kernel refused; with its errno.
        """
        self._send(message_type, body, NLM_F_DUMP)
        interrupted = False
        while True:
            buffer = self._socket.recv(_RECEIVE_SIZE)
            for kind, flags, sequence, start, end in split_messages(buffer):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    _raise_error(buffer, start)
                    if interrupted:
                        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                    return
                yield buffer, start, end

    def query(self, message_type: int, body: bytes) -> Message:
        """Return the only message that answers a request.

        Raises OSError with the kernel's errno.
        """
        self._send(message_type, body, 0)
        while True:
            buffer = self._socket.recv(_RECEIVE_SIZE)
            for kind, _, sequence, start, end in split_messages(buffer):
                if sequence == self._sequence:
                    if kind == NLMSG_ERROR:
                        _raise_error(buffer, start)
                    return buffer, start, end

    def change(self, message_type: int, body: bytes, flags: int = 0) -> int:
        """Send a request that changes something; return the errno of its acknowledgement, 0 for success.

        `flags` are the NLM_F_* of the request beside NLM_F_REQUEST and NLM_F_ACK.
        """
        self._send(message_type, body, NLM_F_ACK | flags)
        while True:
            buffer = self._socket.recv(_RECEIVE_SIZE)
            for kind, _, sequence, start, _ in split_messages(buffer):
                if sequence == self._sequence and kind == NLMSG_ERROR:
                    return _error_code(buffer, start)

    def transact(
        self, begin: tuple[int, bytes], messages: Sequence[tuple[int, int, bytes]], end: tuple[int, bytes]
    ) -> int:
        """Send messages (type, flags, body) as one batch; return the first errno of it, 0 for success.

        `begin` and `end` are type and body of the messages around it.
        """
        first = self._sequence + 1
        parts = [(begin[0], 0, begin[1]), *((kind, NLM_F_ACK | flags, body) for kind, flags, body in messages)]
        batch = b"".join(self._message(*part) for part in (*parts, (end[0], 0, end[1])))
        last = self._sequence - 1
        self._socket.send(batch)
        result = 0
        while True:
            buffer = self._socket.recv(_RECEIVE_SIZE)
            for kind, _, sequence, start, _ in split_messages(buffer):
                if kind != NLMSG_ERROR or not first <= sequence <= last:
                    continue
                result = result or _error_code(buffer, start)
                if sequence == last or (sequence == first and result):
                    return result

    def _message(self, message_type: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        size = NLMSGHDR.size + len(body)
        header = NLMSGHDR.pack(size, message_type, NLM_F_REQUEST | flags, self._sequence, 0)
        return header + body

    def _send(self, message_type: int, body: bytes, flags: int) -> None:
        self._socket.send(self._message(message_type, flags, body))


def repeat_until_consistent(read: Callable[[], Result | None], subject: str) -> Result:
    """Return the first result of `read` that is not None.

    `subject` names in the message what was read.

    Raises:
        DumpInterrupted: `read` returned None DUMP_TRIES times, with short pauses between.
    """
    for number in range(DUMP_TRIES):
        if number:
            time.sleep(min(_FIRST_PAUSE * 2 ** (number - 1), _LONGEST_PAUSE))
        result = read()
        if result is not None:
            return result
    raise DumpInterrupted(subject, DUMP_TRIES)


def split_messages(buffer: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield type, flags, sequence number, and offsets of body and end, of each message of a datagram."""
    offset, size = 0, len(buffer)
    while offset + NLMSGHDR.size <= size:
        length, kind, flags, sequence, _ = NLMSGHDR.unpack_from(buffer, offset)
        if length < NLMSGHDR.size:
            return
        yield kind, flags, sequence, offset + NLMSGHDR.size, offset + length
        offset += length + 3 & ~3


def subscribe(notifications: socket.socket, groups: Iterable[int]) -> None:
    """Bind a netlink socket and add it to multicast groups.

    Skip those of IPv6 if the kernel lacks it.
    """
    notifications.bind((0, 0))
    for group in groups:
        with suppress(FileNotFoundError):  # a kernel without IPv6
            notifications.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)


def pending_notifications(notifications: socket.socket, limit: int) -> Iterator[bytes | None]:
    """Yield up to `limit` datagrams that wait on a non-blocking socket.

    None stands for an overflow of the receive buffer (ENOBUFS): the kernel has dropped
    notifications. Raises OSError.
    """
    receive = notifications.recv
    for _ in range(limit):
        try:
            yield receive(_NOTIFICATION_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield None


def _error_code(buffer: bytes, start: int) -> int:
    """Return the positive errno of a NLMSG_ERROR or NLMSG_DONE, 0 for success."""
    return -int(_ERROR_CODE.unpack_from(buffer, start)[0])


def _raise_error(buffer: bytes, start: int) -> None:
    code = _error_code(buffer, start)
    if code:
        raise OSError(code, os.strerror(code))
