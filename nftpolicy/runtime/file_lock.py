# SPDX-License-Identifier: BSD-2-Clause
"""Exclusive locks between processes, by flock(2) on a file or a directory.

The kernel releases a lock when the process that holds it ends, however it ends. The file stays:
if it were removed, two processes could lock two files of the same name.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..exceptions import NftpolicyError
from .private_files import open_directory, open_private

_RETRY_INTERVAL = 0.05  # seconds between two attempts to get a lock


class LockTimeout(NftpolicyError):
    """Another process holds the lock, and did not release it in time."""


@contextmanager
def exclusive_lock(path: Path, wait: float | None = None) -> Iterator[int]:
    """Hold the exclusive lock on `path` in the block; yield its file descriptor.

    `path` is a directory, or a file, which is created if it does not exist and is opened for
    appending. Both are private (private_files.py), so that no other user can hold the lock. `wait`:
    seconds to wait for another process, 0 for one attempt, None without limit.

    Raises:
        LockTimeout: another process held the lock for the whole time.
        OSError: the file cannot be created or opened, or is not private.
    """
    descriptor = _open(path)
    try:
        if wait is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _acquire_within(descriptor, path, wait)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return True if a process holds the exclusive lock on this file, False also without a file."""
    try:
        descriptor = open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    if path.is_dir():
        return open_directory(path)
    return open_private(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)


def _acquire_within(descriptor: int, path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not _try_lock(descriptor, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            raise LockTimeout(f"another process holds the lock {path}")
        time.sleep(_RETRY_INTERVAL)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
