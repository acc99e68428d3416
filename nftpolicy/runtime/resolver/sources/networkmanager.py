# SPDX-License-Identifier: BSD-2-Clause
"""NetworkManager: /run/NetworkManager/devices/INDEX, and its objects on D-Bus. Pure.

The file has the servers of DHCP, also with ignore-auto-dns. On D-Bus, IP4Config and IP6Config of a
device have the servers that NetworkManager itself would use: those of DHCP, of router
advertisements and of the connection, except those that ignore-auto-dns excludes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from .keyfile import value_words

_BUS_NAME = "org.freedesktop.NetworkManager"
# One call for all objects; busctl(1) prints JSON since systemd 237.
OBJECTS_COMMAND = (
    *("busctl", "--system", "--json=short", "--timeout=2", "call"),
    *(_BUS_NAME, "/org/freedesktop", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
)
# Property of a device, interface of the object that it names, DHCP option.
_DHCP = (
    ("Dhcp4Config", "DHCP4Config", "domain_name_servers"),
    ("Dhcp6Config", "DHCP6Config", "dhcp6_name_servers"),
)
_IPV6_SIZE = 16  # bytes


def parse(data: bytes) -> Iterator[str]:
    """Yield the servers in the file of a device."""
    text = data.decode(errors="replace")
    yield from value_words(text, ("dhcp4", "dhcp4.domain_name_servers"), ("dhcp6", "dhcp6.dhcp6_name_servers"))


def parse_objects(text: str, device: str) -> Iterator[str]:
    """Yield the servers of a device in busctl's JSON of all objects.

    Raises ValueError if the text is not JSON.
    """
    document = json.loads(text)
    objects = _as_dict(_item(_as_dict(document).get("data"), 0))
    for interfaces in objects.values():
        properties = _as_dict(_as_dict(interfaces).get(f"{_BUS_NAME}.Device"))
        if device in (_value(properties, "Interface"), _value(properties, "IpInterface")):
            yield from _device_servers(objects, properties)


def _device_servers(objects: Mapping[str, Any], device: Mapping[str, Any]) -> Iterator[str]:
    for key, interface, option in _DHCP:
        options = _value(_referenced(objects, device, key, interface), "Options")
        yield from str(_value(_as_dict(options), option) or "").split()
    ipv4 = _referenced(objects, device, "Ip4Config", "IP4Config")
    data = _as_list(_value(ipv4, "NameserverData"))
    yield from (str(_value(_as_dict(server), "address")) for server in data)
    if not data:  # before NetworkManager 1.14: network byte order, read as little endian
        numbers = _as_list(_value(ipv4, "Nameservers"))
        yield from (str(IPv4Address(number.to_bytes(4, "little"))) for number in numbers if _is_unsigned(number, 32))
    ipv6 = _referenced(objects, device, "Ip6Config", "IP6Config")
    for address in _as_list(_value(ipv6, "Nameservers")):
        if len(_as_list(address)) == _IPV6_SIZE and all(_is_unsigned(byte, 8) for byte in address):
            yield str(IPv6Address(bytes(address)))


def _referenced(objects: Mapping[str, Any], device: Mapping[str, Any], key: str, interface: str) -> Mapping[str, Any]:
    """Return the properties of the object that a property of the device names."""
    path = _value(device, key)
    return _as_dict(_as_dict(objects.get(path) if isinstance(path, str) else None).get(f"{_BUS_NAME}.{interface}"))


def _value(table: Mapping[str, Any], key: str) -> Any:
    """Return a property: busctl writes {"type": ..., "data": VALUE}."""
    return _as_dict(table.get(key)).get("data")


def _as_dict(item: Any) -> Mapping[str, Any]:
    return item if isinstance(item, dict) else {}


def _as_list(item: Any) -> list[Any]:
    return item if isinstance(item, list) else []


def _item(item: Any, index: int) -> Any:
    return item[index] if isinstance(item, list) and len(item) > index else None


def _is_unsigned(item: Any, bits: int) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << bits
