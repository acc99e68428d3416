# SPDX-License-Identifier: BSD-2-Clause
"""Mount namespace of a process (mount_namespaces(7))."""

from __future__ import annotations

from collections.abc import Iterable

from .libc import call

# linux/sched.h, linux/mount.h
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19


def hide_directories(paths: Iterable[str]) -> None:
    """Hide what is in these directories from this process and its children, by an empty file system.

    The directories, not their files: the kernel removes a mount from a file that is replaced. Mounts of
    this process are not seen elsewhere any more; it still sees those of the host. Raises OSError.
    """
    call("unshare", _CLONE_NEWNS)
    call("mount", None, b"/", None, _MS_REC | _MS_SLAVE, None)
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    for path in paths:
        call("mount", b"tmpfs", path.encode(), b"tmpfs", flags, b"size=4k,mode=0")
