# SPDX-License-Identifier: BSD-2-Clause
"""Connections of the session in which this process runs, such as that of its SSH login."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ..kernel.netlink.sock_diag import InetSocket
from ..kernel.socket_owners import SocketOwner

_MOST_ANCESTORS = 64


def session_test(owners: Mapping[int, SocketOwner]) -> Callable[[InetSocket], bool]:
    """Return a test for the connections of this session, from the owners of sockets by inode.

    They are those of the process's ancestors, which sudo(8) does not hide, and that of the variable SSH_CONNECTION.
    """
    pids = frozenset(_ancestors())
    client = os.environ.get("SSH_CONNECTION", "").split()  # address and port of the client, then of the server

    def is_own(each: InetSocket) -> bool:
        if not each.is_connected:
            return False
        owner = owners.get(each.inode)
        ends = [str(each.remote), str(each.dport), str(each.local), str(each.sport)]
        return ends == client or (owner is not None and owner.pid in pids)

    return is_own


def _ancestors() -> list[int]:
    """Return the PIDs of this process's ancestors, without that of init."""
    pids: list[int] = []
    pid = os.getppid()
    while pid > 1 and len(pids) < _MOST_ANCESTORS:
        pids.append(pid)
        pid = 0
        with suppress(OSError, ValueError, IndexError):
            # The name, in parentheses, may have any character (proc_pid_stat(5)).
            pid = int(Path(f"/proc/{pids[-1]}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return pids
