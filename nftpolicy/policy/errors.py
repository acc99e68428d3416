# SPDX-License-Identifier: BSD-2-Clause
"""What is said of a policy that can't be used."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import frozen

from .lines import Path, positions

_BARE = re.compile(r"[A-Za-z0-9_-]{1,60}\Z")
_LONGEST = 60  # characters of what a file says that a message repeats


class PolicyError(Exception):
    """One fault of a policy: where (source, line, key) and what to do about it."""

    def __init__(self, message: str, path: Path = (), source: str = "policy", line: int | None = None) -> None:
        self.message, self.path, self.source, self.line = message, path, source, line
        super().__init__(str(self))

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        key = f" {shown(self.path)}:" if self.path else ""
        return f"{where}:{key} {self.message}"


def shown(path: Path) -> str:
    """A key path as a person writes it: uplink.wan.devices[0]."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_key(part)}" if text else _key(part)
    return text


def _key(part: str) -> str:
    """A key, quoted where it is no bare one, and cut where it is long: an error has one line."""
    return part if _BARE.match(part) else quoted(part)


def quoted(item: object) -> str:
    """What the file says, as Python would quote it, cut where it is long."""
    if isinstance(item, int) and item.bit_length() > 128:
        return f"{item:#x}"[:_LONGEST] + "..."  # str() refuses numbers of thousands of digits
    text = item if isinstance(item, str) else str(item)
    return repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "...")


def nearest(word: str, words: Iterable[str]) -> str:
    """ " (did you mean X?)" for the nearest of `words`, or nothing."""
    from difflib import get_close_matches  # slow to import, and only bad input needs it

    found = get_close_matches(word[:_LONGEST], list(words), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


@frozen
class Source:
    """The text that a policy came from, to find the line of a key when something must be said."""

    name: str
    text: str

    def line(self, path: Path) -> int | None:
        """The 1-based line of the key or list item at `path`, of the nearest one above it, or None."""
        lines = positions(self.text)
        return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), None)
