# SPDX-License-Identifier: BSD-2-Clause
"""Notifications to the service manager by $NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class ServiceManager:
    """Service manager that started this process. Without one, notifications are dropped."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_period = _watchdog_period(environment)
        self._last_ping = 0.0

    def watchdog_due(self) -> float | None:
        """Return the time of the next WATCHDOG=1; None if none is expected."""
        return None if self._watchdog_period is None else self._last_ping + self._watchdog_period

    def ping_watchdog(self, now: float) -> None:
        """Send WATCHDOG=1 if it is due."""
        due = self.watchdog_due()
        if due is not None and now >= due:
            self._last_ping = now
            self.notify(WATCHDOG=1)

    def notify(self, **fields: str | int) -> None:
        """Send lines such as READY=1 or STATUS=... Ignore a manager that has gone."""
        if not self._address:
            return
        lines = "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in fields.items())
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagrams:
            datagrams.sendto(lines.encode(), self._address)


def _watchdog_period(environment: Mapping[str, str]) -> float | None:
    """Return half of WATCHDOG_USEC in seconds; None if it is unset or meant for another process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        period = int(environment.get("WATCHDOG_USEC", "0")) / 2e6
    except ValueError:
        return None
    return period or None
