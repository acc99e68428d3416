# SPDX-License-Identifier: BSD-2-Clause
"""Limit of the log of the watch daemon, so that a flood of events fills no disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define

from .environment import LogEvent

_BURST, _REFILL = 50.0, 1.0  # lines of one event at once, and per second


@define
class _Allowance:
    """Lines of one event that may be written now, and the number that was left out since the last one."""

    lines: float
    updated_at: float
    left_out: int = 0


class LogLimiter:
    """Log that writes each kind of event so often at most; the next line has the number `left_out`."""

    def __init__(self, write: LogEvent, now: Callable[[], float]) -> None:
        self._write, self._now = write, now
        self._allowances: dict[str, _Allowance] = {}

    def write(self, event: str, fields: dict[str, Any]) -> None:
        """Write an event, or count it."""
        now = self._now()
        allowance = self._allowances.setdefault(event, _Allowance(_BURST, now))
        allowance.lines = min(_BURST, allowance.lines + (now - allowance.updated_at) * _REFILL)
        allowance.updated_at = now
        if allowance.lines < 1:
            allowance.left_out += 1
            return
        allowance.lines -= 1
        if allowance.left_out:
            fields = {**fields, "left_out": allowance.left_out}
            allowance.left_out = 0
        self._write(event, fields)
