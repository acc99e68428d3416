# SPDX-License-Identifier: BSD-2-Clause
"""The IP sockets of this network namespace, and their end from outside (sock_diag(7)).

It lists what can receive: sockets that are connected, listen, or have a port. A socket that has done
nothing yet is not listed. Numbers are those of include/uapi/linux: sock_diag.h, inet_diag.h.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

from attrs import frozen

from .interface import Unavailable
from .netlink import Channel
from .rtmessages import attributes

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21
_MARK, _CGROUP_ID = 15, 21  # INET_DIAG_*
TCP, UDP, UDPLITE, RAW = 6, 17, 136, 255  # RAW stands for raw sockets of all protocols
PROTOCOLS = {TCP: "tcp", UDP: "udp", UDPLITE: "udplite", RAW: "raw"}
_STATES = {
    1: "established", 2: "syn-sent", 3: "syn-recv", 4: "fin-wait-1", 5: "fin-wait-2", 7: "close", 8: "close-wait",
    9: "last-ack", 10: "listen", 11: "closing", 12: "syn-recv",
}  # fmt: skip
# Time-wait (6) is left out: nothing sends by it but the kernel, which answers the other end. So is 13, a TCP
# socket that has a port and nothing else: the kernel lists it, and finds none to close.
_WANTED = sum(1 << number for number in _STATES)
_REQUEST = struct.Struct("=BBBBI")
_MESSAGE = struct.Struct("=BBBB48s5I")  # struct inet_diag_msg
_NAME = struct.Struct("!HH16s16s")  # of struct inet_diag_sockid: ports and addresses
_REST = struct.Struct("=IQ")  # and then the device and the cookie
_MAPPED = bytes(10) + b"\xff\xff"
_GONE = frozenset({errno.ENOENT, errno.ESTALE})
_NO_DESTROY = frozenset({errno.EOPNOTSUPP, errno.EINVAL})  # the second one before Linux 4.5

CLOSED, GONE, NOT_SUPPORTED = "closed", "gone", "not supported"


@frozen
class Listed:
    """One IP socket.

    `family` is 4 or 6, and 4 for an IPv6 socket that speaks IPv4. `local` and `remote` are None where
    it has none. `mark` is None where the kernel does not tell it (no CAP_NET_ADMIN). `uid` is the user who
    opened it; `inode` is 0 where no process holds it any more. `bound` is a device; `cgroup` the number
    of the cgroup that it was opened in, if the kernel says so. `identity` is how the kernel knows it.
    """

    family: int
    protocol: int
    state: str
    local: str | None
    sport: int
    remote: str | None
    dport: int
    mark: int | None
    uid: int
    inode: int
    cookie: int
    bound: str | None = None
    cgroup: int | None = None
    domain: int = socket.AF_INET
    identity: bytes = b""

    @property
    def connected(self) -> bool:
        """Whether it has another end, or is about to."""
        return self.remote is not None

    def __str__(self) -> str:
        ends = f"{_end(self.local, self.sport)} to {_end(self.remote, self.dport)}"
        return f"{PROTOCOLS[self.protocol]} {ends if self.connected else _end(self.local, self.sport)}"


def _end(address: str | None, port: int) -> str:
    host = "*" if address is None else f"[{address}]" if ":" in address else address
    return f"{host}:{port}"


class SockDiag:
    """A channel to sock_diag, in the network namespace of the thread that makes it. A context manager.

    Raises Unavailable where the kernel has none.
    """

    def __init__(self) -> None:
        try:
            self._channel = Channel(_NETLINK_SOCK_DIAG)
        except OSError as error:
            raise Unavailable(f"this kernel lists no sockets ({error.strerror}): CONFIG_INET_DIAG is missing") from None

    def __enter__(self) -> SockDiag:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.__exit__(None, None, None)

    def sockets(self) -> list[Listed]:
        """All sockets of TCP, UDP, UDP-Lite and, with CONFIG_INET_RAW_DIAG, raw ones. A protocol that the
        kernel can't list is left out."""
        device = cache(_device)
        return [
            one
            for protocol in PROTOCOLS
            for domain in (socket.AF_INET, socket.AF_INET6)
            for one in self._of(protocol, domain, device)
        ]

    def _of(self, protocol: int, domain: int, device: Callable[[int], str | None]) -> Iterator[Listed]:
        try:
            parts = self._channel.dump(_BY_FAMILY, _REQUEST.pack(domain, protocol, 0, 0, _WANTED) + bytes(48))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                return
            raise Unavailable(f"this kernel does not list its sockets ({error.strerror})") from None
        for part in parts:
            yield listed(protocol, *part, device)

    def destroy(self, one: Listed) -> str:
        """End a socket: CLOSED, GONE (or another by now), or NOT_SUPPORTED. Its program's next call
        fails with ECONNABORTED. TCP resets the connection; UDP loses its other end, and can be used again.

        Raises Unavailable without CAP_NET_ADMIN.
        """
        # A raw socket's protocol stands where its port would.
        raw = one.sport & 0xFF if one.protocol == RAW else 0
        request = _REQUEST.pack(one.domain, one.protocol, 0, raw, 0xFFFFFFFF) + one.identity
        code = self._channel.do(_DESTROY, request)
        if code in (errno.EPERM, errno.EACCES):
            raise Unavailable("sockets can't be closed: this needs root (CAP_NET_ADMIN)")
        if not code:
            return CLOSED
        if code in _GONE:
            return GONE
        if code in _NO_DESTROY:
            return NOT_SUPPORTED
        raise OSError(code, f"{one} can't be closed: {errno.errorcode.get(code, code)}")


def listed(protocol: int, raw: bytes, start: int, end: int, device: Callable[[int], str | None]) -> Listed:
    """The value of the struct inet_diag_msg that begins at `start`; `device` names a device by its number."""
    domain, state, _, _, identity, _, _, _, uid, inode = _MESSAGE.unpack_from(raw, start)
    sport, dport, local, remote = _NAME.unpack_from(identity)
    index, cookie = _REST.unpack_from(identity, _NAME.size)
    found = dict(attributes(raw, start + _MESSAGE.size, end))
    mapped = domain == socket.AF_INET6 and _MAPPED in (local[:12], remote[:12])
    version = 4 if domain == socket.AF_INET or mapped else 6
    part = slice(12, 16) if mapped else slice(0, 4 if version == 4 else 16)
    return Listed(
        version,
        protocol,
        _STATES.get(state, str(state)),
        _address(local[part]),
        sport,
        _address(remote[part]),
        dport,
        _number(found[_MARK]) if _MARK in found else None,
        uid,
        inode,
        cookie,
        device(index) if index else None,
        _number(found[_CGROUP_ID]) if _CGROUP_ID in found else None,
        domain,
        identity,
    )


def _address(raw: bytes) -> str | None:
    if not any(raw):
        return None
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder)


def _device(index: int) -> str | None:
    with suppress(OSError):
        return socket.if_indextoname(index)
    return f"device number {index}"
