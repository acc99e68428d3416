# SPDX-License-Identifier: BSD-2-Clause
"""The directory tree of cgroups (version 2): find, create, open, join and clean up (cgroups(7))."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import libc
from .errors import Unavailable

# fsopen(2), fsconfig(2), fsmount(2), Linux 5.2: the same numbers on every architecture.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE = 6
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_YOUNG = 60  # seconds
_MOUNTS = Path("/proc/self/mountinfo")
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY  # flags of os.open


def open_hierarchy() -> int:
    """Return a descriptor of the root of cgroup v2. Raises Unavailable.

    This process mounts it for itself: `ip netns exec` hides /sys/fs/cgroup, hybrid systems mount it
    elsewhere, and some do not mount it.
    """
    try:
        context = libc.system_call(_FSOPEN, b"cgroup2", _FSOPEN_CLOEXEC)
        try:
            libc.system_call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            return libc.system_call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
        finally:
            os.close(context)
    except OSError as error:
        # In containers, and before Linux 5.2, only an existing mount can be used.
        mounted = _mount_point()
        if mounted is None:
            reason = _NO_HIERARCHY.get(error.errno or 0, f"cannot use cgroup v2 ({error.strerror})")
            raise Unavailable(reason) from None
        return os.open(mounted, DIRECTORY_FLAGS)


_NO_HIERARCHY = dict.fromkeys(
    (errno.ENODEV, errno.ENOSYS),
    "cannot mark sockets by cgroup: cgroup v2 is not mounted here, and cannot be mounted (fsopen(2))",
) | {errno.EPERM: "cannot mark sockets by cgroup: no permission to mount cgroup v2; this needs root (CAP_SYS_ADMIN)"}


def _mount_point() -> str | None:
    """Return an existing mount point of the root of cgroup v2 (proc_pid_mountinfo(5)), or None."""
    with suppress(OSError):
        for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
            before, _, after = line.partition(" - ")
            device, root, mount_point = before.split()[2:5]
            if after.split()[:1] == ["cgroup2"] and root == "/" and _is_visible(mount_point, device):
                return mount_point
    return None


def _is_visible(mount_point: str, device: str) -> bool:
    """Return True if no other mount covers this one."""
    with suppress(OSError):
        number = os.stat(mount_point).st_dev  # noqa: PTH116
        return device == f"{os.major(number)}:{os.minor(number)}"
    return False


@contextmanager
def open_cgroup(path: str, create: bool = False) -> Iterator[int]:
    """Open the directory of the cgroup at `path` below the root of cgroup v2.

    Raises OSError, or Unavailable.
    `create`: create it, and the cgroups above it, if they do not exist.
    """
    root = open_hierarchy()
    try:
        if create:
            parts = path.split("/")
            for end in range(1, len(parts) + 1):
                with suppress(FileExistsError):
                    os.mkdir("/".join(parts[:end]), dir_fd=root)
        directory = os.open(path, DIRECTORY_FLAGS, dir_fd=root)
    finally:
        os.close(root)
    try:
        yield directory
    finally:
        os.close(directory)


def join_cgroup(directory: int) -> None:
    """Move the calling process into the cgroup."""
    members = os.open("cgroup.procs", os.O_WRONLY, dir_fd=directory)
    try:
        os.write(members, b"0")
    finally:
        os.close(members)


def remove_empty(parent: int) -> None:
    """Remove the empty cgroups below one of nftpolicy, with their programs. One with members stays.

    A young one stays too: the process that created it may be about to join it.
    """
    for entry in list(os.scandir(parent)):
        with suppress(OSError):
            if time.time() - entry.stat().st_ctime > _YOUNG:
                os.rmdir(entry.name, dir_fd=parent)
