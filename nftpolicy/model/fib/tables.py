# SPDX-License-Identifier: BSD-2-Clause
"""Longest-prefix lookup in routing tables as the kernel does it, for IPv4 and IPv6."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv6Address

from attrs import frozen

from ...netstate.routing import Nexthop, Route
from ..branching import Choices

# A route of such a type ends the lookup with this error. "throw" ends it without a result.
ROUTE_ERRORS = {"unreachable": "EHOSTUNREACH", "prohibit": "EACCES", "blackhole": "EINVAL", "nat": "EINVAL"}
# IPv4 compares only these bits of the field (IPTOS_RT_MASK); the others are DSCP and ECN
_TOS_MASK = 0x1C
_PREFERENCE = {"low": 1, "medium": 2, "high": 3}
_DEFAULT_ROUTE_BITS = 32  # host bits of an IPv4 default route


@frozen
class FibMatch:
    """The route that a lookup selected, with its usable nexthops."""

    route: Route
    hops: tuple[Nexthop, ...] = ()
    length: int = 0  # of its prefix, in bits
    is_known: bool = True


@frozen
class FibQuery:
    """A query to a routing table.

    Addresses are integers; `strict`: only routes by `oif` count (IPv6).
    """

    destination: int
    source: int = 0
    oif: str | None = None
    tos: int = 0
    strict: bool = False


@lru_cache(maxsize=1 << 12)
def _number6(address: str) -> int:
    return int(IPv6Address(address))


def parse_prefix(prefix: str, family: int) -> tuple[int, int]:
    """Return the first address and the length of ADDRESS/LENGTH or "default"."""
    if prefix == "default":
        return 0, 0
    address, _, length = prefix.partition("/")
    if family == 6:
        return _number6(address), int(length or 128)
    a, b, c, d = address.split(".")
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d), int(length or 32)


def _tree(routes: Iterable[Route], family: int) -> list[tuple[int, dict[int, list[Route]]]]:
    """Return pairs of host bits and routes by the bits of their prefix, longest prefix first."""
    width = 32 if family == 4 else 128
    levels: dict[int, dict[int, list[Route]]] = {}
    for route in routes:
        first, length = parse_prefix(route.destination, family)
        host_bits = width - length
        level = levels.get(host_bits)
        if level is None:
            level = levels[host_bits] = {}
        key = first >> host_bits
        if key in level:
            level[key].append(route)
        else:
            level[key] = [route]
    return sorted(levels.items())


class Table4:
    """An IPv4 table, or the merged local and main tables: of one prefix, local routes come first.

    Of several routes in one table the one with a TOS comes first, then the one with the lowest
    metric.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._levels = _tree(routes, 4)
        for _, level in self._levels:
            for routes_of_prefix in level.values():
                if len(routes_of_prefix) > 1:
                    routes_of_prefix.sort(key=lambda route: (-route.table, -route.tos, route.metric))

    def find(self, query: FibQuery, choices: Choices) -> FibMatch | None:
        """Return the match, or None if there is no route or a "throw" (fib_table_lookup)."""
        for host_bits, level in self._levels:
            routes = level.get(query.destination >> host_bits)
            for route in routes or ():
                if route.tos and route.tos != query.tos & _TOS_MASK:
                    continue
                if route.kind == "throw":
                    return None
                if route.kind in ROUTE_ERRORS:
                    return FibMatch(route, (), 32 - host_bits)
                if route.unknown:
                    return FibMatch(route, (), 32 - host_bits, is_known=False)
                hops = _usable_hops(route, query.oif)
                if not hops:
                    continue
                if host_bits == _DEFAULT_ROUTE_BITS and not query.oif:
                    hops = _equal_default_hops(routes or [], route) or hops
                return FibMatch(route, hops, 32 - host_bits)
        return None


def _usable_hops(route: Route, oif: str | None) -> tuple[Nexthop, ...]:
    if route.dead:
        return ()
    hops = tuple(hop for hop in route.all_nexthops if not hop.dead and oif in (None, hop.device))
    return hops[:1] if oif else hops


