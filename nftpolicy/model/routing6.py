# SPDX-License-Identifier: BSD-2-Clause
"""How IPv6 routes beside its rules and tables (net/ipv6/route.c): what needs its device, and sources that come late."""

from __future__ import annotations

from attrs import evolve

from ..netstate.routing import Route
from ..netstate.state import NetState
from . import addresses
from .addresses import Addresses
from .fib import Search
from .rules import LOOPBACK, Asked
from .search import LEAVING, UNKNOWN, Log, Routed, Searcher, agreed, by, local, refusal
from .unknown import Doubts


class Router6(Searcher):
    """Lookups of IPv6 packets."""

    def __init__(self, state: NetState, known: Addresses) -> None:
        super().__init__(state, 6, known)

    def output(self, asked: Asked, doubts: Doubts, said: Log, exact: bool) -> Routed:
        # A socket that is bound to a device leaves by no other; for RTM_GETROUTE with a source it is a mere wish.
        routed = self._once6(asked, doubts, said, asked.oif is not None and (asked.source is None or not exact))
        if exact or asked.source is not None or routed.outcome in (*LEAVING, "local", UNKNOWN):
            return routed
        # ip6_dst_lookup_tail: a source is chosen although nothing was found, and tried.
        tries = [
            self._once6(evolve(asked, source=own), doubts, [], asked.oif is not None)
            for own in self.addresses.candidates6(asked.oif)
        ]
        return agreed(tries, (), True) if tries else routed

    def _once6(self, asked: Asked, doubts: Doubts, said: Log, strict: bool) -> Routed:
        what = Search(
            asked.destination,
            asked.source or 0,
            asked.oif,
            asked.tos,
            strict or addresses.is_strict6(asked.destination),
        )
        return self._answer6(asked, what, doubts, said)

    def input(self, asked: Asked, doubts: Doubts, said: Log, exact: bool) -> Routed:
        # The device of arrival is preferred for leaving as well.
        strict = addresses.is_strict6(asked.destination)
        what = Search(asked.destination, asked.source or 0, asked.iif, asked.tos, strict)
        routed = self._answer6(asked, what, doubts, said)
        if not exact and routed.outcome != "local" and self.value("net/ipv6/conf/all/forwarding") == "0":
            return Routed("none", error="EHOSTUNREACH")
        return routed

    def _answer6(self, asked: Asked, what: Search, doubts: Doubts, said: Log) -> Routed:
        found = self.search(asked, what, doubts, said)
        refused = refusal(found)
        if refused:
            return refused
        hit = found.hit
        assert hit is not None
        # An anycast address of a user's own making stays here if it comes in only.
        if hit.route.kind == "local" or (
            hit.route.kind == "anycast" and (asked.iif != LOOPBACK or _is_made(hit.route))
        ):
            is_own = self.addresses.device(6, asked.destination) is not None and asked.destination != 1
            own = addresses.shown6(asked.destination) if is_own else None
            return local(found, hit.route.prefsrc or own)
        kind = "multicast" if addresses.is_multicast6(asked.destination) else "unicast"
        routed = by(found, kind, lambda hop: hit.route.prefsrc or self.addresses.source6(hop, asked.destination))
        return evolve(routed, source=addresses.shown6(asked.source)) if asked.source is not None else routed


def _is_made(route: Route) -> bool:
    """Whether the kernel made it, for an address of its own."""
    return route.protocol == 2
