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
from ipaddress import IPv6Network, ip_interface, ip_network

from attrs import evolve, frozen

from ...compiler.reply_routing import uplinks_with_unmarked_udp
from ...netstate.routing import RTPROT_KERNEL, RTPROT_NFTPOLICY, RTPROT_RA, TABLE_LOCAL, Route
from ...policy.objects import Network, Policy
from ...policy.vocabulary import NOT_GLOBAL_NETWORKS, PRIVATE_NETWORKS
from .moved_routes import has_same_nexthops, route_key

_LINK_LOCAL = IPv6Network("fe80::/10")
_PRIVATE = tuple(ip_network(text) for blocks in PRIVATE_NETWORKS.values() for text in blocks)
_NOT_GLOBAL = tuple(ip_network(text) for blocks in NOT_GLOBAL_NETWORKS.values() for text in blocks)

# Device -> its addresses and peer addresses, as ADDRESS/LENGTH.
AddressesByDevice = Mapping[str, Collection[str]]


@frozen
class UplinkTable:
    """Routing table in which the routes over a device belong, and its uplink."""

    uplink: str
    table: int


def uplink_tables(policy: Policy) -> dict[str, UplinkTable]:
    """Return the uplink table of each device of an uplink, by device."""
    return {
        device: UplinkTable(name, uplink.table) for name, uplink in policy.uplink.items() for device in uplink.devices
    }


@frozen
class MisplacedRoute:
    """Misplaced route: a route over an uplink that is not in the uplink's table.

    `already_there`: that table has the same route. `ours_wins`: that table has a route of nftpolicy
    to the same destination, which stays. `is_connected`: the route leads to the network of an
    address or to a single neighbour, so the program that added it may need it for some seconds to
    add a gateway (fib_check_nh in net/ipv4/fib_semantics.c). `new_protocol`: protocol of the copy;
    None: unchanged. `has_sibling`: another device of the uplink has a route to the same destination,
    such as one in the same network; both stay. `superseded`: routes of the table to delete once the
    copy is there, since the network has named another gateway on the same device.
    """

    route: Route
    target: UplinkTable
    already_there: bool = False
    ours_wins: bool = False
    is_connected: bool = False
    new_protocol: int | None = None
    has_sibling: bool = False
    superseded: tuple[Route, ...] = ()


@frozen
class RouteMoves:
    """Moves that put all routes in place.

    `misplaced`: routes to move. `stale_copies`: routes in an uplink's table to delete, since their
    address is gone or has another metric. `mixed`: multipath routes over devices of different
    uplink tables, which cannot be moved.
    """

    misplaced: tuple[MisplacedRoute, ...] = ()
    stale_copies: tuple[Route, ...] = ()
    mixed: tuple[Route, ...] = ()


def plan_moves(targets: Mapping[str, UplinkTable], routes: Iterable[Route], addresses: AddressesByDevice) -> RouteMoves:
    """Return the moves for these routes; empty if each route is where it belongs."""
    all_routes = list(routes)
    by_key: dict[object, list[Route]] = {}
    for route in all_routes:
        by_key.setdefault((route.table, route_key(route)), []).append(route)
    metrics = _metrics_of_addresses(targets, all_routes)
    misplaced: list[MisplacedRoute] = []
    stale: list[Route] = []
    mixed: list[Route] = []
    for route in all_routes:
        route_targets = {targets.get(str(hop.device)) for hop in route.all_nexthops}
        if not _is_movable(route) or route_targets == {None}:
            continue
        target = next(iter(route_targets))
        if len(route_targets) > 1 or target is None:
            mixed.append(route)
        elif route.table != target.table:
            same_key = by_key.get((target.table, route_key(route)), ())
            siblings = [*same_key, *by_key[route.table, route_key(route)]]
            moved = _misplaced_route(route, target, same_key, addresses)
            has_sibling = any(_devices(other) != _devices(route) for other in siblings if _is_movable(other))
            misplaced.append(evolve(moved, has_sibling=has_sibling, superseded=_superseded(moved, same_key)))
        elif route.protocol == RTPROT_KERNEL and _is_on_link(route):
            current = metrics.get(_address_key(route), {route.metric})
            if route.metric not in current or not _is_of_address(route, addresses):
                stale.append(route)
    return RouteMoves(tuple(misplaced), tuple(stale), tuple(mixed))


