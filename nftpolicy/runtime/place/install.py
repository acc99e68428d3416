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
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from attrs import evolve, frozen

from .boot import GUARD, Tables
from .files import Manifest, below, content_of, put
from .inits import Init, Order, init_of, instances
from .units import POLICY

_SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


class Conflict(Exception):
    """Files are there that were not installed, or were changed since. Nothing was written."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        super().__init__(", ".join(map(str, paths)))


class CommandFailed(Exception):
    """An order to what starts things failed; the words say which and how."""


def found_program(name: str) -> str | None:
    """Where a program of this machine is, or None."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATHS)


def this_program() -> str | None:
    """How this program is called, as an absolute path, or None if it is called in another way (python -m)."""
    called = shutil.which(sys.argv[0]) if Path(sys.argv[0]).name == "nftpolicy" else None
    beside = Path(sys.executable).with_name("nftpolicy")
    found = called or (str(beside) if beside.exists() else None) or found_program("nftpolicy")
    return str(Path(found).absolute()) if found else None


@frozen
class Wanted:
    """What is to be installed: files of `init` (path as the system knows it -> text), the guard's, and the policy.

    `file` is where the policy is; `policy` its content, None if there is none of it to be written; `resolvers` its
    uplinks that have one.
    """

    init: Init
    units: Mapping[str, str]
    tables: Tables | None = None
    policy: bytes | None = None
    file: str = POLICY
    resolvers: tuple[str, ...] = ()

    @property
    def started(self) -> tuple[str, ...]:
        """The names of what is to be enabled and started."""
        return self.init.started(self.resolvers)

    def files(self) -> dict[str, bytes]:
        """All of them; the units last, so that what they name is there."""
        found = {self.file: self.policy} if self.policy is not None else {}
        if self.tables is not None:
            found |= {str(path): content for path, content in self.tables.files(GUARD).items()}
        return found | {path: text.encode() for path, text in {**self.init.beside, **self.units}.items()}


def install(root: Path, wanted: Wanted, force: bool = False) -> list[Path]:
    """Put everything in place, all or nothing; which files were written, none if all were there.

    Raises:
        Conflict: other files are there, and not `force`. Damaged, OSError: see runtime.files.
    """
    modes = dict.fromkeys(wanted.units, wanted.init.mode)
    return place(root, wanted.files(), force, {wanted.file}, modes, wanted.init.kept)


def place(
    root: Path,
    files: Mapping[str, bytes],
    force: bool = False,
    theirs: Collection[str] = (),
    modes: Mapping[str, int] | None = None,
    folder: str | None = None,
) -> list[Path]:
    """Put files in place, all or nothing, and list them as installed. As `install`.

    `theirs` are files that a person may have written: one that differs is a conflict even if it is on the list,
    and one that is the same already does not get there. `modes` are those of new files, 0o644 where none is given.
    `folder` is that of the list, where it is not the system's own (files.kept).
    """
    manifest = Manifest.of(root, folder)
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


def uninstall(root: Path, purge: bool = False, init: Init | None = None) -> Taken:
    """Remove what was installed and is as it was then; the policy only with `purge`, for `release` needs it.

    On the running machine (root "/") what was started is stopped and disabled first. The guard stays in the kernel.

    Raises:
        CommandFailed, Damaged, OSError: nothing was removed, or a second run goes on.
    """
    init = init or init_of(root)
    manifest = Manifest.of(root, init.kept)
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
    runs = root == Path("/") and init.running.exists()
    names = [place.name for path, place in removed.items() if init.starts(path)]
    if names and runs:
        order(init.disable(names))
    # Those that start something first: one without its files could not guard anything.
    for path, place in sorted(removed.items(), key=lambda one: not init.starts(one[0])):
        place.unlink(missing_ok=True)
        if init.starts(path):
            _disable(place, init)
    _forget(evolve(manifest, files={path: manifest.files[path] for path in kept}))
    for folder in {place.parent for place in removed.values() if place.parent.name.endswith(("nftpolicy", ".d"))}:
        with suppress(OSError):
            folder.rmdir()  # if nothing else is in it
    if runs and any(place.suffix in (".service", ".conf") for place in removed.values()):
        order(init.forget)
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


def link(root: Path, init: Init) -> list[Path]:
    """Make the links by which `init` starts what was installed, without it; those that were made. Raises OSError."""
    made = []
    for path, target in init.links.items():
        place = below(root, path)
        if not (place.is_symlink() and str(place.readlink()) == target):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(target)
            made.append(place)
    return made


def _disable(unit: Path, init: Init) -> None:
    """Take away the links by which a unit was enabled; they lead nowhere now."""
    for one in unit.parent.glob(init.enabled.format(name=instances(unit.name))):
        if one.is_symlink():
            one.unlink()
            with suppress(OSError):
                one.parent.rmdir()


def left_over(root: Path, wanted: Wanted) -> list[str]:
    """The names of instances that are enabled there and not to be started any more."""
    init = wanted.init
    folder = below(root, init.folder)
    templates = [pattern for name in init.names if (pattern := instances(name)) != name]
    links = {link.name for pattern in templates for link in folder.glob(init.enabled.format(name=pattern))}
    return sorted(links - set(wanted.started))


def start(wanted: Wanted, fresh: bool) -> list[str]:
    """Have this machine start what was installed, now and always; `fresh`: files were written.

    Instances that are left over are stopped and disabled; their names. Raises CommandFailed.
    """
    init = wanted.init
    gone = left_over(Path("/"), wanted)
    order([*(init.renew if fresh else ()), *(init.disable(gone) if gone else ()), *init.enable(wanted.started)])
    return gone


def order(orders: Iterable[Order]) -> None:
    """Carry out orders, one after the other. Raises CommandFailed."""
    for name, *words in orders:
        program = found_program(name)
        if program is None:
            raise CommandFailed(f"the program {name} is missing")
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            raise CommandFailed(f"{' '.join((name, *words))}: {said}")
