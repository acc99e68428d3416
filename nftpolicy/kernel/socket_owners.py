# SPDX-License-Identifier: BSD-2-Clause
"""Owning processes of sockets, and the groups that opened them, from /proc.

sock_diag(7) reports neither; it reports cgroups by number. The group of an inode under /proc/PID/fd
is the group that opened the socket (sock_alloc in net/socket.c), as in nft's `meta skgid`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from .errors import Unavailable


@frozen
class SocketOwner:
    """Owning process of a socket, the one with the lowest PID if there are several.

    `gid` is the group that opened the socket, which the process may have left since. `name` is ""
    for a process that has just ended.
    """

    pid: int
    name: str
    gid: int


def cgroup_numbers(paths: Iterable[str]) -> dict[str, set[int]]:
    """Return the numbers of cgroups (version 2) and of all cgroups below them, by path, as in sock_diag(7).

    The set is empty for a cgroup that does not exist. The result is empty without cgroup v2.
    """
    from .cgroup_tree import open_cgroup

    numbers_by_path: dict[str, set[int]] = {}
    with suppress(Unavailable):
        for path in paths:
            numbers = numbers_by_path.setdefault(path, set())
            with suppress(FileNotFoundError), open_cgroup(path) as directory:
                for _, _, _, descriptor in os.fwalk(".", dir_fd=directory):
                    # The inode of its directory is the number of the cgroup (fs/kernfs/inode.c).
                    numbers.add(os.fstat(descriptor).st_ino)
    return numbers_by_path


def socket_owners(inodes: Iterable[int]) -> dict[int, SocketOwner]:
    """Return the owning process of each of these sockets, by inode.

    Skip sockets without one in /proc.
    """
    wanted = frozenset(inodes)
    by_inode: dict[int, SocketOwner] = {}
    if not wanted:
        return by_inode
    for pid in sorted(int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()):
        with suppress(OSError):  # it has ended
            groups = _socket_groups(pid, wanted)
            name = _process_name(pid) if groups else ""
            for inode, gid in groups.items():
                by_inode.setdefault(inode, SocketOwner(pid, name, gid))
    return by_inode


def _socket_groups(pid: int, wanted: frozenset[int]) -> dict[int, int]:
    """Return the group of each of the wanted sockets that the process has open, by inode."""
    groups = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            status = entry.stat()
            # The inodes of sockets are one sequence of this machine, but files of other kinds have
            # the same numbers.
            if status.st_ino in wanted and stat.S_ISSOCK(status.st_mode):
                groups[status.st_ino] = status.st_gid
    return groups


def _process_name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""
