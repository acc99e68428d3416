# SPDX-License-Identifier: BSD-2-Clause
"""Destinations that an uplink's table has a route to once a policy is applied, by the routes of now."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from ...netstate.routing import RTPROT_NFTPOLICY
from ...policy.objects import Network, Policy
from .route_placement import destination_network, plan_moves, uplink_tables

if TYPE_CHECKING:
    from ...kernel.netlink.route_mover import RouteMover

_LINK_LOCAL = ip_network("fe80::/10")
_ANY = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def routed_networks(access: RouteMover, policy: Policy, watched: bool) -> dict[str, tuple[Network, ...]]:
    """Return the networks that each uplink's table will lead to. Raises OSError.

    A change adds the gateways of the policy and copies connected routes; `watched`: the watch daemon moves all others.
    """
    targets = uplink_tables(policy)
    listing = access.list_routes(targets)
    routes = [each.route for each in listing.routes]
    moves = plan_moves(targets, routes, access.addresses(targets))
    networks: dict[str, list[Network]] = {name: [] for name in policy.uplink}
    for name, uplink in policy.uplink.items():
        networks[name] += [_ANY[each.version] for each in uplink.gateways]
    for device, family in listing.too_many:  # of so many routes, one will do
        networks[targets[device].uplink].append(_ANY[family])
    for route in routes:
        target = targets.get(str(next(iter(route.all_nexthops)).device))
        is_kept = route.kind == "unicast" and route.protocol != RTPROT_NFTPOLICY
        if target is not None and route.table == target.table and is_kept:
            networks[target.uplink].append(destination_network(route))
    for each in moves.misplaced:
        if each.is_connected or watched:
            networks[each.target.uplink].append(destination_network(each.route))
    return {name: tuple(each) for name, each in networks.items()}


def has_route(networks: tuple[Network, ...], address: str) -> bool:
    """Return True if one of the networks has the address; a link-local one needs no route there."""
    to = ip_address(address.partition("%")[0])
    if isinstance(to, IPv6Address) and to in _LINK_LOCAL:
        return True
    return any(to.version == network.version and to in network for network in networks)
