# SPDX-License-Identifier: BSD-2-Clause
"""What a network namespace needs to stand in for a state: its devices, and the addresses on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from nftpolicy.model.packet import WIDTH, Packet, interval, number, shown
from nftpolicy.netstate import nft
from nftpolicy.netstate.routing import TABLE_LOCAL, IpRule, Route
from nftpolicy.netstate.state import Device, NetState

LOOPBACK = "lo"
# For devices of which the state tells no address. Documentation ranges (RFC 5737, RFC 3849).
_ADDRESS = {4: "203.0.113.{}", 6: "2001:db8:cafe::{:x}"}
_DEVICE = re.compile(r"[A-Za-z0-9_.:@+-]{1,15}\Z")


class Unsendable(Exception):
    """Nothing that a script can do makes this packet; the text says why."""


@frozen
class Link:
    """A device in the namespace, with its link layer address and its group; `up` is as the state has it."""

    name: str
    mac: str
    group: int = 0
    up: bool = True


@frozen
class Scene:
    """Devices by name, the addresses as (address, length, device), and what of the state takes part.

    `exact`: the state lists the routes to its own addresses, so those that the kernel makes have to go.
    """

    family: int
    devices: dict[str, Link]
    addresses: tuple[tuple[str, int, str], ...]
    rules: tuple[IpRule, ...]
    routes: tuple[Route, ...]
    exact: bool

    def owns(self, address: int) -> bool:
        """Whether the machine has this address."""
        return any(number(one) == address for one, _, _ in self.addresses)

    def address_of(self, device: str) -> str | None:
        """The first address on that device."""
        return next((address for address, _, name in self.addresses if name == device), None)

    def link(self, name: str) -> Link:
        """The device of that name, or Unsendable."""
        if name not in self.devices:
            raise Unsendable(f"{name} can not be made here")
        return self.devices[name]


def scene(state: NetState, packet: Packet, device: str) -> Scene:
    """What `packet` needs of `state` to leave by `device`: one family, and every device that is named.

    Raises:
        ValueError: a device's name can't be written in a script.
    """
    family = packet.family
    rules = tuple(one for one in state.rules if one.family == family)
    routes = tuple(one for one in state.routes if one.family == family and not one.dead)
    names = [device, packet.bound, packet.iif, *_named(rules, routes), *_loaded(state.tables)]
    known = {one.name: one for one in state.devices}
    links = {}
    for name in dict.fromkeys(name for name in names if name and name != LOOPBACK):
        if not _DEVICE.match(name):
            raise ValueError(f"{name!r} can not be the name of a device")
        serial, seen = len(links) + 1, known.get(name, Device(name))
        links[name] = Link(name, f"02:00:00:00:{serial >> 8:02x}:{serial & 255:02x}", seen.group, seen.up)
    exact = any(route.table == TABLE_LOCAL for route in routes)
    if any(one.addresses for one in state.devices):
        found = list(_told(state.devices, family, links))
    else:
        found = list(_listed(routes)) if exact else []
    if not found and not exact:
        found = list(_invented(packet, device, links, routes))
    return Scene(family, links, tuple(dict.fromkeys(found)), rules, routes, exact)


def _named(rules: Iterable[IpRule], routes: Iterable[Route]) -> Iterator[str | None]:
    for rule in rules:
        yield from (rule.iif, rule.oif)
    for route in routes:
        yield from (way.device for way in route.ways)


def _loaded(tables: Iterable[nft.Table]) -> Iterator[str]:
    """Devices that have to be there when the tables are loaded."""
    for table in tables:
        for flowtable in table.flowtables:
            yield from sorted(flowtable.devices)
        for one in table.sets:
            yield from _indexed(one.type, one.elements)
        for one in table.maps:
            yield from _indexed(one.type, (key for key, _ in one.elements))
        for chain in table.chains:
            yield from chain.hook.device.split(",") if chain.hook and chain.hook.device else ()
            for statement in (statement for rule in chain.rules for statement in rule.statements):
                yield from _of_statement(statement)


def _of_statement(statement: nft.Statement) -> Iterator[str]:
    match statement:
        case nft.Match(left, nft.AnonymousSet(elements)):
            yield from _indexed(_types(left), elements)
        case nft.Match(left, str(name)):
            yield from _indexed(_types(left), [name])
        case nft.VerdictMap(key, entries):
            yield from _indexed(_types(key), (one for one, _ in entries))
        case nft.Dup(_, str(name)) | nft.Fwd(str(name)):
            yield name


def _types(expression: nft.Expression) -> tuple[str, ...]:
    """ "iface_index" where an expression reads the index of a device, which nft writes as a name."""
    if isinstance(expression, nft.Concat):
        return tuple(one for part in expression.parts for one in _types(part))
    by_index = isinstance(expression, nft.Meta) and expression.key in ("iif", "oif")
    return ("iface_index" if by_index else "",)


def _indexed(types: tuple[str, ...], elements: Iterable[nft.Element]) -> Iterator[str]:
    if "iface_index" in types:
        rows = [one if isinstance(one, tuple) else (one,) for one in elements]
        named = (part for row in rows for part, kind in zip(row, types, strict=False) if kind == "iface_index")
        yield from sorted(part for part in named if isinstance(part, str))


def _told(devices: Iterable[Device], family: int, links: dict[str, Link]) -> Iterator[tuple[str, int, str]]:
    """The addresses that the state gives with its devices."""
    for one in devices:
        for address, _, length in (text.partition("/") for text in one.addresses):
            loopback = one.name == LOOPBACK and address in ("127.0.0.1", "::1")
            if (":" in address) == (family == 6) and not loopback and (one.name in links or one.name == LOOPBACK):
                yield address, int(length or WIDTH[family]), one.name


def _listed(routes: tuple[Route, ...]) -> Iterator[tuple[str, int, str]]:
    """The addresses that table local knows, each as wide as the network that it lies in."""
    for route in routes:
        width = WIDTH[route.family]
        low, high = interval(route.destination, route.family)
        loopback = low == 1 if route.family == 6 else low >> 24 == 127
        if route.table == TABLE_LOCAL and route.kind == "local" and route.device and low == high and not loopback:
            yield shown(route.family, low), _length(routes, route.device, low, width), route.device


def _length(routes: tuple[Route, ...], device: str, address: int, width: int) -> int:
    networks = (
        interval(route.destination, route.family)
        for route in routes
        if route.device == device and route.kind == "unicast" and not route.gateway and route.destination != "default"
    )
    spans = [high - low for low, high in networks if low <= address <= high]
    return width - (min(spans).bit_length() if spans else 0)


def _invented(
    packet: Packet, device: str, links: dict[str, Link], routes: tuple[Route, ...]
) -> Iterator[tuple[str, int, str]]:
    """The packet's source, what the routes prefer as one, and an address for every device."""
    width = WIDTH[packet.family]
    for route in routes:
        if route.prefsrc and route.ways[0].device:
            yield route.prefsrc, width, route.ways[0].device
    if packet.source and packet.has_socket:
        yield shown(packet.family, packet.source), width, packet.bound or device
    for serial, name in enumerate(links, 1):
        address = _ADDRESS[packet.family].format(serial)
        if number(address) not in (packet.source, packet.destination):
            yield address, width, name
