# SPDX-License-Identifier: BSD-2-Clause
"""What a resolver waits for: files that name servers, links, addresses, and router advertisements.

Advertisements are heard by a socket of our own. The kernel passes their DNS servers on as RTM_NEWNDUSEROPT only where
it takes advertisements itself (accept_ra); where networkd, dhcpcd, odhcp6c or NetworkManager do that, it says nothing.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from attrs import Factory, define, frozen

from .inotify import Patterns
from .listener import Listener, join

_GROUPS = (1, 5, 9)  # RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=B3xiI4x")  # struct ifinfomsg: family, index, flags
_NEWLINK, _DELLINK, _RUNNING, _BRIDGE = 16, 17, 0x40, 7  # RTM_*, IFF_RUNNING, AF_BRIDGE: the same links once more
_ICMP6_FILTER = 1
_IPV6_RECVHOPLIMIT, _IPV6_HOPLIMIT = 51, 52
_SOLICITATION, _ADVERTISEMENT = 133, 134
_ALL_ROUTERS = "ff02::2"
_HOPS = 255  # of a neighbour: no router has passed it on (RFC 4861 6.1.2)
_MOST = 64  # messages that one look takes, so that a flood can't keep the caller from acting
_BUFFER = 256 << 10


@frozen
class Advertisement:
    """An ICMPv6 message as it came from a neighbour on the device of that index."""

    index: int
    message: bytes


@define
class Heard:
    """What happened since the last look. `links`: devices or addresses may have changed; `carriers`: of devices, by
    index, whether they have a link now, as far as that was told."""

    files: bool = False
    links: bool = False
    carriers: dict[int, bool] = Factory(dict)
    advertisements: list[Advertisement] = Factory(list)

    def __bool__(self) -> bool:
        return self.files or self.links or bool(self.advertisements)


class Hearing(Listener):
    """Waits for all of it in the network namespace of the thread that makes it.

    `files` are patterns as of inotify.Patterns. `routers`: listen to advertisements, which needs CAP_NET_RAW; a
    kernel without IPv6 has none. Raises OSError if the kernel refuses.
    """

    def __init__(self, files: Iterable[Path], routers: bool) -> None:
        self._files = Patterns(files)
        super().__init__(self._files)
        try:
            self._rt = self._open(socket.AF_NETLINK, socket.NETLINK_ROUTE)
            join(self._rt, _GROUPS)
            self._routers = self._listener() if routers else None
        except BaseException:
            self.close()
            raise

    def _listener(self) -> socket.socket | None:
        try:
            made = self._open(socket.AF_INET6, socket.IPPROTO_ICMPV6)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return None
            raise
        made.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _only(_ADVERTISEMENT))
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        return made

    def read(self) -> Heard:
        """All of it, up to a bound; never waits."""
        heard = Heard(self._files.read(), advertisements=self._advertised())
        with suppress(BlockingIOError):
            for _ in range(_MOST):
                heard.links = self._told(heard.carriers) or heard.links
        return heard

    def _told(self, carriers: dict[int, bool]) -> bool:
        """Take one message of the kernel; True. BlockingIOError if there is none."""
        try:
            raw = self._rt.recv(1 << 16)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return True
        at = 0
        while at + _HEADER.size + _LINK.size <= len(raw):
            length, kind, *_ = _HEADER.unpack_from(raw, at)
            family, index, flags = _LINK.unpack_from(raw, at + _HEADER.size)
            if kind in (_NEWLINK, _DELLINK) and family != _BRIDGE:
                carriers[index] = kind == _NEWLINK and bool(flags & _RUNNING)
            at += max(length, _HEADER.size) + 3 & ~3
        return True

    def _advertised(self) -> list[Advertisement]:
        found: list[Advertisement] = []
        if self._routers is None:
            return found
        with suppress(BlockingIOError):
            for _ in range(_MOST):
                message, ancillary, _, source = self._routers.recvmsg(1 << 16, 64)
                hops = [data[:4] for level, kind, data in ancillary if (level, kind) == _HOPLIMIT]
                neighbour = source[0].lower().startswith("fe80:")  # RFC 4861 6.1.2
                if neighbour and hops == [struct.pack("=i", _HOPS)]:
                    found.append(Advertisement(source[3], message))
        return found

    def solicit(self, index: int) -> bool:
        """Ask the routers behind a device to advertise (RFC 4861 4.1); whether that was sent."""
        if self._routers is None:
            return False
        try:
            self._routers.sendto(bytes((_SOLICITATION,)) + bytes(7), (_ALL_ROUTERS, 0, 0, index))
        except OSError:  # no link, no link-local address yet, or a guard that does not exempt it
            return False
        return True


_HOPLIMIT = (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT)


def _only(kind: int) -> bytes:
    """A filter that lets one type of ICMPv6 pass (RFC 3542 3.2)."""
    blocked = [0xFFFFFFFF] * 8
    blocked[kind >> 5] &= ~(1 << (kind & 31)) & 0xFFFFFFFF
    return struct.pack("=8I", *blocked)
