# SPDX-License-Identifier: BSD-2-Clause
"""Connected routes of the uplinks: copied into the uplinks' tables, so that replies to neighbours have a route.

The kernel adds the route to the network of an address to table main, and a reply is looked up in the uplink's
table alone. `watch` moves all routes over an uplink; without it the neighbours must be reached, too, such as the
administrator of a management port. The route in main stays: only `watch` keeps the copy up to date.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...kernel.netlink.route_mover import KernelRoute
from ...netstate.routing import Route
from .moved_routes import MovedRoute, MovedRouteFile, updated_record
from .route_placement import MisplacedRoute, plan_moves

if TYPE_CHECKING:
    from ...kernel.netlink.route_mover import RouteMover
    from .route_placement import UplinkTable


def copy_connected_routes(access: RouteMover, targets: Mapping[str, UplinkTable], file: MovedRouteFile) -> None:
    """Copy the connected routes over the devices of uplinks into the uplinks' tables; delete outdated copies.

    The copies are recorded first, for a later release. The caller holds the lock. Raises OSError.
    """
    listing = access.list_routes(targets)
    by_route = {each.route: each for each in listing.routes}
    moves = plan_moves(targets, by_route, access.addresses(targets))
    copied = [each for each in moves.misplaced if each.is_connected and not (each.already_there or each.ours_wins)]
    record = file.read()
    recorded = updated_record(record, listing, targets, [_moved(each, by_route) for each in copied])
    if recorded != record:
        file.write(recorded)
    for each in copied:
        access.install(by_route[each.route], each.target.table, each.new_protocol, beside=each.has_sibling)
        if any(moved.is_copied and moved.is_kept_by(each.route) for moved in record):
            access.delete(by_route[each.route])  # the copy in the table that the uplink had before
    for route in moves.stale_copies:
        access.delete(by_route[route])


def _moved(misplaced: MisplacedRoute, by_route: Mapping[Route, KernelRoute]) -> MovedRoute:
    return MovedRoute(by_route[misplaced.route], misplaced.target.table, is_moved=False)
