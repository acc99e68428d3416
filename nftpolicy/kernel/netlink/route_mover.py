# SPDX-License-Identifier: BSD-2-Clause
"""Move routes of a few devices to another table, keeping all their attributes.

A request carries the message of the kernel with another table in it, so that metrics, preferences,
sources and unsupported attributes stay (include/uapi/linux/rtnetlink.h).
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from pathlib import Path

from attrs import field, frozen

from ...netstate.routing import ROUTE_TYPES, RTPROT_NFTPOLICY, RTPROT_RA, TABLE_MAIN, WORST_METRIC, Route
from ..errors import DumpInterrupted
from . import constants as nl
from . import rtnl_decode as messages
from .attributes import attribute, attributes, ip_text
from .socket import Message, NetlinkSocket

_GATEWAYS = frozenset((nl.RTA_GATEWAY, nl.RTA_VIA))
_U32 = struct.Struct("=I")
_KINDS = {name: number for number, name in ROUTE_TYPES.items()}


MAX_ROUTES = 512  # of one device and family
_DUMP_TRIES = 3


@frozen
class RouteListing:
    """Routes of some devices. `too_many`: devices, and families as 4 or 6, with more than MAX_ROUTES routes.

    Of these no route is listed.
    """

    routes: list[KernelRoute]
    too_many: tuple[tuple[str, int], ...] = ()


@frozen
class KernelRoute:
    """A route of the kernel, with the body of the message that described it."""

    route: Route
    message: bytes = field(repr=False, eq=False)

    def request(
        self, table: int, protocol: int | None = None, expires: int | None = None, makes_onlink: bool = True
    ) -> bytes:
        """Return the body of a request about this route in a table.

        `protocol` replaces its routing protocol; `expires` is its lifetime in seconds. `makes_onlink`:
        gateways become onlink.
        """
        family, dst_length, src_length, tos, _, owner, scope, kind, flags = nl.RTMSG.unpack_from(self.message)
        route_attributes = list(attributes(self.message, nl.RTMSG.size, len(self.message)))
        # RTA_CACHEINFO is output only; RTA_TABLE and RTA_EXPIRES are written below.
        dropped = {nl.RTA_CACHEINFO, nl.RTA_TABLE, nl.RTA_EXPIRES}
        if any(number == nl.RTA_NH_ID for number, _ in route_attributes):
            dropped |= {nl.RTA_OIF, nl.RTA_GATEWAY, nl.RTA_VIA, nl.RTA_MULTIPATH}  # the nexthop object holds these
        parts = [
            (number, _configured_nexthops(raw, makes_onlink) if number == nl.RTA_MULTIPATH else raw)
            for number, raw in route_attributes
            if number not in dropped
        ]
        # A gateway that was reached by a route of its old table may have none in the new one.
        onlink = makes_onlink and any(number in _GATEWAYS for number, _ in parts)
        flags = nl.RTNH_F_ONLINK if onlink else flags & nl.RTNH_F_ONLINK
        parts.append((nl.RTA_TABLE, _U32.pack(table)))
        if expires:
            parts.append((nl.RTA_EXPIRES, _U32.pack(expires)))
        protocol = owner if protocol is None else protocol
        header = nl.RTMSG.pack(family, dst_length, src_length, tos, 0, protocol, scope, kind, flags)
        return header + b"".join(attribute(*part) for part in parts)


def decode_kernel_route(message: bytes) -> KernelRoute:
    """Return the route that the body of a message describes. Raises ValueError or struct.error for another text."""
    return KernelRoute(messages.decode_route(message, 0, len(message), _DeviceNames()), message)


def _configured_nexthops(raw: bytes, makes_onlink: bool) -> bytes:
    """Return the nexthops of a route without the state of the kernel; `makes_onlink`: with their gateways onlink."""
    nexthops: list[bytes] = []
    offset = 0
    while offset + nl.RTNEXTHOP.size <= len(raw):
        length, flags, hops, index = nl.RTNEXTHOP.unpack_from(raw, offset)
        parts = raw[offset + nl.RTNEXTHOP.size : offset + length]
        has_gateway = any(number in _GATEWAYS for number, _ in attributes(parts, 0, len(parts)))
        flags = nl.RTNH_F_ONLINK if has_gateway and makes_onlink else flags & nl.RTNH_F_ONLINK
        nexthops += [nl.RTNEXTHOP.pack(length, flags, hops, index) + parts, bytes(-length % 4)]
        offset += max(length, nl.RTNEXTHOP.size) + 3 & ~3
    return b"".join(nexthops)


class RouteMover:
    """Routes of the network namespace of the thread that creates it.

    Raises OSError if the kernel refuses.
    """

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(nl.NETLINK_ROUTE)
        self._netlink.bind()

    def close(self) -> None:
        """Close the socket. Can be called twice."""
        self._netlink.close()

    def list_routes(self, devices: Collection[str]) -> RouteListing:
        """Return all routes, of all tables, that leave by one of the devices. Skip missing devices.

        Raises DumpInterrupted or OSError.
        """
        routes: dict[bytes, KernelRoute] = {}
        too_many: list[tuple[str, int]] = []
        for name, index in _indexes(devices):
            for version, family in nl.ADDRESS_FAMILY.items():
                # Kernels before 4.20 ignore the filter and return all routes.
                body = nl.RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + attribute(nl.RTA_OIF, _U32.pack(index))
                with suppress(_NoFamily):
                    parts = self._dump(nl.RTM_GETROUTE, body)
                    if len(parts) > MAX_ROUTES:
                        too_many.append((name, version))
                        continue
                    for raw, start, end in parts:
                        if _U32.unpack_from(raw, start + nl.RTMSG_FLAGS_OFFSET)[0] & nl.RTM_F_CLONED:
                            continue
                        route = messages.decode_route(raw, start, end, _DeviceNames())
                        if any(nexthop.device == name for nexthop in route.all_nexthops):
                            routes.setdefault(raw[start:end], KernelRoute(route, raw[start:end]))
        return RouteListing(list(routes.values()), tuple(too_many))

    def addresses(self, devices: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Return ADDRESS/LENGTH of the addresses of each device, and of their peers.

        Raises OSError.
        """
        by_device: dict[str, tuple[str, ...]] = {}
        for name, index in _indexes(devices):
            entries: list[str] = []
            for raw, start, end in self._dump(nl.RTM_GETADDR, nl.IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, index)):
                _, length, _, _, device = nl.IFADDRMSG.unpack_from(raw, start)
                parts = dict(attributes(raw, start + nl.IFADDRMSG.size, end))
                if device == index:
                    entries += [
                        f"{ip_text(parts[kind])}/{length}" for kind in (nl.IFA_ADDRESS, nl.IFA_LOCAL) if kind in parts
                    ]
            by_device[name] = tuple(dict.fromkeys(entries))
        return by_device

    @staticmethod
    def _dump(message_type: int, body: bytes) -> list[Message]:
        """Return a dump, but not much more than MAX_ROUTES messages of it; empty if the device has just gone.

        Raises _NoFamily, or DumpInterrupted: the caller must not wait for a quiet moment.
        """
        try:
            for _ in range(_DUMP_TRIES):
                with suppress(InterruptedError), NetlinkSocket(nl.NETLINK_ROUTE) as netlink:
                    netlink.enable_strict_checks()
                    # A socket of its own: closing it ends the dump.
                    return list(islice(netlink.stream(message_type, body), MAX_ROUTES + 1))
            raise DumpInterrupted(f"message type {message_type}", _DUMP_TRIES)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise _NoFamily from None
            if error.errno in (errno.ENODEV, errno.ENOENT):
                return []
            raise

    def install(self, kernel_route: KernelRoute, table: int, protocol: int | None = None, beside: bool = False) -> int:
        """Install the route in another table as well; return the errno, 0 if it is there now.

        An IPv4 route replaces the route of the same metric, like `ip route replace`, unless it is
        to stay `beside` that one. An IPv6 route is added beside it; the same route gets a new expiry.
        """
        in_ipv4 = nl.NLM_F_APPEND if beside else nl.NLM_F_REPLACE
        flags = nl.NLM_F_CREATE | (in_ipv4 if kernel_route.route.family == 4 else 0)
        code = self._netlink.change(
            nl.RTM_NEWROUTE, kernel_route.request(table, protocol, kernel_route.route.expires), flags
        )
        return 0 if code == errno.EEXIST else code

    def restore(self, kernel_route: KernelRoute, expires: int | None, beside: bool = False) -> int:
        """Add the route to its own table as it was; return the errno, 0 also if it, or one in its place, is there.

        `expires` is the lifetime in seconds that is left; None: without end. `beside`: no route takes its place.
        """
        route = kernel_route.route
        is_default = (
            route.family == 6 and route.table == TABLE_MAIN and route.destination == "default" and route.gateway
        )
        if is_default and expires is not None and _accepts_advertisements(route.device):
            return _add_learned_default(route, expires)
        body = kernel_route.request(route.table, expires=expires, makes_onlink=False)
        # IPv6 takes another route of the same metric beside it, and refuses the same route in any case.
        in_ipv4 = nl.NLM_F_APPEND if beside else nl.NLM_F_EXCL
        flags = nl.NLM_F_CREATE | (in_ipv4 if route.family == 4 else 0)
        code = self._netlink.change(nl.RTM_NEWROUTE, body, flags)
        return 0 if code == errno.EEXIST else code

    def own_main_routes(self) -> dict[str, KernelRoute]:
        """Return network -> route of nftpolicy's routes in table main.

        Raises DumpInterrupted or OSError.
        """
        routes: dict[str, KernelRoute] = {}
        for family in nl.ADDRESS_FAMILY.values():
            # Kernels before 4.20 ignore the filter and return all routes.
            body = nl.RTMSG.pack(family, 0, 0, 0, 0, RTPROT_NFTPOLICY, 0, 0, 0)
            with suppress(_NoFamily):
                for raw, start, end in self._dump(nl.RTM_GETROUTE, body):
                    if raw[start + nl.RTMSG_PROTOCOL_OFFSET] == RTPROT_NFTPOLICY:
                        kernel_route = decode_kernel_route(raw[start:end])
                        if kernel_route.route.table == TABLE_MAIN:
                            routes[kernel_route.route.destination] = kernel_route
        return routes

    def add_main_route(
        self, network: IPv4Network | IPv6Network, kind: str, device: str | None = None, prefsrc: str | None = None
    ) -> int:
        """Add a route of nftpolicy to table main, behind all others; return the errno, or 0.

        `device`: the neighbours on it are reached, from `prefsrc` (IPv4); None for a kind without a device.
        """
        family, number = nl.ADDRESS_FAMILY[network.version], _KINDS[kind]
        scope = nl.RT_SCOPE_LINK if device and network.version == 4 else 0
        body = nl.RTMSG.pack(family, network.prefixlen, 0, 0, TABLE_MAIN, RTPROT_NFTPOLICY, scope, number, 0)
        try:
            body += attribute(nl.RTA_OIF, _U32.pack(socket.if_nametoindex(device))) if device else b""
        except OSError:
            return errno.ENODEV
        body += attribute(nl.RTA_PREFSRC, socket.inet_pton(socket.AF_INET, prefsrc)) if prefsrc else b""
        body += attribute(nl.RTA_DST, network.network_address.packed) + attribute(
            nl.RTA_PRIORITY, _U32.pack(WORST_METRIC)
        )
        code = self._netlink.change(nl.RTM_NEWROUTE, body, nl.NLM_F_CREATE | nl.NLM_F_EXCL)
        return 0 if code == errno.EEXIST else code

    def delete(self, kernel_route: KernelRoute) -> int:
        """Delete the route from its own table; return the errno, 0 if it is not there any more."""
        code = self._netlink.change(nl.RTM_DELROUTE, kernel_route.request(kernel_route.route.table))
        return 0 if code == errno.ESRCH else code

    def delete_default(self, device: str, gateway: str, table: int) -> int:
        """Delete the default route by an IPv6 router that it has advertised; return the errno, ESRCH for none."""
        try:
            index = socket.if_nametoindex(device)
        except OSError:
            return errno.ESRCH
        body = nl.RTMSG.pack(socket.AF_INET6, 0, 0, 0, 0, RTPROT_RA, 0, 0, 0)
        parts = {
            nl.RTA_TABLE: _U32.pack(table),
            nl.RTA_OIF: _U32.pack(index),
            nl.RTA_GATEWAY: socket.inet_pton(socket.AF_INET6, gateway),
        }
        return self._netlink.change(nl.RTM_DELROUTE, body + b"".join(attribute(*part) for part in parts.items()))


