# SPDX-License-Identifier: BSD-2-Clause
"""systemd-resolved: /run/systemd/resolve/netif/INDEX, what was set for a device by D-Bus or resolvectl(1). Pure.

resolved writes no such file for devices that networkd manages: those it reads from networkd's.
"""

from __future__ import annotations

from collections.abc import Iterator

from .keyfile import words_of


def parse(data: bytes) -> Iterator[str]:
    """The servers, in the form of networkd's."""
    yield from words_of(data.decode(errors="replace"), ("", "SERVERS"))
