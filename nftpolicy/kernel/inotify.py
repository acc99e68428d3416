# SPDX-License-Identifier: BSD-2-Clause
"""Notifications about writes to sysctls, and about files in directories, by inotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from attrs import frozen

from . import libc

# include/uapi/linux/inotify.h
_IN_MODIFY, _IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_Q_OVERFLOW, _IN_IGNORED = 0x400, 0x800, 0x4000, 0x8000
_IN_SELF = _IN_DELETE_SELF | _IN_MOVE_SELF
_ANY_CHANGE = _IN_MODIFY | _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_SELF
_EVENT = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, length of the name
_READ_SIZE = 1 << 16  # bytes
_SYSCTL_SIZE = 256  # bytes of a sysctl's value that are read
_PROC_SYS = Path("/proc/sys")


@frozen
class WatchChanges:
    """Changes of files in the watched directory, and of sysctls.

    Both are True if the kernel lost events.
    """

    directory: bool
    sysctls: bool


class SysctlWatch:
    """Watch of sysctls, and of one directory.

    The kernel reports only writes through the same mount of /proc, so a caller that must be sure
    compares the values at intervals. The files stay open: that makes the comparison cheap, and
    prevents the kernel from creating new inodes for them, which would not be watched.
    """

    def __init__(self) -> None:
        self.descriptor = _new_instance()
        self._open: dict[str, tuple[int, int]] = {}  # path -> watch, file descriptor
        self._directory = -1

    def close(self) -> None:
        """Close all descriptors. Can be called twice."""
        self.watch_sysctls(())
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def watch_sysctls(self, paths: Iterable[str]) -> None:
        """Watch these sysctls instead of the ones before. Skip those that do not exist."""
        for watch, file in self._open.values():
            os.close(file)
            with suppress(OSError):
                libc.call("inotify_rm_watch", self.descriptor, watch)
        self._open.clear()
        for path in dict.fromkeys(paths):
            with suppress(OSError):
                file = os.open(_PROC_SYS / path, os.O_RDONLY | os.O_CLOEXEC)
                self._open[path] = (-1, file)
                self._open[path] = (_add_watch(self.descriptor, _PROC_SYS / path, _IN_MODIFY), file)

    def watch_directory(self, directory: Path) -> None:
        """Watch a directory for files that are moved into it or deleted from it. Raises OSError."""
        self._directory = _add_watch(self.descriptor, directory, _IN_MOVED_TO | _IN_DELETE)

    def values(self) -> dict[str, str]:
        """Return the values of the watched sysctls by path."""
        values = {}
        for path, (_, file) in self._open.items():
            with suppress(OSError):  # the device has gone
                values[path] = os.pread(file, _SYSCTL_SIZE, 0).decode(errors="replace").strip()
        return values

    def read(self) -> WatchChanges:
        """Return the changes since the last read. Never blocks."""
        directory = sysctls = False
        with suppress(BlockingIOError):
            while True:
                for watch, mask, _ in _events(os.read(self.descriptor, _READ_SIZE)):
                    overflow = bool(mask & _IN_Q_OVERFLOW)
                    directory |= overflow or watch == self._directory
                    sysctls |= overflow or (watch != self._directory and bool(mask & _IN_MODIFY))
        return WatchChanges(directory, sysctls)


class FilePatternWatch:
    """Watch of the files that match one of some patterns: DIRECTORY/NAME, with * in the name.

    The directory may be created later. An event comes with each write, not when the file is closed,
    because a program that appends may keep it open. So a reader may see half of a change, and then
    gets another event.
    """

    def __init__(self, patterns: Iterable[Path]) -> None:
        self.descriptor = _new_instance()
        self._names: dict[Path, list[str]] = {}  # directory -> patterns of names
        for pattern in patterns:
            self._names.setdefault(pattern.parent, []).append(pattern.name)
        self._watches: dict[int, list[str]] = {}  # watch -> patterns of names
        self._watch()

    def close(self) -> None:
        """Close the descriptor. Can be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _watch(self) -> None:
        """Watch each directory, or its nearest parent that exists.

        The kernel reuses an existing watch.
        """
        self._watches = {}
        for directory, names in self._names.items():
            for existing in (directory, *directory.parents):
                with suppress(OSError):
                    watch = _add_watch(self.descriptor, existing, _ANY_CHANGE)
                    patterns = names if existing == directory else ["*"]
                    self._watches[watch] = [*self._watches.get(watch, []), *patterns]
                    break

    def read(self) -> bool:
        """Return True if a file may have changed since the last read.

        Never blocks. May be a false alarm.
        """
        changed = False
        with suppress(BlockingIOError):
            while True:
                for watch, mask, name in _events(os.read(self.descriptor, _READ_SIZE)):
                    patterns = self._watches.get(watch, ["*"])
                    if not mask & _IN_IGNORED and any(fnmatchcase(name, pattern) for pattern in patterns):
                        changed = True
                    if mask & (_IN_SELF | _IN_Q_OVERFLOW):
                        changed = True
        if changed:
            self._watch()
        return changed


def _new_instance() -> int:
    """Return the descriptor of a new inotify instance that never blocks. Raises OSError."""
    return libc.call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)


def _add_watch(descriptor: int, path: Path, mask: int) -> int:
    """Return the number of a watch. Raises OSError."""
    return libc.call("inotify_add_watch", descriptor, os.fsencode(path), ctypes.c_uint32(mask))


def _events(raw: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield watch, mask and file name of each event."""
    offset = 0
    while offset + _EVENT.size <= len(raw):
        watch, mask, _, length = _EVENT.unpack_from(raw, offset)
        offset += _EVENT.size + length
        yield watch, mask, os.fsdecode(raw[offset - length : offset].rstrip(b"\0"))
