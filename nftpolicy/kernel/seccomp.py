# SPDX-License-Identifier: BSD-2-Clause
"""Mark sockets by seccomp user notification, where cgroup programs cannot be loaded (user namespaces, containers).

The kernel notifies this process of each socket(2) of the program, and this process passes it a
marked socket: seccomp_unotify(2), Linux 5.14. Like a cgroup program it needs no support in the
program itself, and the mark is set before a packet can be sent.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

from . import libc
from .architecture import Architecture, require_architecture
from .bpf.classic import JUMP_IF_EQUAL, JUMP_IF_NOT_LESS, LOAD_WORD, RETURN, ClassicFilter
from .seccomp_filter import (
    DATA_ARCH,
    DATA_NR,
    FLAG_NEW_LISTENER,
    RET_ALLOW,
    RET_ERRNO,
    RET_USER_NOTIF,
    X32_BIT,
    install_filter,
    set_no_new_privs,
)

# include/uapi/linux/seccomp.h: struct seccomp_notif, seccomp_notif_resp, seccomp_notif_addfd, and
# their ioctls
_NOTIFICATION, _RESPONSE, _ADD_FD = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI"), struct.Struct("=QIIII")
_IOCTL_RECV, _IOCTL_SEND, _IOCTL_ADDFD = 0xC0502100, 0xC0182101, 0x40182103
# For other types the kernel would check the capabilities of this process, not those of the caller (CAP_NET_RAW).
_KINDS, _KIND_MASK = (socket.SOCK_STREAM, socket.SOCK_DGRAM), 0xF  # include/linux/net.h: SOCK_TYPE_MASK
_USER_NOTIF_FLAG_CONTINUE, _ADDFD_FLAG_SEND = 1, 2
_POLL_TIMEOUT = 200  # milliseconds between two looks at the stop flag


def _system_call_filter(architecture: Architecture) -> ClassicFilter:
    """Return a filter that notifies of socket(2), and denies io_uring and the calls of other architectures.

    The x32 ABI has the architecture of x86_64, and numbers of its own.
    """
    return ClassicFilter(
        (
            (LOAD_WORD, 0, 0, DATA_ARCH),
            (JUMP_IF_EQUAL, 1, 0, architecture.audit),
            (RETURN, 0, 0, RET_ERRNO | errno.EPERM),
            (LOAD_WORD, 0, 0, DATA_NR),
            (JUMP_IF_NOT_LESS, 0, 1, X32_BIT),
            (RETURN, 0, 0, RET_ERRNO | errno.EPERM),
            (JUMP_IF_EQUAL, 0, 1, architecture.socket),
            (RETURN, 0, 0, RET_USER_NOTIF),
            (JUMP_IF_EQUAL, 0, 1, architecture.io_uring_setup),
            (RETURN, 0, 0, RET_ERRNO | errno.ENOSYS),
            (RETURN, 0, 0, RET_ALLOW),
        )
    )


class SocketCallMarker:
    """Pass marked sockets to one program and its children. A context manager.

    Call `before_exec` in the child between fork and exec, `after_start` in the parent afterwards.
    """

    def __init__(self, value: int, mask: int) -> None:
        self.value, self.mask = value, mask

    def __enter__(self) -> SocketCallMarker:
        self._architecture = require_architecture("marking")
        self._parent_end, self._child_end = socket.socketpair()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._parent_end.close()
        self._child_end.close()

    def before_exec(self) -> None:
        """Install the filter and send its listener to the parent. Raises OSError."""
        set_no_new_privs()
        listener = install_filter(self._architecture, _system_call_filter(self._architecture), FLAG_NEW_LISTENER)
        socket.send_fds(self._child_end, [b"!"], [listener])

    def after_start(self) -> None:
        """Answer the notifications of the program from now on, in a thread."""
        _, (listener,), _, _ = socket.recv_fds(self._parent_end, 1, 1)
        self._thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
        self._thread.start()

    def _serve(self, listener: int) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while not self._stop.is_set():
            for _, event in poll.poll(_POLL_TIMEOUT):
                if event & select.POLLHUP:  # the last process with the filter has ended
                    os.close(listener)
                    return
                with suppress(OSError):  # the calling process was killed meanwhile
                    self._answer(listener)
        os.close(listener)

    def _answer(self, listener: int) -> None:
        """Receive one notification and answer it."""
        notification = array.array("B", bytes(_NOTIFICATION.size))
        fcntl.ioctl(listener, _IOCTL_RECV, notification)
        number, pid, _, _, _, _, *arguments = _NOTIFICATION.unpack(notification)
        # The kernel reads the low 32 bits of each, as a signed number.
        family, kind, protocol = (ctypes.c_int(argument).value for argument in arguments[:3])
        if family not in (socket.AF_INET, socket.AF_INET6):
            fcntl.ioctl(listener, _IOCTL_SEND, _RESPONSE.pack(number, 0, 0, _USER_NOTIF_FLAG_CONTINUE))
            return
        try:
            marked = self._open_marked(pid, family, kind, protocol)
        except OSError as error:
            fcntl.ioctl(listener, _IOCTL_SEND, _RESPONSE.pack(number, 0, -(error.errno or errno.EPERM), 0))
            return
        with marked:
            flags = os.O_CLOEXEC if kind & socket.SOCK_CLOEXEC else 0
            request = _ADD_FD.pack(number, _ADDFD_FLAG_SEND, marked.fileno(), 0, flags)
            fcntl.ioctl(listener, _IOCTL_ADDFD, request)

    def _open_marked(self, pid: int, family: int, kind: int, protocol: int) -> socket.socket:
        """Return the requested socket with the mark, owned by user and group of the calling process.

        Raises OSError; EPERM for another type than stream and datagram.
        """
        if kind & _KIND_MASK not in _KINDS:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        user, group = _filesystem_ids(pid)
        # These ids belong to this thread alone; the kernel takes the owner of a socket from them.
        libc.set_thread_group(group)
        libc.set_thread_user(user)
        try:
            marked = socket.socket(family, kind, protocol)
        finally:
            libc.set_thread_user(os.geteuid())
            libc.set_thread_group(os.getegid())
        try:
            mark = marked.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
            mark = mark & ~self.mask & 0xFFFFFFFF | self.value
            marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        except OSError:
            marked.close()
            raise
        return marked


def _filesystem_ids(pid: int) -> tuple[int, int]:
    """Return file system user and group of a process (proc_pid_status(5))."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines())
    ids = {words[0]: int(words[4]) for words in lines if words and words[0] in ("Uid:", "Gid:")}
    return ids["Uid:"], ids["Gid:"]
