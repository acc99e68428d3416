# SPDX-License-Identifier: BSD-2-Clause
"""Directories and files that only their owner may open: the state of nftpolicy.

A user who can open a file can lock it, as flock(2) asks for no right to write. So modes are set
whatever the umask, and a link, a file of another user, a device or a pipe is refused: what root
stores there would not be safe.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

PRIVATE_DIRECTORY, PRIVATE_FILE = 0o700, 0o600  # modes


def make_directory(path: Path, mode: int = PRIVATE_DIRECTORY) -> None:
    """Create a directory of this user, or set the mode of an existing one.

    Parents that are missing are created for this user alone.

    Raises:
        OSError: it cannot be created; or it is a link, no directory, or another user's.
    """
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(PRIVATE_DIRECTORY, exist_ok=True)
            parent.chmod(PRIVATE_DIRECTORY)  # under a strict umask too
    path.mkdir(mode=mode, exist_ok=True)
    os.close(open_directory(path, mode))


def open_directory(path: Path, mode: int = PRIVATE_DIRECTORY) -> int:
    """Return a descriptor of a directory of this user, and set its mode.

    Raises:
        OSError: it cannot be opened; or it is a link, no directory, or another user's.
    """
    return _open(path, os.O_RDONLY | os.O_DIRECTORY, stat.S_ISDIR, mode)


def open_private(path: Path, flags: int) -> int:
    """Return a descriptor of a regular file of this user, and set its mode to 0600.

    `flags` are those of open(2).

    Raises:
        OSError: it cannot be opened; or it is a link, no regular file, or another user's.
    """
    return _open(path, flags, stat.S_ISREG, PRIVATE_FILE)


def read_private(path: Path) -> bytes:
    """Return the content of a regular file of this user. Raises OSError as `open_private`."""
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        return file.read()


def modification_time(path: Path) -> str:
    """Return the time of the last change of a file (UTC, ISO 8601); "" if it is not known."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OSError:
        return ""


def _open(path: Path, flags: int, is_expected: Callable[[int], bool], mode: int) -> int:
    # O_NONBLOCK: a pipe would wait for its other end.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    try:
        status = os.fstat(descriptor)
        if not is_expected(status.st_mode):
            raise _refusal(path, "is a directory" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
        if status.st_uid != os.geteuid():
            raise _refusal(path, f"belongs to user {status.st_uid}, not to user {os.geteuid()}: remove it")
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refusal(path: Path, reason: str) -> OSError:
    return PermissionError(errno.EPERM, reason, str(path))
