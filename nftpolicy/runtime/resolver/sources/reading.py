# SPDX-License-Identifier: BSD-2-Clause
"""Where each source is found, and how it is asked: one table."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from attrs import field, frozen

from . import dhclient, dhcpcd, leasefile, netifd, networkd, networkmanager, resolved

_LARGEST = 1 << 20  # bytes of a file that are read: no lease is as long, and dhclient's files are made anew at times
_PATIENCE = 2.0  # seconds for a program


@frozen
class Written:
    """A file as it was found: its bytes, when it was written and when it was read (seconds since 1970)."""

    data: bytes
    written: float
    now: float


Parser = Callable[[Written, str], Iterable[str]]  # (file, device) -> words


@frozen
class Source:
    """`sign` is there when the program is in use. `patterns` of files, with {device} and {index} for the uplink's;
    a `program` to be asked, and what reads its answer."""

    sign: str
    patterns: tuple[str, ...] = ()
    parse: Parser = field(default=lambda _file, _device: ())
    program: tuple[str, ...] = ()
    parse_answer: Callable[[str, str], Iterable[str]] = field(default=lambda _text, _device: ())


@frozen
class Reading:
    """What a source says: its words, each with the device, and what is in the way of more ("" for nothing)."""

    words: tuple[tuple[str, str], ...] = ()
    trouble: str = ""


def _plain(parse: Callable[[bytes], Iterable[str]]) -> Parser:
    return lambda file, _: parse(file.data)


# By the words of policy/words.py. Paths are those that the programs are built with in Debian, Fedora and OpenWrt.
SOURCES: Mapping[str, Source] = {
    "networkd": Source(
        "/run/systemd/netif",
        ("/run/systemd/netif/links/{index}", "/run/systemd/netif/leases/{index}"),
        _plain(networkd.parse),
    ),
    "networkmanager": Source(
        "/run/NetworkManager",
        ("/run/NetworkManager/devices/{index}",),
        _plain(networkmanager.parse),
        networkmanager.OBJECTS,
        networkmanager.parse_objects,
    ),
    "resolved": Source("/run/systemd/resolve", ("/run/systemd/resolve/netif/{index}",), _plain(resolved.parse)),
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
    "udhcpc": Source("/run/nftpolicy/udhcpc", ("/run/nftpolicy/udhcpc/{device}",), _plain(leasefile.parse)),
    "netifd": Source("/sbin/netifd", program=netifd.DUMP, parse_answer=netifd.parse),
}
HEARD = "ra"  # the one source that is neither a file nor a program


def lease(path: str) -> Source:
    """The policy's `lease`."""
    return Source(path, (path,), _plain(leasefile.parse))


def files(source: Source, devices: Iterable[str]) -> tuple[Path, ...]:
    """Patterns of the files that tell, for who waits for a change; a device's index is any number, as it may change."""
    named = (pattern.format(device=one, index="*") for pattern in source.patterns for one in devices)
    return tuple(Path(one) for one in dict.fromkeys(named))


Devices = Iterable[tuple[str, int | None]]  # names and indexes; no index where there is no such device now


def read(source: Source, devices: Devices, now: float, root: Path = Path("/")) -> Reading:
    """Ask a source of devices: its files and its program. `now` in seconds since 1970; `root` is for tests."""
    devices = list(devices)
    found = read_files(source, devices, now, root)
    if not source.program or not _below(root, source.sign).exists():
        return found
    words, troubles = list(found.words), [found.trouble]
    answer, trouble = _ask(source.program)
    troubles.append(trouble)
    for device, _ in devices if answer else ():
        try:
            words += [(device, word) for word in source.parse_answer(answer, device)]
        except (ValueError, RecursionError):
            troubles.append(f"{source.program[0]} printed something that is not understood")
    return Reading(tuple(words), "; ".join(filter(None, dict.fromkeys(troubles))))


def read_files(source: Source, devices: Devices, now: float, root: Path = Path("/")) -> Reading:
    """The same, of the files alone."""
    words, troubles = list[tuple[str, str]](), list[str]()
    if not _below(root, source.sign).exists():
        return Reading((), f"{source.sign} is not there")
    for device, index in devices:
        for file in [file for pattern in source.patterns for file in _files(root, pattern, device, index)]:
            try:
                words += [(device, word) for word in source.parse(_load(file, now), device)]
            except OSError as error:
                troubles.append(f"{file}: {error.strerror}")
    return Reading(tuple(words), "; ".join(dict.fromkeys(troubles)))


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _files(root: Path, pattern: str, device: str, index: int | None) -> list[Path]:
    """The files of a pattern, the newest first."""
    if index is None and "{index}" in pattern:
        return []
    path = _below(root, pattern.format(device=device, index=index))
    if "*" not in path.name:
        return [path] if path.exists() else []
    try:
        return sorted(path.parent.glob(path.name), key=lambda one: one.stat().st_mtime, reverse=True)
    except OSError:  # one has gone meanwhile: its folder tells of that
        return []


def _load(file: Path, now: float) -> Written:
    with file.open("rb") as opened:
        status = os.fstat(opened.fileno())
        opened.seek(max(0, status.st_size - _LARGEST))
        return Written(opened.read(_LARGEST), status.st_mtime, now)


def _ask(program: tuple[str, ...]) -> tuple[str, str]:
    """What a program prints, or why there is nothing."""
    name = program[0]
    try:
        done = subprocess.run(
            program, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False, text=True,
            errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        return "", f"the program {name} is missing"
    except subprocess.TimeoutExpired:
        return "", f"{name} did not answer within {_PATIENCE:.0f} s"
    except OSError as error:
        return "", f"{name}: {error.strerror}"
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return "", f"{name}: {said[-1][:200] if said else f'exit status {done.returncode}'}"
    return done.stdout, ""
