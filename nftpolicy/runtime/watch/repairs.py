# SPDX-License-Identifier: BSD-2-Clause
"""The account of what went missing and was put back: how long it was, how wide, and by whom."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from attrs import frozen

from ...compiler import names
from ...kernel.monitor import UNKNOWN, Author
from . import decisions as watching
from .decisions import Exposure, Fights, by
from .world import World


@frozen
class _Since:
    """When something went missing, and by then: packets that the uplinks had sent and that the guard had stopped."""

    at: float
    sent: int
    stopped: int | None  # None: there was no time to ask, or nobody left to


class Repairs:
    """`devices` are those of the uplinks, `author` who changed something last, `number` how often it was put back."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.devices: frozenset[str] = frozenset()
        self.author = UNKNOWN
        self.number = 0
        self._since: _Since | None = None
        self._fights = Fights()
        self._sums = {"ms": 0.0, "passed": 0, "stopped": 0}

    def begin(self, guard: bool) -> None:
        """Something is missing, since now if nothing was; `guard`: of the guard itself, whose counters may be gone."""
        if self._since is None:
            self._since = _Since(self._world.now(), self._sent(), None if guard else self._stopped())

    def nothing(self) -> None:
        """Nothing is missing."""
        self._since = None

    def done(self, what: Sequence[str], author: Author, guard: bool) -> None:
        """It is back, and told."""
        self.begin(guard)
        assert self._since is not None
        now, since = self._world.now(), self._since
        exposure = Exposure(
            now - since.at,
            max(0, self._sent() - since.sent) if guard else None,
            None if guard or since.stopped is None else max(0, self._stopped() - since.stopped),
        )
        self._since, self.author = None, author
        self.number += 1
        facts = exposure.facts()
        if self._fights.repaired(now):
            self._world.say("restored", {"what": list(what), **by(author), **facts})
        else:
            self._sums = {key: value + facts.get(key, 0) for key, value in self._sums.items()}

    def due(self) -> float | None:
        """When there is something to tell of a fight; None: there is none."""
        return self._fights.due()

    def tell(self) -> None:
        """Tell of a fight, if it is time."""
        if number := self._fights.word(self._world.now()):
            sums = {**self._sums, "ms": round(self._sums["ms"], 1)}
            self._sums = dict.fromkeys(self._sums, 0)
            self._world.say("fight", {**by(self.author), "times": number, **sums})

    def warm(self) -> None:
        """Ask once what will be asked in a hurry."""
        self._sent(), self._stopped()

    def _sent(self) -> int:
        return self._world.sent(self.devices) if self.devices else 0

    def _stopped(self) -> int:
        with suppress(OSError):
            return watching.stopped(self._world.counted(names.TABLE))
        return 0
