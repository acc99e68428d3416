# SPDX-License-Identifier: BSD-2-Clause
"""NetworkManager: /run/NetworkManager/devices/INDEX, and its objects on D-Bus. Pure.

The file has what DHCP brought, with ignore-auto-dns too. On D-Bus the IP4Config and IP6Config of a device have what
NetworkManager itself would use: DHCP's, those of router advertisements and those of the connection, without what
ignore-auto-dns keeps out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from .keyfile import words_of

_NAME = "org.freedesktop.NetworkManager"
# One call for everything; busctl(1) of systemd 237 and later prints JSON.
OBJECTS = (
    *("busctl", "--system", "--json=short", "--timeout=2", "call"),
    *(_NAME, "/org/freedesktop", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
)
_DHCP = (("Dhcp4Config", "DHCP4Config", "domain_name_servers"), ("Dhcp6Config", "DHCP6Config", "dhcp6_name_servers"))


def parse(data: bytes) -> Iterator[str]:
    """The servers in the file of a device."""
    text = data.decode(errors="replace")
    yield from words_of(text, ("dhcp4", "dhcp4.domain_name_servers"), ("dhcp6", "dhcp6.dhcp6_name_servers"))


def parse_objects(text: str, device: str) -> Iterator[str]:
    """The servers of a device in busctl's JSON of all objects. ValueError if it is no such document."""
    document = json.loads(text)
    objects = _table(_item(_table(document).get("data"), 0))
    for one in objects.values():
        found = _table(_table(one).get(f"{_NAME}.Device"))
        if device in (_value(found, "Interface"), _value(found, "IpInterface")):
            yield from _of_device(objects, found)


def _of_device(objects: Mapping[str, Any], device: Mapping[str, Any]) -> Iterator[str]:
    for key, kind, option in _DHCP:
        options = _value(_object(objects, device, key, kind), "Options")
        yield from str(_value(_table(options), option) or "").split()
    four, six = (_object(objects, device, f"Ip{version}Config", f"IP{version}Config") for version in (4, 6))
    data = _list(_value(four, "NameserverData"))
    yield from (str(_value(_table(one), "address")) for one in data)
    if not data:  # before NetworkManager 1.14: the number as it lies in memory
        plain = _list(_value(four, "Nameservers"))
        yield from (str(IPv4Address(one.to_bytes(4, "little"))) for one in plain if _is_number(one, 32))
    for one in _list(_value(six, "Nameservers")):
        if len(_list(one)) == 16 and all(_is_number(byte, 8) for byte in one):
            yield str(IPv6Address(bytes(one)))


def _object(objects: Mapping[str, Any], device: Mapping[str, Any], key: str, kind: str) -> Mapping[str, Any]:
    path = _value(device, key)
    return _table(_table(objects.get(path) if isinstance(path, str) else None).get(f"{_NAME}.{kind}"))


def _value(table: Mapping[str, Any], key: str) -> Any:
    """A property: busctl writes {"type": ..., "data": VALUE}."""
    return _table(table.get(key)).get("data")


def _table(item: Any) -> Mapping[str, Any]:
    return item if isinstance(item, dict) else {}


def _list(item: Any) -> list[Any]:
    return item if isinstance(item, list) else []


def _item(item: Any, index: int) -> Any:
    return item[index] if isinstance(item, list) and len(item) > index else None


def _is_number(item: Any, bits: int) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << bits
