# SPDX-License-Identifier: BSD-2-Clause
"""Atomic replacement of a file, with the durability that every stored file of nftpolicy has.

A reader sees the old content or the new content, never a mixture and never an empty file. When
`write_file` has returned, content, mode and name are on the disk and outlast a power failure: the
new file is synced (fsync(2)) before rename(2) gives it its name, and the directory is synced after
that. If a step fails, the old file stays and the new one is removed. A process that is killed may
leave a file `.NAME.new`; the next write of the same file removes it.

Two processes that replace the same file must hold a lock (file_lock.py).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from .private_files import PRIVATE_FILE


def write_file(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace a file atomically and durably. `mode` is set whatever the umask.

    Raises:
        OSError: the file could not be replaced, and the old one stays. If only syncing the
            directory failed, the new file is in place, and a power failure may undo that.
    """
    new = temporary_path(path)
    try:
        write_temporary(new, content, mode)
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    sync_directory(path.parent)


def write_named_file(path: Path, content: bytes, mode: int) -> None:
    """Replace a file that a user named, as `write_file`.

    In a directory of all users it may be a link or a pipe of another user; /dev/null is a device.

    Raises:
        OSError: also if it exists and is not a regular file.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
    write_file(path, content, mode)


def temporary_path(path: Path) -> Path:
    """Return the path where the new content of `path` is written: .NAME.new, in its directory."""
    return path.with_name(f".{path.name}.new")


def write_temporary(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Create a file and sync it to the disk. An older file of this name is removed first.

    `mode` as for `write_file`. Raises OSError; an incomplete file stays then.
    """
    path.unlink(missing_ok=True)  # left by a process that was killed
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, PRIVATE_FILE), "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Sync the names in a directory to the disk.

    A file system without such an operation (EINVAL) is not an error. Raises OSError.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
