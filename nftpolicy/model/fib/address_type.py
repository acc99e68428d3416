# SPDX-License-Identifier: BSD-2-Clause
"""Address types as `fib daddr . iif type` reads them.

IPv4: inet_dev_addr_type (net/ipv4/fib_frontend.c). IPv6: nft_fib6_eval_type
(net/ipv6/netfilter/nft_fib_ipv6.c). Both look up the local table; with a device, an address of
another device is "unicast".
"""

from __future__ import annotations

from ...netstate.routing import TABLE_LOCAL
from ...netstate.state import NetState
from ..packet_view import PacketView
from .source_address import IPV4_BROADCAST, is_multicast4, is_multicast6
from .tables import parse_prefix

_LOCAL_TYPES = ("local", "broadcast", "anycast")
_KEYS = frozenset({"saddr", "daddr", "iif", "oif"})


class AddressTypes:
    """The local tables of a state."""

    def __init__(self, state: NetState) -> None:
        self._exact: dict[tuple[int, int], list[tuple[str, str | None]]] = {}
        self._wide: list[tuple[int, int, int, str, str | None]] = []
        for route in state.routes:
            if route.table != TABLE_LOCAL or route.kind not in _LOCAL_TYPES:
                continue
            first, length = parse_prefix(route.destination, route.family)
            width = 32 if route.family == 4 else 128
            if length == width:
                routes = self._exact.setdefault((route.family, first), [])
                routes.append((route.kind, route.device))
            else:
                self._wide.append((route.family, first, width - length, route.kind, route.device))

    def address_type(self, family: int, address: int, device: str | None) -> str:
        """Return local, broadcast, anycast, multicast or unicast; `device` None: of any device."""
        if family == 4 and (address == IPV4_BROADCAST or address >> 24 == 0):
            return "broadcast"
        if is_multicast4(address) if family == 4 else is_multicast6(address):
            return "multicast"
        routes = list(self._exact.get((family, address), ()))
        routes += [
            (kind, owner)
            for version, first, host_bits, kind, owner in self._wide
            if version == family and address >> host_bits == first >> host_bits
        ]
        return next((kind for kind, owner in routes if device in (None, owner)), "unicast")

    def evaluate(self, result: str, keys: tuple[str, ...], view: PacketView) -> str | None:
        """Return the value of a fib expression; None for an expression that is not modelled."""
        selected = set(keys)
        if result != "type" or selected - _KEYS:
            return None
        if len({"saddr", "daddr"} & selected) != 1 or {"iif", "oif"} <= selected:
            return None
        device = None
        if "iif" in selected:
            device = view.iif
        elif "oif" in selected:
            device = view.oif
        if {"iif", "oif"} & selected and device is None:
            return None
        address = view.source if "saddr" in selected else view.destination
        return self.address_type(view.family, address, device)
