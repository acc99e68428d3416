# SPDX-License-Identifier: BSD-2-Clause
"""Registry of the sources: their files and programs, and how to read them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from attrs import field, frozen

from . import dhclient, dhcpcd, leasefile, netifd, networkd, networkmanager, resolved

_MAX_SIZE = 1 << 20  # bytes read from the end of a file; files of dhclient grow
_TIMEOUT = 2.0  # seconds for a program
_MAX_MESSAGE = 200  # characters of a program's error message


@frozen
class Written:
    """Contents of a file, its modification time and the time of the read (seconds since 1970)."""

    data: bytes
    written: float
    now: float


Parser = Callable[[Written, str], Iterable[str]]  # (file, device) -> entries


@frozen
class Source:
    """Source of DNS servers.

    `marker`: path that exists if the program is in use. `patterns`: files, with {device} and
    {index} for a device of the uplink, and their parser `parse`. `program`: command to run, and
    `parse_output` for what it prints.
    """

    sign: str
    patterns: tuple[str, ...] = ()
    parse: Parser = field(default=lambda _file, _device: ())
    program: tuple[str, ...] = ()
    parse_answer: Callable[[str, str], Iterable[str]] = field(default=lambda _text, _device: ())


@frozen
class Reading:
    """Result of reading a source: (device, entry) pairs, and errors ("" without one)."""

    words: tuple[tuple[str, str], ...] = ()
    trouble: str = ""


def _contents_parser(parse: Callable[[bytes], Iterable[str]]) -> Parser:
    return lambda file, _: parse(file.data)


# Keys are those of policy/vocabulary.py. Paths are the defaults in Debian, Fedora and OpenWrt.
SOURCES: Mapping[str, Source] = {
    "networkd": Source(
        "/run/systemd/netif",
        ("/run/systemd/netif/links/{index}", "/run/systemd/netif/leases/{index}"),
        _contents_parser(networkd.parse),
    ),
    "networkmanager": Source(
        "/run/NetworkManager",
        ("/run/NetworkManager/devices/{index}",),
        _contents_parser(networkmanager.parse),
        networkmanager.OBJECTS,
        networkmanager.parse_objects,
    ),
    "resolved": Source(
        "/run/systemd/resolve",
        ("/run/systemd/resolve/netif/{index}",),
        _contents_parser(resolved.parse),
    ),
    "dhclient": Source(
        "/var/lib/dhcp",
        ("/var/lib/dhcp/dhclient*.lease*", "/var/lib/dhclient/dhclient*.lease*"),
        lambda file, device: dhclient.parse(file.data, device, file.now),
    ),
    "dhcpcd": Source(
        "/var/lib/dhcpcd",
        ("/var/lib/dhcpcd/{device}.lease*", "/var/lib/dhcpcd/{device}-*.lease*"),
        lambda file, _: dhcpcd.parse(file.data, file.written, file.now),
    ),
    "udhcpc": Source(
        "/run/nftpolicy/udhcpc",
        ("/run/nftpolicy/udhcpc/{device}",),
        _contents_parser(leasefile.parse),
    ),
    "netifd": Source("/sbin/netifd", program=netifd.DUMP, parse_answer=netifd.parse),
}
HEARD = "ra"  # the only source that is neither a file nor a program


def lease(path: str) -> Source:
    """Return the source for the policy key `lease`."""
    return Source(path, (path,), _contents_parser(leasefile.parse))


def files(source: Source, devices: Iterable[str]) -> tuple[Path, ...]:
    """Return glob patterns of the files to watch for changes.

    {index} becomes "*", since indexes change.
    """
    patterns = (pattern.format(device=device, index="*") for pattern in source.patterns for device in devices)
    return tuple(Path(pattern) for pattern in dict.fromkeys(patterns))


# (name, interface index); None: the device does not exist now.
Devices = Iterable[tuple[str, int | None]]


def read(source: Source, devices: Devices, now: float, root: Path = Path("/")) -> Reading:
    """Read a source for these devices: its files and its program.

    `now`: seconds since 1970. `root` is for tests. Errors are part of the result.
    """
    devices = list(devices)
    from_files = read_files(source, devices, now, root)
    if not source.program or not _under_root(root, source.sign).exists():
        return from_files
    entries, errors = list(from_files.words), [from_files.trouble]
    output, error = _run_program(source.program)
    errors.append(error)
    for device, _ in devices if output else ():
        try:
            entries += [(device, entry) for entry in source.parse_answer(output, device)]
        except (ValueError, RecursionError):
            errors.append(f"cannot parse the output of {source.program[0]}")
    return Reading(tuple(entries), "; ".join(filter(None, dict.fromkeys(errors))))


def read_files(source: Source, devices: Devices, now: float, root: Path = Path("/")) -> Reading:
    """Read only the files of a source; arguments and result as in `read_source`."""
    entries, errors = list[tuple[str, str]](), list[str]()
    if not _under_root(root, source.sign).exists():
        return Reading((), f"{source.sign} does not exist")
    for device, index in devices:
        for file in [file for pattern in source.patterns for file in _matching_files(root, pattern, device, index)]:
            try:
                entries += [(device, entry) for entry in source.parse(_load(file, now), device)]
            except OSError as error:
                errors.append(f"{file}: {error.strerror}")
    return Reading(tuple(entries), "; ".join(dict.fromkeys(errors)))


def _under_root(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _matching_files(root: Path, pattern: str, device: str, index: int | None) -> list[Path]:
    """Return the files of a pattern, newest first."""
    if index is None and "{index}" in pattern:
        return []
    path = _under_root(root, pattern.format(device=device, index=index))
    if "*" not in path.name:
        return [path] if path.exists() else []
    try:
        return sorted(path.parent.glob(path.name), key=lambda file: file.stat().st_mtime, reverse=True)
    except OSError:  # a file was removed meanwhile: inotify reports that for its directory
        return []


def _load(file: Path, now: float) -> Written:
    with file.open("rb") as opened:
        status = os.fstat(opened.fileno())
        opened.seek(max(0, status.st_size - _MAX_SIZE))
        return Written(opened.read(_MAX_SIZE), status.st_mtime, now)


def _run_program(program: tuple[str, ...]) -> tuple[str, str]:
    """Run a program; return its output and "", or "" and the reason for the failure."""
    name = program[0]
    try:
        done = subprocess.run(
            program,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        return "", f"program {name} not found"
    except subprocess.TimeoutExpired:
        return "", f"{name} did not answer within {_TIMEOUT:.0f} s"
    except OSError as error:
        return "", f"{name}: {error.strerror}"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return (
            "",
            f"{name}: {lines[-1][:_MAX_MESSAGE] if lines else f'exit status {done.returncode}'}",
        )
    return done.stdout, ""
