# SPDX-License-Identifier: BSD-2-Clause
"""Route keeper of the watch daemon: moves new routes over an uplink into the uplink's table.

It keeps uplinks usable and plays no part in confinement: the guard drops packets in spite of any
route. The moves are decided in apply/route_placement.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from ...kernel.netlink.monitor import ChangeSet
from ...kernel.netlink.route_mover import MAX_ROUTES, KernelRoute, RouteListing
from ...netstate.formats.ip_text import display_text
from ...netstate.routing import Route
from ...phrases import first_few
from ...policy.objects import Network, Policy
from ..apply import route_placement
from ..apply.journal import PolicySource
from ..apply.moved_routes import MovedRoute, MovedRouteFile, updated_record
from ..apply.route_placement import MisplacedRoute, NetworkRoute, UplinkTable
from ..apply.state_dir import Locked
from ..rate_limiter import RateLimiter, earliest_deadline
from .environment import Environment, RouteAccess
from .repair_plan import ConflictDetector

# Seconds for which a connected route stays in main, so that gateways can be added through it.
SETTLE_SECONDS = 3.0
_PAUSE, _PAUSE_IN_CONFLICT = 0.02, 1.0  # least seconds between two reads of the routes
_COST_FACTOR = 4.0
_CONFLICT_END = 10.0  # seconds without a move until a conflict is over
_MAX_MOVES = 64  # in one turn
_MAX_DELAYS = 3  # turns in a row that are given up for a repair
# A route that comes back so often, each time within so many seconds, is left for a while.
_MAX_RETURNS, _RETURN_SECONDS, _LEFT_SECONDS = 5, 5.0, 60.0
_MAX_NAMED = 6  # routes named in a log line
_RETRY = 1.0  # seconds until the next try after a failure
_RETRY_LOCK = 0.1  # seconds until the next try for a lock that another process holds


class RouteKeeper:
    """Route keeper of one watch daemon. Without `routes` in its environment it does nothing.

    A turn ends between two of its steps if `is_repair_due` returns True; a later turn does the rest.
    """

    def __init__(self, environment: Environment, is_repair_due: Callable[[], bool] = lambda: False) -> None:
        self._is_repair_due, self._delays = is_repair_due, 0
        self._access, self._log, self._now = environment.routes, environment.log_event, environment.now
        self._state_dir = environment.applier.state_dir
        self._source: PolicySource | None = None
        self._targets: Mapping[str, UplinkTable] = {}
        self._unmarked: frozenset[str] = frozenset()
        self._reachable: Mapping[str, tuple[Network, ...]] = {}
        self._limiter = RateLimiter(_PAUSE, _COST_FACTOR)
        self._conflicts = ConflictDetector()
        self._first_seen: dict[Route, float] = {}  # connected routes in main
        self._deletions: dict[Route, tuple[int, float]] = {}  # of routes in main: number in a row, time of the last
        self._later: float | None = None  # when a connected route has settled, or a retry is due
        self._logged_failures: set[tuple[str, str]] = set()
        self._conflict_until = 0.0
        self._unlogged_moves = 0
        self._too_many: frozenset[tuple[str, int]] = frozenset()
        self._withdrawn_routers: set[tuple[str, str]] = set()  # device and address

    def set_policy(self, policy: Policy | None, source: PolicySource | None = None) -> None:
        """Keep the routes of the uplinks of this policy from now on; None: no routes.

        `source` is the policy in the state directory: routes are moved only while it is there.
        """
        targets = {} if policy is None else route_placement.uplink_tables(policy)
        self._source = source
        self._unmarked = frozenset() if policy is None else route_placement.devices_with_unmarked_flows(policy)
        self._reachable = {} if policy is None else route_placement.reachable_networks(policy)
        if targets != self._targets:
            self._targets = targets
            self._first_seen.clear()
            self._logged_failures.clear()
            self._withdrawn_routers.clear()
            self._later = None
        self._limiter.request()

    def due(self) -> float | None:
        """Return the time of the next action; None: none is scheduled."""
        if self._access is None or not self._targets:
            return None
        return earliest_deadline((self._limiter.due(), self._later, self._conflicts.due()))

    def process(self, changes: ChangeSet) -> None:
        """Process these events, and do all that is due."""
        if self._access is None or not self._targets:
            return
        now = self._now()
        withdrawn = {router for router in changes.withdrawn_routers if router[0] in self._targets}
        self._withdrawn_routers |= withdrawn
        if changes.route_added or changes.links or changes.addresses or changes.deleted_routes or withdrawn:
            self._limiter.request()
        due = earliest_deadline((self._limiter.due(), self._later))
        if due is not None and now >= due:
            self._limiter.begin()
            self._later = None
            try:
                with self._state_dir.lock():
                    if self._state_dir.policy() == self._source:  # else it was released, or another one applied
                        self._place_routes(self._access, now)
            except Locked:
                self._later = now + _RETRY_LOCK
            except OSError as error:
                self._log_failure("the routes", error.errno or errno.EIO, now)
            end = self._now()
            self._limiter.end(end, end - now)
        if number := self._conflicts.take_pending_count(now):
            self._log("conflict", {"over": "routes", "times": number, "moved": self._unlogged_moves})
            self._unlogged_moves = 0

    def _is_delayed(self) -> bool:
        """Return True, and request another turn, if a repair comes first."""
        if self._delays >= _MAX_DELAYS or not self._is_repair_due():
            return False
        self._delays += 1
        self._limiter.request()
        return True

    def _place_routes(self, access: RouteAccess, now: float) -> None:
        self._withdraw_routers(access)
        listing = access.list_routes(self._targets)
        if self._is_delayed():
            return
        self._log_too_many(listing)
        kernel_routes = {kernel_route.route: kernel_route for kernel_route in listing.routes}
        addresses = access.addresses(self._targets)
        networks = route_placement.private_networks(addresses, self._unmarked, self._reachable)
        self._route_networks(access, networks, now)
        if self._is_delayed():
            return
        moves = route_placement.plan_moves(self._targets, kernel_routes, addresses)
        pauses = [end for route in moves.misplaced if (end := self._pause_end(route.route)) > now]
        self._first_seen = {
            misplaced_route.route: self._first_seen.get(misplaced_route.route, now)
            for misplaced_route in moves.misplaced
            if misplaced_route.is_connected
        }
        self._record_moves(listing, kernel_routes, moves.misplaced[:_MAX_MOVES], now)
        moved = [
            misplaced_route
            for misplaced_route in moves.misplaced[:_MAX_MOVES]
            if self._move(access, kernel_routes, misplaced_route, now)
        ]
        withdrawn = [
            route
            for route in moves.stale_copies[:_MAX_MOVES]
            if not self._check_errno(access.delete(kernel_routes[route]), route, now)
        ]
        for route in moves.mixed:
            why = "it has nexthops over other devices: delete it with 'ip route del'"
            self._log_failure(display_text(route), errno.EXDEV, now, why, retry=False)
        if len(moves.misplaced) > _MAX_MOVES or len(moves.stale_copies) > _MAX_MOVES:
            self._limiter.request()
        settled = [first_seen + SETTLE_SECONDS for first_seen in self._first_seen.values()]
        self._later = earliest_deadline((self._later, *settled, *pauses))
        self._delays = 0
        self._log_moves(moved, withdrawn, now)

    def _withdraw_routers(self, access: RouteAccess) -> None:
        """Delete the default routes by routers that have withdrawn, before routes of later advertisements are moved."""
        for device, router in sorted(self._withdrawn_routers):
            table = self._targets[device].table
            if not access.delete_default(device, router, table):
                route = f"default via {router} dev {device} table {table}"
                self._log("route-withdrawn", {"routes": [route], "why": "its router has withdrawn it"})
        self._withdrawn_routers.clear()

    def _route_networks(self, access: RouteAccess, networks: Mapping[Network, NetworkRoute], now: float) -> None:
        """Give the private networks of the uplinks their routes in table main, before others are moved away.

        The metric is the worst one, so that each other route to the same network wins.
        """
        wanted = {str(network): (network, route) for network, route in networks.items()}
        present = access.own_main_routes()
        unchanged = {
            name for name, entry in present.items() if name in wanted and _network_route(entry.route) == wanted[name][1]
        }
        changed = False
        for name in sorted(present.keys() - unchanged):
            changed |= not self._check_errno(access.delete(present[name]), present[name].route, now)
        for name in sorted(wanted.keys() - unchanged):
            network, route = wanted[name]
            if code := access.add_main_route(network, route.kind, route.device, route.prefsrc):
                self._log_failure(f"{route.kind} {name}", code, now)
            changed |= not code
        if changed:
            by_effect = {
                "closed": sorted(name for name, (_, route) in wanted.items() if route.device is None),
                "reachable": sorted(name for name, (_, route) in wanted.items() if route.device is not None),
            }
            self._log("private-networks", {effect: names for effect, names in by_effect.items() if names})

    def _record_moves(
        self,
        listing: RouteListing,
        kernel_routes: Mapping[Route, KernelRoute],
        misplaced: Iterable[MisplacedRoute],
        now: float,
    ) -> None:
        """Record the routes before they are moved, for a later release; forget those that the network withdrew."""
        file = MovedRouteFile(self._state_dir.directory)
        moves = [
            MovedRoute(kernel_routes[route.route], route.target.table, is_copied=not route.ours_wins)
            for route in misplaced
        ]
        before = file.read()
        after = updated_record(before, listing, self._targets, moves)
        if after != before:
            try:
                file.write(after)
            except OSError as error:
                self._log_failure("the record of moved routes", error.errno or errno.EIO, now)

    def _log_too_many(self, listing: RouteListing) -> None:
        for device, family in sorted(set(listing.too_many) - self._too_many):
            routes = f"IPv{family} routes over {device}"
            why = f"there are more than {MAX_ROUTES}, so they stay in their tables until there are fewer"
            self._log("routes-left", {"what": routes, "why": why})
        self._too_many = frozenset(listing.too_many)

    def _move(
        self,
        access: RouteAccess,
        kernel_routes: Mapping[Route, KernelRoute],
        misplaced_route: MisplacedRoute,
        now: float,
    ) -> bool:
        """Add the route to the uplink's table, then delete it from the other one.

        Return True on any change.
        """
        kernel_route = kernel_routes[misplaced_route.route]
        added = not misplaced_route.already_there and not misplaced_route.ours_wins
        # A route with a lifetime is written again even if the copy exists: that renews the
        # lifetime.
        if added or (misplaced_route.already_there and misplaced_route.route.expires is not None):
            code = access.install(
                kernel_route,
                misplaced_route.target.table,
                misplaced_route.new_protocol,
                beside=misplaced_route.has_sibling,
            )
            if self._check_errno(code, misplaced_route.route, now):
                return False
            for route in misplaced_route.superseded:
                self._check_errno(access.delete(kernel_routes[route]), route, now)
        if misplaced_route.is_connected and now < self._first_seen[misplaced_route.route] + SETTLE_SECONDS:
            return added
        if now < self._pause_end(misplaced_route.route):
            return added
        self._first_seen.pop(misplaced_route.route, None)
        self._count_deletion(misplaced_route, now)
        return not self._check_errno(access.delete(kernel_route), misplaced_route.route, now)

    def _pause_end(self, route: Route) -> float:
        """Return the time until which a route is only copied, since another program adds it again and again."""
        number, last = self._deletions.get(route, (0, 0.0))
        return last + _LEFT_SECONDS if number > _MAX_RETURNS else 0.0

    def _count_deletion(self, misplaced_route: MisplacedRoute, now: float) -> None:
        route = misplaced_route.route
        number, last = self._deletions.get(route, (0, 0.0))
        number = number + 1 if now < last + _RETURN_SECONDS else 1
        recent = {key: value for key, value in self._deletions.items() if now < value[1] + _LEFT_SECONDS}
        self._deletions = {**recent, route: (number, now)}
        if number > _MAX_RETURNS:
            table = misplaced_route.target.table
            why = f"another program adds it again each time: have it use table {table}, or take the route away from it"
            if (event := (display_text(route), why)) not in self._logged_failures:
                self._logged_failures.add(event)
                self._log("routes-left", {"what": event[0], "why": why})

    def _log_moves(self, moved: Sequence[MisplacedRoute], withdrawn: Sequence[Route], now: float) -> None:
        if not moved and not withdrawn:
            return
        no_conflict = self._conflicts.count_repair(now)
        if not no_conflict or now < self._conflict_until:
            self._conflict_until = now + _CONFLICT_END
        self._limiter.pause = _PAUSE_IN_CONFLICT if now < self._conflict_until else _PAUSE
        if not no_conflict:
            self._unlogged_moves += len(moved)
            return
        new = [misplaced_route for misplaced_route in moved if not misplaced_route.already_there]
        for table in sorted({misplaced_route.target.table for misplaced_route in new}):
            texts = [
                display_text(misplaced_route.route) for misplaced_route in new if misplaced_route.target.table == table
            ]
            self._log("route-moved", {"routes": first_few(texts, _MAX_NAMED), "to": table})
        if withdrawn:
            texts = first_few(map(display_text, withdrawn), _MAX_NAMED)
            self._log("route-withdrawn", {"routes": texts, "why": "its address is gone, or has another metric"})

    def _check_errno(self, code: int, route: Route, now: float) -> int:
        if code:
            self._log_failure(display_text(route), code, now)
        return code

    def _log_failure(self, subject: str, code: int, now: float, why: str = "", retry: bool = True) -> None:
        """Log a failure once, and schedule a retry."""
        if retry:
            self._later = earliest_deadline((self._later, now + _RETRY))
        failure = (subject, why or os.strerror(code))
        if failure not in self._logged_failures:
            self._logged_failures.add(failure)
            self._log("failed", {"what": subject, "why": failure[1]})


def _network_route(route: Route) -> NetworkRoute:
    """Return what a route of nftpolicy does; the kernel attaches an IPv6 route without a device to lo."""
    is_unicast = route.kind == "unicast"
    return NetworkRoute(route.kind, route.device, route.prefsrc) if is_unicast else NetworkRoute(route.kind)


def misplaced_routes(access: RouteAccess, policy: Policy) -> tuple[str, ...]:
    """Return the routes over uplinks outside their uplink's table, as ip-route(8) prints them.

    Not those to a network whose hosts packets may reach without the mark. Raises OSError.
    """
    targets, reachable = route_placement.uplink_tables(policy), route_placement.reachable_networks(policy)
    routes = [kernel_route.route for kernel_route in access.list_routes(targets).routes]
    routes = [route for route in routes if not route_placement.is_reachable(route, reachable)]
    moves = route_placement.plan_moves(targets, routes, access.addresses(targets))
    return tuple(
        display_text(route) for route in (*(misplaced_route.route for misplaced_route in moves.misplaced), *moves.mixed)
    )
