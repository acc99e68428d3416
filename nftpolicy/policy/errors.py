# SPDX-License-Identifier: BSD-2-Clause
"""What is said of a policy that can't be used."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import frozen

Path = tuple[str | int, ...]


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
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(word: str, words: Iterable[str]) -> str:
    """ " (did you mean X?)" for the nearest of `words`, or nothing."""
    from difflib import get_close_matches  # slow to import, and only bad input needs it

    found = get_close_matches(word, list(words), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]#]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"' -]+?)\s*=")


@frozen
class Source:
    """The text that a policy came from, to find the line of a key when something must be said."""

    name: str
    text: str

    def line(self, path: Path) -> int | None:
        """The 1-based line of the key at `path`, of the nearest table above it, or None."""
        wanted = [str(part) for part in path if not isinstance(part, int)]
        lines = self._lines()
        for length in range(len(wanted), 0, -1):
            if tuple(wanted[:length]) in lines:
                return lines[tuple(wanted[:length])]
        return None

    def _lines(self) -> dict[tuple[str, ...], int]:
        found: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        for number, text in enumerate(self.text.splitlines(), 1):
            if header := _HEADER.match(text):
                table = _parts(header[1])
                found.setdefault(table, number)
            elif key := _KEY.match(text):
                found.setdefault((*table, *_parts(key[1])), number)
        return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