def _metrics_of_addresses(
    targets: Mapping[str, UplinkTable], routes: Iterable[Route]
) -> Mapping[tuple[object, ...], set[int]]:
    """Return the metrics of the routes that the kernel just added for IPv4 addresses, by address.

    It has one such route of an address. If a program changes the metric of the address, the kernel replaces
    that route where it was at first, and the copy in the uplink's table stays.
    """
    metrics: dict[tuple[object, ...], set[int]] = {}
    for route in routes:
        target = targets.get(str(route.device))
        is_misplaced = target is not None and route.table != target.table and _is_movable(route)
        if is_misplaced and route.protocol == RTPROT_KERNEL and route.prefsrc:
            metrics.setdefault(_address_key(route), set()).add(route.metric)
    return metrics


def _address_key(route: Route) -> tuple[object, ...]:
    return route.device, route.destination, route.prefsrc


def devices_with_unmarked_flows(policy: Policy) -> frozenset[str]:
    """Return the devices of uplinks that packets get to by an ip rule behind table main, without a mark.

    These are replies over UDP, a DHCP client's renewals, and DNS queries of services (compiler/reply_routing.py,
    query_routing.py).
    """
    unmarked = uplinks_with_unmarked_udp(policy)
    return frozenset(
        device
        for name, uplink in policy.uplink.items()
        if uplink.resolver is not None or name in unmarked
        for device in uplink.devices
    )


@frozen
class NetworkRoute:
    """Route in main to a private network of an uplink: its kind; of a unicast route, the device and its address."""

    kind: str
    device: str | None = None
    prefsrc: str | None = (
        None  # IPv4, as the kernel's own route; without it another address of the device is the source
    )


def private_networks(
    addresses: AddressesByDevice, unmarked: Collection[str], reachable: Mapping[str, Collection[Network]]
) -> dict[Network, NetworkRoute]:
    """Return the private networks of the addresses of uplinks' devices, each with its route in main.

    These are all networks that are not globally reachable, such as those of a carrier's NAT. What is sent
    to one of them without the uplink's mark, such as a login to a file server, is meant for that network and
    for no tunnel. A public prefix could be that of any host, so it is left to routing.
    A unicast route leads there if packets may leave without the mark to some host of the network:
    `reachable` has these networks by device, and the guard judges each packet. "unreachable" is an
    error at once. "throw" leaves the packet to the ip rules behind main, for the devices `unmarked`;
    the last one is an error.
    """
    routes: dict[Network, NetworkRoute] = {}
    for device, texts in addresses.items():
        for interface in map(ip_interface, texts):
            network = interface.network
            known = routes.get(network)
            hosts = reachable.get(device, ())
            is_host = network.prefixlen == network.max_prefixlen
            if is_host or network.overlaps(_LINK_LOCAL) or (known and known.device):
                continue
            if _is_reachable(network, hosts):
                source = str(interface.ip) if network.version == 4 else None
                routes[network] = NetworkRoute("unicast", device, source)
            elif _is_private(network) and (device in unmarked or known is None):
                routes[network] = NetworkRoute("throw" if device in unmarked else "unreachable")
    return routes


def reachable_networks(policy: Policy) -> dict[str, tuple[Network, ...]]:
    """Return the networks to whose hosts packets may leave without the mark, by device of an uplink.

    Those of `lan`, and all private ones for the unicast answers of multicast DNS and SSDP.
    """
    networks: dict[str, tuple[Network, ...]] = {}
    for name, uplink in policy.uplink.items():
        answers = _PRIVATE if {"mdns", "ssdp"} & set(uplink.exempt) else ()
        own = [network for lan in policy.lan.values() if lan.uplink == name for network in lan.to]
        networks |= dict.fromkeys(uplink.devices, (*answers, *own))
    return networks


