# SPDX-License-Identifier: BSD-2-Clause
"""Servers file of a running dnsmasq, and the change from one list of servers to the next.

dnsmasq drops the queries that it has sent to a server when that server is removed from its list. So
a removed server stays for a while, and may answer new queries until then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from attrs import define, field

from ...generated_text import CheckedText, fill, join
from ...integration.dnsmasq_servers import domain_values, server_value
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


def servers_text(servers: Iterable[Server], domains: Mapping[str, tuple[Server, ...]]) -> CheckedText:
    """Return the lines of dnsmasq's --servers-file, with the servers for names in domains. Raises Unwritable."""
    values = (*map(server_value, servers), *domain_values(domains))
    return join("", (fill("server={value}\n", value=value) for value in values))


@define
class ServersFile:
    """Servers file of one dnsmasq, which reads it again on SIGHUP.

    `write_text` returns the text of servers and domains.
    """

    path: Path
    write_text: Callable[[tuple[Server, ...], Mapping[str, tuple[Server, ...]]], CheckedText] = servers_text
    servers: tuple[Server, ...] | None = None
    # Removed server -> time when it leaves the file.
    _leaving: dict[Server, float] = field(factory=dict)
    _written: str | None = None

    def update(
        self,
        servers: tuple[Server, ...],
        own: Collection[Address],
        now: float,
        domains: Mapping[str, tuple[Server, ...]] = MappingProxyType({}),
    ) -> bool:
        """Write the file for these servers; return True if dnsmasq has to read it again.

        `own`: addresses of this host. `now`: monotonic seconds. `domains`: the servers for names in domains.
        Raises OSError.
        """
        if servers != self.servers:
            for server in self.servers or ():
                self._leaving[server] = now + LEAVING_SECONDS
        self.servers = servers
        self._leaving = {
            server: end
            for server, end in self._leaving.items()
            if servers and end > now and server not in servers and server.address not in own
        }
        text = self.write_text((*servers, *self._leaving), domains)
        if text == self._written:
            return False
        new = self.path.with_suffix(".new")
        write_temporary(new, text.encode(), _MODE)
        new.replace(self.path)
        self._written = text
        return True

    def due(self) -> float | None:
        """Return the time when the next removed server leaves the file; None without one."""
        return min(self._leaving.values(), default=None)
