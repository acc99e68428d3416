# SPDX-License-Identifier: BSD-2-Clause
"""Fault barrier of the watch daemon: an exception in one part ends neither the process nor another part."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from ...exceptions import NftpolicyError
from .environment import Environment

_REPORT_INTERVAL = 5.0  # least seconds between two log lines about one part


class FaultBarrier:
    """Runs the parts of one watch daemon, and logs their exceptions: of each part the first one at once."""

    def __init__(self, environment: Environment) -> None:
        self._log, self._now = environment.log_event, environment.now
        self._not_before: dict[str, float] = {}  # time of the next log line, by part
        self._unlogged: dict[str, int] = {}

    def run(self, part: str, action: Callable[[], None]) -> bool:
        """Run an action; return False after an exception, which is logged as a failure of the part."""
        try:
            action()
        except Exception as error:
            self.report(part, error)
            return False
        return True

    def report(self, part: str, error: Exception) -> None:
        """Log an exception of a part, unless one of the same part was logged just before."""
        now = self._now()
        if now < self._not_before.get(part, now):
            self._unlogged[part] = self._unlogged.get(part, 0) + 1
            return
        self._not_before[part] = now + _REPORT_INTERVAL
        fields = {"what": part, "why": _description(error)}
        if unlogged := self._unlogged.pop(part, 0):
            fields["times"] = str(unlogged + 1)
        self._log("failed", fields)


def _description(error: Exception) -> str:
    """Return the message of an expected error; of another one also its type and place."""
    if isinstance(error, NftpolicyError | OSError):
        return str(error) or type(error).__name__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
