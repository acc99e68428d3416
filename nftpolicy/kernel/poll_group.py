# SPDX-License-Identifier: BSD-2-Clause
"""A group of sockets and one inotify watch, to be waited for together."""

from __future__ import annotations

import socket
from typing import Self

from .inotify import FilePatternWatch, SysctlWatch


class PollGroup:
    """Non-blocking sockets in the network namespace of the thread that opens them, and an inotify watch.

    A context manager. Wait for `descriptors` with select(2) or poll(2), then read.
    """

    def __init__(self, watch: SysctlWatch | FilePatternWatch) -> None:
        self._watch = watch
        self._sockets: list[socket.socket] = []

    def _open(self, family: int, protocol: int) -> socket.socket:
        flags = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        opened = socket.socket(family, socket.SOCK_RAW | flags, protocol)
        self._sockets.append(opened)
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors. Can be called twice."""
        for opened in self._sockets:
            opened.close()
        self._watch.close()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return the file descriptors that become readable at an event."""
        return (self._watch.descriptor, *(opened.fileno() for opened in self._sockets))
