# SPDX-License-Identifier: BSD-2-Clause
"""netifd of OpenWrt: output of `ubus call network.interface dump`. Pure.

With `option peerdns 0` the servers of DHCP and router advertisements are "inactive".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

DUMP_COMMAND = ("ubus", "-t", "2", "call", "network.interface", "dump")


def parse(text: str, device: str) -> Iterator[str]:
    """Yield the servers of all interfaces on a device, such as wan and wan6.

    Raises ValueError for invalid JSON.
    """
    document = json.loads(text)
    for interface in _list(document, "interface"):
        if isinstance(interface, dict) and device in (
            interface.get("l3_device"),
            interface.get("device"),
        ):
            yield from map(str, _list(interface.get("inactive"), "dns-server"))
            yield from map(str, _list(interface, "dns-server"))


def _list(item: Any, key: str) -> list[Any]:
    """Return a list in a JSON object; [] if it is missing or has another type."""
    value = item.get(key) if isinstance(item, dict) else None
    return value if isinstance(value, list) else []
