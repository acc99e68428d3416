# SPDX-License-Identifier: BSD-2-Clause
"""Installation of a compiled tree of files below a directory, without touching foreign files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ..paths import under_root
from .installed_files import read_if_exists, replace_files, sha256_hex
from .installer import select_fresh

_EXECUTABLE = 0o755


@frozen
class InstalledTree:
    """Result: the files written, and the files of an earlier policy that were removed."""

    written: tuple[Path, ...] = ()
    removed: tuple[Path, ...] = ()


def install_tree(
    root: Path,
    files: Mapping[str, bytes],
    executable: frozenset[str],
    listing: str,
    force: bool = False,
) -> InstalledTree:
    """Install `files` below `root`, all or none.

    `listing` is the path of the file that names the others with their digests, in the format of
    sha256sum(1). A file that the previous listing names and the new one does not is removed, unless
    it was changed.

    Raises:
        FileConflict: files exist that differ from the previous listing, and not `force`; nothing
            was written.
        OSError: a file cannot be read or written; nothing was changed.
    """
    digests = _listed_digests(read_if_exists(under_root(root, listing)) or b"")
    fresh = select_fresh(
        root, files, lambda path, present: path == listing or digests.get(path) == sha256_hex(present), force
    )
    with replace_files(fresh, {under_root(root, path): _EXECUTABLE for path in executable}):
        pass
    removed = []
    for path in sorted(digests.keys() - files.keys()):
        target = under_root(root, path)
        present = read_if_exists(target)
        if present is not None and digests[path] == sha256_hex(present):
            target.unlink()
            removed.append(target)
            with suppress(OSError):
                target.parent.rmdir()  # if it is empty now
    return InstalledTree(tuple(fresh), tuple(removed))


def _listed_digests(content: bytes) -> dict[str, str]:
    """Return path -> digest of a listing, without invalid lines and paths that leave the tree."""
    digests = {}
    for line in content.decode(errors="replace").splitlines():
        hexadecimal, separator, path = line.partition("  ")
        if separator and not path.startswith("/") and ".." not in path.split("/"):
            digests[path] = hexadecimal
    return digests
