# SPDX-License-Identifier: BSD-2-Clause
"""Cgroups (version 2) that set a mark on their sockets, by the programs of kernel/bpf; and marks of sockets.

A program that is attached here stays as long as the cgroup does, whichever process attached it
(cgroups(7), bpf(2)).
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from . import libc
from .bpf import programs, syscall
from .cgroup_tree import DIRECTORY_FLAGS, join_cgroup, open_cgroup, open_hierarchy, remove_empty
from .child_process import run_in_child
from .errors import ChildFailed, Unavailable, error_reason
from .netlink.sock_diag import InetSocket, SockDiag

_TRIES = 5
_KILL_ROUNDS, _KILL_PAUSE = 100, 0.01  # seconds between two rounds
_PARENT = "nftpolicy"  # below the root of cgroup v2


# --- the cgroup of a service --------------------------------------------------------


def attach(path: str, value: int, mask: int, confine: Sequence[str] | None = None) -> bool:
    """Set a mark on the sockets that are opened in a cgroup from now on.

    Return True if anything changed. `path` is below the root of cgroup v2, without a leading slash.
    `confine` are the devices that the sockets of the cgroup may name; None allows each device and
    each mark. Sockets of other network namespaces stay as they are. Foreign programs stay. A
    program that this function attached before from this namespace stays if it is the same; else the
    new one is attached before the old one is detached. The programs stay as long as the cgroup
    does.

    Raises:
        Unavailable: there is no such cgroup, or no permission or support for it.
    """
    with _reasons(path), open_cgroup(path) as directory:
        return _attach(directory, value, mask, confine)


def _attach(directory: int, value: int, mask: int, confine: Sequence[str] | None) -> bool:
    wanted = programs.service_programs(value, mask, confine)
    changed = False
    for attach_type in syscall.ATTACH_TYPES:
        code = wanted.get(attach_type)
        if code is not None:
            changed |= _ensure(directory, attach_type, code)
        else:
            for program in _own_programs(directory, attach_type):
                syscall.detach(directory, program, attach_type)
                changed = True
    return changed


def _ensure(directory: int, attach_type: syscall.AttachType, code: bytes) -> bool:
    """Have this program on a cgroup once. Return True if it was not there."""
    descriptor = _load(attach_type, code)
    try:
        tag = syscall.describe(descriptor).tag
        is_new = not any(program.tag == tag for program in _own_programs(directory, attach_type)[-1:])
        if is_new:
            syscall.attach(directory, descriptor, attach_type)
    finally:
        os.close(descriptor)
    # If two processes came at once, both keep the later program.
    for program in _own_programs(directory, attach_type)[:-1]:
        syscall.detach(directory, program, attach_type)
    return is_new


def _load(attach_type: syscall.AttachType, code: bytes) -> int:
    try:
        return syscall.load(attach_type, code, programs.program_name())
    except OSError as error:
        raise Unavailable(
            f"the kernel refuses a BPF program of type {attach_type.name} ({error.strerror}): this needs root "
            "(CAP_BPF, CAP_NET_ADMIN), and Linux 5.14 with CONFIG_CGROUP_BPF"
        ) from None


def _own_programs(directory: int, attach_type: syscall.AttachType) -> list[syscall.LoadedProgram]:
    """Return the programs of this network namespace on a cgroup, the earliest first."""
    name = programs.program_name()
    own = (program for program in syscall.attached_programs(directory, attach_type) if program.name == name)
    return sorted(own, key=lambda program: program.number)


def detach(path: str) -> bool:
    """Detach the programs that `attach` attached from this network namespace.

    Return True if there were any.

    Raises Unavailable as `attach` does.
    """
    with _reasons(path), open_cgroup(path) as directory:
        own = [
            (program, attach_type)
            for attach_type in syscall.ATTACH_TYPES
            for program in _own_programs(directory, attach_type)
        ]
        for program, attach_type in own:
            syscall.detach(directory, program, attach_type)
        return bool(own)


def enter(path: str, value: int, mask: int, confine: Sequence[str] | None = None) -> None:
    """Create the cgroup if necessary, attach as `attach` does, and move the calling process into it.

    Raises Unavailable.
    """
    with _reasons(path):
        if path.startswith(f"{_PARENT}/"):
            with open_cgroup(_PARENT, create=True) as parent:
                remove_empty(parent)
        for tries_left in reversed(range(_TRIES)):
            try:
                with open_cgroup(path, create=True) as directory:
                    _attach(directory, value, mask, confine)
                    join_cgroup(directory)
                return
            except OSError as error:
                # Another process removed the empty cgroup between two steps.
                if error.errno not in (errno.ENODEV, errno.ENOENT) or not tries_left:
                    raise


@contextmanager
def _reasons(path: str) -> Iterator[None]:
    """Raise Unavailable with an explanation for an OSError about a cgroup."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error_reason(error))
        raise Unavailable(f"cgroup {path}: {reason}") from None


_REASONS = {
    errno.ENOENT: "there is no such cgroup below the root of cgroup v2",
    errno.ENOTDIR: "that is a file, not a cgroup",
    errno.EPERM: (
        "no permission: this needs root, and all programs on it and above it attached with BPF_F_ALLOW_MULTI "
        "(see 'bpftool cgroup tree')"
    ),
    errno.EACCES: "no permission: this needs root",
    errno.EROFS: "cgroup v2 is mounted read-only here",
    errno.EBUSY: (
        "no process can be in it, because it delegates controllers to the cgroups below it (cgroup.subtree_control)"
    ),
    errno.EOPNOTSUPP: "no process can be in it, because it is threaded or below a threaded one (cgroup.type)",
    errno.E2BIG: "there are too many programs on it already",
    errno.EAGAIN: "the limit of processes or of cgroups is reached (pids.max, cgroup.max.descendants)",
}


