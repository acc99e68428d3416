# SPDX-License-Identifier: BSD-2-Clause
"""IP sockets of this network namespace: list and destroy them (sock_diag(7)).

The kernel lists the sockets that can receive: connected, listening, or bound to a port. A socket
that has done nothing yet is not listed. Numbers are those of include/uapi/linux: sock_diag.h,
inet_diag.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

from attrs import frozen

from ..errors import DumpInterrupted, Unavailable
from . import constants as nl
from .attributes import attribute, attributes, ip_text, native_integer
from .socket import NetlinkSocket

TCP, UDP, UDPLITE, RAW = 6, 17, 136, 255  # RAW stands for raw sockets of all protocols
PROTOCOLS = {TCP: "tcp", UDP: "udp", UDPLITE: "udplite", RAW: "raw"}
# include/net/tcp_states.h. Left out are time-wait (6), where only the kernel sends, to answer the
# other end, and 13, a TCP socket that only has a port: the kernel lists it, and does not find it to
# destroy it.
_STATES = {
    1: "established",
    2: "syn-sent",
    3: "syn-recv",
    4: "fin-wait-1",
    5: "fin-wait-2",
    7: "close",
    8: "close-wait",
    9: "last-ack",
    10: "listen",
    11: "closing",
    12: "syn-recv",
}
_LISTED_STATES = sum(1 << number for number in _STATES)
_ALL_STATES = 0xFFFFFFFF
_REQUEST = struct.Struct("=BBBBI")  # struct inet_diag_req_v2: family, protocol, extensions, raw protocol, states
_SOCKET_ID_SIZE = 48  # bytes of struct inet_diag_sockid
# struct inet_diag_msg: family, state, timer, retransmits, id; expires, two queues, uid, inode
_MESSAGE = struct.Struct("=BBBB48s5I")
_PORTS_AND_ADDRESSES = struct.Struct("!HH16s16s")  # begin of struct inet_diag_sockid
_DEVICE_AND_COOKIE = struct.Struct("=IQ")  # end of it
# struct inet_diag_bc_op with its operand: code, distance of the next operation if it is met, and else.
_CONDITION = struct.Struct("=BBHQ")
_BC_CGROUP_COND, _REJECT = 13, 4  # the distance beyond the end is that to "reject"
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # of IPv4-mapped IPv6 addresses
_NOT_FOUND = frozenset({errno.ENOENT, errno.ESTALE})
_NO_DESTROY = frozenset({errno.EOPNOTSUPP, errno.EINVAL})  # EINVAL before Linux 4.5

CLOSED, ABSENT, NOT_SUPPORTED = "closed", "gone", "not supported"


@frozen
class InetSocket:
    """An IP socket.

    `family` is 4 or 6, and 4 for an IPv6 socket that uses IPv4. `local` and `remote` are None if
    unset. `mark` is None if the kernel hides it (no CAP_NET_ADMIN). `uid` is the user that opened
    it. `inode` is 0 if no process holds it any more. `bound` is the device it is bound to; `cgroup`
    the number of the cgroup that it was opened in, or None. `identity` is the struct
    inet_diag_sockid of the kernel.
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
    def is_connected(self) -> bool:
        """Return True if the socket is connected, or is about to be."""
        return self.remote is not None

    def __str__(self) -> str:
        local = _endpoint(self.local, self.sport)
        ends = f"{local} to {_endpoint(self.remote, self.dport)}" if self.is_connected else local
        return f"{PROTOCOLS[self.protocol]} {ends}"


