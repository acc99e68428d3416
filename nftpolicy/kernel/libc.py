# SPDX-License-Identifier: BSD-2-Clause
"""Functions of the C library that Python does not offer, by ctypes."""

from __future__ import annotations

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Call a function of the C library by its name.

    Raises OSError if it returns a negative number.
    """
    result = getattr(_LIBC, function)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def system_call(number: int, *arguments: object) -> int:
    """Make the system call of that number (syscall(2)). Raises OSError."""
    return call("syscall", number, *arguments)


def pidfd_getfd(pidfd: int, descriptor: int) -> int:
    """Duplicate a file descriptor of another process (pidfd_getfd(2), Linux 5.6).

    Raises OSError.
    """
    return system_call(_PIDFD_GETFD, pidfd, descriptor, 0)


def set_thread_user(user: int) -> None:
    """Set the file system user of this thread (setfsuid(2)). The call does not report a failure."""
    _LIBC.setfsuid(user)


def set_thread_group(group: int) -> None:
    """Set the file system group of this thread (setfsgid(2)).

    The call does not report a failure.
    """
    _LIBC.setfsgid(group)


_PIDFD_GETFD = 438  # the same number on every architecture
