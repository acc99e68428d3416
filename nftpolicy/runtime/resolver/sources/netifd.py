# SPDX-License-Identifier: BSD-2-Clause
"""netifd of OpenWrt: what `ubus call network.interface dump` prints. Pure.

With `option peerdns 0` the servers that DHCP and router advertisements brought are "inactive".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

DUMP = ("ubus", "-t", "2", "call", "network.interface", "dump")


def parse(text: str, device: str) -> Iterator[str]:
    """The servers of all interfaces on a device, such as wan and wan6. ValueError if it is no such document."""
    document = json.loads(text)
    for one in _list(document, "interface"):
        if isinstance(one, dict) and device in (one.get("l3_device"), one.get("device")):
            yield from map(str, _list(one.get("inactive"), "dns-server"))
            yield from map(str, _list(one, "dns-server"))


def _list(item: Any, key: str) -> list[Any]:
    found = item.get(key) if isinstance(item, dict) else None
    return found if isinstance(found, list) else []
