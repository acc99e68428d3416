# SPDX-License-Identifier: BSD-2-Clause
"""Installation of a compiled tree of files below a directory, without touching foreign files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ..paths import below
from .files import content_of, digest, put
from .install import Conflict

_EXECUTABLE = 0o755


@frozen
class Laid:
    """Result: the files written, and the files of an earlier policy that were removed."""

    written: tuple[Path, ...] = ()
    removed: tuple[Path, ...] = ()


def lay(
    root: Path,
    files: Mapping[str, bytes],
    executable: frozenset[str],
    listing: str,
    force: bool = False,
) -> Laid:
    """Install `files` below `root`, all or none.

    `listing` is the path of the file that names the others with their digests, in the format of
    sha256sum(1). A file that the previous listing names and the new one does not is removed, unless
    it was changed.

    Raises:
        FileConflict: files exist that differ from the previous listing, and not `force`; nothing
        was
            written.
        OSError: a file cannot be read or written; nothing was changed.
    """
    listed = _listed_digests(content_of(below(root, listing)) or b"")
    fresh: dict[Path, bytes] = {}
    conflicts = []
    for path, content in files.items():
        target = below(root, path)
        present = content_of(target)
        if present == content:
            continue
        fresh[target] = content
        if present is not None and path != listing and listed.get(path) != digest(present):
            conflicts.append(target)
    if conflicts and not force:
        raise Conflict(conflicts)
    with put(fresh, {below(root, path): _EXECUTABLE for path in executable}):
        pass
    removed = []
    for path in sorted(listed.keys() - files.keys()):
        target = below(root, path)
        present = content_of(target)
        if present is not None and listed[path] == digest(present):
            target.unlink()
            removed.append(target)
            with suppress(OSError):
                target.parent.rmdir()  # if it is empty now
    return Laid(tuple(fresh), tuple(removed))


def _listed_digests(content: bytes) -> dict[str, str]:
    """Return path -> digest of a listing, without invalid lines and paths that leave the tree."""
    digests = {}
    for line in content.decode(errors="replace").splitlines():
        hexadecimal, separator, path = line.partition("  ")
        if separator and not path.startswith("/") and ".." not in path.split("/"):
            digests[path] = hexadecimal
    return digests
