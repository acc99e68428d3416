# SPDX-License-Identifier: BSD-2-Clause
"""Cgroups of version 2 whose sockets wear a mark (kernel/bpf.py has the programs), and what sockets wear.

A program that is attached here stays as long as the cgroup does, whoever attached it (cgroups(7), bpf(2)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from . import bpf
from .interface import Unavailable

# The new mount API has the same numbers everywhere (fsopen(2) and its kin, Linux 5.2).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE = 6
_PIDFD_GETFD = 438

_YOUNG = 60  # seconds
_TRIES = 5
_PARENT = "nftpolicy"  # under the root of cgroup v2
_MOUNTS = Path("/proc/self/mountinfo")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


# --- the tree -----------------------------------------------------------------------------


def _hierarchy() -> int:
    """A descriptor of the root of cgroup v2. Mounted for ourselves alone, wherever others have it:
    `ip netns exec` hides /sys/fs/cgroup, hybrid systems have it elsewhere, some have it nowhere."""
    try:
        context = _call(_FSOPEN, b"cgroup2", 1)
        try:
            _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            return _call(_FSMOUNT, context, 1, 0)
        finally:
            os.close(context)
    except OSError as error:
        # Containers and kernels before 5.2 may still have it where others put it.
        mounted = _mounted()
        if mounted is None:
            raise Unavailable(_NO_TREE.get(error.errno or 0, f"cgroup v2 can't be used ({error.strerror})")) from None
        return os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)


_NO_TREE = dict.fromkeys(
    (errno.ENODEV, errno.ENOSYS),
    "sockets can't be marked by cgroup: cgroup v2 is neither mounted here nor can it be (fsopen(2))",
) | {errno.EPERM: "sockets can't be marked by cgroup: cgroup v2 may not be mounted; this needs root (CAP_SYS_ADMIN)"}


def _mounted() -> str | None:
    """Where somebody mounted the root of cgroup v2 (proc_pid_mountinfo(5))."""
    with suppress(OSError):
        for line in _MOUNTS.read_text().splitlines():
            before, _, after = line.partition(" - ")
            device, root, place = before.split()[2:5]
            if after.split()[:1] == ["cgroup2"] and root == "/" and _shows(place, device):
                return place
    return None


def _shows(place: str, device: str) -> bool:
    """Whether what is seen there is of that device, and not another mount above it."""
    with suppress(OSError):
        number = os.stat(place).st_dev  # noqa: PTH116
        return device == f"{os.major(number)}:{os.minor(number)}"
    return False


@contextmanager
def opened(path: str, create: bool = False) -> Iterator[int]:
    """A descriptor of the cgroup at `path` below the root of cgroup v2. OSError, or Unavailable."""
    root = _hierarchy()
    try:
        if create:
            parts = path.split("/")
            for end in range(1, len(parts) + 1):
                with suppress(FileExistsError):
                    os.mkdir("/".join(parts[:end]), dir_fd=root)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
    finally:
        os.close(root)
    try:
        yield folder
    finally:
        os.close(folder)


def _join(folder: int) -> None:
    """Move the calling process into the cgroup."""
    entry = os.open("cgroup.procs", os.O_WRONLY, dir_fd=folder)
    try:
        os.write(entry, b"0")
    finally:
        os.close(entry)


def _sweep(parent: int) -> None:
    """Remove the empty cgroups below one of ours, with the programs on them; one with members can't be removed.

    A young one stays: its maker may be about to move into it.
    """
    for entry in list(os.scandir(parent)):
        with suppress(OSError):
            if time.time() - entry.stat().st_ctime > _YOUNG:
                os.rmdir(entry.name, dir_fd=parent)


# --- the cgroup of a service --------------------------------------------------------------


def attach(path: str, value: int, mask: int, confine: Sequence[str] | None = None) -> bool:
    """Have the sockets of a cgroup wear a mark from now on; sockets that are there already stay as they are.

    `path` is below the root of cgroup v2, without a slash at its beginning. `confine` are the devices that the
    cgroup's sockets may name; None lets them name any device and any mark. Of sockets of other network
    namespaces than this one nothing is changed. Programs of others stay. What this function attached before
    from this namespace is kept if it is the same, and replaced if not: the new one is there before the old one
    goes. The programs stay as long as the cgroup does.

    Returns whether anything was attached or taken off.

    Raises:
        Unavailable: there is no such cgroup, or it may not or can't be done here.
    """
    with _told(path), opened(path) as folder:
        return _attach(folder, value, mask, confine)


def _attach(folder: int, value: int, mask: int, confine: Sequence[str] | None) -> bool:
    programs = bpf.wanted(value, mask, confine)
    changed = False
    for kind in bpf.KINDS:
        new = programs.get(kind)
        if new is not None:
            changed |= _put(folder, kind, new)
        elif mine := _mine(folder, kind):
            for one in mine:
                bpf.detach(folder, one, kind)
            changed = True
    return changed


def _put(folder: int, kind: bpf.Kind, code: bytes) -> bool:
    """Have this program on a cgroup, once. Whether it was not there."""
    loaded = _loaded(kind, code)
    try:
        wanted = bpf.describe(loaded)
        new = not any(one.tag == wanted.tag for one in _mine(folder, kind)[-1:])
        if new:
            bpf.attach(folder, loaded, kind)
    finally:
        os.close(loaded)
    # Of two that came at once, both keep the later one.
    for one in _mine(folder, kind)[:-1]:
        bpf.detach(folder, one, kind)
    return new


def _loaded(kind: bpf.Kind, code: bytes) -> int:
    try:
        return bpf.load(kind, code, bpf.own_name())
    except OSError as error:
        raise Unavailable(
            f"the kernel takes no BPF program of kind {kind.word} ({error.strerror}): this needs root "
            "(CAP_BPF, CAP_NET_ADMIN), and Linux 5.14 with CONFIG_CGROUP_BPF"
        ) from None


def _mine(folder: int, kind: bpf.Kind) -> list[bpf.Program]:
    """The programs of this network namespace on a cgroup, the earliest first."""
    name = bpf.own_name()
    return sorted((one for one in bpf.attached(folder, kind) if one.name == name), key=lambda one: one.number)


def detach(path: str) -> bool:
    """Take off what `attach` attached from this network namespace; whether there was anything.

    Raises Unavailable as `attach` does.
    """
    with _told(path), opened(path) as folder:
        found = [(one, kind) for kind in bpf.KINDS for one in _mine(folder, kind)]
        for one, kind in found:
            bpf.detach(folder, one, kind)
        return bool(found)


def enter(path: str, value: int, mask: int, confine: Sequence[str] | None = None) -> None:
    """Make the cgroup if it is not there, attach as `attach` does, and move the calling process into it.

    Raises Unavailable.
    """
    with _told(path):
        if path.startswith(f"{_PARENT}/"):
            with opened(_PARENT, create=True) as parent:
                _sweep(parent)
        for left in reversed(range(_TRIES)):
            try:
                with opened(path, create=True) as folder:
                    _attach(folder, value, mask, confine)
                    _join(folder)
                return
            except OSError as error:
                # Somebody else removed it between two steps, empty as it was.
                if error.errno not in (errno.ENODEV, errno.ENOENT) or not left:
                    raise


@contextmanager
def _told(path: str) -> Iterator[None]:
    """What may be wrong with a cgroup, in words."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise Unavailable(f"cgroup {path}: {reason}") from None


