# SPDX-License-Identifier: BSD-2-Clause
"""Servers file of a running dnsmasq, and the change from one list of servers to the next.

dnsmasq drops the queries that it has sent to a server when that server is removed from its list. So
a removed server stays for a while, and may answer new queries until then.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from attrs import define, field

from ...generated_text import CheckedText, fill, join, scoped_address
from ...policy.objects import Address, Server
from ..atomic_file import write_temporary

LEAVING_SECONDS = 5.0  # seconds that a removed server stays: the timeout of a client, resolv.conf(5)
_FILE_NAME = "servers"
_MODE = 0o644  # dnsmasq reads it as an unprivileged user


def resolver_directory(state: Path, uplink: str) -> Path:
    """Return the directory of an uplink's resolver, which the user of dnsmasq may enter.

    `state`: the state directory of the network namespace, which only root may enter.
    """
    return state.parent.with_name(f"{state.parent.name}-resolver") / f"{state.name}-{uplink}"


def lock_path(directory: Path) -> Path:
    """Return the path of the file that a running resolver locks, beside its directory."""
    return directory.with_name(f"{directory.name}.lock")


def servers_file_path(state: Path, uplink: str) -> Path:
    """Return the path of the servers file of an uplink's resolver."""
    return resolver_directory(state, uplink) / _FILE_NAME


def servers_file_in_directory(directory: Path) -> Path:
    """Return the path of the servers file in the directory of a resolver."""
    return directory / _FILE_NAME


def servers_text(servers: Iterable[Server]) -> CheckedText:
    """Return the servers as dnsmasq reads them, in the form of resolv.conf(5). Raises Unwritable."""
    lines = (
        fill("nameserver {server}\n", server=scoped_address(str(server.address), server.zone)) for server in servers
    )
    return join("", lines)


@define
class ServersFile:
    """Servers file of one dnsmasq, which reads it again when another file replaces it (inotify)."""

    path: Path
    servers: tuple[Server, ...] | None = None
    # Removed server -> time when it leaves the file.
    _leaving: dict[Server, float] = field(factory=dict)
    _written: tuple[Server, ...] | None = None
    _mtime: int = 0

    def update(self, servers: tuple[Server, ...], own: Collection[Address], now: float) -> bool:
        """Write the file for these servers; return True if they differ from the last ones.

        `own`: addresses of this host. `now`: monotonic seconds. Raises OSError.
        """
        changed = servers != self.servers
        if changed:
            for server in self.servers or ():
                self._leaving[server] = now + LEAVING_SECONDS
        self.servers = servers
        self._leaving = {
            server: end
            for server, end in self._leaving.items()
            if servers and end > now and server not in servers and server.address not in own
        }
        all_servers = (*servers, *self._leaving)
        if all_servers != self._written:
            self._write(all_servers)
            self._written = all_servers
        return changed

    def due(self) -> float | None:
        """Return the time when the next removed server leaves the file; None without one."""
        return min(self._leaving.values(), default=None)

    def _write(self, all_servers: tuple[Server, ...]) -> None:
        new = self.path.with_suffix(".new")
        write_temporary(new, servers_text(all_servers).encode(), _MODE)
        # dnsmasq reads a file again if its inode or the whole seconds of its mtime differ. A file
        # system may reuse an inode, so each file gets a later mtime.
        self._mtime = max(self._mtime + 1, int(new.stat().st_mtime))
        os.utime(new, (self._mtime, self._mtime))
        new.replace(self.path)
