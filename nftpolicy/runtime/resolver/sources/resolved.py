# SPDX-License-Identifier: BSD-2-Clause
"""systemd-resolved: /run/systemd/resolve/netif/INDEX, set by D-Bus or resolvectl(1). Pure.

resolved writes no such file for devices that networkd manages: it reads networkd's files for those.
"""

from __future__ import annotations

from collections.abc import Iterator

from .keyfile import value_words


def parse(data: bytes) -> Iterator[str]:
    """Yield the servers, in networkd's format."""
    yield from value_words(data.decode(errors="replace"), ("", "SERVERS"))
