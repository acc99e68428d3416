# SPDX-License-Identifier: BSD-2-Clause
"""Network namespace that stands in for a state: its devices, and the addresses on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from nftpolicy.model.packet import ADDRESS_BITS, Packet, address_range, format_address, parse_address
from nftpolicy.netstate import nft
from nftpolicy.netstate.routing import TABLE_LOCAL, IpRule, Route
from nftpolicy.netstate.state import Device, NetState

from ...exceptions import NftpolicyError

LOOPBACK = "lo"
# For devices without an address in the state. Documentation ranges (RFC 5737, RFC 3849).
_ADDRESS = {4: "203.0.113.{}", 6: "2001:db8:cafe::{:x}"}
_DEVICE = re.compile(r"[A-Za-z0-9_.:@+-]{1,15}\Z")


class NotReproducible(NftpolicyError):
    """No script can produce this packet; the text is the reason."""


@frozen
class VethDevice:
    """Device in the namespace: link-layer address, group, and whether it is up."""

    name: str
    mac: str
    group: int = 0
    up: bool = True


@frozen
class Topology:
    """Devices by name, addresses as (address, prefix length, device), and routing of one family.

    `lists_own_routes`: the state lists the routes of its own addresses, so the script removes those of the kernel.
    """

    family: int
    devices: dict[str, VethDevice]
    addresses: tuple[tuple[str, int, str], ...]
    rules: tuple[IpRule, ...]
    routes: tuple[Route, ...]
    lists_own_routes: bool

    def has_address(self, address: int) -> bool:
        """Return True if the machine has this address."""
        return any(parse_address(own_address) == address for own_address, _, _ in self.addresses)

    def device_address(self, device: str) -> str | None:
        """Return the first address on the device; None if it has none."""
        return next((address for address, _, name in self.addresses if name == device), None)

    def require_device(self, name: str) -> VethDevice:
        """Return the device of that name.

        Raises:
            NotReproducible: the namespace has no such device.
        """
        if name not in self.devices:
            raise NotReproducible(f"device {name} cannot be created in the namespace")
        return self.devices[name]


def build_topology(state: NetState, packet: Packet, device: str) -> Topology:
    """Return the parts of `state` that `packet` needs to leave by `device`.

    These are the routing of one family, and all devices that it or the tables name.

    Raises:
        ValueError: the name of a device cannot be written in a script.
    """
    family = packet.family
    rules = tuple(rule for rule in state.rules if rule.family == family)
    routes = tuple(route for route in state.routes if route.family == family and not route.dead)
    names = [device, packet.bound, packet.iif, *_routing_devices(rules, routes), *_table_devices(state.tables)]
    state_devices = {item.name: item for item in state.devices}
    links: dict[str, VethDevice] = {}
    for name in dict.fromkeys(name for name in names if name and name != LOOPBACK):
        if not _DEVICE.match(name):
            raise ValueError(f"{name!r} is not a valid device name")
        serial, state_device = len(links) + 1, state_devices.get(name, Device(name))
        links[name] = VethDevice(
            name, f"02:00:00:00:{serial >> 8:02x}:{serial & 255:02x}", state_device.group, state_device.up
        )
    exact = any(route.table == TABLE_LOCAL for route in routes)
    if any(item.addresses for item in state.devices):
        addresses = list(_state_addresses(state.devices, family, links))
    else:
        addresses = list(_local_table_addresses(routes)) if exact else []
    if not addresses and not exact:
        addresses = list(_assumed_addresses(packet, device, links, routes))
    return Topology(family, links, tuple(dict.fromkeys(addresses)), rules, routes, exact)


def _routing_devices(rules: Iterable[IpRule], routes: Iterable[Route]) -> Iterator[str | None]:
    for rule in rules:
        yield from (rule.iif, rule.oif)
    for route in routes:
        yield from (nexthop.device for nexthop in route.all_nexthops)


def _table_devices(tables: Iterable[nft.Table]) -> Iterator[str]:
    """Yield the devices that must exist when the tables are loaded."""
    for table in tables:
        for flowtable in table.flowtables:
            yield from sorted(flowtable.devices)
        for nft_set in table.sets:
            yield from _devices_by_index(nft_set.type, nft_set.elements)
        for nft_map in table.maps:
            yield from _devices_by_index(nft_map.type, (key for key, _ in nft_map.elements))
        for chain in table.chains:
            yield from chain.hook.device.split(",") if chain.hook and chain.hook.device else ()
            for statement in (statement for rule in chain.rules for statement in rule.statements):
                yield from _statement_devices(statement)


def _statement_devices(statement: nft.Statement) -> Iterator[str]:
    match statement:
        case nft.Match(left, nft.AnonymousSet(elements)):
            yield from _devices_by_index(_key_types(left), elements)
        case nft.Match(left, str(name)):
            yield from _devices_by_index(_key_types(left), [name])
        case nft.VerdictMap(key, entries):
            yield from _devices_by_index(_key_types(key), (element for element, _ in entries))
        case nft.Dup(_, str(name)) | nft.Fwd(str(name)):
            yield name


def _key_types(expression: nft.Expression) -> tuple[str, ...]:
    """Return the key types of an expression.

    "iface_index" stands for a device index, which nft writes as a name.
    """
    if isinstance(expression, nft.Concat):
        return tuple(part_type for part in expression.parts for part_type in _key_types(part))
    by_index = isinstance(expression, nft.Meta) and expression.key in ("iif", "oif")
    return ("iface_index" if by_index else "",)


def _devices_by_index(types: tuple[str, ...], elements: Iterable[nft.Element]) -> Iterator[str]:
    if "iface_index" in types:
        rows = [element if isinstance(element, tuple) else (element,) for element in elements]
        parts = (
            part for row in rows for part, part_type in zip(row, types, strict=False) if part_type == "iface_index"
        )
        yield from sorted(part for part in parts if isinstance(part, str))


def _state_addresses(
    devices: Iterable[Device], family: int, links: dict[str, VethDevice]
) -> Iterator[tuple[str, int, str]]:
    """Yield the addresses that the state gives for its devices."""
    for device in devices:
        if device.name not in links and device.name != LOOPBACK:
            continue
        for address, _, length in (prefix.partition("/") for prefix in device.addresses):
            is_loopback = device.name == LOOPBACK and address in ("127.0.0.1", "::1")
            if (":" in address) == (family == 6) and not is_loopback:
                number = parse_address(address)
                yield format_address(family, number), int(length or ADDRESS_BITS[family]), device.name


def _local_table_addresses(routes: tuple[Route, ...]) -> Iterator[tuple[str, int, str]]:
    """Yield the addresses of table local, each with the prefix length of its network."""
    for route in routes:
        width = ADDRESS_BITS[route.family]
        low, high = address_range(route.destination, route.family)
        is_loopback = low == 1 if route.family == 6 else low >> 24 == 127
        if route.table == TABLE_LOCAL and route.kind == "local" and route.device and low == high and not is_loopback:
            yield format_address(route.family, low), _prefix_length(routes, route.device, low, width), route.device


def _prefix_length(routes: tuple[Route, ...], device: str, address: int, width: int) -> int:
    networks = (
        address_range(route.destination, route.family)
        for route in routes
        if route.device == device and route.kind == "unicast" and not route.gateway and route.destination != "default"
    )
    spans = [high - low for low, high in networks if low <= address <= high]
    return width - (min(spans).bit_length() if spans else 0)


def _assumed_addresses(
    packet: Packet, device: str, links: dict[str, VethDevice], routes: tuple[Route, ...]
) -> Iterator[tuple[str, int, str]]:
    """Yield the packet's source, preferred sources of routes, and an address for every device."""
    width = ADDRESS_BITS[packet.family]
    for route in routes:
        if route.prefsrc and route.all_nexthops[0].device:
            yield route.prefsrc, width, route.all_nexthops[0].device
    if packet.source and packet.has_socket:
        yield format_address(packet.family, packet.source), width, packet.bound or device
    for serial, name in enumerate(links, 1):
        address = _ADDRESS[packet.family].format(serial)
        if parse_address(address) not in (packet.source, packet.destination):
            yield address, width, name
