# SPDX-License-Identifier: BSD-2-Clause
"""Words to the service manager: datagrams to $NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class Manager:
    """The service manager that started this process; one that never answers if there is none."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        where = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + where[1:] if where.startswith("@") else where
        self._every = _watchdog(environment)

    @property
    def watchdog(self) -> float | None:
        """Seconds between two signs of life, half of what the manager allows; None if it wants none."""
        return self._every

    def tell(self, **words: str | int) -> None:
        """Send lines such as READY=1, STATUS=... A manager that has gone is no error."""
        if not self._address:
            return
        lines = "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in words.items())
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(lines.encode(), self._address)


def _watchdog(environment: Mapping[str, str]) -> float | None:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        every = int(environment.get("WATCHDOG_USEC", "0")) / 2e6
    except ValueError:
        return None
    return every or None
