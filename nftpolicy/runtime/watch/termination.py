# SPDX-License-Identifier: BSD-2-Clause
"""SIGTERM and SIGINT as a readable file descriptor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def termination_signals() -> Iterator[int]:
    """Yield a descriptor that is readable after SIGTERM or SIGINT; no action is interrupted."""
    terminated, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signals = (signal.SIGTERM, signal.SIGINT)
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in signals}
    old_wakeup = signal.set_wakeup_fd(wakeup)
    try:
        yield terminated
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(terminated)
        os.close(wakeup)
