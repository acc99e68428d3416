# SPDX-License-Identifier: BSD-2-Clause
"""Writes to sysctls, and files that come and go in a folder, by inotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from attrs import frozen

_MODIFY, _WRITTEN, _MOVED_FROM, _MOVED_TO, _CREATED, _DELETED = 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
_ITSELF_DELETED, _ITSELF_MOVED, _OVERFLOW, _IGNORED = 0x400, 0x800, 0x4000, 0x8000
_COME_AND_GONE = _MODIFY | _WRITTEN | _MOVED_FROM | _MOVED_TO | _CREATED | _DELETED | _ITSELF_DELETED | _ITSELF_MOVED
_EVENT = struct.Struct("=iIII")
_PROC_SYS = Path("/proc/sys")

_libc = ctypes.CDLL(None, use_errno=True)


@frozen
class Written:
    """Whether something happened to files in the folder, and to sysctls. Both, if the kernel could not keep all."""

    folder: bool
    sysctls: bool


class Files:
    """Watches both.

    The kernel tells of a write only through the same mount of /proc; so whoever needs to be sure compares the
    values now and then. The files are kept open: that makes comparing cheap, and keeps the kernel from making
    new inodes for them, of whose writes nobody would be told.
    """

    def __init__(self) -> None:
        self.descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._open: dict[str, tuple[int, int]] = {}  # path -> its watch and its file
        self._folder = -1

    def close(self) -> None:
        self.watch_sysctls(())
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def watch_sysctls(self, paths: Iterable[str]) -> None:
        for watch, file in self._open.values():
            os.close(file)
            _libc.inotify_rm_watch(self.descriptor, watch)
        self._open.clear()
        for path in dict.fromkeys(paths):
            with suppress(OSError):
                file = os.open(_PROC_SYS / path, os.O_RDONLY | os.O_CLOEXEC)
                self._open[path] = (-1, file)
                self._open[path] = (self._watch(_PROC_SYS / path, _MODIFY), file)

    def watch_folder(self, folder: Path) -> None:
        self._folder = self._watch(folder, _MOVED_TO | _DELETED)

    def _watch(self, path: Path, mask: int) -> int:
        return _checked(_libc.inotify_add_watch(self.descriptor, os.fsencode(path), ctypes.c_uint32(mask)))

    def values(self) -> dict[str, str]:
        found = {}
        for path, (_, file) in self._open.items():
            with suppress(OSError):  # the device has gone
                found[path] = os.pread(file, 256, 0).decode(errors="replace").strip()
        return found

    def read(self) -> Written:
        """What was written since the last look; never waits."""
        folder = sysctls = False
        with suppress(BlockingIOError):
            while True:
                for number, mask in _events(os.read(self.descriptor, 1 << 16)):
                    folder |= bool(mask & _OVERFLOW) or number == self._folder
                    sysctls |= bool(mask & _OVERFLOW) or (number != self._folder and bool(mask & _MODIFY))
        return Written(folder, sysctls)


class Patterns:
    """Tells when a file is written, comes or goes that one of some patterns names: FOLDER/NAME, with * in the name.

    A folder that is not there is waited for. A write is told of when it happens, not when the file is closed: who
    appends to a file may keep it open. So a reader may find half of what is being written, and is told again.
    """

    def __init__(self, patterns: Iterable[Path]) -> None:
        self.descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._names: dict[Path, list[str]] = {}
        for one in patterns:
            self._names.setdefault(one.parent, []).append(one.name)
        self._watches: dict[int, list[str]] = {}
        self._watch()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _watch(self) -> None:
        """Watch each folder, or what is there of the way to it. The kernel knows a folder that it watches already."""
        self._watches = {}
        for folder, names in self._names.items():
            for one in (folder, *folder.parents):
                mask = ctypes.c_uint32(_COME_AND_GONE)
                number = _libc.inotify_add_watch(self.descriptor, os.fsencode(one), mask)
                if number >= 0:
                    wanted = names if one == folder else ["*"]
                    self._watches[number] = [*self._watches.get(number, []), *wanted]
                    break

    def read(self) -> bool:
        """Whether something happened since the last look; never waits. May be true without a cause."""
        told = False
        with suppress(BlockingIOError):
            while True:
                for number, mask, name in _named_events(os.read(self.descriptor, 1 << 16)):
                    wanted = self._watches.get(number, ["*"])
                    told |= not mask & _IGNORED and any(fnmatchcase(name, one) for one in wanted)
                    told |= bool(mask & (_ITSELF_DELETED | _ITSELF_MOVED | _OVERFLOW))
        if told:
            self._watch()
        return told


def _events(raw: bytes) -> Iterator[tuple[int, int]]:
    for number, mask, _ in _named_events(raw):
        yield number, mask


def _named_events(raw: bytes) -> Iterator[tuple[int, int, str]]:
    at = 0
    while at + _EVENT.size <= len(raw):
        number, mask, _, length = _EVENT.unpack_from(raw, at)
        at += _EVENT.size + length
        yield number, mask, os.fsdecode(raw[at - length : at].rstrip(b"\0"))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
