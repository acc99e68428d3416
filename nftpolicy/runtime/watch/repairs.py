# SPDX-License-Identifier: BSD-2-Clause
"""Log of repairs: duration, packets that passed meanwhile, and the process behind the change."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from attrs import frozen

from ...compiler import names
from ...kernel.monitor import UNKNOWN, Author
from .decisions import Exposure, Fights, by, stopped
from .world import World


@frozen
class _Outage:
    """Start of an outage, with the packets sent by uplinks and dropped by the guard so far."""

    at: float
    sent: int
    stopped: int | None  # None: not read, the guard's counters may be missing


class Repairs:
    """Repairs of one watch daemon.

    `devices` are the devices of the uplinks, `author` is the last process that changed something,
    `number` counts the repairs.
    """

    def __init__(self, environment: World) -> None:
        self._environment = environment
        self.devices: frozenset[str] = frozenset()
        self.author = UNKNOWN
        self.number = 0
        self._outage: _Outage | None = None
        self._conflicts = Fights()
        self._sums = {"ms": 0.0, "passed": 0, "stopped": 0}

    def begin(self, guard: bool) -> None:
        """Start an outage, unless one is running.

        `guard`: the guard is affected, its counters may be missing.
        """
        if self._outage is None:
            now, sent = self._environment.now(), self._sent_packets()
            self._outage = _Outage(now, sent, None if guard else self._dropped_packets())

    def nothing(self) -> None:
        """End an outage without a repair: nothing is missing."""
        self._outage = None

    def done(self, what: Sequence[str], author: Author, guard: bool) -> None:
        """End the outage, count the repair and log it, or leave it to the report of a conflict."""
        self.begin(guard)
        assert self._outage is not None
        now, outage = self._environment.now(), self._outage
        passed = dropped = None
        if guard:
            passed = max(0, self._sent_packets() - outage.sent)
        elif outage.stopped is not None:
            dropped = max(0, self._dropped_packets() - outage.stopped)
        self._outage, self.author = None, author
        self.number += 1
        fields = Exposure(now - outage.at, passed, dropped).facts()
        if self._conflicts.repaired(now):
            self._environment.say("restored", {"what": list(what), **by(author), **fields})
        else:
            self._sums = {key: value + fields.get(key, 0) for key, value in self._sums.items()}

    def due(self) -> float | None:
        """Return the time of the next conflict report; None: no conflict."""
        return self._conflicts.due()

    def tell(self) -> None:
        """Log the repairs of a conflict, if a report is due."""
        if number := self._conflicts.word(self._environment.now()):
            sums = {**self._sums, "ms": round(self._sums["ms"], 1)}
            self._sums = dict.fromkeys(self._sums, 0)
            self._environment.say("conflict", {**by(self.author), "times": number, **sums})

    def warm(self) -> None:
        """Read the counters once, so that a repair finds libraries loaded and sockets bound."""
        self._sent_packets()
        self._dropped_packets()

    def _sent_packets(self) -> int:
        return self._environment.sent(self.devices) if self.devices else 0

    def _dropped_packets(self) -> int:
        with suppress(OSError):
            return stopped(self._environment.counted(names.TABLE))
        return 0
