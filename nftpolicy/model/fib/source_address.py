# SPDX-License-Identifier: BSD-2-Clause
"""Addresses of this machine by device, and source address selection (RFC 6724)."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from ...netstate.routing import TABLE_LOCAL, Nexthop
from ...netstate.state import NetState
from .tables import parse_prefix

IPV4_BROADCAST = 0xFFFFFFFF
LOCAL_MULTICAST = 0xE00000  # 224.0.0.0/24
LOOPBACK_NET = 127  # 127.0.0.0/8
LOOPBACK6 = 1  # ::1
_NODE_SCOPE = 1  # IPV6_ADDR_SCOPE_NODELOCAL
_LINK_SCOPE = 2  # RFC 4291 2.7: scopes 1 and 2 of a multicast address do not leave the link


def is_multicast4(address: int) -> bool:
    """Return True for an address in 224.0.0.0/4."""
    return address >> 28 == 0xE


def is_multicast6(address: int) -> bool:
    """Return True for an address in ff00::/8."""
    return address >> 120 == 0xFF


def is_node_multicast6(address: int) -> bool:
    """Return True for an IPv6 group whose packets do not leave the node (scope 0 or 1)."""
    return is_multicast6(address) and address >> 112 & 0xF <= _NODE_SCOPE


def are_loopback_only6(source: int, destination: int) -> bool:
    """Return True for the addresses of a packet that IPv6 accepts from lo only (ip6_rcv_core).

    These are ::1, groups of the node, and a group as the source.
    """
    has_loopback = LOOPBACK6 in (source, destination)
    return has_loopback or is_multicast6(source) or is_node_multicast6(destination)


def is_link_local6(address: int) -> bool:
    """Return True for an address in fe80::/10."""
    return address >> 118 == 0x3FA


def is_link_multicast6(address: int) -> bool:
    """Return True for a multicast address that does not leave the link (RFC 4291 2.7)."""
    return is_multicast6(address) and address >> 112 & 0xF <= _LINK_SCOPE


def is_loopback4(address: int) -> bool:
    """Return True for an address in 127.0.0.0/8."""
    return address >> 24 == LOOPBACK_NET


def needs_device6(address: int) -> bool:
    """Return True for an address that is ambiguous without its device (rt6_need_strict)."""
    return is_link_local6(address) or is_multicast6(address) or address == LOOPBACK6


@lru_cache(maxsize=1 << 12)
def format_ipv4(address: int | None) -> str | None:
    """Return an IPv4 address in its text form; None stays None."""
    return None if address is None else str(IPv4Address(address))


@lru_cache(maxsize=1 << 12)
def format_ipv6(address: int | None) -> str | None:
    """Return an IPv6 address in its text form; None stays None."""
    return None if address is None else str(IPv6Address(address))


class LocalAddresses:
    """The addresses of a state: of its devices if the state lists them, else of the local table."""

    def __init__(self, state: NetState) -> None:
        self._devices = {device.name: device for device in state.devices}
        self._by_device: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
        for device in state.devices:
            for address in device.addresses:
                family = 6 if ":" in address else 4
                own, length = parse_prefix(address, family)
                self._by_device[family, device.name].append((own, length))
        devices_with_addresses = {key for key in self._by_device if key[0] == 4}
        for route in state.routes:
            if route.table == TABLE_LOCAL and route.kind == "local" and route.device:
                first, length = parse_prefix(route.destination, route.family)
                width = 32 if route.family == 4 else 128
                key = (route.family, route.device)
                if length == width and key not in devices_with_addresses and route.device not in self._devices:
                    self._by_device[key].append((first, length))
        self._owners = {
            (family, own): name for (family, name), own_addresses in self._by_device.items() for own, _ in own_addresses
        }

    def device_of(self, family: int, address: int) -> str | None:
        """Return the device that has exactly this address, or None."""
        return self._owners.get((family, address))

    @property
    def are_known(self) -> bool:
        """Return True if the state contains any address of this machine."""
        return bool(self._owners)

    def is_up(self, device: str) -> bool:
        """Return True if the device exists and is up, or if the state lists no devices."""
        if not self._devices:
            return True
        return device in self._devices and self._devices[device].up

    def select_source4(self, device: str, gateway: int | None, loops: bool) -> int | None:
        """Return the device's source address (inet_select_addr); None: no address, or ambiguous.

        An address of the gateway's network is preferred, then the device's first. A device without
        an address uses the first of another device. `loops`: 127.0.0.0/8 counts like other
        addresses.
        """
        own_addresses = [
            (own, length) for own, length in self._by_device.get((4, device), []) if loops or not is_loopback4(own)
        ]
        for own, length in own_addresses:
            if gateway is not None and own >> 32 - length == gateway >> 32 - length:
                return own
        # The local table has neither prefix lengths nor an order: several addresses are ambiguous.
        if device not in self._devices and len(own_addresses) != 1:
            return None
        if own_addresses:
            return own_addresses[0][0]
        other_addresses = (own for name in self._devices for own, _ in self._by_device.get((4, name), []))
        return next((own for own in other_addresses if not is_loopback4(own)), None)

    def source4(self, hop: Nexthop, loops: bool) -> str | None:
        """Return the source address of an IPv4 packet by a nexthop, or None if it is not known."""
        if hop.device is None:
            return None
        gateway = int(IPv4Address(hop.gateway)) if hop.gateway and ":" not in hop.gateway else None
        return format_ipv4(self.select_source4(hop.device, gateway, loops))

    def source6(self, hop: Nexthop, destination: int) -> str | None:
        """Return the source address of an IPv6 packet by a nexthop, or None if it is ambiguous.

        Link-local destinations get a link-local source, all others a global one.
        """
        if destination != LOOPBACK6 and (6, destination) in self._owners:
            return format_ipv6(destination)
        if destination == LOOPBACK6:
            return None
        is_near = is_link_local6(destination) or is_link_multicast6(destination)
        own_addresses = [
            own
            for own, _ in self._by_device.get((6, hop.device or ""), [])
            if own != LOOPBACK6 and is_link_local6(own) == is_near
        ]
        return format_ipv6(own_addresses[0]) if len(own_addresses) == 1 else None

    def source_candidates6(self, oif: str | None) -> list[int]:
        """Return the global addresses that a packet without a source may get.

        `oif` None: of any device.
        """
        return [
            own
            for (family, device), own_addresses in self._by_device.items()
            for own, _ in own_addresses
            if family == 6 and oif in (None, device) and own != LOOPBACK6 and not is_link_local6(own)
        ]
