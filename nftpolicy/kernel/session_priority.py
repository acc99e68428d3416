# SPDX-License-Identifier: BSD-2-Clause
"""Priority of a session: with autogroups, a nice value counts only among the processes of one session (sched(7))."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")


def apply_nice_to_session() -> bool:
    """Give the session that this process leads the nice value of this process; return True on success.

    Each service of systemd is a session, so `Nice=` alone does not put it before other services. False:
    the kernel has no autogroups, or does not permit it, or this process does not lead its session, and
    other programs of the session would change as well.
    """
    if os.getsid(0) != os.getpid():
        return False
    with suppress(OSError):
        _AUTOGROUP.write_text(str(os.nice(0)))
        return True
    return False


def change_session_nice(increment: int) -> None:
    """Move this process to a session of its own, with a nice value that is higher by `increment`."""
    with suppress(OSError):  # it leads a process group
        os.setsid()
    os.nice(increment)
    apply_nice_to_session()
