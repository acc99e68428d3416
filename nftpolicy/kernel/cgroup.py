# SPDX-License-Identifier: BSD-2-Clause
"""Marking sockets by the cgroup that opens them: a sock_create program, assembled here.

The program sets the mark when the socket is made, before any route or source address is chosen,
and needs nothing of the process: neither a library nor a capability (bpf(2), include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from .interface import Unavailable

_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "armv7l": 386, "i686": 357}
# The new mount API has the same numbers everywhere (fsopen(2) and its kin).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE = 6
_PROG_LOAD, _PROG_ATTACH = 5, 8
_PROG_TYPE_CGROUP_SOCK, _CGROUP_INET_SOCK_CREATE = 9, 2
_ALLOW_MULTI = 2  # programs of others on the same cgroup stay
_MARK_OFFSET = 16  # struct bpf_sock: bound_dev_if, family, type, protocol, mark

_YOUNG = 60  # seconds
_PARENT = "nftpolicy"  # under the root of cgroup v2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhI", opcode, source << 4 | target, offset, value)


def program(value: int, mask: int) -> bytes:
    """BPF code: sk->mark = sk->mark & ~mask | value; allow the socket."""
    return b"".join(
        (
            _instruction(0x61, target=2, source=1, offset=_MARK_OFFSET),  # r2 = ctx->mark
            _instruction(0x54, target=2, value=~mask & 0xFFFFFFFF),  # w2 &= ~mask
            _instruction(0x44, target=2, value=value),  # w2 |= value
            _instruction(0x63, target=1, source=2, offset=_MARK_OFFSET),  # ctx->mark = r2
            _instruction(0xB7, target=0, value=1),  # r0 = 1
            _instruction(0x95),  # exit
        )
    )


def _bpf(command: int, attributes: bytes) -> int:
    number = _BPF.get(platform.machine())
    if number is None:
        raise Unavailable(f"marking by cgroup is not known on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    return _call(number, command, buffer, len(buffer))


def _load(code: bytes) -> int:
    licence, instructions = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(code, len(code))
    attributes = struct.pack(
        "<IIQQIIQII16sII",
        _PROG_TYPE_CGROUP_SOCK,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
        b"nftpolicy_mark",
        0,
        _CGROUP_INET_SOCK_CREATE,
    )
    return _bpf(_PROG_LOAD, attributes)


def _hierarchy() -> int:
    """A descriptor of the root of cgroup v2. Mounted for ourselves alone, wherever others have it:
    `ip netns exec` hides /sys/fs/cgroup, and hybrid systems have it elsewhere."""
    context = _call(_FSOPEN, b"cgroup2", 1)
    try:
        _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_FSMOUNT, context, 1, 0)
    finally:
        os.close(context)


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
            loaded = _load(program(self.value, self.mask))
            try:
                _bpf(_PROG_ATTACH, struct.pack("<IIII", self._folder, loaded, _CGROUP_INET_SOCK_CREATE, _ALLOW_MULTI))
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
        self._sweep()
        with suppress(FileNotFoundError):  # left over from a process that was killed
            self._end_members()
            os.rmdir(self.name, dir_fd=self._root)
        os.mkdir(self.name, dir_fd=self._root)
        self._folder = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)

    def _sweep(self) -> None:
        """Remove what killed processes left; a cgroup with members can't be removed, and stays.

        So does a young one: its maker may be about to move into it.
        """
        for entry in list(os.scandir(self._root)):
            with suppress(OSError):
                if time.time() - entry.stat().st_ctime > _YOUNG:
                    os.rmdir(entry.name, dir_fd=self._root)

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
        entry = os.open("cgroup.procs", os.O_WRONLY, dir_fd=self._folder)
        os.write(entry, b"0")
        os.close(entry)

    def tried(self) -> bool:
        """Whether sockets of both families that are opened inside really wear the mark."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self.before()
                status = 0 if all(wears(one, (self.value, self.mask)) for one in _sockets()) else 1
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def wears(one: socket.socket, mark: tuple[int, int]) -> bool:
    """Whether a socket wears the mark (value, mask)."""
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) & mark[1] == mark[0]


def _sockets() -> list[socket.socket]:
    families = (socket.AF_INET, socket.AF_INET6) if Path("/proc/sys/net/ipv6").exists() else (socket.AF_INET,)
    return [socket.socket(family, kind) for family in families for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]


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
        return socket.socket(fileno=_call(438, process, number, 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EBADF):
            return None
        raise
