# SPDX-License-Identifier: BSD-2-Clause
"""Routing tables as the kernel searches them: IPv4 and IPv6 differ in nearly everything but the longest prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv6Address

from attrs import frozen

from ..netstate.routing import Nexthop, Route
from .unknown import Doubts

# A route of such a type ends the search in its table. "throw" ends it without a result.
ERRORS = {"unreachable": "EHOSTUNREACH", "prohibit": "EACCES", "blackhole": "EINVAL", "nat": "EINVAL"}
_TOS_MASK = 0x1C  # IPv4 compares these bits of the field only, the others are DSCP's and ECN's
_PREFERENCE = {"low": 1, "medium": 2, "high": 3}


@frozen
class Hit:
    """The route that was found, and the ways out of it that are open."""

    route: Route
    hops: tuple[Nexthop, ...] = ()
    length: int = 0  # of its prefix
    is_known: bool = True


@frozen
class Search:
    """What a table is asked. Addresses are integers; `strict`: only routes by `oif` count (IPv6)."""

    destination: int
    source: int = 0
    oif: str | None = None
    tos: int = 0
    strict: bool = False


@lru_cache(maxsize=1 << 12)
def _number6(address: str) -> int:
    return int(IPv6Address(address))


def network(prefix: str, family: int) -> tuple[int, int]:
    """The first address and the length of ADDRESS/LENGTH or "default"."""
    if prefix == "default":
        return 0, 0
    address, _, length = prefix.partition("/")
    if family == 6:
        return _number6(address), int(length or 128)
    a, b, c, d = address.split(".")
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d), int(length or 32)


def _tree(routes: Iterable[Route], family: int) -> list[tuple[int, dict[int, list[Route]]]]:
    """Pairs, longest prefix first, of the bits behind a prefix and the routes by the bits of the prefix."""
    width = 32 if family == 4 else 128
    by_rest: dict[int, dict[int, list[Route]]] = {}
    for route in routes:
        first, length = network(route.destination, family)
        rest = width - length
        level = by_rest.get(rest)
        if level is None:
            level = by_rest[rest] = {}
        key = first >> rest
        if key in level:
            level[key].append(route)
        else:
            level[key] = [route]
    return sorted(by_rest.items())


class Table4:
    """An IPv4 table, or two in one: the local table's routes to a prefix come before those of main.

    Of several in one table the one with a TOS comes first, then the one with the least metric.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._levels = _tree(routes, 4)
        for _, level in self._levels:
            for same in level.values():
                if len(same) > 1:
                    same.sort(key=lambda one: (-one.table, -one.tos, one.metric))

    def find(self, what: Search, doubts: Doubts) -> Hit | None:
        """The route, or None if there is none (or a "throw")."""
        for rest, level in self._levels:
            routes = level.get(what.destination >> rest)
            for route in routes or ():
                if route.tos and route.tos != what.tos & _TOS_MASK:
                    continue
                if route.kind == "throw":
                    return None
                if route.kind in ERRORS:
                    return Hit(route, (), 32 - rest)
                if route.unknown:
                    return Hit(route, (), 32 - rest, is_known=False)
                hops = _open(route, what.oif)
                if not hops:
                    continue
                if rest == 32 and not what.oif:
                    hops = _by_turns(routes or [], route, what) or hops
                return Hit(route, hops, 32 - rest)
        return None


def _open(route: Route, oif: str | None) -> tuple[Nexthop, ...]:
    if route.dead:
        return ()
    hops = tuple(hop for hop in route.ways if not hop.dead and oif in (None, hop.device))
    return hops[:1] if oif else hops


def _by_turns(routes: list[Route], chosen: Route, what: Search) -> tuple[Nexthop, ...]:
    """The ways of all default routes that Linux takes to be as good, as long as their gateways answer."""
    if chosen.kind != "unicast" or len(chosen.ways) > 1:
        return ()
    equals = [
        one
        for one in routes
        if (one.tos, one.metric, one.kind) == (chosen.tos, chosen.metric, "unicast") and one.ways[0].gateway
    ]
    return tuple(hop for one in equals for hop in _open(one, None)) if chosen in equals else ()


class Table6:
    """An IPv6 table; routes to one destination may be for some sources only."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._levels = _tree(routes, 6)
        for _, level in self._levels:
            for same in level.values():
                if len(same) > 1:
                    same.sort(key=lambda one: one.metric)

    def find(self, what: Search, doubts: Doubts) -> Hit | None:
        """The route, or None. A "throw" is found as a route: it is the caller who goes on."""
        for length, routes in self._nodes(what, doubts):
            found = _select(routes, what)
            if found:
                route, hops = found
                return Hit(route, hops, length, not route.unknown)
        return None

    def _nodes(self, what: Search, doubts: Doubts) -> Iterator[tuple[int, list[Route]]]:
        """The routes to each prefix that holds the destination, in the order in which Linux looks at them."""
        began = False
        for rest, level in self._levels:
            routes = level.get(what.destination >> rest)
            if not routes:
                continue
            length = 128 - rest
            plain = [one for one in routes if one.source is None]
            if len(plain) != len(routes):
                special = list(_by_source([one for one in routes if one.source is not None], what.source))
                for same in special:
                    yield length, same
                began = began or bool(special)
                # Linux up to 6.18 at least passes the plain routes by as well, but for the default routes.
                if plain and not began and length and doubts.ask(f"a route to {plain[0].destination} for any source"):
                    continue
            if plain:
                began = True
                yield length, plain


def _by_source(routes: list[Route], source: int) -> Iterator[list[Route]]:
    """Routes of one destination, by the sources that they are for, the longest prefix first."""
    by_prefix: dict[str, list[Route]] = {}
    for route in routes:
        by_prefix.setdefault(route.source or "default", []).append(route)
    networks = sorted(((network(prefix, 6), same) for prefix, same in by_prefix.items()), key=lambda one: -one[0][1])
    for (first, length), same in networks:
        if first >> 128 - length == source >> 128 - length:
            yield same


def _select(routes: list[Route], what: Search) -> tuple[Route, tuple[Nexthop, ...]] | None:
    """The best route of a node (rt6_select): of the least metric that has any, by the score of its ways.

    If the least metric has none, all the others compete with each other whatever their metric.
    """
    least = [one for one in routes if one.metric == routes[0].metric]
    return _best(least, what) or _best(routes[len(least) :], what)


def _best(routes: list[Route], what: Search) -> tuple[Route, tuple[Nexthop, ...]] | None:
    found: tuple[Route, Nexthop] | None = None
    best = -1
    for route in routes:
        for hop in () if route.dead else route.ways:
            score = _score(route, hop, what)
            if score is not None and score > best:
                best, found = score, (route, hop)
    if found is None:
        return None
    route, hop = found
    if len(route.ways) == 1:
        return route, (hop,)
    # Of a list any way is taken, by a hash, even with a device that is only preferred.
    return route, tuple(one for one in route.ways if _score(route, one, what) is not None)


def _score(route: Route, hop: Nexthop, what: Search) -> int | None:
    """None: not this way."""
    is_by = what.oif in (None, hop.device)
    if hop.dead or (what.strict and not is_by):
        return None
    return 2 * is_by | _PREFERENCE.get(route.preference, 2) << 2
