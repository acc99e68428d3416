# SPDX-License-Identifier: BSD-2-Clause
"""The files that say whom this machine's own resolver asks, read for `resolver_leaks`, and whether they change."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from ...policy.lint import SYSTEM
from ...policy.objects import Address, Policy, lease_of
from .leaks import Leak, Learned, is_dnsmasq, leaks
from .sources import reading
from .sources.choice import Machine, chosen

_LARGEST = 256 << 10  # bytes of a file that are read
_MOST = 1000  # files
_PATTERNS = (
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/resolvconf/interface/*",
    "/run/resolvconf/interfaces/*",
    "/etc/dnsmasq.conf",
    "/etc/dnsmasq.d/*",
    "/var/etc/dnsmasq.conf.*",
    *(
        f"{top}/systemd/network/{rest}"
        for top in ("/usr/lib", "/run", "/etc")
        for rest in ("*.network", "*.network.d/*.conf")
    ),
    "/etc/NetworkManager/NetworkManager.conf",
    "/etc/NetworkManager/conf.d/*.conf",
    "/etc/NetworkManager/system-connections/*.nmconnection",
    "/run/NetworkManager/system-connections/*.nmconnection",
    "/run/NetworkManager/devices/*",
    "/etc/config/network",
)


def found(policy: Policy, root: Path = Path("/")) -> list[Leak]:
    """The places on this machine, as far as they may be read. `root` is for tests."""
    indexes = _indexes(policy)
    texts = {_inside(file, root): _text(file) for file in _files(root)}
    for path in _named_by_dnsmasq(texts):
        texts.setdefault(path, _text(root / path.lstrip("/")))
    devices = {device: name for name, uplink in policy.uplink.items() for device in uplink.devices}
    return leaks(texts, Learned(devices, indexes, _learned(policy, indexes, root)))


def _indexes(policy: Policy) -> dict[str, int]:
    known = {}
    for uplink in policy.uplink.values():
        for device in uplink.devices:
            with suppress(OSError):
                known[device] = socket.if_nametoindex(device)
    return known


def _learned(policy: Policy, indexes: dict[str, int], root: Path) -> dict[Address, str]:
    """The servers that the uplinks brought, by files alone: no program is started for this."""
    machine = Machine(names={index: name for name, index in indexes.items()})
    known: dict[Address, str] = {}
    for name, uplink in policy.uplink.items():
        sources = [one for one in reading.SOURCES.values() if one.patterns]
        if uplink.resolver:
            if (lease := lease_of(name, uplink.resolver)) not in SYSTEM:  # which is warned of already
                sources.append(reading.lease(lease))
            known |= {one.address: name for one in uplink.resolver.servers}
        devices = [(device, indexes.get(device)) for device in uplink.devices]
        for source in sources:
            words = reading.read_files(source, devices, time.time(), root).words
            known |= {one.address: name for one in chosen(words, uplink.devices, machine).servers}
    return known


def _files(root: Path) -> list[Path]:
    files: list[Path] = []
    for pattern in _PATTERNS:
        with suppress(OSError):
            files += sorted(root.glob(pattern.lstrip("/")))
    return files[:_MOST]


def _inside(file: Path, root: Path) -> str:
    return f"/{file.relative_to(root)}"


def _text(file: Path) -> str:
    """What is in the file; "" if it can't be read, as by an ordinary user."""
    try:
        with file.open("rb") as opened:
            return opened.read(_LARGEST).decode(errors="replace")
    except (OSError, ValueError):
        return ""


def _named_by_dnsmasq(texts: dict[str, str]) -> list[str]:
    lines = [line for path, text in texts.items() if is_dnsmasq(path) for line in text.split("\n")]
    return [line.partition("=")[2].strip() for line in lines if line.strip().startswith("resolv-file=")]


@define
class Watcher:
    """Tells of places that appear and go. `look` costs a millisecond as long as no file changes."""

    root: Path = Path("/")
    _known: dict[Leak, None] = field(factory=dict)
    _stamps: object = None

    def look(self, policy: Policy | None) -> Iterator[dict[str, Any]]:
        """What has changed since the last look, as facts of an event. None: there is no policy, so nothing leaks."""
        stamps = None if policy is None else (policy, self._stamp(policy))
        if stamps == self._stamps:
            return
        self._stamps = stamps
        now = dict.fromkeys(found(policy, self.root)) if policy else {}
        known, self._known = self._known, now
        for one in now.keys() - known.keys():
            yield {"state": "appeared", "place": _place(one), "what": one.what, "instead": one.instead}
        for one in known.keys() - now.keys():
            yield {"state": "gone", "place": _place(one), "what": one.what}

    def _stamp(self, policy: Policy) -> object:
        files = _files(self.root)
        for name, uplink in policy.uplink.items():
            leases = [reading.lease(lease_of(name, uplink.resolver))] if uplink.resolver else []
            for source in (*reading.SOURCES.values(), *leases):
                for pattern in reading.files(source, uplink.devices):
                    with suppress(OSError, ValueError):
                        files += sorted(self.root.glob(str(pattern).lstrip("/")))
        return [stamp for file in files[:_MOST] if (stamp := _stamp_of(file))], tuple(_indexes(policy).items())


def _stamp_of(file: Path) -> tuple[str, int, int, int] | None:
    try:
        known = file.stat()
    except OSError:
        return None
    return str(file), known.st_ino, known.st_mtime_ns, known.st_size


def _place(one: Leak) -> str:
    return one.file if one.line is None else f"{one.file}:{one.line}"
