# SPDX-License-Identifier: BSD-2-Clause
"""Identity of the network namespace."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14


def netns_cookie() -> int:
    """Return a number of this network namespace that is not used again before the machine restarts.

    Before Linux 5.14 it is the inode of the namespace, which may be used again.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return socket_cookie(probe) or Path("/proc/self/ns/net").stat().st_ino


def socket_cookie(probe: socket.socket) -> int:
    """Return the number of the network namespace of a socket; 0 before Linux 5.14."""
    try:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        return 0
