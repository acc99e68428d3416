# SPDX-License-Identifier: BSD-2-Clause
"""Which routes over an uplink are where they should not be, and where they belong. Pure.

A route over an uplink's device belongs into the uplink's table, whoever learned it: a DHCP client (option 121 too,
RFC 3442), the kernel from a router advertisement (RFC 4191), a person. In the table main it would draw the packets
of everybody, for the guard to drop. Four kinds stay where they are: those of the kernel's table of local
addresses; those to link-local IPv6 addresses, which the ladder looks up in main; those of ours, which the plan
sees to; and those that are no way out (unreachable and such).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_interface, ip_network

from attrs import frozen

from ...netstate.routing import PROTOCOL, TABLE_LOCAL, Route
from ...policy.objects import Policy

BY_KERNEL, BY_ROUTER = 2, 9  # RTPROT_KERNEL, RTPROT_RA
_LINK_LOCAL = ip_network("fe80::/10")

Addresses = Mapping[str, Collection[str]]  # device -> ADDRESS/LENGTH of its addresses and of their peers


@frozen
class Home:
    """Where the routes over a device belong."""

    uplink: str
    table: int


def homes(policy: Policy) -> dict[str, Home]:
    """Device -> home, of all devices of uplinks."""
    return {device: Home(name, one.table) for name, one in policy.uplink.items() for device in one.devices}


@frozen
class Stray:
    """A route that is not in its uplink's table.

    `there`: that table has the same already. `yields`: it has a route of ours in the place, which stays. `connected`:
    it leads to the network of an address or to one neighbour, so that whoever made it may need it for some seconds,
    to add a gateway (fib_check_nh in net/ipv4/fib_semantics.c). `protocol` is what it is to have in its new table.
    """

    route: Route
    home: Home
    there: bool = False
    yields: bool = False
    connected: bool = False
    protocol: int | None = None


@frozen
class Order:
    """What is to be done: routes to be moved, copies in an uplink's table whose address has gone, and routes that
    can't be moved since they lead over devices of different homes at once (multipath)."""

    strays: tuple[Stray, ...] = ()
    stale: tuple[Route, ...] = ()
    mixed: tuple[Route, ...] = ()


def order(homes: Mapping[str, Home], routes: Iterable[Route], addresses: Addresses) -> Order:
    """What to do about these routes. Nothing, if every one is where it belongs."""
    held = list(routes)
    strays, stale, mixed = [], [], []
    for route in held:
        found = {homes.get(str(way.device)) for way in route.ways}
        if not _kept(route) or found == {None}:
            continue
        home = next(iter(found))
        if len(found) > 1 or home is None:
            mixed.append(route)
        elif route.table != home.table:
            strays.append(_stray(route, home, held, addresses))
        elif route.protocol == BY_KERNEL and _is_on_link(route) and not _is_of_address(route, addresses):
            stale.append(route)
    return Order(tuple(strays), tuple(stale), tuple(mixed))


def _kept(route: Route) -> bool:
    """Whether the route is one of those that belong into an uplink's table."""
    if route.kind != "unicast" or route.table == TABLE_LOCAL or route.protocol == PROTOCOL:
        return False
    return route.family == 4 or not network(route).subnet_of(_LINK_LOCAL)  # type: ignore[arg-type]


def _stray(route: Route, home: Home, held: list[Route], addresses: Addresses) -> Stray:
    of_address = _is_on_link(route) and _is_of_address(route, addresses)
    # A prefix that a router calls on-link, without an address of ours in it, is told from those by its protocol.
    protocol = BY_ROUTER if route.family == 6 and route.protocol == BY_KERNEL and not of_address else None
    beside = [one for one in held if one.table == home.table and _place(one) == _place(route)]
    return Stray(
        route,
        home,
        there=any(_leads_the_same_way(one, route) for one in beside),
        yields=any(one.protocol == PROTOCOL for one in beside),
        # What expires comes from a router, and needs no route to it but the link-local one.
        connected=(of_address or _is_of_host(route)) and route.expires is None,
        protocol=protocol,
    )


def network(route: Route):  # type: ignore[no-untyped-def]
    """The destination as a network of the module ipaddress."""
    everything = "0.0.0.0/0" if route.family == 4 else "::/0"
    return ip_network(everything if route.destination == "default" else route.destination)


def _is_on_link(route: Route) -> bool:
    return not any(way.gateway for way in route.ways)


def _is_of_host(route: Route) -> bool:
    """Whether it leads to one neighbour: a gateway outside the networks of the addresses, as on links between two."""
    return _is_on_link(route) and network(route).num_addresses == 1


def _is_of_address(route: Route, addresses: Addresses) -> bool:
    """Whether an address of the route's device, or its peer, lies in just this network."""
    there = {ip_interface(one) for way in route.ways for one in addresses.get(str(way.device), ())}
    if route.prefsrc and not any(str(one.ip) == route.prefsrc for one in there):
        return False
    return network(route) in {one.network for one in there}


def _place(route: Route) -> tuple[object, ...]:
    """What two routes of a table can't share, in IPv4; in IPv6 the way may differ."""
    return (route.family, route.destination, route.metric, route.tos, route.source)


def _leads_the_same_way(one: Route, other: Route) -> bool:
    """IPv6 routes of one place are told as one route with several ways. Moved gateways are onlink."""
    ways, wanted = ({(way.device, way.gateway) for way in each.ways} for each in (one, other))
    return one.prefsrc == other.prefsrc and (ways == wanted if one.family == 4 else ways >= wanted)
