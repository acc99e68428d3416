# SPDX-License-Identifier: BSD-2-Clause
"""Files that take the place of others whole or not at all, and the list of those that were installed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import Factory, evolve, frozen

KEPT, KEPT_ON_OPENWRT = "/var/lib/nftpolicy", "/etc/nftpolicy/kept"
_MANIFEST = "installed.json"
_OPENWRT = ("/etc/openwrt_release", f"{KEPT_ON_OPENWRT}/{_MANIFEST}")  # of the system, and of an image that is made
_MODE = 0o644


def kept(root: Path = Path("/")) -> str:
    """The folder, as the system knows it, of what outlasts a restart. OpenWrt's /var is a link to /tmp (base-files)."""
    return KEPT_ON_OPENWRT if any(below(root, sign).exists() for sign in _OPENWRT) else KEPT


@contextmanager
def put(files: Mapping[Path, bytes], modes: Mapping[Path, int] | None = None) -> Iterator[None]:
    """Write every file beside its place; when the block ends well, all of them take their places.

    A file that was there keeps its mode; others get that of `modes`, or 0o644. They are on the disk before that.
    If anything fails, all is as it was, folders too.

    Raises:
        OSError: a file can't be written; its `filename` says which.
    """
    made: list[Path] = []
    fresh: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            with _about(path):
                _make(path.parent, made)
                fresh[path] = path.with_name(f".{path.name}.new")
                _write(fresh[path], content, _mode(path, (modes or {}).get(path, _MODE)))
        yield
        _take_places(fresh)
    except BaseException:
        for path in fresh.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """An OSError names the file that it is about, not the one beside it, nor none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; adds what was made to `made`, the uppermost first."""
    for one in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        one.mkdir()
        made.append(one)


def _mode(path: Path, fresh: int = _MODE) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return fresh


def _write(path: Path, content: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)  # of a process that was killed
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _take_places(fresh: Mapping[Path, Path]) -> None:
    before: dict[Path, bytes | None] = {}
    try:
        for path, new in fresh.items():
            with _about(path):
                before[path] = path.read_bytes() if path.exists() else None
                new.replace(path)
    except BaseException:
        for path, content in before.items():
            with suppress(OSError):
                if content is None:
                    path.unlink(missing_ok=True)
                elif path.read_bytes() != content:
                    _write(fresh[path], content, _mode(path))
                    fresh[path].replace(path)
        raise
    for folder in {path.parent for path in fresh}:
        _sync(folder)


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk; some file systems can't, and need not."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def digest(content: bytes) -> str:
    """What a file is known again by."""
    return hashlib.sha256(content).hexdigest()


class Damaged(Exception):
    """The list of installed files is none."""


@frozen
class Manifest:
    """What was installed below `root`: path as the system knows it -> digest of its content. Kept in `folder`."""

    root: Path
    folder: str = KEPT
    files: Mapping[str, str] = Factory(dict)

    @classmethod
    def of(cls, root: Path, folder: str | None = None) -> Manifest:
        """The one of a system; empty if there is none. Raises Damaged, OSError."""
        none = cls(root, folder or kept(root))
        try:
            found = json.loads(none.place.read_bytes())
        except FileNotFoundError:
            return none
        except ValueError:
            found = None
        if not (isinstance(found, dict) and all(_is_entry(*one) for one in found.items())):
            raise Damaged(f"{none.place} is damaged: it is no list of files; take it away, and the files by hand")
        return evolve(none, files=found)

    @property
    def place(self) -> Path:
        """Where it is kept."""
        return below(self.root, f"{self.folder}/{_MANIFEST}")

    def with_(self, files: Mapping[str, bytes]) -> Manifest:
        """The same with these too."""
        return evolve(self, files={**self.files, **{path: digest(content) for path, content in files.items()}})

    def as_file(self) -> dict[Path, bytes]:
        """What to write where."""
        return {self.place: (json.dumps(dict(sorted(self.files.items())), indent=1) + "\n").encode()}

    def has(self, path: str, content: bytes) -> bool:
        """Whether `path` was installed with just this content."""
        return self.files.get(path) == digest(content)


def _is_entry(path: object, known: object) -> bool:
    return isinstance(path, str) and path.startswith("/") and ".." not in path.split("/") and isinstance(known, str)


def below(root: Path, path: str) -> Path:
    """Where a path of the system is, for a system whose root is `root`."""
    return root / path.lstrip("/")


def content_of(path: Path) -> bytes | None:
    """The content of a file, or None if there is none. Raises OSError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