def _accepts_advertisements(device: str | None) -> bool:
    """Return True if the kernel itself learns routes from router advertisements on this device."""
    try:
        return Path(f"/proc/sys/net/ipv6/conf/{device}/accept_ra").read_text().strip() != "0"
    except OSError:
        return False


def _add_learned_default(route: Route, expires: int) -> int:
    """Add an IPv6 default route of table main as the kernel does for a router advertisement; return the errno.

    A route by rtnetlink has no RTF_DEFAULT: the kernel would not find it with the next advertisement, fail to add
    its own, and ignore the rest of the advertisement (ndisc_router_discovery in net/ipv6/ndisc.c).
    """
    flags = nl.RTF_UP | nl.RTF_GATEWAY | nl.RTF_DEFAULT | nl.RTF_ADDRCONF | nl.RTF_EXPIRES
    flags |= nl.RTF_PREFERENCE[route.preference]
    try:
        gateway, index = socket.inet_pton(socket.AF_INET6, str(route.gateway)), socket.if_nametoindex(str(route.device))
        info = expires * nl.USER_HZ
        body = nl.IN6_RTMSG.pack(bytes(16), bytes(16), gateway, 0, 0, 0, route.metric, info, flags, index)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as inet6:
            fcntl.ioctl(inet6, nl.SIOCADDRT, body)
    except OSError as error:
        return 0 if error.errno == errno.EEXIST else error.errno or errno.EIO
    return 0


class _NoFamily(Exception):
    """The kernel does not have this address family."""


def _indexes(devices: Collection[str]) -> Iterator[tuple[str, int]]:
    """Yield name and index of the devices that exist, in the order of their names."""
    for name in sorted(devices):
        with suppress(OSError):
            yield name, socket.if_nametoindex(name)


class _DeviceNames(dict[int, str]):
    """Names of devices by index, each looked up when it is needed."""

    def get(self, index: int, default: str = "") -> str:  # type: ignore[override]
        with suppress(OSError):
            return socket.if_indextoname(index)
        return default
