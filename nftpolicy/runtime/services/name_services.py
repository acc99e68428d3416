# SPDX-License-Identifier: BSD-2-Clause
"""Programs that the C library asks for names in place of DNS: systemd-resolved (nss-resolve) and nscd.

They send the queries as their own user, so that a service would get the answers of another network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from ...policy.objects import Policy
from ..regular_file import read_regular

NSSWITCH = "/etc/nsswitch.conf"
_MAX_SIZE = 1 << 16  # bytes
_ACTION = re.compile(r"(!?\w+)\s*=\s*(\w+)")
_SOURCE = re.compile(r"\[[^\]]*\]|[^\s\[]+")
WITHOUT_DNS = "a service does not reach systemd-resolved, so it finds no name; write 'dns' behind the other sources"


@frozen
class HostsLine:
    """Entry "hosts" of nsswitch.conf(5): number of its line, and its sources with their actions."""

    line: int
    sources: tuple[tuple[str, str], ...]

    def has(self, name: str) -> bool:
        """Return True if a source has this name."""
        return any(source == name for source, _ in self.sources)

    def reaches_dns_without_daemons(self) -> bool:
        """Return True if a lookup comes to the source dns although no daemon answers the sources before it."""
        for source, actions in self.sources:
            if source == "dns":
                return True
            if _returns_if_unavailable(actions):
                return False
        return False


def parse_hosts(text: str) -> HostsLine | None:
    """Return the entry "hosts" of nsswitch.conf(5), None without one."""
    for number, line in enumerate(text.splitlines(), 1):
        database, colon, value = line.partition("#")[0].partition(":")
        if not colon or database.strip() != "hosts":
            continue
        sources: list[tuple[str, str]] = []
        for word in _SOURCE.findall(value):
            if not word.startswith("["):
                sources.append((word, ""))
            elif sources:
                sources[-1] = (sources[-1][0], word[1:-1].lower())
        return HostsLine(number, tuple(sources))
    return None


def _returns_if_unavailable(actions: str) -> bool:
    """Return True if the lookup ends at a source without an answer (UNAVAIL); by default it continues."""
    returns = False
    for status, action in _ACTION.findall(actions):
        if status != "!unavail" if status.startswith("!") else status == "unavail":
            returns = action == "return"
    return returns


def find_name_daemons(policy: Policy, root: Path = Path("/")) -> Iterator[str]:
    """Yield what a service of the policy has to know of this host's name services, as messages.

    `root` is for tests.
    """
    names = [
        name
        for name, service in policy.service.items()
        if not service.kernel and policy.uplink[service.uplink].resolver is not None
    ]
    if not names:
        return
    hosts = read_hosts(root)
    if hosts is not None and not hosts.reaches_dns_without_daemons():
        yield f"{NSSWITCH}:{hosts.line}: {WITHOUT_DNS}"
    start = f"start service {names[0]} by its drop-in ('nftpolicy units') or 'nftpolicy run', which hide that socket"
    if hosts is not None and hosts.has("resolve"):
        yield f"{NSSWITCH}:{hosts.line}: resolve: systemd-resolved asks the servers of another network; {start}"
    path = "/run/nscd/socket"
    if (root / path.lstrip("/")).exists():
        yield f"{path}: nscd answers the C library with names of another network; {start}"


def read_hosts(root: Path) -> HostsLine | None:
    """Return the entry "hosts" of this host, None without one."""
    try:
        text = read_regular(root / NSSWITCH.lstrip("/"), _MAX_SIZE)
    except OSError:
        return None
    return parse_hosts(text.decode(errors="replace"))