def is_reachable(route: Route, reachable: Mapping[str, Collection[Network]]) -> bool:
    """Return True if a route leads to neighbours to whom packets may leave without the mark."""
    network, device = destination_network(route), str(route.device)
    return _is_on_link(route) and _is_reachable(network, reachable.get(device, ()))


def _is_reachable(network: Network, hosts: Collection[Network]) -> bool:
    """Return True if a network has some of the hosts; a public one, which could be any, only if they are all."""
    overlaps = any(network.version == other.version and network.overlaps(other) for other in hosts)
    return overlaps if _is_private(network) else _is_part(network, hosts)


def _is_private(network: Network) -> bool:
    return _is_part(network, _NOT_GLOBAL)


def _is_part(network: Network, blocks: Collection[Network]) -> bool:
    return any(network.version == block.version and network.subnet_of(block) for block in blocks)  # type: ignore[arg-type]


def _is_movable(route: Route) -> bool:
    """Return True if the route belongs into an uplink's table, if it leads over an uplink."""
    if route.kind != "unicast" or route.table == TABLE_LOCAL or route.protocol == RTPROT_NFTPOLICY:
        return False
    destination = destination_network(route)
    return not (isinstance(destination, IPv6Network) and destination.subnet_of(_LINK_LOCAL))


def _misplaced_route(
    route: Route, target: UplinkTable, same_key: Collection[Route], addresses: AddressesByDevice
) -> MisplacedRoute:
    of_address = _is_on_link(route) and _is_of_address(route, addresses)
    # A prefix that a router announces as on-link, without an address of this host in it, has the
    # kernel's protocol too. Its copy gets RTPROT_RA, to distinguish it from the routes of
    # addresses.
    announced = route.family == 6 and route.protocol == RTPROT_KERNEL and not of_address
    return MisplacedRoute(
        route,
        target,
        already_there=any(has_same_nexthops(other, route) for other in same_key),
        ours_wins=any(other.protocol == RTPROT_NFTPOLICY for other in same_key),
        # A route that expires comes from a router, and needs no other route to it than the
        # link-local one.
        is_connected=(of_address or _is_to_neighbour(route)) and route.expires is None,
        new_protocol=RTPROT_RA if announced else None,
    )


def _superseded(moved: MisplacedRoute, same_key: Collection[Route]) -> tuple[Route, ...]:
    """Return the routes of the table that the copy replaces. Several routers may send advertisements."""
    if moved.already_there or moved.ours_wins or moved.route.protocol == RTPROT_RA:
        return ()
    return tuple(
        other
        for other in same_key
        if other.protocol == moved.route.protocol and not other.nexthops and _devices(other) == _devices(moved.route)
    )


def _devices(route: Route) -> set[str | None]:
    return {hop.device for hop in route.all_nexthops}


def destination_network(route: Route) -> Network:
    """Return the destination of a route as a network."""
    everything = "0.0.0.0/0" if route.family == 4 else "::/0"
    return ip_network(everything if route.destination == "default" else route.destination)


def _is_on_link(route: Route) -> bool:
    return not any(hop.gateway for hop in route.all_nexthops)


def _is_to_neighbour(route: Route) -> bool:
    """Return True for a route to a single neighbour, such as the peer of a PPP link."""
    return _is_on_link(route) and destination_network(route).num_addresses == 1


def _is_of_address(route: Route, addresses: AddressesByDevice) -> bool:
    """Return True if an address of the route's device, or its peer, has exactly this network."""
    interfaces = {ip_interface(text) for hop in route.all_nexthops for text in addresses.get(str(hop.device), ())}
    if route.prefsrc and not any(str(interface.ip) == route.prefsrc for interface in interfaces):
        return False
    return destination_network(route) in {interface.network for interface in interfaces}
