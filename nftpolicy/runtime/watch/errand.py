# SPDX-License-Identifier: BSD-2-Clause
"""Work done by a forked child, so that whoever waits for the kernel's word need not wait for it.

What the child allocates goes with it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Errand:
    """One child, and the answer (anything that JSON can say) that it sends back. `descriptor` is readable at its end.

    The child must not use what is bound to sockets that it shares with its parent.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self.begun = time.monotonic()
        self.descriptor, sender = os.pipe()
        os.set_blocking(self.descriptor, False)
        self._parts: list[bytes] = []
        self._child = os.fork()
        if not self._child:
            os.close(self.descriptor)  # else a child whose parent is gone would wait for it to read
            _be_child(work, sender)
        os.close(sender)

    def ended(self) -> bool:
        """Take what has come so far; whether that is all. Never waits."""
        with suppress(BlockingIOError):
            while part := os.read(self.descriptor, 1 << 16):
                self._parts.append(part)
            return True
        return False

    def answer(self) -> Any:
        """What the child said, once it has ended; ValueError if it ended before its time."""
        os.close(self.descriptor)
        os.waitpid(self._child, 0)
        try:
            found = json.loads(b"".join(self._parts))
        except ValueError:
            raise ValueError("the child that looked at the kernel ended before its time") from None
        if "failed" in found:
            raise ValueError(found["failed"])
        return found["done"]

    def cancel(self) -> None:
        """End it."""
        os.close(self.descriptor)
        with suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)  # it is not reaped yet: the number is its own
        os.waitpid(self._child, 0)


def _done(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"done": work()}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def _be_child(work: Callable[[], Any], sender: int) -> None:
    """Never returns: the stack is the parent's."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.nice(5)  # who puts things back comes first
        with os.fdopen(sender, "wb") as pipe:
            pipe.write(json.dumps(_done(work)).encode())
        status = 0
    finally:
        os._exit(status)
