# SPDX-License-Identifier: BSD-2-Clause
"""The file by which a running dnsmasq knows its servers, and the change from one list to the next.

dnsmasq forgets the queries that it has sent to a server when that server goes from its list. So a server that leaves
stays behind the others for a while: in strict order nothing new is asked of it as long as they answer.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from attrs import define, field

from ...policy.objects import Address, Server

LEAVING = 5.0  # seconds; as long as a client waits for its answer, resolv.conf(5)


@define
class Upstream:
    """`file` is read by dnsmasq whenever another takes its place (inotify)."""

    file: Path
    servers: tuple[Server, ...] | None = None
    _leaving: dict[Server, float] = field(factory=dict)  # and when it goes
    _written: tuple[Server, ...] | None = None
    _stamp: int = 0

    def take(self, servers: tuple[Server, ...], own: Collection[Address], now: float) -> bool:
        """Have dnsmasq ask these; whether they are others than before. `own` are addresses of this machine. OSError."""
        changed = servers != self.servers
        if changed:
            for one in self.servers or ():
                self._leaving[one] = now + LEAVING
        self.servers = servers
        self._leaving = {
            one: end
            for one, end in self._leaving.items()
            if servers and end > now and one not in servers and one.address not in own
        }
        listed = (*servers, *self._leaving)
        if listed != self._written:
            self._write(listed)
            self._written = listed
        return changed

    def due(self) -> float | None:
        """When the next server goes."""
        return min(self._leaving.values(), default=None)

    def _write(self, listed: tuple[Server, ...]) -> None:
        new = self.file.with_suffix(".new")
        new.write_text("".join(f"nameserver {server}\n" for server in listed))
        new.chmod(0o644)
        # dnsmasq reads a file again if its inode or the whole seconds of its time are others than before; a file
        # system may use an inode again.
        self._stamp = max(self._stamp + 1, int(new.stat().st_mtime))
        os.utime(new, (self._stamp, self._stamp))
        new.replace(self.file)
