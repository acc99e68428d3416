# SPDX-License-Identifier: BSD-2-Clause
"""What kind of address something is to this machine, as `fib daddr . iif type` reads it.

IPv4: inet_dev_addr_type (net/ipv4/fib_frontend.c). IPv6: nft_fib6_eval_type
(net/ipv6/netfilter/nft_fib_ipv6.c). Both ask the local table; with a device an address of
another device is "unicast".
"""

from __future__ import annotations

from ..netstate.routing import TABLE_LOCAL
from ..netstate.state import NetState
from .addresses import BROADCAST, is_multicast4, is_multicast6
from .fib import network
from .view import View

_WORDS = ("local", "broadcast", "anycast")


class Kinds:
    """The local tables of a state."""

    def __init__(self, state: NetState) -> None:
        self._exact: dict[tuple[int, int], list[tuple[str, str | None]]] = {}
        self._wide: list[tuple[int, int, int, str, str | None]] = []
        for route in state.routes:
            if route.table != TABLE_LOCAL or route.kind not in _WORDS:
                continue
            first, length = network(route.destination, route.family)
            width = 32 if route.family == 4 else 128
            if length == width:
                self._exact.setdefault((route.family, first), []).append((route.kind, route.device))
            else:
                self._wide.append((route.family, first, width - length, route.kind, route.device))

    def kind(self, family: int, address: int, device: str | None) -> str:
        """local, broadcast, anycast, multicast or unicast; `device` None: whatever the device."""
        if family == 4 and (address == BROADCAST or address >> 24 == 0):
            return "broadcast"
        if is_multicast4(address) if family == 4 else is_multicast6(address):
            return "multicast"
        found = list(self._exact.get((family, address), ()))
        found += [
            (kind, owner)
            for version, first, rest, kind, owner in self._wide
            if version == family and address >> rest == first >> rest
        ]
        return next((kind for kind, owner in found if device in (None, owner)), "unicast")

    def fib(self, result: str, keys: tuple[str, ...], view: View) -> str | None:
        """The answer to a fib expression; None if it is one that is not known here."""
        rest = set(keys) - {"saddr", "daddr", "iif", "oif"}
        if result != "type" or rest or len({"saddr", "daddr"} & set(keys)) != 1 or {"iif", "oif"} <= set(keys):
            return None
        device = view.iif if "iif" in keys else view.oif if "oif" in keys else None
        if {"iif", "oif"} & set(keys) and device is None:
            return None
        return self.kind(view.family, view.source if "saddr" in keys else view.destination, device)
