# SPDX-License-Identifier: BSD-2-Clause
"""A tree of compiled files, below a folder: written whole, taken back whole, and no file of others touched."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from .files import below, content_of, digest, put
from .install import Conflict


@frozen
class Laid:
    """What was done: files that were written, and those of an earlier policy that were removed."""

    written: tuple[Path, ...] = ()
    removed: tuple[Path, ...] = ()


def lay(root: Path, files: Mapping[str, bytes], executable: frozenset[str], listing: str, force: bool = False) -> Laid:
    """Put `files` below `root`, of which `listing` is the one that names the others, as sha256sum(1) does.

    What an earlier list names and this one does not is removed, if it is as it was written.

    Raises:
        Conflict: files are there that are not as such a list says, and not `force`. Nothing was written.
        OSError: a file can't be read or written; all is as it was.
    """
    known = _known(content_of(below(root, listing)) or b"")
    fresh: dict[Path, bytes] = {}
    conflicts = []
    for path, content in files.items():
        place = below(root, path)
        held = content_of(place)
        if held == content:
            continue
        fresh[place] = content
        if held is not None and path != listing and known.get(path) != digest(held):
            conflicts.append(place)
    if conflicts and not force:
        raise Conflict(conflicts)
    with put(fresh, {below(root, path): 0o755 for path in executable}):
        pass
    removed = []
    for path in sorted(known.keys() - files.keys()):
        place = below(root, path)
        held = content_of(place)
        if held is not None and known[path] == digest(held):
            place.unlink()
            removed.append(place)
            with suppress(OSError):
                place.parent.rmdir()  # if nothing else is in it
    return Laid(tuple(fresh), tuple(removed))


def _known(content: bytes) -> dict[str, str]:
    """Path -> digest, of the lines that can be such; a path that leads out of the tree is none."""
    lines = (line.split("  ", 1) for line in content.decode(errors="replace").splitlines())
    pairs = [tuple(line) for line in lines if len(line) == 2]
    return {path: known for known, path in pairs if not path.startswith("/") and ".." not in path.split("/")}
