# SPDX-License-Identifier: BSD-2-Clause
"""Wait of the watch daemon for events and deadlines, and the time at which an event came."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress

from .environment import EventSource

_MUTED = 0.05  # seconds for which news do not wake the loop again
_BLOCKED = 0.001  # a wait of this many seconds was one for an event; a shorter one found the event there


class EventPoll:
    """Poll of one watch daemon. `poll` takes further descriptors.

    `event_time`: time of the event that ended the last wait. It is earlier than the time at which the
    process went on, if it had to wait for a processor. None: the events were there before the wait.
    """

    def __init__(self, events: EventSource, now: Callable[[], float]) -> None:
        self._events, self._now = events, now
        self.poll = select.poll()
        self.event_time: float | None = None
        self._muted_until: float | None = None
        self._schedstat: int | None = None
        with suppress(OSError):
            self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the descriptor of this object. Can be called twice."""
        if self._schedstat is not None:
            os.close(self._schedstat)
        self._schedstat = None

    def register_events(self, *more: int) -> None:
        """Wait for the events, and for more descriptors, from now on."""
        for descriptor in (*self._events.descriptors, *more):
            self.poll.register(descriptor, select.POLLIN)

    def is_guard_changed(self) -> bool:
        """Return True if a change of nftables has arrived, which may be one of the guard."""
        poll = select.poll()
        poll.register(self._events.guard_descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def mute_news(self) -> None:
        """Let news wake the loop only after a while, so that a flood of them costs no more than a few."""
        if self._muted_until is None and self._events.news_descriptor in self._events.descriptors:
            with suppress(KeyError):  # not registered yet
                self.poll.unregister(self._events.news_descriptor)
                self._muted_until = self._now() + _MUTED

    def due(self) -> float | None:
        """Return the time at which news are heard again; None: they are heard."""
        return self._muted_until

    def wait(self, until: float | None) -> list[int]:
        """Sleep until an event or the deadline; return the readable descriptors."""
        begin = self._now()
        if self._muted_until is not None and begin >= self._muted_until:
            self._muted_until = None
            self.poll.register(self._events.news_descriptor, select.POLLIN)
        delay = self._run_delay()
        wait_ms = None if until is None else max(0.0, until - begin) * 1000 + 0.5
        ready = [descriptor for descriptor, _ in self.poll.poll(wait_ms)]
        end = self._now()
        self.event_time = None if end - begin < _BLOCKED else max(begin, end - (self._run_delay() - delay))
        return ready

    def _run_delay(self) -> float:
        """Return the seconds that this thread has waited for a processor (proc-schedstat of the kernel); 0: unknown."""
        if self._schedstat is None:
            return 0.0
        return int(os.pread(self._schedstat, 100, 0).split()[1]) / 1e9
