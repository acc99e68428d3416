# SPDX-License-Identifier: BSD-2-Clause
"""Replacement of several files, all or none, and the manifest of installed files."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import Factory, evolve, frozen

from ...exceptions import NftpolicyError
from ..atomic_file import sync_directory, temporary_path, write_temporary
from ..paths import MANIFEST, PERSISTENT_DIR, PERSISTENT_DIR_OPENWRT, persistent_dir, under_root
from ..private_files import PRIVATE_DIRECTORY, PRIVATE_FILE

_MODE, _DIRECTORY_MODE = 0o644, 0o755
_WRITE_OF_OTHERS = 0o022  # mode bits
# Only root reads policies and what is stored for them.
_PRIVATE_DIRECTORIES = ("/etc/nftpolicy", PERSISTENT_DIR, PERSISTENT_DIR_OPENWRT)


@contextmanager
def replace_files(files: Mapping[Path, bytes], modes: Mapping[Path, int] | None = None) -> Iterator[None]:
    """Replace files, all or none, at the end of the block.

    The new files are written and synced beside the old ones before the block runs. An existing file
    keeps its mode, without the right to write for group and others; a new one gets that of `modes`,
    or 0o644. In /etc/nftpolicy and the persistent directory every file gets 0o600, and the directory
    0o700. The umask has no effect. If anything fails, the old files are restored, and directories
    that were created are removed.

    Raises:
        OSError: a file cannot be written; its `filename` is that file.
    """
    created: list[Path] = []
    fresh: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            with _naming(path):
                _create_directories(path.parent, created)
                fresh[path] = temporary_path(path)
                mode = _mode_of(path, (modes or {}).get(path, _MODE))
                if _is_private(path.parent):
                    path.parent.chmod(PRIVATE_DIRECTORY)
                    mode = PRIVATE_FILE
                write_temporary(fresh[path], content, mode)
        yield
        _replace_all(fresh)
    except BaseException:
        for path in fresh.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        for directory in reversed(created):
            with suppress(OSError):
                directory.rmdir()
        raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Set `filename` of an OSError to this file, in place of the temporary file or None."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _create_directories(directory: Path, created: list[Path]) -> None:
    """Create a directory and its parents; append those created to `created`, uppermost first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
        path.chmod(_DIRECTORY_MODE)
        created.append(path)


def _is_private(directory: Path) -> bool:
    return str(directory).endswith(_PRIVATE_DIRECTORIES)


def _mode_of(path: Path, default: int = _MODE) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode) & ~_WRITE_OF_OTHERS
    except FileNotFoundError:
        return default


def _replace_all(fresh: Mapping[Path, Path]) -> None:
    """Rename each new file to its final path; restore the old contents if one fails."""
    before: dict[Path, bytes | None] = {}
    try:
        for path, new in fresh.items():
            with _naming(path):
                before[path] = path.read_bytes() if path.exists() else None
                new.replace(path)
    except BaseException:
        for path, content in before.items():
            with suppress(OSError):
                if content is None:
                    path.unlink(missing_ok=True)
                elif path.read_bytes() != content:
                    write_temporary(fresh[path], content, _mode_of(path))
                    fresh[path].replace(path)
        raise
    for directory in {path.parent for path in fresh}:
        with suppress(OSError):
            sync_directory(directory)


def sha256_hex(content: bytes) -> str:
    """Return the SHA-256 of a content in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


class ManifestDamaged(NftpolicyError):
    """The manifest of installed files cannot be parsed."""


@frozen
class Manifest:
    """The files that were installed below `root`: path on the system -> digest.

    Stored in `directory` as installed.json.
    """

    root: Path
    directory: str = PERSISTENT_DIR
    files: Mapping[str, str] = Factory(dict)

    @classmethod
    def read(cls, root: Path, directory: str | None = None) -> Manifest:
        """Read the manifest of a system, empty without one. Raises ManifestDamaged, OSError."""
        empty = cls(root, directory or persistent_dir(root))
        try:
            stored = json.loads(empty.path.read_bytes())
        except FileNotFoundError:
            return empty
        except ValueError:
            stored = None
        if not isinstance(stored, dict) or not all(_is_entry(*item) for item in stored.items()):
            raise ManifestDamaged(
                f"{empty.path}: the manifest is damaged (not a list of files); "
                "remove it, and the installed files by hand"
            )
        return evolve(empty, files=stored)

    @property
    def path(self) -> Path:
        """The path of the manifest."""
        return under_root(self.root, f"{self.directory}/{MANIFEST}")

    def with_files(self, files: Mapping[str, bytes]) -> Manifest:
        """Return the manifest with these files added."""
        added = {path: sha256_hex(content) for path, content in files.items()}
        return evolve(self, files={**self.files, **added})

    def without_files(self, paths: Iterable[str]) -> Manifest:
        """Return the manifest without these files."""
        removed = set(paths)
        return evolve(self, files={path: digest for path, digest in self.files.items() if path not in removed})

    def as_files(self) -> dict[Path, bytes]:
        """Return path -> content of the manifest."""
        return {self.path: (json.dumps(dict(sorted(self.files.items())), indent=1) + "\n").encode()}

    def matches(self, path: str, content: bytes) -> bool:
        """Return True if `path` was installed with this content."""
        return self.files.get(path) == sha256_hex(content)


def _is_entry(path: object, known_digest: object) -> bool:
    if not isinstance(path, str) or not isinstance(known_digest, str):
        return False
    return path.startswith("/") and ".." not in path.split("/")


def read_if_exists(path: Path) -> bytes | None:
    """Return the content of a file, or None if it does not exist. Raises OSError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
