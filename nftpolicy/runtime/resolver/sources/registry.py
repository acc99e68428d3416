# SPDX-License-Identifier: BSD-2-Clause
"""Registry of the sources: their files and programs, and how to read them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from attrs import field, frozen

from ...helper_environment import helper_environment
from ...regular_file import open_regular
from . import dhclient, dhcpcd, lease_file, netifd, networkd, networkmanager, resolved

_MAX_SIZE = 1 << 20  # bytes read from the end of a file; files of dhclient grow
_TIMEOUT = 2.0  # seconds for a program
_MAX_MESSAGE = 200  # characters of a program's error message


@frozen
class FileSnapshot:
    """Contents of a file, its modification time and the time of the read (seconds since 1970)."""

    data: bytes
    modified: float
    read_at: float


FileParser = Callable[[FileSnapshot, str], Iterable[str]]  # (file, device) -> entries


@frozen
class DnsSource:
    """Source of DNS servers.

    `marker`: path that exists if the program is in use. `patterns`: files, with {device} and
    {index} for a device of the uplink, and their parser `parse`. `program`: command to run, and
    `parse_output` for what it prints.
    """

    marker: str
    patterns: tuple[str, ...] = ()
    parse: FileParser = field(default=lambda _file, _device: ())
    program: tuple[str, ...] = ()
    parse_output: Callable[[str, str], Iterable[str]] = field(default=lambda _text, _device: ())


@frozen
class SourceReading:
    """Result of reading a source: (device, entry) pairs, and errors ("" without one)."""

    entries: tuple[tuple[str, str], ...] = ()
    error: str = ""


def _contents_parser(parse: Callable[[bytes], Iterable[str]]) -> FileParser:
    return lambda file, _: parse(file.data)


# Keys are those of policy/vocabulary.py. Paths are the defaults in Debian, Fedora and OpenWrt.
SOURCES: Mapping[str, DnsSource] = {
    "networkd": DnsSource(
        "/run/systemd/netif",
        ("/run/systemd/netif/links/{index}", "/run/systemd/netif/leases/{index}"),
        _contents_parser(networkd.parse),
    ),
    "networkmanager": DnsSource(
        "/run/NetworkManager",
        ("/run/NetworkManager/devices/{index}",),
        _contents_parser(networkmanager.parse),
        networkmanager.OBJECTS_COMMAND,
        networkmanager.parse_objects,
    ),
    "resolved": DnsSource(
        "/run/systemd/resolve",
        ("/run/systemd/resolve/netif/{index}",),
        _contents_parser(resolved.parse),
    ),
    "dhclient": DnsSource(
        "/var/lib/dhcp",
        ("/var/lib/dhcp/dhclient*.lease*", "/var/lib/dhclient/dhclient*.lease*"),
        lambda file, device: dhclient.parse(file.data, device, file.read_at),
    ),
    "dhcpcd": DnsSource(
        "/var/lib/dhcpcd",
        ("/var/lib/dhcpcd/{device}.lease*", "/var/lib/dhcpcd/{device}-*.lease*"),
        lambda file, _: dhcpcd.parse(file.data, file.modified, file.read_at),
    ),
    "udhcpc": DnsSource(
        "/run/nftpolicy/udhcpc",
        ("/run/nftpolicy/udhcpc/{device}",),
        _contents_parser(lease_file.parse),
    ),
    "netifd": DnsSource("/sbin/netifd", program=netifd.DUMP_COMMAND, parse_output=netifd.parse),
}
SOURCE_RA = "ra"  # the only source that is neither a file nor a program


def lease_source(path: str) -> DnsSource:
    """Return the source for the policy key `lease`."""
    return DnsSource(path, (path,), _contents_parser(lease_file.parse))


def watched_patterns(source: DnsSource, devices: Iterable[str]) -> tuple[Path, ...]:
    """Return glob patterns of the files to watch for changes.

    {index} becomes "*", since indexes change.
    """
    patterns = (pattern.format(device=device, index="*") for pattern in source.patterns for device in devices)
    return tuple(Path(pattern) for pattern in dict.fromkeys(patterns))


# (name, interface index); None: the device does not exist now.
IndexedDevices = Iterable[tuple[str, int | None]]


def read_source(source: DnsSource, devices: IndexedDevices, now: float, root: Path = Path("/")) -> SourceReading:
    """Read a source for these devices: its files and its program.

    `now`: seconds since 1970. `root` is for tests. Errors are part of the result.
    """
    devices = list(devices)
    from_files = read_source_files(source, devices, now, root)
    if not source.program or not _under_root(root, source.marker).exists():
        return from_files
    entries, errors = list(from_files.entries), [from_files.error]
    output, error = _run_program(source.program)
    errors.append(error)
    for device, _ in devices if output else ():
        try:
            entries += [(device, entry) for entry in source.parse_output(output, device)]
        except (ValueError, RecursionError):
            errors.append(f"cannot parse the output of {source.program[0]}")
    return SourceReading(tuple(entries), "; ".join(filter(None, dict.fromkeys(errors))))


def read_source_files(source: DnsSource, devices: IndexedDevices, now: float, root: Path = Path("/")) -> SourceReading:
    """Read only the files of a source; arguments and result as in `read_source`."""
    entries, errors = list[tuple[str, str]](), list[str]()
    if not _under_root(root, source.marker).exists():
        return SourceReading((), f"{source.marker} does not exist")
    for device, index in devices:
        for file in [file for pattern in source.patterns for file in _matching_files(root, pattern, device, index)]:
            try:
                entries += [(device, entry) for entry in source.parse(_load(file, now), device)]
            except OSError as error:
                errors.append(f"{file}: {error.strerror}")
    return SourceReading(tuple(entries), "; ".join(dict.fromkeys(errors)))


def _under_root(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _matching_files(root: Path, pattern: str, device: str, index: int | None) -> list[Path]:
    """Return the files of a pattern, newest first."""
    if index is None and "{index}" in pattern:
        return []
    path = _under_root(root, pattern.format(device=device, index=index))
    if "*" not in path.name:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            pass  # the file is read, and the error reported: systemd-resolved's directory is closed to other users
        return [path]
    try:
        return sorted(path.parent.glob(path.name), key=lambda file: file.stat().st_mtime, reverse=True)
    except OSError:  # a file was removed meanwhile: inotify reports that for its directory
        return []


def _load(file: Path, now: float) -> FileSnapshot:
    with open_regular(file) as opened:
        status = os.fstat(opened.fileno())
        opened.seek(max(0, status.st_size - _MAX_SIZE))
        return FileSnapshot(opened.read(_MAX_SIZE), status.st_mtime, now)


def _run_program(program: tuple[str, ...]) -> tuple[str, str]:
    """Run a program; return its output and "", or "" and the reason for the failure."""
    name = program[0]
    try:
        result = subprocess.run(
            program,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            text=True,
            errors="replace",
            env=helper_environment(),
            start_new_session=True,
        )
    except FileNotFoundError:
        return "", f"program {name} not found"
    except subprocess.TimeoutExpired:
        return "", f"{name} did not answer within {_TIMEOUT:.0f} s"
    except OSError as error:
        return "", f"{name}: {error.strerror}"
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        return (
            "",
            f"{name}: {lines[-1][:_MAX_MESSAGE] if lines else f'exit status {result.returncode}'}",
        )
    return result.stdout, ""
