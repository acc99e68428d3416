# SPDX-License-Identifier: BSD-2-Clause
"""Requests to one netlink family, and what the kernel answers (netlink(7))."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10  # NLM_F_*
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _STRICT = 270, 12  # NETLINK_GET_STRICT_CHK
_HEADER = struct.Struct("=IHHII")
_CODE = struct.Struct("=i")
_WHOLE = 1 << 18  # bytes; the kernel fills what it is given, up to its own limit
_TRIES = 10

Part = tuple[bytes, int, int]  # a buffer, and where a message's body begins and ends in it


class Channel:
    """A socket of family `protocol`, in the network namespace of the thread that makes it. A context manager.

    Raises OSError with the kernel's errno if the kernel has no such family.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))  # an address of its own from now on, by which its changes are known
        self._number = 0

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Can be called twice."""
        self._socket.close()

    def strict(self) -> None:
        """Let the kernel heed the filters of a dump (Linux 4.20 and later)."""
        with suppress(OSError):
            self._socket.setsockopt(_SOL_NETLINK, _STRICT, 1)

    def dump(self, kind: int, body: bytes) -> list[Part]:
        """All messages of the answer. OSError with the kernel's errno.

        A dump that the kernel calls interrupted may have holes; it is asked for again, some times over.
        """
        for _ in range(_TRIES):
            found = list(self._parts(kind, body))
            if None not in found:
                break
        return [one for one in found if one is not None]

    def do(self, kind: int, body: bytes, flags: int = 0) -> int:
        """Carry out one request, with more flags of its kind; the errno of its ACK, 0 if it was done."""
        self._send(kind, body, _ACK | flags)
        while True:
            answer = self._socket.recv(_WHOLE)
            _, got, _, number, _ = _HEADER.unpack_from(answer)
            if number == self._number and got == _ERROR:
                return -int(_CODE.unpack_from(answer, _HEADER.size)[0])

    def _send(self, kind: int, body: bytes, flags: int) -> None:
        self._number += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._number, 0) + body)

    def _parts(self, kind: int, body: bytes) -> Iterator[Part | None]:
        self._send(kind, body, _DUMP)
        while True:
            answer = self._socket.recv(_WHOLE)
            at = 0
            while at + _HEADER.size <= len(answer):
                length, got, marks, number, _ = _HEADER.unpack_from(answer, at)
                if number == self._number:
                    if marks & _INTERRUPTED:
                        yield None
                    if got in (_ERROR, _DONE):
                        code = -int(_CODE.unpack_from(answer, at + _HEADER.size)[0])
                        if code:
                            raise OSError(code, errno.errorcode.get(code, "error"))
                        return
                    yield answer, at + _HEADER.size, at + length
                at += length + 3 & ~3
