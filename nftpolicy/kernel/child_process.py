# SPDX-License-Identifier: BSD-2-Clause
"""Run a function in a forked process and read its result through a pipe.

The child keeps the parent's memory, not its threads. It must not use libraries that share a socket
with the parent. What it allocates, and each change of its user, goes with it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from .errors import ChildFailed
from .parent_death import end_with_parent

_RETURNED, _RAISED = 0, 1  # exit status: the pipe holds the result, or the text of an exception
_READ_SIZE = 1 << 16  # bytes


class ChildProcess:
    """A forked process that runs `work`. A context manager; leaving it kills the process.

    `descriptor` becomes readable when a part of the result arrives, and at the end of the process:
    wait for it together with other descriptors, then call `read_available`. `seconds` limits the
    life of the process (0: no limit); the kernel then ends it by SIGALRM (alarm(2)). `nice` lowers
    its priority.
    """

    def __init__(self, work: Callable[[], bytes], seconds: int = 0, nice: int = 0) -> None:
        self.started = time.monotonic()
        self.descriptor, writer = os.pipe()
        os.set_blocking(self.descriptor, False)
        self._seconds = seconds
        self._parts: list[bytes] = []
        self._reaped = False
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            end_with_parent(parent)
            os.close(self.descriptor)  # or a write would wait for this process itself once the parent is gone
            _run_child(work, writer, seconds, nice)
        os.close(writer)

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def read_available(self) -> bool:
        """Read the parts that have arrived; return True if the result is complete. Never blocks."""
        with suppress(BlockingIOError):
            while part := os.read(self.descriptor, _READ_SIZE):
                self._parts.append(part)
            return True
        return False

    def result(self) -> bytes:
        """Wait for the end of the process and return what `work` returned. Call it once.

        Raises:
            ChildFailed: `work` raised an exception, or the process ended early.
        """
        os.set_blocking(self.descriptor, True)
        while part := os.read(self.descriptor, _READ_SIZE):
            self._parts.append(part)
        output = b"".join(self._parts)
        status = self._reap()
        if status == _RETURNED:
            return output
        if status == _RAISED and output:
            raise ChildFailed(output.decode(errors="replace"))
        if status == -signal.SIGALRM and self._seconds:
            raise ChildFailed(f"no result within {self._seconds} s", signal.SIGALRM)
        if status < 0:
            raise ChildFailed(f"ended by signal {-status}", -status)
        raise ChildFailed(f"exited with status {status}")

    def cancel(self) -> None:
        """Kill the process if it still runs. Can be called twice, and after `result`."""
        if not self._reaped:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)  # not reaped yet: the number is still its own
            self._reap()

    def _reap(self) -> int:
        """Return the exit status, or the negative number of the signal."""
        self._reaped = True
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def run_in_child(work: Callable[[], bytes], seconds: int = 0) -> bytes:
    """Run `work` in a forked process and return its result.

    Raises:
        ChildFailed: `work` raised an exception, or the process ended early or after its time limit.
    """
    with ChildProcess(work, seconds) as child:
        return child.result()


def _run_child(work: Callable[[], bytes], writer: int, seconds: int, nice: int) -> None:
    """Run `work` and end the process. Never return: the stack is the parent's."""
    status = _RAISED
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(seconds)
        if nice:
            os.nice(nice)
        try:
            output, has_returned = work(), True
        except Exception as error:
            output, has_returned = f"{type(error).__name__}: {error}".encode(errors="replace"), False
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(output)
        status = _RETURNED if has_returned else _RAISED
    finally:
        os._exit(status)
