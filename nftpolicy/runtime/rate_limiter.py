# SPDX-License-Identifier: BSD-2-Clause
"""Rate limiter of repeated work, and the earliest of several deadlines.

Pure: callers pass the time, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define


@define
class RateLimiter:
    """Start times of repeated work: at once on request after a quiet time, less often under load.

    `pause` is the least time in seconds between the end of a run and the start of the next one.
    `cost_factor` times the duration of the last run is another lower limit of it. `period` is the
    time in seconds from the end of a run to the next one without a request; None: runs only on
    request.
    """

    pause: float = 0.2
    cost_factor: float = 0.0
    period: float | None = None
    _requested: bool = False
    _not_before: float = 0.0
    _next_unrequested: float = 0.0

    def request(self) -> None:
        """Request a run."""
        self._requested = True

    def due(self) -> float | None:
        """Return the time of the next run; None without a request and without a `period`."""
        if self._requested:
            return self._not_before
        return None if self.period is None else self._next_unrequested

    def begin(self) -> None:
        """Mark the start of a run. A request from now on requires another run."""
        self._requested = False

    def end(self, now: float, duration: float) -> None:
        """Mark the end of a run that took `duration` seconds."""
        self._not_before = now + max(self.pause, self.cost_factor * duration)
        self._next_unrequested = now + (self.period or 0.0)

    def begin_if_due(self, now: float) -> bool:
        """Mark a run without duration at `now` and return True, if one is due."""
        due = self.due()
        if due is None or now < due:
            return False
        self.begin()
        self.end(now, 0.0)
        return True


def earliest_deadline(deadlines: Iterable[float | None]) -> float | None:
    """Return the smallest of these times; None if there is none."""
    return min((deadline for deadline in deadlines if deadline is not None), default=None)
