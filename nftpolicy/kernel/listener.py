# SPDX-License-Identifier: BSD-2-Clause
"""What is waited on together: sockets, and a watch of files."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from .inotify import Files, Patterns

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1


class Listener:
    """Sockets that never wait, in the network namespace of the thread that opens them. A context manager.

    Wait on `descriptors`, then read.
    """

    def __init__(self, files: Files | Patterns) -> None:
        self._watched = files
        self._sockets: list[socket.socket] = []

    def _open(self, family: int, protocol: int) -> socket.socket:
        made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
        self._sockets.append(made)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Can be called twice."""
        for one in self._sockets:
            one.close()
        self._watched.close()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to wait on."""
        return (self._watched.descriptor, *(one.fileno() for one in self._sockets))


def join(channel: socket.socket, groups: Iterable[int]) -> None:
    """Have a netlink socket told what the kernel tells these groups; those of IPv6 where the kernel has it."""
    channel.bind((0, 0))
    for group in groups:
        with suppress(FileNotFoundError):  # a kernel without IPv6
            channel.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
