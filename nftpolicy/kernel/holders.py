# SPDX-License-Identifier: BSD-2-Clause
"""The processes that hold sockets, and the groups that opened them, from /proc.

sock_diag(7) tells neither; it tells cgroups by their numbers. The group of an inode under /proc/PID/fd is the one of
who opened the socket (sock_alloc in net/socket.c), as nft's skgid is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from .interface import Unavailable


@frozen
class Holder:
    """A process that holds a socket, the one with the lowest number if there are several; `gid` is the group of
    who opened the socket, whatever group the process has by now. `name` is "" for one that has just ended."""

    pid: int
    name: str
    gid: int


def cgroups(paths: Iterable[str]) -> dict[str, set[int]]:
    """The numbers of cgroups of version 2 and of all below them, as sock_diag(7) tells them, by path: none of one that
    is not there. Nothing at all where there is no cgroup v2."""
    from .cgroup import opened

    found: dict[str, set[int]] = {}
    with suppress(Unavailable):
        for path in paths:
            mine = found.setdefault(path, set())
            with suppress(FileNotFoundError), opened(path) as folder:
                for _, _, _, each in os.fwalk(".", dir_fd=folder):
                    mine.add(os.fstat(each).st_ino)  # kernfs gives a folder the cgroup's number (fs/kernfs/inode.c)
    return found


def holders(inodes: Iterable[int]) -> dict[int, Holder]:
    """Who holds each of these sockets, by inode. One that no process of this /proc holds is left out."""
    wanted = frozenset(inodes)
    found: dict[int, Holder] = {}
    if not wanted:
        return found
    for pid in sorted(int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()):
        with suppress(OSError):  # it has ended
            mine = _sockets(pid, wanted)
            name = _name(pid) if mine else ""
            for inode, gid in mine.items():
                found.setdefault(inode, Holder(pid, name, gid))
    return found


def _sockets(pid: int, wanted: frozenset[int]) -> dict[int, int]:
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            known = entry.stat()
            # The numbers of sockets are one sequence for the whole machine, but other files have them too.
            if known.st_ino in wanted and stat.S_ISSOCK(known.st_mode):
                found[known.st_ino] = known.st_gid
    return found


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""
