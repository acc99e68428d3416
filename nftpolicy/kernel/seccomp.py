# SPDX-License-Identifier: BSD-2-Clause
"""Marking sockets where cgroup programs may not be loaded (user namespaces, containers): the
kernel asks us for every socket(2) of the program, and we hand it one that wears the mark.

seccomp user notification, seccomp_unotify(2), Linux 5.14. Like a cgroup program it needs nothing
of the program itself, and the mark is there before anything can be sent.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import platform
import select
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

from .interface import Unavailable

# machine -> (AUDIT_ARCH_*, number of seccomp(2), of socket(2), of io_uring_setup(2))
_MACHINES = {
    "x86_64": (0xC000003E, 317, 41, 425),
    "aarch64": (0xC00000B7, 277, 198, 425),
    "riscv64": (0xC00000F3, 277, 198, 425),
}
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_PR_SET_NO_NEW_PRIVS = 38
_ALLOW, _ERRNO, _ASK = 0x7FFF0000, 0x00050000, 0x7FC00000  # SECCOMP_RET_*
_EPERM, _ENOSYS = 1, 38
# include/uapi/linux/seccomp.h: struct seccomp_notif, _resp and _addfd, and their ioctls
_NOTICE, _ANSWER, _HAND_OVER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI"), struct.Struct("=QIIII")
_RECEIVE, _SEND, _ADD_DESCRIPTOR = 0xC0502100, 0xC0182101, 0x40182103
_CONTINUE, _AND_ANSWER = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _filter(machine: str) -> bytes:
    """Classic BPF: ask about socket(2), allow the rest; no foreign system call tables, no io_uring."""
    arch, _, asked, ring = _MACHINES[machine]
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    code = (
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 1, 0, arch),
        (answer, 0, 0, _ERRNO | _EPERM),
        (load, 0, 0, 0),  # seccomp_data.nr
        (equal, 0, 1, asked),
        (answer, 0, 0, _ASK),
        (equal, 0, 1, ring),
        (answer, 0, 0, _ERRNO | _ENOSYS),
        (answer, 0, 0, _ALLOW),
    )
    return b"".join(struct.pack("=HBBI", *one) for one in code)


class MarkedCalls:
    """Gives one program, and its children, sockets that wear a mark. A context manager.

    `before` runs in the child between fork and exec, `started` in the parent after it.
    """

    def __init__(self, value: int, mask: int) -> None:
        self.value, self.mask = value, mask

    def __enter__(self) -> MarkedCalls:
        if platform.machine() not in _MACHINES:
            raise Unavailable(f"marking by seccomp is not known on {platform.machine()}")
        self._ours, self._theirs = socket.socketpair()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._ours.close()
        self._theirs.close()

    def before(self) -> None:
        """Install the filter and send its listener to the parent."""
        machine = platform.machine()
        code = ctypes.create_string_buffer(_filter(machine))
        program = struct.pack("HxxxxxxQ", (len(code) - 1) // 8, ctypes.addressof(code))
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
        listener = _libc.syscall(_MACHINES[machine][1], _SET_MODE_FILTER, _NEW_LISTENER, program)
        if listener < 0:
            raise OSError(ctypes.get_errno(), "seccomp(2) with a listener")
        socket.send_fds(self._theirs, [b"!"], [listener])

    def started(self) -> None:
        """Answer the program's questions from now on."""
        _, (listener,), _, _ = socket.recv_fds(self._ours, 1, 1)
        self._thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
        self._thread.start()

    def _serve(self, listener: int) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while not self._stop.is_set():
            for _, event in poll.poll(200):
                if event & select.POLLHUP:  # the last process of the filter has gone
                    os.close(listener)
                    return
                with suppress(OSError):  # the process that asked was killed meanwhile
                    self._answer(listener)
        os.close(listener)

    def _answer(self, listener: int) -> None:
        notice = array.array("B", bytes(_NOTICE.size))
        fcntl.ioctl(listener, _RECEIVE, notice)
        number, pid, _, _, _, _, family, kind, protocol, *_ = _NOTICE.unpack(notice)
        if family not in (socket.AF_INET, socket.AF_INET6):
            fcntl.ioctl(listener, _SEND, _ANSWER.pack(number, 0, 0, _CONTINUE))
            return
        try:
            made = self._socket(pid, family, kind, protocol)
        except OSError as error:
            fcntl.ioctl(listener, _SEND, _ANSWER.pack(number, 0, -(error.errno or _EPERM), 0))
            return
        with made:
            flags = os.O_CLOEXEC if kind & socket.SOCK_CLOEXEC else 0
            fcntl.ioctl(listener, _ADD_DESCRIPTOR, _HAND_OVER.pack(number, _AND_ANSWER, made.fileno(), 0, flags))

    def _socket(self, pid: int, family: int, kind: int, protocol: int) -> socket.socket:
        """The socket that was asked for, owned by who asked, and marked."""
        user, group = _file_ids(pid)
        # Of this thread alone; the kernel takes a socket's owner from them.
        _libc.setfsgid(group)
        _libc.setfsuid(user)
        try:
            made = socket.socket(family, kind, protocol)
        finally:
            _libc.setfsuid(os.geteuid())
            _libc.setfsgid(os.getegid())
        try:
            old = made.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
            made.setsockopt(
                socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", old & ~self.mask & 0xFFFFFFFF | self.value)
            )
        except OSError:
            made.close()
            raise
        return made


def _file_ids(pid: int) -> tuple[int, int]:
    """The file system user and group of a process, proc_pid_status(5)."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {words[0]: int(words[4]) for words in lines if words and words[0] in ("Uid:", "Gid:")}
    return found["Uid:"], found["Gid:"]
