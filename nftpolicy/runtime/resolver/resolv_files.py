# SPDX-License-Identifier: BSD-2-Clause
"""Configuration files of the host's own resolver, read for `resolv_leaks`, and their changes."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from ...policy.lint import SYSTEM_RESOLV_FILES
from ...policy.objects import Address, Policy, lease_file
from ..regular_file import read_regular
from .resolv_leaks import ResolverLeak, UplinkDns, find_leaks, is_dnsmasq_config
from .sources import registry
from .sources.filter import HostAddresses, usable_servers

_MAX_SIZE = 256 << 10  # bytes of a file that are read
_MAX_FILES = 1000
_PATTERNS = (
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/resolvconf/interface/*",
    "/run/resolvconf/interfaces/*",
    "/etc/dnsmasq.conf",
    "/etc/dnsmasq.d/*",
    "/var/etc/dnsmasq.conf.*",
    *(
        f"{top}/systemd/network/{pattern}"
        for top in ("/usr/lib", "/run", "/etc")
        for pattern in ("*.network", "*.network.d/*.conf")
    ),
    "/etc/NetworkManager/NetworkManager.conf",
    "/etc/NetworkManager/conf.d/*.conf",
    "/etc/NetworkManager/system-connections/*.nmconnection",
    "/run/NetworkManager/system-connections/*.nmconnection",
    "/run/NetworkManager/devices/*",
    "/etc/config/network",
)


def find_host_leaks(policy: Policy, root: Path = Path("/")) -> list[ResolverLeak]:
    """Return the leaks on this host, of all files that are readable. `root` is for tests."""
    indexes = _indexes(policy)
    texts = {_path_in_root(file, root): _text(file) for file in _files(root)}
    for path in _dnsmasq_resolv_files(texts):
        texts.setdefault(path, _text(root / path.lstrip("/")))
    devices = {device: name for name, uplink in policy.uplink.items() for device in uplink.devices}
    return find_leaks(texts, UplinkDns(devices, indexes, _known_servers(policy, indexes, root)))


def _indexes(policy: Policy) -> dict[str, int]:
    """Return the interface indexes of the uplinks' devices that exist."""
    indexes = {}
    for uplink in policy.uplink.values():
        for device in uplink.devices:
            with suppress(OSError):
                indexes[device] = socket.if_nametoindex(device)
    return indexes


def _known_servers(policy: Policy, indexes: dict[str, int], root: Path) -> dict[Address, str]:
    """Return the servers of the uplinks, from the policy and from files. Runs no program."""
    host = HostAddresses(device_names={index: name for name, index in indexes.items()})
    servers: dict[Address, str] = {}
    for name, uplink in policy.uplink.items():
        sources = [source for source in registry.SOURCES.values() if source.patterns]
        if uplink.resolver:
            lease = lease_file(name, uplink.resolver)
            if lease not in SYSTEM_RESOLV_FILES:  # policy.lint warns about those
                sources.append(registry.lease_source(lease))
            servers |= {server.address: name for server in uplink.resolver.named_servers}
        devices = [(device, indexes.get(device)) for device in uplink.devices]
        for source in sources:
            entries = registry.read_source_files(source, devices, time.time(), root).entries
            usable = usable_servers(entries, uplink.devices, host).servers
            servers |= {server.address: name for server in usable}
    return servers


def _files(root: Path) -> list[Path]:
    files: list[Path] = []
    for pattern in _PATTERNS:
        with suppress(OSError):
            files += sorted(root.glob(pattern.lstrip("/")))
    return files[:_MAX_FILES]


def _path_in_root(file: Path, root: Path) -> str:
    return f"/{file.relative_to(root)}"


def _text(file: Path) -> str:
    """Return the contents of a file; "" if it is not readable, as for an ordinary user."""
    try:
        return read_regular(file, _MAX_SIZE).decode(errors="replace")
    except (OSError, ValueError):
        return ""


def _dnsmasq_resolv_files(texts: dict[str, str]) -> list[str]:
    """Return the files that dnsmasq reads its servers from."""
    lines = [line for path, text in texts.items() if is_dnsmasq_config(path) for line in text.split("\n")]
    return [line.partition("=")[2].strip() for line in lines if line.strip().startswith("resolv-file=")]


@define
class LeakWatcher:
    """Reports leaks that appear and disappear.

    `changes` takes a millisecond as long as no file changes.
    """

    root: Path = Path("/")
    _known: dict[ResolverLeak, None] = field(factory=dict)
    _stamps: object = None

    def changes(self, policy: Policy | None) -> Iterator[dict[str, Any]]:
        """Yield the changes since the last call, as fields of log events.

        None: no policy, and so no leaks.
        """
        stamps = None if policy is None else (policy, self._file_stamps(policy))
        if stamps == self._stamps:
            return
        self._stamps = stamps
        current = dict.fromkeys(find_host_leaks(policy, self.root)) if policy else {}
        known, self._known = self._known, current
        for leak in current.keys() - known.keys():
            yield {
                "state": "appeared",
                "place": _location(leak),
                "what": leak.problem,
                "instead": leak.fix,
            }
        for leak in known.keys() - current.keys():
            yield {"state": "gone", "place": _location(leak), "what": leak.problem}

    def _file_stamps(self, policy: Policy) -> object:
        files = _files(self.root)
        for name, uplink in policy.uplink.items():
            leases = [registry.lease_source(lease_file(name, uplink.resolver))] if uplink.resolver else []
            for source in (*registry.SOURCES.values(), *leases):
                for pattern in registry.watched_patterns(source, uplink.devices):
                    with suppress(OSError, ValueError):
                        files += sorted(self.root.glob(str(pattern).lstrip("/")))
        stamps = [stamp for file in files[:_MAX_FILES] if (stamp := _stamp_of(file))]
        return stamps, tuple(_indexes(policy).items())


def _stamp_of(file: Path) -> tuple[str, int, int, int] | None:
    """Return values that change with the contents of a file; None if it does not exist."""
    try:
        status = file.stat()
    except OSError:
        return None
    return str(file), status.st_ino, status.st_mtime_ns, status.st_size


def _location(leak: ResolverLeak) -> str:
    return leak.file if leak.line is None else f"{leak.file}:{leak.line}"
