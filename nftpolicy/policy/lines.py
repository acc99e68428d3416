# SPDX-License-Identifier: BSD-2-Clause
"""Where in a TOML text each key and each item of a list stands. For texts that tomllib has taken."""

from __future__ import annotations

import re
from contextlib import suppress

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_LETTERS = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}


def positions(text: str) -> dict[Path, int]:
    """Path of a key, table or list item -> the line on which it is first said, counted from 1."""
    scan = _Scan(text)
    # Not TOML after all, or nested too deeply: what was found until there is right.
    with suppress(IndexError, TypeError, AttributeError, RecursionError):
        scan.document()
    return scan.lines()


class _Scan:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.found: dict[Path, int] = {}  # path -> offset

    def lines(self) -> dict[Path, int]:
        """Offsets to line numbers; what was found is in the order of the text."""
        line, last, lines = 1, 0, {}
        for path, offset in self.found.items():
            line += self.text.count("\n", last, offset)
            lines[path], last = line, offset
        return lines

    def document(self) -> None:
        table: Path = ()
        repeated: dict[Path, int] = {}
        while self.skip(_BLANK):
            if self.text[self.at] != "[":
                self.pair(table)
                continue
            start = self.at
            double = self.text.startswith("[[", start)
            self.at += 1 + double
            table = self.key()
            if double:
                repeated[table] = repeated.get(table, -1) + 1
                table = (*table, repeated[table])
            self.note(table, start)
            self.at += 1 + double

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Go on behind `pattern`; whether there is more."""
        self.at = pattern.match(self.text, self.at).end()  # type: ignore[union-attr]
        return self.at < len(self.text)

    def note(self, path: Path, start: int) -> None:
        for length in range(1, len(path) + 1):
            self.found.setdefault(path[:length], start)

    def key(self) -> Path:
        """A key with its dots, and the blanks around it."""
        parts = []
        while True:
            self.skip(_SPACE)
            quoted = self.text[self.at] in "\"'"
            one = (_STRING if quoted else _BARE).match(self.text, self.at)
            parts.append(_unquoted(one[0]) if quoted else one[0])  # type: ignore[index]
            self.at = one.end()  # type: ignore[union-attr]
            self.skip(_SPACE)
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def pair(self, table: Path) -> None:
        start = self.at
        path = (*table, *self.key())
        self.note(path, start)
        self.at += 1  # "="
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: Path) -> None:
        opening = self.text[self.at]
        if opening == "[":
            self.members(path, "]")
        elif opening == "{":
            self.members(path, "}")
        else:
            self.skip(_STRING if opening in "\"'" else _SCALAR)

    def members(self, path: Path, closing: str) -> None:
        """The items of a list or the pairs of an inline table."""
        self.at += 1
        index = 0
        while self.skip(_BLANK) and self.text[self.at] != closing:
            if self.text[self.at] == ",":
                self.at += 1
            elif closing == "]":
                self.note((*path, index), self.at)
                self.value((*path, index))
                index += 1
            else:
                self.pair(path)
        self.at += 1


def _unquoted(key: str) -> str:
    return key[1:-1] if key[0] == "'" else _ESCAPE.sub(_letter, key[1:-1])


def _letter(found: re.Match[str]) -> str:
    digits = found[1] or found[2]
    return chr(int(digits, 16)) if digits else _LETTERS.get(found[3], found[3])
