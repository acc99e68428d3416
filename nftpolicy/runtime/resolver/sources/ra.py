# SPDX-License-Identifier: BSD-2-Clause
"""Router advertisements: which DNS servers they announce (RDNSS, RFC 8106), and for how long. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv6Address

from attrs import define, field, frozen

_ADVERTISEMENT, _RDNSS = 134, 25  # RFC 4861, RFC 8106
_OPTIONS_AT = 16
_FOREVER = 0xFFFFFFFF
MOST = 16  # servers that are kept of one device; a neighbour can announce any number


@frozen
class Announced:
    """Servers of one option, and the seconds that they may be used; 0: no more, infinity: always."""

    lifetime: float
    servers: tuple[str, ...]


def parse(message: bytes) -> Iterator[Announced]:
    """What an ICMPv6 message announces; nothing if it is another one or cut short."""
    if len(message) < _OPTIONS_AT or message[0] != _ADVERTISEMENT or message[1] != 0:
        return
    at = _OPTIONS_AT
    while at + 8 <= len(message):
        kind, size = message[at], message[at + 1] * 8
        if size == 0 or at + size > len(message):
            return
        if kind == _RDNSS:
            (life,) = struct.unpack_from("!I", message, at + 4)
            raw = message[at + 8 : at + size]
            servers = tuple(str(IPv6Address(raw[each : each + 16])) for each in range(0, len(raw) - 15, 16))
            yield Announced(float("inf") if life == _FOREVER else life, servers)
        at += size


@define
class Known:
    """What routers have announced, by device, and when it ends (seconds, of the caller's clock)."""

    _ends: dict[str, dict[str, float]] = field(factory=dict)

    def hear(self, device: str, message: bytes, now: float) -> None:
        """Take over what a message announces. The latest word on a server counts, whichever router says it."""
        ends = self._ends.setdefault(device, {})
        for announced in parse(message):
            for server in announced.servers:
                if announced.lifetime == 0:
                    ends.pop(server, None)
                elif server in ends or len(ends) < MOST:
                    ends[server] = now + announced.lifetime

    def forget(self, device: str) -> None:
        """The device has lost its link: what comes next may be another network."""
        self._ends.pop(device, None)

    def servers(self, device: str, now: float) -> tuple[str, ...]:
        """Those that may be used now; the others are forgotten."""
        ends = {one: end for one, end in self._ends.get(device, {}).items() if end > now}
        self._ends[device] = ends
        return tuple(ends)

    def next_end(self) -> float | None:
        """When the first one ends."""
        ends = [end for known in self._ends.values() for end in known.values() if end != float("inf")]
        return min(ends, default=None)
