# SPDX-License-Identifier: BSD-2-Clause
"""ip rules, routes, devices and route lookups by rtnetlink(7).

pyroute2 writes rules and routes; rtnl_decode.py decodes what is read. pyroute2 ignores keys that it
does not know, which would silently widen a rule. So only the keys that are listed here are passed,
and the caller reads back the result.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import Any

from attrs import evolve, frozen

from ...netstate.routing import IpRule, Route
from ...netstate.state import Device, ports_of_devices
from . import constants as nl
from . import rtnl_decode as messages
from .attributes import attribute
from .socket import Message, NetlinkSocket

# include/uapi/linux/fib_rules.h
_ACTIONS = {"lookup": 1, "nop": 3, "blackhole": 6, "unreachable": 7, "prohibit": 8}
_VERBS = {"add": "add", "delete": "del", "replace": "replace"}
_HEADER_SIZES = {
    nl.RTM_GETLINK: nl.IFINFOMSG.size,
    nl.RTM_GETADDR: nl.IFADDRMSG.size,
    nl.RTM_GETROUTE: nl.RTMSG.size,
    nl.RTM_GETNEIGH: nl.NDMSG.size,
    nl.RTM_GETRULE: nl.FIB_RULE_HDR.size,
}
_U32 = struct.Struct("=I")
_PORT = struct.Struct("!H")


@frozen
class Link:
    """Device with its index. `has_xdp`: an XDP program is attached to it."""

    index: int
    device: Device
    has_xdp: bool = False


def open_rtnetlink() -> NetlinkSocket:
    """Return a socket for requests to rtnetlink, in the network namespace of the calling thread."""
    return NetlinkSocket(nl.NETLINK_ROUTE)


def dump_objects(netlink: NetlinkSocket, message_type: int, family: int = socket.AF_UNSPEC) -> list[Message]:
    """Return all objects of a kind (RTM_GETLINK, ...).

    Raises DumpInterrupted, or OSError with the errno.
    """
    return netlink.dump(message_type, bytes((family,)) + bytes(_HEADER_SIZES[message_type] - 1))


def _is_narrower(rule: IpRule, other: IpRule) -> bool:
    """Return True if the rules differ in nothing but addresses and TOS that `other` leaves out."""
    source, destination = other.source or rule.source, other.destination or rule.destination
    return evolve(other, source=source, destination=destination, tos=other.tos or rule.tos) == rule


def _rule_keys(rule: IpRule) -> dict[str, Any]:
    """Return the arguments of pyroute2 for a rule.

    Raises ValueError for a selector that is not listed here.
    """
    unsupported = (rule.source, rule.goto, rule.suppress_group)
    if any(value is not None for value in unsupported) or rule.tos or rule.invert or rule.l3mdev:
        raise ValueError(f"unsupported selector in a rule to write: {rule}")
    keys: dict[str, Any] = {
        "family": nl.ADDRESS_FAMILY[rule.family],
        "priority": rule.priority,
        "action": _ACTIONS[rule.action],
        "protocol": rule.protocol,
    }
    if rule.action == "lookup":
        keys["table"] = rule.table
    if rule.mask:
        keys |= {"fwmark": rule.mark, "fwmask": rule.mask}
    if rule.destination:
        keys["dst"] = rule.destination  # with its length: pyroute2 leaves out an address of 0.0.0.0 or :: alone
    if rule.suppress_prefix is not None:
        keys["suppress_prefixlen"] = rule.suppress_prefix
    if rule.uids:
        keys["uid_range"] = f"{rule.uids[0]}:{rule.uids[1]}"
    if rule.iif is not None:
        keys["iifname"] = rule.iif
    if rule.oif is not None:
        keys["oifname"] = rule.oif
    if rule.l4proto is not None:
        keys["ip_proto"] = rule.l4proto
    for key, ports in (("sport_range", rule.sports), ("dport_range", rule.dports)):
        if ports:
            keys[key] = f"{ports[0]}:{ports[1]}"
    return keys


def _route_keys(route: Route, devices: dict[str, int]) -> dict[str, Any]:
    """Return the arguments of pyroute2 for a route.

    Raises ValueError for an attribute that is not listed here.
    """
    if route.nexthops or route.source or route.tos or route.preference != "medium":
        raise ValueError(f"unsupported attribute in a route to write: {route}")
    default = {4: "0.0.0.0/0", 6: "::/0"}[route.family]
    keys: dict[str, Any] = {
        "family": nl.ADDRESS_FAMILY[route.family],
        "dst": default if route.destination == "default" else route.destination,
        "table": route.table,
        "type": route.kind,
        "proto": route.protocol,
        "priority": route.metric,
    }
    if route.gateway:
        keys["gateway"] = route.gateway
    if route.prefsrc:
        keys["prefsrc"] = route.prefsrc
    if route.device and route.kind == "unicast":
        if route.device not in devices:
            raise OSError(errno.ENODEV, f"there is no device {route.device}")
        keys["oif"] = devices[route.device]
    if route.family == 4 and route.scope not in (None, "global"):
        keys["scope"] = route.scope  # without it, the kernel would not find the route to delete
    if route.onlink:
        keys["flags"] = ["onlink"]
    return keys


class Rtnetlink:
    """Rules, routes and devices of the network namespace of the calling thread.

    The methods that read raise OSError, or DumpInterrupted.
    """

    @cached_property
    def _writer(self) -> Any:
        from pyroute2 import IPRoute  # type: ignore[import-untyped]  # slow to import, and only needed to write

        return IPRoute()

    def rules(self, family: int) -> list[IpRule]:
        """Return all ip rules of a family, in order."""
        with open_rtnetlink() as netlink:
            return [
                messages.decode_rule(*part) for part in dump_objects(netlink, nl.RTM_GETRULE, nl.ADDRESS_FAMILY[family])
            ]

    def routes(self, family: int, protocol: int | None = None) -> list[Route]:
        """Return the routes of a family in all tables, of one routing protocol if it is given.

        Cloned routes (the route cache of IPv6) are left out.
        """
        header = nl.RTMSG.pack(nl.ADDRESS_FAMILY[family], 0, 0, 0, 0, protocol or 0, 0, 0, 0)
        with open_rtnetlink() as netlink:
            names = {index: device.name for index, _, device in _links(netlink)}
            netlink.enable_strict_checks()  # the kernel skips other protocols; older kernels return all routes
            return [
                messages.decode_route(raw, start, end, names)
                for raw, start, end in netlink.dump(nl.RTM_GETROUTE, header)
                if protocol in (None, raw[start + nl.RTMSG_PROTOCOL_OFFSET])
                and not nl.RTM_F_CLONED & _U32.unpack_from(raw, start + nl.RTMSG_FLAGS_OFFSET)[0]
            ]

    @staticmethod
    def has_more_routes(family: int, number: int) -> bool:
        """Return True if a family has more than this number of routes. Reads no more than that."""
        header = nl.RTMSG.pack(nl.ADDRESS_FAMILY[family], 0, 0, 0, 0, 0, 0, 0, 0)
        with suppress(InterruptedError), open_rtnetlink() as netlink:
            return any(count >= number for count, _ in enumerate(netlink.stream(nl.RTM_GETROUTE, header)))
        return False

    def devices(self) -> list[Device]:
        """Return all devices with their addresses."""
        return [link.device for link in self.links()]

    def links(self) -> list[Link]:
        """Return all links, their devices with their addresses."""
        with open_rtnetlink() as netlink:
            parts = dump_objects(netlink, nl.RTM_GETLINK)
            addresses: dict[int, list[str]] = {}
            for part in dump_objects(netlink, nl.RTM_GETADDR):
                index, address = messages.decode_address(*part)
                addresses.setdefault(index, []).append(address)
        links = [(*messages.decode_link(*part), *messages.decode_relations(*part)) for part in parts]
        names: dict[int | None, str] = {index: device.name for index, _, device, *_ in links}
        return [
            Link(
                index,
                evolve(
                    device,
                    addresses=tuple(addresses.get(index, ())),
                    master=names.get(master),
                    link=None if is_elsewhere else names.get(link),
                    link_elsewhere=is_elsewhere,
                ),
                has_xdp,
            )
            for index, master, device, link, is_elsewhere, has_xdp in links
        ]

    def loopback_addresses(self) -> frozenset[str]:
        """Return the addresses of lo without prefix length, none while it is down."""
        loopback = (device for device in self.devices() if device.name == "lo" and device.up)
        return frozenset(address.partition("/")[0] for device in loopback for address in device.addresses)

    @staticmethod
    def indexes_and_addresses() -> tuple[dict[int, str], frozenset[str]]:
        """Return the names of all devices by index, and all addresses of this machine without prefix length."""
        with open_rtnetlink() as netlink:
            names = {index: device.name for index, _, device in _links(netlink)}
            parts = dump_objects(netlink, nl.RTM_GETADDR)
        return names, frozenset(messages.decode_address(*part)[1].partition("/")[0] for part in parts)

    def change_rule(self, verb: str, rule: IpRule) -> None:
        """Add or delete a rule. Raises OSError with the kernel's errno.

        The kernel does not compare an address that a rule to be added leaves out (fib4_rule_compare), so that it takes
        a narrower rule for it: that one is deleted, and added behind it.
        """
        try:
            self._write_rule(verb, rule)
        except OSError as error:
            present = self.rules(rule.family) if verb == "add" and error.errno == errno.EEXIST else ()
            narrower = [each for each in present if each != rule and _is_narrower(each, rule)]
            if rule in present or not narrower:
                raise
            for each in narrower:
                self._write_rule("delete", each)
            for each in (rule, *narrower):
                self._write_rule("add", each)

    def _write_rule(self, verb: str, rule: IpRule) -> None:
        self._write(self._writer.rule, _VERBS[verb], _rule_keys(rule))

    def change_route(self, verb: str, route: Route) -> None:
        """Add, delete or replace a route. Raises OSError with the kernel's errno."""
        devices = self._indexes() if route.device and route.kind == "unicast" else {}
        self._write(self._writer.route, _VERBS[verb], _route_keys(route, devices))

    def device_names(self) -> set[str]:
        """Return the names of all network devices."""
        return set(self._indexes())

    def bridge_ports(self, devices: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the ports of each of `devices` that is a bridge or a bond."""
        with open_rtnetlink() as netlink:
            links = _links(netlink)
        names: dict[int | None, str] = {index: device.name for index, _, device in links}
        return ports_of_devices([evolve(device, master=names.get(master)) for _, master, device in links], devices)

    @staticmethod
    def _indexes() -> dict[str, int]:
        with open_rtnetlink() as netlink:
            return {device.name: index for index, _, device in _links(netlink)}

    @staticmethod
    def _write(function: Any, verb: str, keys: dict[str, Any]) -> None:
        from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

        try:
            function(verb, **keys)
        except NetlinkError as error:
            raise OSError(*error.args) from None  # errno and message


def _links(netlink: NetlinkSocket) -> list[tuple[int, int | None, Device]]:
    """Return index, index of the master, and device of all links."""
    return [messages.decode_link(*part) for part in dump_objects(netlink, nl.RTM_GETLINK)]


class RouteLookups:
    """Route lookups like `ip route get`, in the network namespace of the calling thread.

    A context manager.
    """

    def __init__(self) -> None:
        self._netlink = open_rtnetlink()
        self._names = {index: device.name for index, _, device in _links(self._netlink)}
        self._indexes = {name: index for index, name in self._names.items()}

    def __enter__(self) -> RouteLookups:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def get_route(
        self,
        family: int,
        destination: str,
        source: str | None = None,
        mark: int = 0,
        iif: str | None = None,
        oif: str | None = None,
        uid: int | None = None,
        protocol: int = 0,
        sport: int = 0,
        dport: int = 0,
        tos: int = 0,
        match: bool = False,
    ) -> Route | int:
        """Return the route of a packet, or the errno of the refusal.

        With `iif` the packet arrives by that device; it has no owner. `match`: return the route as
        it stands in its table. Raises KeyError if there is no device `iif` or `oif`.
        """
        address_family = nl.ADDRESS_FAMILY[family]
        body = attribute(nl.RTA_DST, socket.inet_pton(address_family, destination))
        if source:
            body += attribute(nl.RTA_SRC, socket.inet_pton(address_family, source))
        if iif:
            body += attribute(nl.RTA_IIF, _U32.pack(self._indexes[iif]))
        if oif:
            body += attribute(nl.RTA_OIF, _U32.pack(self._indexes[oif]))
        if mark:
            body += attribute(nl.RTA_MARK, _U32.pack(mark))
        if uid is not None:
            body += attribute(nl.RTA_UID, _U32.pack(uid))
        if protocol:
            body += attribute(nl.RTA_IP_PROTO, bytes((protocol,)))
        if sport:
            body += attribute(nl.RTA_SPORT, _PORT.pack(sport))
        if dport:
            body += attribute(nl.RTA_DPORT, _PORT.pack(dport))
        width = 32 if family == 4 else 128
        flags = nl.RTM_F_LOOKUP_TABLE | (nl.RTM_F_FIB_MATCH if match else 0)
        header = nl.RTMSG.pack(address_family, width, width if source else 0, tos, 0, 0, 0, 0, flags)
        try:
            answer = self._netlink.query(nl.RTM_GETROUTE, header + body)
        except OSError as error:
            return error.errno or errno.EIO
        return messages.decode_route(*answer, self._names)
