# SPDX-License-Identifier: BSD-2-Clause
"""What `install` puts where, and how `uninstall` takes it away again.

Below a root: "/" for this machine, another folder for an image or a package (DESTDIR).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from attrs import evolve, frozen

from .boot import GUARD, Tables
from .files import Manifest, below, content_of, put
from .units import NAMES, POLICY

BOOTED = Path("/run/systemd/system")  # is there when systemd runs the machine: sd_booted(3)
_SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


class Conflict(Exception):
    """Files are there that were not installed, or were changed since. Nothing was written."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        super().__init__(", ".join(map(str, paths)))


class CommandFailed(Exception):
    """A command of systemd failed; the words say which and how."""


def found_program(name: str) -> str | None:
    """Where a program of this machine is, or None."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATHS)


def this_program() -> str | None:
    """How this program is called, as an absolute path, or None if it is called in another way (python -m)."""
    called = shutil.which(sys.argv[0]) if Path(sys.argv[0]).name == "nftpolicy" else None
    beside = Path(sys.executable).with_name("nftpolicy")
    found = called or (str(beside) if beside.exists() else None) or found_program("nftpolicy")
    return str(Path(found).absolute()) if found else None


class Files(Protocol):
    """Something that is to be installed."""

    def files(self) -> dict[str, bytes]:
        """Path as the system knows it -> content, in the order of writing."""


@frozen
class Wanted:
    """Path as the system knows it -> content. `policy` is None if there is no file of it to be written."""

    units: Mapping[str, str]
    unitdir: str
    tables: Tables | None = None
    policy: bytes | None = None

    def files(self) -> dict[str, bytes]:
        """All of them; the units last, so that what they name is there."""
        found = {POLICY: self.policy} if self.policy is not None else {}
        if self.tables is not None:
            found |= {str(path): content for path, content in self.tables.files(GUARD).items()}
        return found | {f"{self.unitdir.rstrip('/')}/{name}": text.encode() for name, text in self.units.items()}


def install(root: Path, wanted: Files, force: bool = False) -> list[Path]:
    """Put everything in place, all or nothing; which files were written, none if all were there.

    Raises:
        Conflict: other files are there, and not `force`. Damaged, OSError: see runtime.files.
    """
    return place(root, wanted.files(), force, theirs=frozenset({POLICY}))


def place(
    root: Path,
    files: Mapping[str, bytes],
    force: bool = False,
    theirs: Collection[str] = (),
    modes: Mapping[str, int] | None = None,
) -> list[Path]:
    """Put files in place, all or nothing, and list them as installed. As `install`.

    `theirs` are files that a person may have written: one that differs is a conflict even if it is on the list,
    and one that is the same already does not get there. `modes` are those of new files, 0o644 where none is given.
    """
    manifest = Manifest.of(root)
    fresh: dict[Path, bytes] = {}
    conflicts = []
    for path, content in files.items():
        there = below(root, path)
        held = content_of(there)
        if held == content:
            continue
        fresh[there] = content
        if held is not None and (path in theirs or not manifest.has(path, held)):
            conflicts.append(there)
    if conflicts and not force:
        raise Conflict(conflicts)
    # What was there and a person's is not ours to take away.
    mine = {path: content for path, content in files.items() if path not in theirs or below(root, path) in fresh}
    listed = manifest.with_(mine)
    if fresh or listed != manifest:
        with put({**fresh, **listed.as_file()}, {below(root, path): mode for path, mode in (modes or {}).items()}):
            pass
    return list(fresh)


@frozen
class Taken:
    """What uninstall did: files that were removed, and those that stay since somebody changed them."""

    removed: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()


def uninstall(root: Path, purge: bool = False) -> Taken:
    """Remove what was installed and is as it was then; the policy only with `purge`, for `release` needs it.

    On the running machine (root "/") the units are stopped and disabled first. The guard stays in the kernel.

    Raises:
        CommandFailed, Damaged, OSError: nothing was removed, or a second run goes on.
    """
    manifest = Manifest.of(root)
    removed: dict[str, Path] = {}
    kept: dict[str, Path] = {}
    for path in manifest.files:
        place = below(root, path)
        held = content_of(place)
        if held is not None:
            mine = manifest.has(path, held) and (path != POLICY or purge)
            (removed if mine else kept)[path] = place
    for folder in {place.parent for place in removed.values()}:
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, "it can't be written, so nothing was removed", str(folder))
    names = [place.name for place in removed.values() if place.name in NAMES]
    if root == Path("/") and names and BOOTED.exists():
        systemctl("disable", "--now", *names)
    # The units first: one without its files could not guard anything.
    for place in sorted(removed.values(), key=lambda one: one.name not in NAMES):
        place.unlink(missing_ok=True)
        if place.name in NAMES:
            _disable(place)
    _forget(evolve(manifest, files={path: manifest.files[path] for path in kept}))
    for folder in {place.parent for place in removed.values() if place.parent.name.endswith(("nftpolicy", ".d"))}:
        with suppress(OSError):
            folder.rmdir()  # if nothing else is in it
    if root == Path("/") and any(place.suffix in (".service", ".conf") for place in removed.values()):
        reload()
    return Taken(tuple(removed.values()), tuple(kept.values()))


def _forget(rest: Manifest) -> None:
    """Keep only the rest of the list, if there is one."""
    if rest.files:
        with put(rest.as_file()):
            return
    if rest.place.exists():
        rest.place.unlink()
        with suppress(OSError):
            rest.place.parent.rmdir()


def _disable(unit: Path) -> None:
    """Take away the links by which a unit was enabled; they lead nowhere now."""
    for one in unit.parent.glob(f"*.wants/{unit.name}"):
        if one.is_symlink():
            one.unlink()
            with suppress(OSError):
                one.parent.rmdir()


def systemctl(*words: str) -> None:
    """Ask systemd for something. Raises CommandFailed."""
    program = found_program("systemctl")
    if program is None or not BOOTED.exists():
        raise CommandFailed("systemd does not run this machine")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise CommandFailed(f"systemctl {' '.join(words)}: {said}")


def reload() -> None:
    """Let systemd read its units again, if it runs this machine."""
    if BOOTED.exists():
        systemctl("daemon-reload")
