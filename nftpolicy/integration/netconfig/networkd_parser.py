# SPDX-License-Identifier: BSD-2-Clause
"""Reader of the .network files of systemd-networkd that nftpolicy did not write (systemd.network(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from attrs import frozen

from ...exceptions import NftpolicyError

OWN_PREFIX = "05-nftpolicy-"  # of the files that nftpolicy writes
_GLOB = re.compile(r"[*?[!]")


class SharedNetworkFile(NftpolicyError):
    """A .network file configures a device of an uplink, and perhaps others."""


@frozen
class Section:
    """Section of a file: its name, and its settings in their order."""

    name: str
    settings: tuple[tuple[str, str], ...]

    def values(self, key: str) -> tuple[str, ...]:
        """Return the values of a key since its last empty assignment."""
        values = [value for name, value in self.settings if name == key]
        last_reset = max((index for index, value in enumerate(values) if not value), default=-1)
        return tuple(values[last_reset + 1 :])


def parse_sections(text: str) -> Iterator[Section]:
    """Yield the sections of a file; lines that are no setting are left out."""
    name, settings = "", list[tuple[str, str]]()
    for line in map(str.strip, text.replace("\\\n", " ").splitlines()):
        if line.startswith("[") and line.endswith("]"):
            yield Section(name, tuple(settings))
            name, settings = line[1:-1], []
        elif "=" in line and line[0] not in "#;":
            key, _, value = line.partition("=")
            settings.append((key.strip(), value.strip()))
    yield Section(name, tuple(settings))


def network_file_of(device: str, same_uplink: frozenset[str], files: Mapping[str, str]) -> str | None:
    """Return the path of the file that configures a device, None if none does.

    `files`: path -> text. networkd takes the first file that matches, by the order of the names.

    Raises:
        SharedNetworkFile: the file may configure devices that are not of `same_uplink`.
    """
    for path in sorted(files, key=lambda path: path.rpartition("/")[2]):
        match = [section for section in parse_sections(files[path]) if section.name == "Match"]
        settings = Section("Match", tuple(setting for section in match for setting in section.settings))
        names = " ".join(settings.values("Name")).split()
        if not settings.settings or (names and not _matches(device, names)):
            continue
        if not names or _GLOB.search(" ".join(names)) or not same_uplink.issuperset(names):
            raise SharedNetworkFile(
                f"{path}: it configures {device}, or may, and other devices too, whose routes must stay where they "
                f"are; write Name={device} alone into [Match] of it, or of a copy whose name sorts before it"
            )
        return path
    return None


def _matches(device: str, names: list[str]) -> bool:
    """Return True if Name= matches the device; "!" before the first pattern inverts the list."""
    inverted = names[0].startswith("!")
    is_named = any(fnmatchcase(device, pattern.removeprefix("!")) for pattern in names)
    return is_named != inverted
