# SPDX-License-Identifier: BSD-2-Clause
"""Worker process: runs a function in a forked child, so that the event loop never blocks.

Memory that the child allocates is freed with it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CHUNK = 1 << 16  # bytes
_NICENESS = 5  # repairs in the parent have priority


class WorkerProcess:
    """Child process and its JSON result. `descriptor` is readable when the result arrives.

    The function must not use objects bound to sockets that the child shares with its parent.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self.started_at = time.monotonic()
        self.descriptor, sender = os.pipe()
        os.set_blocking(self.descriptor, False)
        self._chunks: list[bytes] = []
        self._pid = os.fork()
        if not self._pid:
            # A child with a read end of its own would never see EPIPE after its parent's exit.
            os.close(self.descriptor)
            _run_child(work, sender)
        os.close(sender)

    def is_finished(self) -> bool:
        """Read available output; return True at its end. Never waits."""
        with suppress(BlockingIOError):
            while chunk := os.read(self.descriptor, _CHUNK):
                self._chunks.append(chunk)
            return True
        return False

    def result(self) -> Any:
        """Return the result of the function, once the child has ended.

        Raises:
            ValueError: the function failed, or the child exited without a result.
        """
        os.close(self.descriptor)
        os.waitpid(self._pid, 0)
        try:
            message = json.loads(b"".join(self._chunks))
        except ValueError:
            raise ValueError("the worker process exited without a result") from None
        if "failed" in message:
            raise ValueError(message["failed"])
        return message["done"]

    def cancel(self) -> None:
        """Kill the child."""
        os.close(self.descriptor)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # not reaped yet, so the PID is not reused
        os.waitpid(self._pid, 0)


def _result_message(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"done": work()}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def _run_child(work: Callable[[], Any], sender: int) -> None:
    """Run the function in the child and exit. Never returns: the stack belongs to the parent."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.nice(_NICENESS)
        with os.fdopen(sender, "wb") as pipe:
            pipe.write(json.dumps(_result_message(work)).encode())
        status = 0
    finally:
        os._exit(status)
