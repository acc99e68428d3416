# SPDX-License-Identifier: BSD-2-Clause
"""The keeper: part of the watch, brings routes over an uplink into the uplink's table as soon as they come.

It is a matter of what works, not of what leaves: whatever a route says, the guard drops what must not leave. What
is to be done is decided in `keeping`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from ...kernel.monitor import News
from ...kernel.moving import Held
from ...netstate.iproute import shown
from ...netstate.routing import Route
from ...policy.objects import Policy
from . import keeping
from .decisions import Fights, Pace, earliest
from .keeping import Home, Stray
from .world import Routes, World

SETTLE = 3.0  # seconds for which a connected route stays in main, so that gateways can be added by it
_REST, _REST_IN_A_FIGHT = 0.02, 1.0  # seconds between two looks at least
_QUIET = 10.0  # without a move, until a fight is over
_SHOWN = 6  # routes named in a line
_AGAIN = 1.0  # until the next try, after a failure


class Keeper:
    """See the module. Without `routes` in the world it does nothing."""

    def __init__(self, world: World) -> None:
        self._access, self._say, self._now = world.routes, world.say, world.now
        self._homes: Mapping[str, Home] = {}
        self._pace, self._fights = Pace(_REST), Fights()
        self._since: dict[Route, float] = {}  # connected routes in main -> when they were seen there first
        self._later: float | None = None  # when one of them has been there for long enough, or a failure is past
        self._failed: set[tuple[str, str]] = set()  # what was told already
        self._slow_until = 0.0
        self._moved = 0  # routes moved without a word, in a fight

    def hold(self, policy: Policy | None) -> None:
        """Keep the routes of this policy's uplinks from now on, or none."""
        found = {} if policy is None else keeping.homes(policy)
        if found != self._homes:
            self._homes = found
            self._since.clear(), self._failed.clear()
            self._later = None
        self._pace.want()

    def due(self) -> float | None:
        """When there is something to do; None: nothing yet."""
        return earliest((self._pace.due(), self._later, self._fights.due())) if self._homes and self._access else None

    def turn(self, news: News) -> None:
        """Do what is due now, in the light of the news."""
        if self._access is None or not self._homes:
            return
        now = self._now()
        if news.routed or news.links or news.addresses:
            self._pace.want()
        due = earliest((self._pace.due(), self._later))
        if due is not None and now >= due:
            self._pace.begin()
            self._later = None
            try:
                self._keep(self._access, now)
            except OSError as error:
                self._fail("the routes", error.errno or errno.EIO, now)
            self._pace.end(self._now(), self._now() - now)
        if number := self._fights.word(now):
            self._say("fight", {"over": "routes", "times": number, "moved": self._moved})
            self._moved = 0

    def _keep(self, access: Routes, now: float) -> None:
        held = {one.route: one for one in access.by(self._homes)}
        todo = keeping.order(self._homes, held, access.addresses(self._homes))
        self._since = {one.route: self._since.get(one.route, now) for one in todo.strays if one.connected}
        moved = [one for one in todo.strays if self._move(access, held[one.route], one, now)]
        gone = [one for one in todo.stale if not self._checked(access.take(held[one]), one, now)]
        for one in todo.mixed:
            self._fail(shown(one), errno.EXDEV, now, "it leads over other devices too: 'ip route del' it", again=False)
        waiting = [since + SETTLE for route, since in self._since.items()]
        self._later = earliest((self._later, *waiting))
        self._tell(moved, gone, now)

    def _move(self, access: Routes, held: Held, stray: Stray, now: float) -> bool:
        """Into the uplink's table first, and only then out of the other one; whether anything was done."""
        done = not stray.there and not stray.yields
        # What expires is written again even if it is there: that puts the end off.
        if done or (stray.there and stray.route.expires is not None):
            code = access.put(held, stray.home.table, stray.protocol)
            if self._checked(code, stray.route, now):
                return False
        if stray.connected and now < self._since[stray.route] + SETTLE:
            return done
        self._since.pop(stray.route, None)
        return not self._checked(access.take(held), stray.route, now)

    def _tell(self, moved: Sequence[Stray], gone: Sequence[Route], now: float) -> None:
        if not moved and not gone:
            return
        fresh = [one for one in moved if not one.there]
        alone = self._fights.repaired(now)
        if not alone or now < self._slow_until:
            self._slow_until = now + _QUIET
        self._pace.rest = _REST_IN_A_FIGHT if now < self._slow_until else _REST
        if not alone:
            self._moved += len(moved)
            return
        for table in sorted({one.home.table for one in fresh}):
            which = [shown(one.route) for one in fresh if one.home.table == table]
            self._say("moved", {"routes": _some(which), "to": table})
        if gone:
            self._say("withdrawn", {"routes": _some(list(map(shown, gone))), "why": "their address has gone"})

    def _checked(self, code: int, route: Route, now: float) -> int:
        if code:
            self._fail(shown(route), code, now)
        return code

    def _fail(self, what: str, code: int, now: float, why: str = "", again: bool = True) -> None:
        """Tell of it once, and try again later."""
        if again:
            self._later = earliest((self._later, now + _AGAIN))
        said = (what, why or os.strerror(code))
        if said not in self._failed:
            self._failed.add(said)
            self._say("failed", {"what": what, "why": said[1]})


def _some(words: list[str]) -> list[str]:
    return words if len(words) <= _SHOWN else [*words[:_SHOWN], f"and {len(words) - _SHOWN} more"]


def strays(access: Routes, policy: Policy) -> tuple[str, ...]:
    """The routes over uplinks that are not in their uplink's table, in the words of ip. Raises OSError."""
    homes = keeping.homes(policy)
    found = keeping.order(homes, [one.route for one in access.by(homes)], access.addresses(homes))
    return tuple(shown(one) for one in (*(stray.route for stray in found.strays), *found.mixed))
