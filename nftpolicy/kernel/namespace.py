# SPDX-License-Identifier: BSD-2-Clause
"""Which network namespace this is."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14


def namespace_cookie() -> int:
    """A number of the network namespace that is not used again until the machine restarts.

    Before Linux 5.14 it is the namespace's inode, which may be used again.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        try:
            return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return Path("/proc/self/ns/net").stat().st_ino
