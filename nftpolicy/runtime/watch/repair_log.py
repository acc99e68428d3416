# SPDX-License-Identifier: BSD-2-Clause
"""Log of repairs: duration, packets that passed meanwhile, and the process behind the change."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from attrs import frozen

from ...compiler import object_names
from ...kernel.netlink.monitor import UNKNOWN_ORIGIN, Origin
from .environment import Environment
from .repair_plan import ConflictDetector, Exposure, origin_fields, sum_drop_counters


@frozen
class _Outage:
    """Start of an outage, with the packets sent by uplinks and dropped by the guard until then."""

    guard: bool
    start: float
    sent_packets: int
    dropped_packets: int | None  # None: not read, the guard's counters may be missing


class RepairLog:
    """Repairs of one watch daemon.

    `devices` are the devices of the uplinks, `author` is the last process that changed something,
    `number` counts the repairs.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.devices: frozenset[str] = frozenset()
        self.origin = UNKNOWN_ORIGIN
        self.count = 0
        self._outage: _Outage | None = None
        self._whole: tuple[float, int] | None = None
        self._conflicts = ConflictDetector()
        self._sums = {"ms": 0.0, "passed": 0, "stopped": 0}

    def mark_whole(self, time: float) -> None:
        """Note a time at which nothing was missing, and the packets sent so far."""
        if self._outage is None or not self._outage.guard:
            self._whole = time, self._sent_packets()

    def start_outage(self, guard: bool) -> None:
        """Start an outage at the last time at which nothing was missing, unless one is running.

        `guard`: the guard is affected, its counters may be missing.
        """
        if self._outage is None or (guard and not self._outage.guard):
            start, packets = self._whole or (self._environment.now(), self._sent_packets())
            self._outage = _Outage(guard, start, packets, None if guard else self._dropped_packets())

    def clear_outage(self) -> None:
        """End an outage without a repair: nothing is missing."""
        self._outage = self._whole = None

    def record_repair(self, objects: Sequence[str], author: Origin, guard: bool) -> None:
        """End the outage, count the repair and log it, or leave it to the report of a conflict."""
        if self._outage is None:
            self.start_outage(guard)
        assert self._outage is not None
        now, outage = self._environment.now(), self._outage
        passed = dropped = None
        if guard:
            passed = max(0, self._sent_packets() - outage.sent_packets)
        elif outage.dropped_packets is not None:
            dropped = max(0, self._dropped_packets() - outage.dropped_packets)
        self._outage, self._whole, self.origin = None, None, author
        self.count += 1
        fields = Exposure(now - outage.start, passed, dropped).log_fields()
        if self._conflicts.count_repair(now):
            self._environment.log_event("restored", {"what": list(objects), **origin_fields(author), **fields})
        else:
            self._sums = {key: value + fields.get(key, 0) for key, value in self._sums.items()}

    def due(self) -> float | None:
        """Return the time of the next conflict report; None: no conflict."""
        return self._conflicts.due()

    def report_conflict(self) -> None:
        """Log the repairs of a conflict, if a report is due."""
        if number := self._conflicts.take_pending_count(self._environment.now()):
            sums = {**self._sums, "ms": round(self._sums["ms"], 1)}
            self._sums = dict.fromkeys(self._sums, 0)
            self._environment.log_event("conflict", {**origin_fields(self.origin), "times": number, **sums})

    def preload(self) -> None:
        """Read the counters once, so that a repair finds libraries loaded and sockets bound."""
        self._sent_packets()
        self._dropped_packets()

    def _sent_packets(self) -> int:
        return self._environment.tx_packets(self.devices) if self.devices else 0

    def _dropped_packets(self) -> int:
        with suppress(OSError):
            return sum_drop_counters(self._environment.applier.kernel.counters(object_names.TABLE))
        return 0