_REASONS = {
    errno.ENOENT: "there is no such cgroup below the root of cgroup v2",
    errno.ENOTDIR: "that is a file and no cgroup",
    errno.EPERM: (
        "it can't be used: this needs root, and on it and above it no program of others that tolerates none beside it "
        "(bpftool cgroup tree)"
    ),
    errno.EACCES: "it may not be used: this needs root",
    errno.EROFS: "the tree of cgroup v2 is read-only here",
    errno.EBUSY: "no process can be in it, since it hands on controllers to cgroups below it (cgroup.subtree_control)",
    errno.EOPNOTSUPP: "no process can be in it, since it is of the threaded kind or below one (cgroup.type)",
    errno.E2BIG: "there are too many programs on it already",
    errno.EAGAIN: "the limit of processes or of cgroups is reached (pids.max, cgroup.max.descendants)",
}


# --- a cgroup for one program -------------------------------------------------------------


class MarkedGroup:
    """A cgroup whose sockets wear a mark. A context manager; leaving it removes the cgroup.

    The caller sees to it that nobody else uses the name: processes that are found in it are killed.
    """

    def __init__(self, name: str, value: int, mask: int) -> None:
        self.name, self.value, self.mask = name, value, mask
        self._root = self._folder = -1

    def __enter__(self) -> MarkedGroup:
        try:
            self._root = _hierarchy()
            self._make()
            loaded = bpf.load(bpf.SOCK_CREATE, bpf.marks(self.value, self.mask), bpf.own_name())
            try:
                bpf.attach(self._folder, loaded, bpf.SOCK_CREATE)
            finally:
                os.close(loaded)
        except OSError as error:
            self.__exit__()
            raise Unavailable(
                f"sockets can't be marked by cgroup ({error.strerror}): this needs root, "
                "cgroup v2 and a kernel with CONFIG_CGROUP_BPF"
            ) from None
        return self

    def _make(self) -> None:
        with suppress(FileExistsError):
            os.mkdir(_PARENT, dir_fd=self._root)
        parent = os.open(_PARENT, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        os.close(self._root)
        self._root = parent
        _sweep(self._root)
        with suppress(FileNotFoundError):  # left over from a process that was killed
            self._end_members()
            os.rmdir(self.name, dir_fd=self._root)
        os.mkdir(self.name, dir_fd=self._root)
        self._folder = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)

    def _end_members(self) -> None:
        """Kill what an earlier owner of the name left running."""
        for _ in range(100):
            entry = os.open(f"{self.name}/cgroup.procs", os.O_RDONLY, dir_fd=self._root)
            with os.fdopen(entry) as members:
                pids = [int(line) for line in members]
            if not pids:
                return
            for pid in filter(None, pids):  # 0 stands for a process of another PID namespace
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            with suppress(OSError):  # a process of it may still end; the next start removes it
                os.rmdir(self.name, dir_fd=self._root)
        if self._root >= 0:
            os.close(self._root)
        self._folder = self._root = -1

    def started(self) -> None:
        """Nothing is left to do once the program runs."""

    def before(self) -> None:
        """Move the calling process into the cgroup; for the moment between fork and exec."""
        _join(self._folder)

    def tried(self) -> bool:
        """Whether sockets of both families that are opened inside really wear the mark."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self.before()
                worn = [mark for family in (socket.AF_INET, socket.AF_INET6) for mark in own_sockets(family).values()]
                status = 0 if worn and all(mark & self.mask == self.value for mark in worn) else 1
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- what sockets wear --------------------------------------------------------------------


def wears(one: socket.socket, mark: tuple[int, int]) -> bool:
    """Whether a socket wears the mark (value, mask)."""
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) & mark[1] == mark[0]


def own_sockets(family: int) -> dict[str, int]:
    """The whole marks of sockets of a family (AF_INET, AF_INET6) that this process opens now, by kind.

    Empty if the kernel has none of that family. OSError if no socket can be opened for another reason.
    """
    found = {}
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind) as one:
                found[kind.name] = one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
    return found


def unmarked(pid: int, mark: tuple[int, int]) -> list[str]:
    """The IP sockets of process `pid` that do not wear the mark (value, mask), as "SOCK_DGRAM socket, port 54"."""
    found = []
    process = os.pidfd_open(pid)
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            one = _borrowed(process, int(entry.name), entry.path)
            if one is None:
                continue
            with one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and not wears(one, mark):
                    found.append(f"{one.type.name} socket, port {one.getsockname()[1]}")
    finally:
        os.close(process)
    return found


def _borrowed(process: int, number: int, link: str) -> socket.socket | None:
    """Another process's socket by pidfd_getfd(2), or None if it is no socket or is gone."""
    try:
        if not str(Path(link).readlink()).startswith("socket:"):
            return None
        return socket.socket(fileno=_call(_PIDFD_GETFD, process, number, 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EBADF):
            return None
        raise