def _equal_default_hops(routes: list[Route], chosen: Route) -> tuple[Nexthop, ...]:
    """Return the nexthops of all default routes equal to `chosen` (fib_select_default).

    Linux uses any of them if its gateway answers.
    """
    if chosen.kind != "unicast" or len(chosen.all_nexthops) > 1:
        return ()
    equals = [
        route
        for route in routes
        if (route.tos, route.metric, route.kind) == (chosen.tos, chosen.metric, "unicast")
        and route.all_nexthops[0].gateway
    ]
    if chosen not in equals:
        return ()
    return tuple(hop for route in equals for hop in _usable_hops(route, None))


class Table6:
    """An IPv6 table; a route may be limited to some source addresses."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._levels = _tree(routes, 6)
        for _, level in self._levels:
            for routes_of_prefix in level.values():
                if len(routes_of_prefix) > 1:
                    routes_of_prefix.sort(key=lambda route: route.metric)

    def find(self, query: FibQuery, choices: Choices) -> FibMatch | None:
        """Return the match, or None.

        A "throw" is a match too: the caller continues with the next rule.
        """
        for length, routes in self._nodes(query, choices):
            selected = _select(routes, query)
            if selected:
                route, hops = selected
                return FibMatch(route, hops, length, not route.unknown)
        return None

    def _nodes(self, query: FibQuery, choices: Choices) -> Iterator[tuple[int, list[Route]]]:
        """Yield the routes of each prefix that contains the destination, in the kernel's order."""
        has_started = False
        for host_bits, level in self._levels:
            routes = level.get(query.destination >> host_bits)
            if not routes:
                continue
            length = 128 - host_bits
            plain = [route for route in routes if route.source is None]
            if len(plain) != len(routes):
                limited = [route for route in routes if route.source is not None]
                special = list(_by_source(limited, query.source))
                for members in special:
                    yield length, members
                has_started = has_started or bool(special)
                # Linux (at least up to 6.18) skips the plain routes too, except for default routes.
                if plain and not has_started and length:
                    skipped = f"a route to {plain[0].destination} for any source"
                    if choices.branch_on(skipped):
                        continue
            if plain:
                has_started = True
                yield length, plain


def _by_source(routes: list[Route], source: int) -> Iterator[list[Route]]:
    """Yield routes of one destination grouped by source prefix, the longest prefix first."""
    by_prefix: dict[str, list[Route]] = {}
    for route in routes:
        by_prefix.setdefault(route.source or "default", []).append(route)
    groups = ((parse_prefix(prefix, 6), members) for prefix, members in by_prefix.items())
    networks = sorted(groups, key=lambda group: -group[0][1])
    for (first, length), members in networks:
        if first >> 128 - length == source >> 128 - length:
            yield members


def _select(routes: list[Route], query: FibQuery) -> tuple[Route, tuple[Nexthop, ...]] | None:
    """Return the best route of a node (rt6_select) with its nexthops, by the score of the nexthops.

    The routes of the lowest metric come first. If none of them is usable, all other routes compete
    whatever their metric.
    """
    lowest = [route for route in routes if route.metric == routes[0].metric]
    return _best(lowest, query) or _best(routes[len(lowest) :], query)


def _best(routes: list[Route], query: FibQuery) -> tuple[Route, tuple[Nexthop, ...]] | None:
    best: tuple[Route, Nexthop] | None = None
    highest = -1
    for route in routes:
        for hop in () if route.dead else route.all_nexthops:
            score = _score(route, hop, query)
            if score is not None and score > highest:
                highest, best = score, (route, hop)
    if best is None:
        return None
    route, hop = best
    if len(route.all_nexthops) == 1:
        return route, (hop,)
    # A multipath route uses any nexthop, by a hash, even if `oif` is only preferred.
    return route, tuple(each for each in route.all_nexthops if _score(route, each, query) is not None)


def _score(route: Route, hop: Nexthop, query: FibQuery) -> int | None:
    """Return the score of a nexthop (rt6_score_route); None: not usable."""
    is_preferred = query.oif in (None, hop.device)
    if hop.dead or (query.strict and not is_preferred):
        return None
    return 2 * is_preferred | _PREFERENCE.get(route.preference, 2) << 2