def _endpoint(address: str | None, port: int) -> str:
    if address is None:
        return f"*:{port}"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class SockDiag:
    """Access to sock_diag, in the network namespace of the calling thread. A context manager.

    Raises Unavailable if the kernel has no sock_diag.
    """

    def __init__(self) -> None:
        try:
            self._netlink = NetlinkSocket(nl.NETLINK_SOCK_DIAG)
        except OSError as error:
            raise Unavailable(f"this kernel lists no sockets ({error.strerror}): CONFIG_INET_DIAG is missing") from None

    def __enter__(self) -> SockDiag:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def sockets(self, cgroup: int | None = None) -> list[InetSocket]:
        """Return all sockets of TCP, UDP, UDP-Lite and, with CONFIG_INET_RAW_DIAG, raw ones.

        With `cgroup` only those that were opened in the cgroup of this number, or below it (Linux
        5.9). Skip a protocol that the kernel cannot list. Raises Unavailable.
        """
        device = cache(device_name)
        condition = b"" if cgroup is None else _cgroup_condition(cgroup)
        return [
            entry
            for protocol in PROTOCOLS
            for domain in (socket.AF_INET, socket.AF_INET6)
            for entry in self._sockets_of(protocol, domain, device, condition)
        ]

    def _sockets_of(
        self, protocol: int, domain: int, device: Callable[[int], str | None], condition: bytes
    ) -> Iterator[InetSocket]:
        request = _REQUEST.pack(domain, protocol, 0, 0, _LISTED_STATES) + bytes(_SOCKET_ID_SIZE) + condition
        try:
            messages = self._netlink.dump(nl.SOCK_DIAG_BY_FAMILY, request)
        except DumpInterrupted:
            raise
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                return
            raise Unavailable(f"this kernel does not list its sockets ({error.strerror})") from None
        for message in messages:
            yield decode_socket(protocol, *message, device)

    def destroy(self, entry: InetSocket) -> str:
        """Destroy a socket; return CLOSED, ABSENT (also if another one has taken its place) or NOT_SUPPORTED.

        The next call of its process fails with ECONNABORTED. The kernel resets a TCP connection; it
        disconnects a UDP socket, which can be used again.

        Raises Unavailable without CAP_NET_ADMIN, OSError for another refusal.
        """
        # The port of a raw socket holds its protocol.
        raw_protocol = entry.sport & 0xFF if entry.protocol == RAW else 0
        request = _REQUEST.pack(entry.domain, entry.protocol, 0, raw_protocol, _ALL_STATES) + entry.identity
        code = self._netlink.change(nl.SOCK_DESTROY, request)
        if code in (errno.EPERM, errno.EACCES):
            raise Unavailable("cannot close sockets: this needs root (CAP_NET_ADMIN)")
        if not code:
            return CLOSED
        if code in _NOT_FOUND:
            return ABSENT
        if code in _NO_DESTROY:
            return NOT_SUPPORTED
        raise OSError(code, f"cannot close {entry}: {errno.errorcode.get(code, code)}")


def _cgroup_condition(number: int) -> bytes:
    """Return the attribute by which the kernel lists the sockets of a cgroup alone."""
    size = _CONDITION.size
    return attribute(nl.INET_DIAG_REQ_BYTECODE, _CONDITION.pack(_BC_CGROUP_COND, size, size + _REJECT, number))


def decode_socket(protocol: int, raw: bytes, start: int, end: int, device: Callable[[int], str | None]) -> InetSocket:
    """Return the socket of the struct inet_diag_msg that begins at `start`.

    `device` returns the name of a device by its index.
    """
    domain, state, _, _, identity, _, _, _, uid, inode = _MESSAGE.unpack_from(raw, start)
    sport, dport, local, remote = _PORTS_AND_ADDRESSES.unpack_from(identity)
    index, cookie = _DEVICE_AND_COOKIE.unpack_from(identity, _PORTS_AND_ADDRESSES.size)
    values = dict(attributes(raw, start + _MESSAGE.size, end))
    is_mapped = domain == socket.AF_INET6 and _MAPPED_PREFIX in (local[:12], remote[:12])
    family = 4 if domain == socket.AF_INET or is_mapped else 6
    address = slice(12, 16) if is_mapped else slice(0, 4 if family == 4 else 16)
    return InetSocket(
        family,
        protocol,
        _STATES.get(state, str(state)),
        _address(local[address]),
        sport,
        _address(remote[address]),
        dport,
        native_integer(values[nl.INET_DIAG_MARK]) if nl.INET_DIAG_MARK in values else None,
        uid,
        inode,
        cookie,
        device(index) if index else None,
        native_integer(values[nl.INET_DIAG_CGROUP_ID]) if nl.INET_DIAG_CGROUP_ID in values else None,
        domain,
        identity,
    )


def _address(raw: bytes) -> str | None:
    return ip_text(raw) if any(raw) else None


def device_name(index: int) -> str | None:
    """Return the name of a device, or its number as text if it has gone."""
    with suppress(OSError):
        return socket.if_indextoname(index)
    return f"device number {index}"
