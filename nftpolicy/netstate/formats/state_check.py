# SPDX-License-Identifier: BSD-2-Clause
"""Check of a state that came from a document: names and addresses that no kernel has are refused.

The decoders check types. A text of the right type can still be no address or device name, and would
reach the model, a script or a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface

from ..routing import IpRule, Nexthop, Route
from ..state import Device, NetState

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
# dev_valid_name() of net/core/dev.c
_DEVICE_BYTES = 15
_NOT_IN_DEVICES = frozenset(b"/:\t\n\v\f\r \xa0\0")


def require_valid(state: NetState) -> None:
    """Check the names and addresses of devices, ip rules, routes and sysctls, and the families of addresses.

    Raises:
        ValueError: one is not valid; the message names it.
    """
    for kind, name, is_valid, value in _texts(state):
        if value is not None and not is_valid(value):
            raise ValueError(f"{kind}: {name} {value!r} is not valid")
    items: list[IpRule | Route] = [*state.rules, *state.routes]
    for item in items:
        for name in _OF_FAMILY[type(item)]:
            value = getattr(item, name)
            if value not in (None, "default") and ip_interface(value).version != item.family:
                raise ValueError(f"{type(item).__name__}: {name} {value!r} is not of IPv{item.family}")


def _texts(state: NetState) -> Iterator[tuple[str, str, Callable[[str], bool], str | None]]:
    items: list[Device | IpRule | Route | Nexthop] = [*state.devices, *state.rules]
    for route in state.routes:
        items += [route, *route.nexthops]
    for item in items:
        for name, is_valid in _CHECKS[type(item)].items():
            yield type(item).__name__, name, is_valid, getattr(item, name)
    for device in state.devices:
        for address in device.addresses:
            yield "Device", "address", _is_prefix, address
        for name in device.other_names:
            yield "Device", "other name", _is_other_name, name
    for sysctl in state.sysctls:
        yield "Sysctl", "path", _is_sysctl, sysctl.path
        yield "Sysctl", "value", str.isprintable, sysctl.value.replace("\t", " ")


def is_device_name(value: str) -> bool:
    """Return True for a name that the kernel accepts."""
    name = value.encode(errors="surrogateescape")
    return value not in ("", ".", "..") and len(name) <= _DEVICE_BYTES and _NOT_IN_DEVICES.isdisjoint(name)


def _is_other_name(value: str) -> bool:
    return value.isprintable() and not any(map(str.isspace, value)) and value != ""


def _is_address(value: str) -> bool:
    return "%" not in value and parses(ip_address, value)


def _is_prefix(value: str) -> bool:
    return value == "default" or ("%" not in value and parses(ip_interface, value))


def parses(parse: Callable[[str], object], value: str) -> bool:
    """Return True if `parse` raises no ValueError."""
    try:
        parse(value)
    except ValueError:
        return False
    return True


def _is_word(value: str) -> bool:
    return _WORD.fullmatch(value) is not None


def _is_sysctl(value: str) -> bool:
    parts = value.split("/")
    return len(parts) > 1 and _is_word(parts[0]) and all(map(_is_sysctl_part, parts))


def _is_sysctl_part(part: str) -> bool:
    return is_device_name(part) or (_is_word(part) and part not in (".", ".."))


_OF_FAMILY: dict[type, tuple[str, ...]] = {
    IpRule: ("source", "destination"),
    Route: ("destination", "source", "prefsrc"),
}
_CHECKS: dict[type, dict[str, Callable[[str], bool]]] = {
    Device: {"name": is_device_name, "master": is_device_name, "link": is_device_name},
    IpRule: {
        "action": _is_word,
        "source": _is_prefix,
        "destination": _is_prefix,
        "iif": is_device_name,
        "oif": is_device_name,
    },
    Nexthop: {"device": is_device_name, "gateway": _is_address},
    Route: {
        "destination": _is_prefix,
        "kind": _is_word,
        "gateway": _is_address,
        "device": is_device_name,
        "prefsrc": _is_address,
        "source": _is_prefix,
        "preference": _is_word,
        "scope": _is_word,
    },
}
