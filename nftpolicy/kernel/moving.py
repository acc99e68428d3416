# SPDX-License-Identifier: BSD-2-Clause
"""Routes of a few devices, read and brought into another table with all that the kernel said of them.

What is written is the kernel's own message with another table in it, so that metrics, preferences, sources and
what nobody here understands stay as they are. Numbers are those of include/uapi/linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress

from attrs import field, frozen

from ..netstate.routing import Route
from . import rtmessages as messages
from .netlink import Channel

_ROUTE = 0  # NETLINK_ROUTE
_GETADDR, _NEWROUTE, _DELROUTE, _GETROUTE = 22, 24, 25, 26
_REPLACE, _CREATE = 0x100, 0x400  # NLM_F_*
_HEAD = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_HOP = struct.Struct("=HBBi")  # struct rtnexthop
_CLONED, _ONLINK = 0x200, 0x4  # RTM_F_CLONED, RTNH_F_ONLINK
_OIF, _GATEWAY, _MULTIPATH, _CACHEINFO, _TABLE, _VIA, _EXPIRES, _NEXTHOP = 4, 5, 9, 12, 15, 18, 23, 30  # RTA_*
_HOPS = frozenset((_GATEWAY, _VIA))


@frozen
class Held:
    """A route that the kernel holds, and the body of the message that told of it."""

    route: Route
    _message: bytes = field(repr=False, eq=False)

    def request(self, table: int, protocol: int | None = None, expires: int | None = None) -> bytes:
        """The body of a request about this route in a table, by another protocol if one is given."""
        af, to, of, tos, _, owner, scope, kind, flags = _HEAD.unpack_from(self._message)
        found = list(messages.attributes(self._message, _HEAD.size, len(self._message)))
        # What the kernel says of itself, and what is written anew below.
        gone = {_CACHEINFO, _TABLE, _EXPIRES}
        if any(one == _NEXTHOP for one, _ in found):
            gone |= {_OIF, _GATEWAY, _VIA, _MULTIPATH}  # the nexthop object says all that
        kept = [(one, _onlink_hops(raw) if one == _MULTIPATH else raw) for one, raw in found if one not in gone]
        # A gateway that was reached by a route of its old table may have none in the new one.
        flags = _ONLINK if any(one in _HOPS for one, _ in kept) else flags & _ONLINK
        kept += [(_TABLE, struct.pack("=I", table))]
        kept += [(_EXPIRES, struct.pack("=I", expires))] if expires else []
        head = _HEAD.pack(af, to, of, tos, 0, owner if protocol is None else protocol, scope, kind, flags)
        return head + b"".join(messages.attribute(*one) for one in kept)


def _onlink_hops(raw: bytes) -> bytes:
    """The ways of a route, none of them dead and their gateways on the link."""
    made, at = [], 0
    while at + _HOP.size <= len(raw):
        length, flags, weight, index = _HOP.unpack_from(raw, at)
        parts = raw[at + _HOP.size : at + length]
        gateway = any(one in _HOPS for one, _ in messages.attributes(parts, 0, len(parts)))
        made.append(_HOP.pack(length, _ONLINK if gateway else flags & _ONLINK, weight, index) + parts)
        made.append(bytes(-length % 4))
        at += max(length, _HOP.size) + 3 & ~3
    return b"".join(made)


class Routes:
    """The routes of the network namespace of the thread that makes it. OSError if the kernel refuses that."""

    def __init__(self) -> None:
        self._channel = Channel(_ROUTE)
        self._channel.strict()

    def close(self) -> None:
        """Can be called twice."""
        self._channel.close()

    def by(self, devices: Collection[str]) -> list[Held]:
        """All routes that lead over one of the devices, in whatever table; of the devices that are there.

        Raises OSError.
        """
        found: dict[bytes, Held] = {}
        for name, index in _indexes(devices):
            for family in messages.AF.values():
                # Kernels before 4.20 do not look at the filter, and tell of all.
                wanted = _HEAD.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
                wanted += messages.attribute(_OIF, struct.pack("=I", index))
                with suppress(_NoFamily):
                    for raw, start, end in self._dump(_GETROUTE, wanted):
                        if _HEAD.unpack_from(raw, start)[-1] & _CLONED:
                            continue
                        route = messages.route(raw, start, end, _Names())
                        if any(way.device == name for way in route.ways):
                            found.setdefault(raw[start:end], Held(route, raw[start:end]))
        return list(found.values())

    def addresses(self, devices: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Device -> ADDRESS/LENGTH of its addresses, and of their peers where they have one. Raises OSError."""
        found: dict[str, tuple[str, ...]] = {}
        for name, index in _indexes(devices):
            told: list[str] = []
            for raw, start, end in self._dump(_GETADDR, struct.pack("=BBBBI", socket.AF_UNSPEC, 0, 0, 0, index)):
                _, length, _, _, of = struct.unpack_from("=BBBBI", raw, start)
                parts = dict(messages.attributes(raw, start + 8, end))
                if of == index:  # IFA_ADDRESS, IFA_LOCAL
                    told += [f"{_text(parts[one])}/{length}" for one in (1, 2) if one in parts]
            found[name] = tuple(dict.fromkeys(told))
        return found

    def _dump(self, kind: int, body: bytes) -> list[tuple[bytes, int, int]]:
        try:
            return self._channel.dump(kind, body)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise _NoFamily from None
            if error.errno in (errno.ENODEV, errno.ENOENT):
                return []  # the device has just gone, or no table has a route
            raise

    def put(self, held: Held, table: int, protocol: int | None = None) -> int:
        """Put the route into a table as well; the errno, 0 if it is there now.

        An IPv4 route takes the place of another one of its metric, as with `ip route replace`; an IPv6 route stands
        beside it, or gives it a new expiry if it is the same.
        """
        flags = _CREATE | (_REPLACE if held.route.family == 4 else 0)
        code = self._channel.do(_NEWROUTE, held.request(table, protocol, held.route.expires), flags)
        return 0 if code == errno.EEXIST else code

    def take(self, held: Held) -> int:
        """Take the route out of its own table; the errno, 0 if it is not there any more."""
        code = self._channel.do(_DELROUTE, held.request(held.route.table))
        return 0 if code == errno.ESRCH else code


class _NoFamily(Exception):
    """A kernel without this address family."""


def _indexes(devices: Collection[str]) -> Iterator[tuple[str, int]]:
    for name in sorted(devices):
        with suppress(OSError):
            yield name, socket.if_nametoindex(name)


class _Names(dict[int, str]):
    """Index -> name, asked of the kernel when it is needed."""

    def get(self, index: int, default: str = "") -> str:  # type: ignore[override]
        with suppress(OSError):
            return socket.if_indextoname(index)
        return default


def _text(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