# --- a cgroup for one program -------------------------------------------------------


class MarkedCgroup:
    """A cgroup that sets a mark on its sockets. A context manager; leaving it removes the cgroup.

    The caller makes sure that no other process uses the name: processes that are found in it are
    killed.
    """

    def __init__(self, name: str, value: int, mask: int) -> None:
        self.name, self.value, self.mask = name, value, mask
        self._parent = self._directory = -1

    def __enter__(self) -> MarkedCgroup:
        try:
            self._create()
            code = programs.mark_program(self.value, self.mask)
            descriptor = syscall.load(syscall.SOCK_CREATE, code, programs.program_name())
            try:
                syscall.attach(self._directory, descriptor, syscall.SOCK_CREATE)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.__exit__()
            raise Unavailable(
                f"cannot mark sockets by cgroup ({error.strerror}): this needs root, "
                "cgroup v2 and a kernel with CONFIG_CGROUP_BPF"
            ) from None
        return self

    def _create(self) -> None:
        root = open_hierarchy()
        try:
            with suppress(FileExistsError):
                os.mkdir(_PARENT, dir_fd=root)
            self._parent = os.open(_PARENT, DIRECTORY_FLAGS, dir_fd=root)
        finally:
            os.close(root)
        remove_empty(self._parent)
        with suppress(FileNotFoundError):  # left by a process that was killed
            kill_members(self._parent, self.name)
            os.rmdir(self.name, dir_fd=self._parent)
        os.mkdir(self.name, dir_fd=self._parent)
        self._directory = os.open(self.name, DIRECTORY_FLAGS, dir_fd=self._parent)

    def __exit__(self, *_: object) -> None:
        if self._directory >= 0:
            os.close(self._directory)
            with suppress(OSError):  # a process of it may still be ending; the next start removes it
                os.rmdir(self.name, dir_fd=self._parent)
        if self._parent >= 0:
            os.close(self._parent)
        self._parent = self._directory = -1

    def after_start(self) -> None:
        """Do nothing; the counterpart of the seccomp method needs this step after exec."""

    def before_exec(self) -> None:
        """Move the calling process into the cgroup; to be called between fork and exec."""
        join_cgroup(self._directory)

    def sockets(self) -> list[InetSocket]:
        """Return the IP sockets that were opened inside and can receive. Raises Unavailable."""
        with SockDiag() as diag:
            return diag.sockets(os.fstat(self._directory).st_ino)

    def verify(self) -> bool:
        """Return True if sockets of both families that a process opens inside have the mark."""

        def has_mark() -> bytes:
            self.before_exec()
            marks = [mark for family in (socket.AF_INET, socket.AF_INET6) for mark in own_socket_marks(family).values()]
            return b"1" if marks and all(mark & self.mask == self.value for mark in marks) else b""

        try:
            return bool(run_in_child(has_mark))
        except ChildFailed:
            return False


def end_marked_cgroup(name: str) -> int:
    """Kill the processes that an ended owner of a marked cgroup left, and remove it.

    Return their number. Raises OSError, or Unavailable.
    """
    with open_cgroup(_PARENT) as parent:
        try:
            count = kill_members(parent, name)
            os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            return 0
        return count


def kill_members(parent: int, name: str) -> int:
    """Kill the processes in the cgroup `name` below another one; return their number. Raises OSError."""
    killed: set[int] = set()
    for _ in range(_KILL_ROUNDS):
        descriptor = os.open(f"{name}/cgroup.procs", os.O_RDONLY, dir_fd=parent)
        with os.fdopen(descriptor) as members:
            pids = [int(line) for line in members]
        if not pids:
            break
        for pid in filter(None, pids):  # 0 stands for a process of another PID namespace
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(pids)
        time.sleep(_KILL_PAUSE)
    return len(killed)


# --- marks of sockets ---------------------------------------------------------------


def has_mark(opened: socket.socket, mark: tuple[int, int]) -> bool:
    """Return True if a socket has the mark (value, mask)."""
    value, mask = mark
    return opened.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) & mask == value


def own_socket_marks(family: int) -> dict[str, int]:
    """Return the whole marks of sockets of a family (AF_INET, AF_INET6) that this process opens now, by type.

    Empty if the kernel does not have the family. Raises OSError if a socket cannot be opened for
    another reason.
    """
    marks = {}
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind) as opened:
                marks[kind.name] = opened.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
    return marks


def unmarked_sockets(pid: int, mark: tuple[int, int]) -> list[str]:
    """Return the IP sockets of a process without the mark (value, mask), as "SOCK_DGRAM socket, port 54".

    Raises OSError.
    """
    descriptions = []
    process = os.pidfd_open(pid)
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            duplicate = _duplicate_socket(process, int(entry.name), entry.path)
            if duplicate is None:
                continue
            with duplicate:
                if duplicate.family in (socket.AF_INET, socket.AF_INET6) and not has_mark(duplicate, mark):
                    descriptions.append(f"{duplicate.type.name} socket, port {duplicate.getsockname()[1]}")
    finally:
        os.close(process)
    return descriptions


def _duplicate_socket(process: int, descriptor: int, link: str) -> socket.socket | None:
    """Return a duplicate of another process's socket; None for another kind of file, or one that has gone."""
    try:
        if not str(Path(link).readlink()).startswith("socket:"):
            return None
        return socket.socket(fileno=libc.pidfd_getfd(process, descriptor))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EBADF):
            return None
        raise
