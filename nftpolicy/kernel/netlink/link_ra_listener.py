# SPDX-License-Identifier: BSD-2-Clause
"""Events that a resolver waits for: files that name servers, links, addresses, router advertisements.

A raw ICMPv6 socket receives the advertisements. The kernel reports their DNS servers as
RTM_NEWNDUSEROPT only if it processes advertisements itself (accept_ra). With networkd, dhcpcd,
odhcp6c or NetworkManager it does not.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from attrs import Factory, define, frozen

from ..inotify import FilePatternWatch
from ..poll_group import PollGroup
from . import constants as nl
from .socket import pending_notifications, split_messages, subscribe

_ICMP6_FILTER = 1
_IPV6_RECVHOPLIMIT, _IPV6_HOPLIMIT = 51, 52
_ROUTER_SOLICITATION, _ROUTER_ADVERTISEMENT = 133, 134
_ALL_ROUTERS = "ff02::2"
_HOP_LIMIT = 255  # of a neighbour: no router has forwarded the packet (RFC 4861 6.1.2)
_HOP_LIMIT_MESSAGE = (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT)
_MAX_MESSAGES = 64  # that one read takes from a socket, so that a flood cannot starve the caller
_MAX_ADVERTISEMENT = 1 << 16  # bytes
_RECEIVE_BUFFER = 256 << 10  # bytes


@frozen
class Advertisement:
    """An ICMPv6 message from a neighbour on the device of that index."""

    index: int
    message: bytes


@define
class ListenerEvents:
    """Events since the last read.

    `files`: a watched file changed. `links`: devices or addresses may have changed. `carriers`: the
    reported carrier states by device index.
    """

    files: bool = False
    links: bool = False
    carriers: dict[int, bool] = Factory(dict)
    advertisements: list[Advertisement] = Factory(list)

    def __bool__(self) -> bool:
        return self.files or self.links or bool(self.advertisements)


class LinkRaListener(PollGroup):
    """Wait for files, links, addresses and advertisements, in the network namespace of the calling thread.

    `files` are patterns as in inotify.FilePatternWatch. `routers`: receive advertisements, which
    needs CAP_NET_RAW; a kernel without IPv6 has none. Raises OSError if the kernel refuses.
    """

    def __init__(self, files: Iterable[Path], routers: bool) -> None:
        self._files = FilePatternWatch(files)
        super().__init__(self._files)
        try:
            self._rtnetlink = self._open(socket.AF_NETLINK, nl.NETLINK_ROUTE)
            subscribe(self._rtnetlink, (nl.RTNLGRP_LINK, nl.RTNLGRP_IPV4_IFADDR, nl.RTNLGRP_IPV6_IFADDR))
            self._icmpv6 = self._open_icmpv6() if routers else None
        except BaseException:
            self.close()
            raise

    def _open_icmpv6(self) -> socket.socket | None:
        """Return a socket that receives router advertisements; None if the kernel has no IPv6."""
        try:
            icmpv6 = self._open(socket.AF_INET6, socket.IPPROTO_ICMPV6)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return None
            raise
        icmpv6.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _icmp6_filter(_ROUTER_ADVERTISEMENT))
        icmpv6.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)
        icmpv6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOP_LIMIT)
        icmpv6.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        return icmpv6

    def read(self) -> ListenerEvents:
        """Return the events since the last read, up to a bound. Never blocks. Raises OSError."""
        events = ListenerEvents(self._files.read(), advertisements=self._advertisements())
        for raw in pending_notifications(self._rtnetlink, _MAX_MESSAGES):
            events.links = True
            if raw is not None:
                _read_carriers(raw, events.carriers)
        return events

    def _advertisements(self) -> list[Advertisement]:
        advertisements: list[Advertisement] = []
        if self._icmpv6 is None:
            return advertisements
        with suppress(BlockingIOError):
            for _ in range(_MAX_MESSAGES):
                message, ancillary, _, source = self._icmpv6.recvmsg(_MAX_ADVERTISEMENT, 64)
                hop_limits = [data[:4] for level, kind, data in ancillary if (level, kind) == _HOP_LIMIT_MESSAGE]
                is_link_local = source[0].lower().startswith("fe80:")  # RFC 4861 6.1.2
                if is_link_local and hop_limits == [struct.pack("=i", _HOP_LIMIT)]:
                    advertisements.append(Advertisement(source[3], message))
        return advertisements

    def solicit(self, index: int) -> bool:
        """Send a router solicitation (RFC 4861 4.1) by a device; return True if it was sent."""
        if self._icmpv6 is None:
            return False
        try:
            self._icmpv6.sendto(bytes((_ROUTER_SOLICITATION,)) + bytes(7), (_ALL_ROUTERS, 0, 0, index))
        except OSError:  # no link, no link-local address yet, or a guard without an exemption for it
            return False
        return True


def _read_carriers(raw: bytes, carriers: dict[int, bool]) -> None:
    """Note the carrier of each device in the messages of a datagram."""
    for kind, _, _, start, end in split_messages(raw):
        if kind in (nl.RTM_NEWLINK, nl.RTM_DELLINK) and start + nl.IFINFOMSG.size <= min(end, len(raw)):
            family, _, index, flags, _ = nl.IFINFOMSG.unpack_from(raw, start)
            if family != nl.AF_BRIDGE:  # repeats a link that was reported already
                carriers[index] = kind == nl.RTM_NEWLINK and bool(flags & nl.IFF_RUNNING)


def _icmp6_filter(kind: int) -> bytes:
    """Return a socket filter that passes one ICMPv6 type (RFC 3542 3.2)."""
    blocked = [0xFFFFFFFF] * 8
    blocked[kind >> 5] &= ~(1 << (kind & 31)) & 0xFFFFFFFF
    return struct.pack("=8I", *blocked)
