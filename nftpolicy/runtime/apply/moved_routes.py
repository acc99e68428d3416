# SPDX-License-Identifier: BSD-2-Clause
"""Moved routes: those that `watch` moved, or `apply` copied, into uplinks' tables, recorded to be put back.

The record has the route as it was. Whether it still is a route of this network says its copy in the uplink's table:
the kernel deletes that with the device or the address. The record lies in a directory of its own, since `watch` takes
each new file in the state directory for a change of policy.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from ...kernel.netlink.route_mover import KernelRoute, RouteListing, decode_kernel_route
from ...netstate.formats.ip_text import display_text
from ...netstate.routing import RTPROT_NFTPOLICY, Route
from ..atomic_file import write_file
from ..private_files import make_directory, read_private

if TYPE_CHECKING:
    from ...kernel.netlink.route_mover import RouteMover


@frozen
class MovedRoute:
    """A route as it was, and the uplink's table that has it now.

    `is_copied` is False if a route of the policy takes its place in that table, `is_moved` if the route
    stayed in its own table, too, where another program may delete it.
    """

    original: KernelRoute
    table: int
    is_copied: bool = True
    is_moved: bool = True

    @property
    def devices(self) -> frozenset[str]:
        """Names of the devices of its nexthops."""
        return frozenset(str(hop.device) for hop in self.original.route.all_nexthops)

    def is_kept_by(self, route: Route) -> bool:
        """Return True if `route` is the copy, or the route of the policy in its place."""
        if route.table != self.table or route_key(route) != route_key(self.original.route):
            return False
        if self.is_copied:
            return has_same_nexthops(route, self.original.route)
        return route.protocol == RTPROT_NFTPOLICY

    def replaces(self, other: MovedRoute) -> bool:
        """Return True if this route took the place of the other one in the table."""
        ours, theirs = self.original.route, other.original.route
        if (self.table, route_key(ours)) != (other.table, route_key(theirs)):
            return False
        return bool(self.devices & other.devices) if ours.family == 4 else has_same_nexthops(ours, theirs)

    def is_beside(self, other: MovedRoute) -> bool:
        """Return True if both are routes of one uplink to the same destination over different devices."""
        ours, theirs = self.original.route, other.original.route
        has_same_key = (self.table, ours.table, route_key(ours)) == (other.table, theirs.table, route_key(theirs))
        return has_same_key and self.devices != other.devices


@frozen
class MovedRouteFile:
    """Record of the moved routes of one network namespace. Only the process with the lock writes it."""

    state_directory: Path

    @property
    def _path(self) -> Path:
        return self.state_directory / "routes" / "moved.json"

    def read(self) -> tuple[MovedRoute, ...]:
        """Return the moved routes; none if the record is damaged."""
        try:
            return tuple(map(_decode, json.loads(read_private(self._path))))
        except (OSError, ValueError, TypeError, KeyError, struct.error):
            return ()

    def write(self, routes: Sequence[MovedRoute]) -> None:
        """Replace the record; without routes, remove it. Raises OSError."""
        if not routes:
            self._path.unlink(missing_ok=True)
            return
        make_directory(self._path.parent)
        write_file(self._path, json.dumps(list(map(_encode, routes)), indent=1).encode())


def _encode(moved: MovedRoute) -> dict[str, Any]:
    text = display_text(moved.original.route)  # for the reader
    return {"route": text, "message": moved.original.message.hex(), "table": moved.table, "copied": moved.is_copied,
            "moved": moved.is_moved}  # fmt: skip


def _decode(stored: dict[str, Any]) -> MovedRoute:
    original = decode_kernel_route(bytes.fromhex(stored["message"]))
    return MovedRoute(original, int(stored["table"]), bool(stored["copied"]), bool(stored.get("moved", True)))


def updated_record(
    record: Iterable[MovedRoute], listing: RouteListing, devices: Collection[str], moves: Iterable[MovedRoute]
) -> tuple[MovedRoute, ...]:
    """Return the record with these moves, without the routes that the network withdrew.

    `listing` has the routes over `devices` before the moves; routes over other devices stay in the record.
    """
    present = [kernel_route.route for kernel_route in listing.routes]
    entries = [
        moved
        for moved in record
        if not moved.devices & frozenset(devices)
        or any((device, moved.original.route.family) in listing.too_many for device in moved.devices)
        or any(moved.is_kept_by(route) for route in present)
    ]
    for move in moves:
        # A copy moves on if its uplink has another table now: it belongs where it was at first.
        earlier = next((moved for moved in entries if moved.is_copied and moved.is_kept_by(move.original.route)), None)
        new = move if earlier is None else evolve(move, original=earlier.original)
        entries = [moved for moved in entries if moved is not earlier and not new.replaces(moved)]
        entries.append(new)
    return tuple(entries)


@frozen
class RestoredRoutes:
    """Result of `restore_routes`: a line for each route that is back, and for each one that the kernel refused."""

    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def restore_routes(access: RouteMover, file: MovedRouteFile, uplink_devices: Collection[str] = ()) -> RestoredRoutes:
    """Move the routes of the record back, except those over `uplink_devices`. The caller holds the lock.

    A route whose copy is gone is forgotten, one that the kernel refuses stays in the record. Raises OSError.
    """
    record = file.read()
    due = [moved for moved in record if not moved.devices & frozenset(uplink_devices)]
    listing = access.list_routes(frozenset().union(*(moved.devices for moved in due)))
    lines, warnings, refused = [], [], []
    for moved in sorted(due, key=_rank):
        text = display_text(moved.original.route)
        copies = list(_copies(moved, listing.routes))
        if moved.is_copied and not copies:
            continue
        lifetimes = [copy.route.expires for copy in copies if copy.route.expires is not None]
        if not moved.is_moved or any(each.route == moved.original.route for each in listing.routes):
            for copy in copies:
                access.delete(copy)
            continue
        has_sibling = any(other.is_beside(moved) for other in due)
        if code := access.restore(moved.original, max(lifetimes, default=None), has_sibling):
            warnings.append(f"route not put back: {text}: {os.strerror(code)}")
            refused.append(moved)
            continue
        for copy in copies:
            access.delete(copy)
        lines.append(f"route put back: {text}")
    file.write([moved for moved in record if moved not in due or moved in refused])
    return RestoredRoutes(tuple(lines), tuple(warnings))


def _rank(moved: MovedRoute) -> bool:
    """Return a key that puts routes before those whose gateways they reach."""
    return any(hop.gateway for hop in moved.original.route.all_nexthops)


def _copies(moved: MovedRoute, routes: Iterable[KernelRoute]) -> Iterator[KernelRoute]:
    return (copy for copy in routes if moved.is_copied and moved.is_kept_by(copy.route))


def route_key(route: Route) -> tuple[object, ...]:
    """Return the fields that identify a route in its table.

    IPv6 routes may share them with other nexthops.
    """
    return (route.family, route.destination, route.metric, route.tos, route.source)


def has_same_nexthops(route: Route, wanted: Route) -> bool:
    """Return True if `route` already has the nexthops and the source address of `wanted`.

    The kernel dumps IPv6 routes with the same key as one multipath route. Gateways of moved routes
    are onlink.
    """
    if route.prefsrc != wanted.prefsrc:
        return False
    present = {(hop.device, hop.gateway) for hop in route.all_nexthops}
    required = {(hop.device, hop.gateway) for hop in wanted.all_nexthops}
    return present == required if route.family == 4 else present >= required
