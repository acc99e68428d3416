# SPDX-License-Identifier: BSD-2-Clause
"""Run a function in a forked process and read its result from memory that both share (memfd_create(2)).

The child keeps the parent's memory, not its threads. It must not use libraries that share a socket
with the parent. What it allocates, and each change of its user, goes with it.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from .errors import ChildFailed
from .parent_death import end_with_parent
from .session_priority import change_session_nice

_RETURNED, _RAISED = 0, 1  # exit status: the memory holds the result, or the text of an exception


class ChildProcess:
    """A forked process that runs `work`. A context manager; leaving it kills the process.

    `descriptor` becomes readable at the end of the process: `result` then returns without a wait.
    `seconds` limits the life of the process (0: no limit); the kernel then ends it by SIGALRM
    (alarm(2)). `nice` is its nice value in a session of its own, unless that of this process is higher
    (0: no change).
    """

    def __init__(self, work: Callable[[], bytes], seconds: int = 0, nice: int = 0) -> None:
        self.started = time.monotonic()
        self._output = os.memfd_create("nftpolicy-result")
        self._seconds = seconds
        self._reaped = False
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            end_with_parent(parent)
            _run_child(work, self._output, seconds, nice)
        self.descriptor = os.pidfd_open(self._pid)

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def has_ended(self) -> bool:
        """Return True if the process has ended."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def result(self) -> bytes:
        """Wait for the end of the process and return what `work` returned. Call it once.

        Raises:
            ChildFailed: `work` raised an exception, or the process ended early.
        """
        status, output = self._reap()
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

    def _reap(self) -> tuple[int, bytes]:
        """Return the exit status, or the negative number of the signal, and the contents of the memory."""
        self._reaped = True
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        os.close(self.descriptor)
        with os.fdopen(self._output, "rb") as memory:
            memory.seek(0)
            return status, memory.read()


def run_in_child(work: Callable[[], bytes], seconds: int = 0) -> bytes:
    """Run `work` in a forked process and return its result.

    Raises:
        ChildFailed: `work` raised an exception, or the process ended early or after its time limit.
    """
    with ChildProcess(work, seconds) as child:
        return child.result()


def _run_child(work: Callable[[], bytes], memory: int, seconds: int, nice: int) -> None:
    """Run `work` and end the process. Never return: the stack is the parent's."""
    status = _RAISED
    try:
        signal.set_wakeup_fd(-1)
        faulthandler.disable()  # the parent reports a signal, such as that of a failed assertion in a library
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(seconds)
        if nice:
            change_session_nice(max(nice - os.nice(0), 0))
        try:
            output, has_returned = work(), True
        except Exception as error:
            output, has_returned = f"{type(error).__name__}: {error}".encode(errors="replace"), False
        with os.fdopen(memory, "wb") as file:
            file.write(output)
        status = _RETURNED if has_returned else _RAISED
    finally:
        os._exit(status)
