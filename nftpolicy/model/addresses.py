# SPDX-License-Identifier: BSD-2-Clause
"""Which addresses are this machine's, on which devices, and which of them the kernel takes for a source."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from ..netstate.routing import TABLE_LOCAL, Nexthop
from ..netstate.state import NetState
from .fib import network

BROADCAST = 0xFFFFFFFF
LOCAL_MULTICAST = 0xE00000  # 224.0.0.0/24


def is_multicast4(address: int) -> bool:
    """224.0.0.0/4."""
    return address >> 28 == 0xE


def is_multicast6(address: int) -> bool:
    """ff00::/8."""
    return address >> 120 == 0xFF


def is_link_local6(address: int) -> bool:
    """fe80::/10."""
    return address >> 118 == 0x3FA


def is_strict6(address: int) -> bool:
    """Link-local, multicast and loopback addresses mean nothing without their device (rt6_need_strict)."""
    return is_link_local6(address) or is_multicast6(address) or address == 1


@lru_cache(maxsize=1 << 12)
def shown4(address: int | None) -> str | None:
    """An IPv4 address as people write it; None stays None."""
    return None if address is None else str(IPv4Address(address))


@lru_cache(maxsize=1 << 12)
def shown6(address: int | None) -> str | None:
    """An IPv6 address as people write it; None stays None."""
    return None if address is None else str(IPv6Address(address))


class Addresses:
    """The addresses of a state: those of its devices where they are told, else those in the local table."""

    def __init__(self, state: NetState) -> None:
        self._devices = {one.name: one for one in state.devices}
        self._by_device: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
        for device in state.devices:
            for address in device.addresses:
                family = 6 if ":" in address else 4
                own, length = network(address, family)
                self._by_device[family, device.name].append((own, length))
        told = {key for key in self._by_device if key[0] == 4}
        for route in state.routes:
            if route.table == TABLE_LOCAL and route.kind == "local" and route.device:
                first, length = network(route.destination, route.family)
                width = 32 if route.family == 4 else 128
                key = (route.family, route.device)
                if length == width and key not in told and route.device not in self._devices:
                    self._by_device[key].append((first, length))
        self._owners = {
            (family, own): device for (family, device), owned in self._by_device.items() for own, _ in owned
        }

    def device(self, family: int, address: int) -> str | None:
        """The device that has this very address."""
        return self._owners.get((family, address))

    @property
    def are_told(self) -> bool:
        """Whether anything is known of this machine's addresses."""
        return bool(self._owners)

    def is_up(self, device: str) -> bool:
        """Whether the device is there and up, as far as devices are known."""
        if not self._devices:
            return True
        return device in self._devices and self._devices[device].up

    def chosen4(self, device: str, gateway: int | None, loops: bool) -> int | None:
        """The device's address for a packet (inet_select_addr): one of the gateway's network, else the first.

        A device without one borrows the first of another device. `loops`: 127.0.0.0/8 is as good as any other.
        """
        owned = [one for one in self._by_device.get((4, device), []) if loops or one[0] >> 24 != 127]
        for own, length in owned:
            if gateway is not None and own >> 32 - length == gateway >> 32 - length:
                return own
        # Without their lengths, or their order, nobody can say which of several it is.
        if device not in self._devices and len(owned) != 1:
            return None
        others = (one[0] for other in self._devices for one in self._by_device.get((4, other), []))
        return owned[0][0] if owned else next((one for one in others if one >> 24 != 127), None)

    def source4(self, hop: Nexthop, loops: bool) -> str | None:
        """The source of a packet by this way."""
        if hop.device is None:
            return None
        gateway = int(IPv4Address(hop.gateway)) if hop.gateway and ":" not in hop.gateway else None
        return shown4(self.chosen4(hop.device, gateway, loops))

    def source6(self, hop: Nexthop, destination: int) -> str | None:
        """The same for IPv6, where there is only one to choose from: one of the link's for the link, else another."""
        if destination != 1 and (6, destination) in self._owners:
            return shown6(destination)
        near = is_link_local6(destination) or (is_multicast6(destination) and destination >> 112 & 0xF <= 2)
        told = (own for own, _ in self._by_device.get((6, hop.device or ""), []) if own != 1 and destination != 1)
        owned = [own for own in told if is_link_local6(own) == near]
        return shown6(owned[0]) if len(owned) == 1 else None

    def candidates6(self, oif: str | None) -> list[int]:
        """The addresses that a packet without a source may get."""
        return [
            own
            for (family, device), owned in self._by_device.items()
            for own, _ in owned
            if family == 6 and oif in (None, device) and own != 1 and not is_link_local6(own)
        ]
