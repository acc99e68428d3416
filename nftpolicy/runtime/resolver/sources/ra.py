# SPDX-License-Identifier: BSD-2-Clause
"""Router advertisements: announced DNS servers (RDNSS, RFC 8106) and their lifetimes. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv6Address

from attrs import define, field, frozen

_ADVERTISEMENT, _RDNSS = 134, 25  # ICMPv6 type of RFC 4861, option of RFC 8106
_OPTIONS_OFFSET = 16
_OPTION_UNIT = 8  # bytes; the length of an option counts them
_LIFETIME_OFFSET, _SERVERS_OFFSET = 4, 8  # in the RDNSS option
_IPV6_SIZE = 16
_INFINITE = 0xFFFFFFFF
MAX_SERVERS = 16  # servers kept of one device; a neighbour can announce any number


@frozen
class RdnssOption:
    """Servers of one RDNSS option, and their lifetime in seconds; 0: withdrawn, inf: unlimited."""

    lifetime: float
    servers: tuple[str, ...]


def parse(message: bytes) -> Iterator[RdnssOption]:
    """Yield the RDNSS options of an ICMPv6 message.

    None if it is not an advertisement, or is truncated.
    """
    if len(message) < _OPTIONS_OFFSET or message[0] != _ADVERTISEMENT or message[1] != 0:
        return
    offset = _OPTIONS_OFFSET
    while offset + _OPTION_UNIT <= len(message):
        option, size = message[offset], message[offset + 1] * _OPTION_UNIT
        if size == 0 or offset + size > len(message):
            return
        if option == _RDNSS:
            (lifetime,) = struct.unpack_from("!I", message, offset + _LIFETIME_OFFSET)
            raw = message[offset + _SERVERS_OFFSET : offset + size]
            starts = range(0, len(raw) - _IPV6_SIZE + 1, _IPV6_SIZE)
            servers = tuple(str(IPv6Address(raw[start : start + _IPV6_SIZE])) for start in starts)
            yield RdnssOption(float("inf") if lifetime == _INFINITE else lifetime, servers)
        offset += size


@define
class RdnssCache:
    """Announced servers by device, and their expiry (seconds of the caller's clock)."""

    _ends: dict[str, dict[str, float]] = field(factory=dict)

    def add(self, device: str, message: bytes, now: float) -> None:
        """Add the servers of a message. The last announcement of a server counts, of any router."""
        ends = self._ends.setdefault(device, {})
        for option in parse(message):
            for server in option.servers:
                if option.lifetime == 0:
                    ends.pop(server, None)
                elif server in ends or len(ends) < MAX_SERVERS:
                    ends[server] = now + option.lifetime

    def clear(self, device: str) -> None:
        """Remove the servers of a device that lost its link.

        The next link may be another network.
        """
        self._ends.pop(device, None)

    def servers(self, device: str, now: float) -> tuple[str, ...]:
        """Return the servers that are valid now, and remove expired ones."""
        valid = {server: end for server, end in self._ends.get(device, {}).items() if end > now}
        self._ends[device] = valid
        return tuple(valid)

    def next_expiry(self) -> float | None:
        """Return the earliest expiry; None without one."""
        ends = [end for of_device in self._ends.values() for end in of_device.values() if end != float("inf")]
        return min(ends, default=None)
