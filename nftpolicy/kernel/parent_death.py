# SPDX-License-Identifier: BSD-2-Clause
"""End of child processes with this process, however it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from . import libc

_PR_SET_PDEATHSIG = 1
_HIGHEST = 1 << 20  # descriptors; close_range(2) costs no time for those that are not open


def end_with_parent(parent: int) -> None:
    """Have this process killed when the thread that started it ends; to be called in the child.

    The kernel forgets this when the process changes its user (prctl(2)). `parent` is the process ID
    of the parent: if that has ended already, this process ends now.
    """
    with suppress(OSError):
        libc.call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def killed_with_this_process(leader: int) -> Iterator[None]:
    """Have a child's process group killed when this process ends within the context.

    It may have changed its user. A small process waits for the end of this one: for the end of a
    pipe that only this process holds. `leader` is the leader of the group. Raises OSError.
    """
    group = os.pidfd_open(leader)
    reader, writer = os.pipe()
    waiting = os.fork()
    if waiting == 0:
        _kill_after_end(reader, group, leader)
    os.close(reader)
    os.close(group)
    try:
        yield
    finally:
        os.close(writer)
        os.waitpid(waiting, 0)


def _kill_after_end(reader: int, group: int, leader: int) -> None:
    """Wait for the end of the pipe, then kill the group. Never return: the stack is the parent's."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        low, high = sorted((reader, group))  # all other files are the parent's: its locks, and its end of the pipe
        os.closerange(0, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, _HIGHEST)
        os.read(reader, 1)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(group, 0)  # the leader is there, so the number is still its own
            os.killpg(leader, signal.SIGKILL)
    finally:
        os._exit(0)
