# SPDX-License-Identifier: BSD-2-Clause
"""Route placement: routes over an uplink that are in the wrong routing table. Pure.

A route over a device of an uplink belongs into the uplink's table, whether a DHCP client added it
(option 121 too, RFC 3442), the kernel from a router advertisement (RFC 4191), or an administrator.
In table main it would attract packets of all programs, and the guard would drop them. Four kinds of
routes stay where they are: routes of table local; routes to link-local IPv6 addresses, which an ip
rule looks up in main; routes of nftpolicy, which the planner manages; and routes that do not
forward (unreachable and such).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network

from attrs import frozen

from ...netstate.routing import PROTOCOL, TABLE_LOCAL, Route
from ...policy.objects import Policy

BY_KERNEL, BY_ROUTER = 2, 9  # RTPROT_KERNEL, RTPROT_RA
_LINK_LOCAL = IPv6Network("fe80::/10")

# Device -> its addresses and peer addresses, as ADDRESS/LENGTH.
Addresses = Mapping[str, Collection[str]]


@frozen
class Home:
    """Routing table in which the routes over a device belong, and its uplink."""

    uplink: str
    table: int


def homes(policy: Policy) -> dict[str, Home]:
    """Return the uplink table of each device of an uplink, by device."""
    return {device: Home(name, uplink.table) for name, uplink in policy.uplink.items() for device in uplink.devices}


@frozen
class Stray:
    """Misplaced route: a route over an uplink that is not in the uplink's table.

    `already_there`: that table has the same route. `ours_wins`: that table has a route of nftpolicy
    to the same destination, which stays. `is_connected`: the route leads to the network of an
    address or to a single neighbour, so the program that added it may need it for some seconds to
    add a gateway (fib_check_nh in net/ipv4/fib_semantics.c). `new_protocol`: protocol of the copy;
    None: unchanged.
    """

    route: Route
    home: Home
    there: bool = False
    yields: bool = False
    connected: bool = False
    protocol: int | None = None


@frozen
class Order:
    """Moves that put all routes in place.

    `misplaced`: routes to move. `stale_copies`: routes in an uplink's table to delete, since their
    address is gone. `mixed`: multipath routes over devices of different uplink tables, which cannot
    be moved.
    """

    strays: tuple[Stray, ...] = ()
    stale: tuple[Route, ...] = ()
    mixed: tuple[Route, ...] = ()


def order(targets: Mapping[str, Home], routes: Iterable[Route], addresses: Addresses) -> Order:
    """Return the moves for these routes; empty if each route is where it belongs."""
    all_routes = list(routes)
    misplaced: list[Stray] = []
    stale: list[Route] = []
    mixed: list[Route] = []
    for route in all_routes:
        route_targets = {targets.get(str(hop.device)) for hop in route.ways}
        if not _is_movable(route) or route_targets == {None}:
            continue
        target = next(iter(route_targets))
        if len(route_targets) > 1 or target is None:
            mixed.append(route)
        elif route.table != target.table:
            misplaced.append(_misplaced_route(route, target, all_routes, addresses))
        elif route.protocol == BY_KERNEL and _is_on_link(route) and not _is_of_address(route, addresses):
            stale.append(route)
    return Order(tuple(misplaced), tuple(stale), tuple(mixed))


def _is_movable(route: Route) -> bool:
    """Return True if the route belongs into an uplink's table, if it leads over an uplink."""
    if route.kind != "unicast" or route.table == TABLE_LOCAL or route.protocol == PROTOCOL:
        return False
    destination = network(route)
    return not (isinstance(destination, IPv6Network) and destination.subnet_of(_LINK_LOCAL))


def _misplaced_route(route: Route, target: Home, all_routes: list[Route], addresses: Addresses) -> Stray:
    of_address = _is_on_link(route) and _is_of_address(route, addresses)
    # A prefix that a router announces as on-link, without an address of this host in it, has the
    # kernel's protocol too. Its copy gets RTPROT_RA, to distinguish it from the routes of
    # addresses.
    announced = route.family == 6 and route.protocol == BY_KERNEL and not of_address
    same_key = [other for other in all_routes if other.table == target.table and _route_key(other) == _route_key(route)]
    return Stray(
        route,
        target,
        there=any(_has_same_nexthops(other, route) for other in same_key),
        yields=any(other.protocol == PROTOCOL for other in same_key),
        # A route that expires comes from a router, and needs no other route to it than the
        # link-local one.
        connected=(of_address or _is_to_neighbour(route)) and route.expires is None,
        protocol=BY_ROUTER if announced else None,
    )


def network(route: Route) -> IPv4Network | IPv6Network:
    """Return the destination of a route as a network."""
    everything = "0.0.0.0/0" if route.family == 4 else "::/0"
    return ip_network(everything if route.destination == "default" else route.destination)


def _is_on_link(route: Route) -> bool:
    return not any(hop.gateway for hop in route.ways)


def _is_to_neighbour(route: Route) -> bool:
    """Return True for a route to a single neighbour, such as the peer of a PPP link."""
    return _is_on_link(route) and network(route).num_addresses == 1


def _is_of_address(route: Route, addresses: Addresses) -> bool:
    """Return True if an address of the route's device, or its peer, has exactly this network."""
    interfaces = {ip_interface(text) for hop in route.ways for text in addresses.get(str(hop.device), ())}
    if route.prefsrc and not any(str(interface.ip) == route.prefsrc for interface in interfaces):
        return False
    return network(route) in {interface.network for interface in interfaces}


def _route_key(route: Route) -> tuple[object, ...]:
    """Return the fields that identify a route in its table.

    IPv6 routes may share them with other nexthops.
    """
    return (route.family, route.destination, route.metric, route.tos, route.source)


def _has_same_nexthops(route: Route, wanted: Route) -> bool:
    """Return True if `route` already has the nexthops and the source address of `wanted`.

    The kernel dumps IPv6 routes with the same key as one multipath route. Gateways of moved routes
    are onlink.
    """
    if route.prefsrc != wanted.prefsrc:
        return False
    present = {(hop.device, hop.gateway) for hop in route.ways}
    required = {(hop.device, hop.gateway) for hop in wanted.ways}
    return present == required if route.family == 4 else present >= required
