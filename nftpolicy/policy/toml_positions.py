# SPDX-License-Identifier: BSD-2-Clause
"""Line numbers of keys and list items in a TOML text that tomllib accepts (tomllib reports none)."""

from __future__ import annotations

import re
from contextlib import suppress

KeyPath = tuple[str | int, ...]

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
_ESCAPED_LETTERS = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}


class _NotToml(Exception):
    """Input that the scanner cannot parse."""


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) on which each key, table and list item first appears."""
    scanner = _Scanner(text)
    # Not TOML, or nested too deeply: positions up to the error are right.
    with suppress(_NotToml, IndexError, RecursionError):
        scanner.document()
    return scanner.lines()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self.offsets: dict[KeyPath, int] = {}

    def lines(self) -> dict[KeyPath, int]:
        """Return the line numbers of the recorded offsets, which are in ascending order."""
        line, last, lines = 1, 0, {}
        for path, offset in self.offsets.items():
            line += self.text.count("\n", last, offset)
            lines[path], last = line, offset
        return lines

    def document(self) -> None:
        """Scan the whole text."""
        table: KeyPath = ()
        repeated: dict[KeyPath, int] = {}  # [[table]] -> index of the last one
        while self.skip(_BLANK):
            if self.text[self.position] != "[":
                self.pair(table)
                continue
            start = self.position
            double = self.text.startswith("[[", start)
            self.position += 1 + double
            table = self.key()
            if double:
                repeated[table] = repeated.get(table, -1) + 1
                table = (*table, repeated[table])
            self.record(table, start)
            self.position += 1 + double

    def take(self, pattern: re.Pattern[str]) -> str:
        """Consume and return a match of `pattern` at the current offset."""
        match = pattern.match(self.text, self.position)
        if match is None:
            raise _NotToml
        self.position = match.end()
        return match[0]

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Consume a match of `pattern`; return True if text remains."""
        self.take(pattern)
        return self.position < len(self.text)

    def record(self, path: KeyPath, start: int) -> None:
        """Record the offset of a path and of its parents, unless they are known."""
        for length in range(1, len(path) + 1):
            self.offsets.setdefault(path[:length], start)

    def key(self) -> KeyPath:
        """Consume a dotted key and the space around it."""
        parts = []
        while True:
            self.skip(_SPACE)
            is_quoted = self.text[self.position] in "\"'"
            part = self.take(_STRING if is_quoted else _BARE)
            parts.append(_unquote(part) if is_quoted else part)
            self.skip(_SPACE)
            if self.text[self.position] != ".":
                return tuple(parts)
            self.position += 1

    def pair(self, table: KeyPath) -> None:
        """Consume a key/value pair of `table`."""
        start = self.position
        path = (*table, *self.key())
        self.record(path, start)
        self.position += 1  # "="
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: KeyPath) -> None:
        """Consume the value at `path`."""
        opening = self.text[self.position]
        if opening == "[":
            self.members(path, "]")
        elif opening == "{":
            self.members(path, "}")
        else:
            self.skip(_STRING if opening in "\"'" else _SCALAR)

    def members(self, path: KeyPath, closing: str) -> None:
        """Consume the items of a list or the pairs of an inline table."""
        self.position += 1
        index = 0
        while self.skip(_BLANK) and self.text[self.position] != closing:
            if self.text[self.position] == ",":
                self.position += 1
            elif closing == "]":
                self.record((*path, index), self.position)
                self.value((*path, index))
                index += 1
            else:
                self.pair(path)
        self.position += 1


def _unquote(key: str) -> str:
    return key[1:-1] if key[0] == "'" else _ESCAPE.sub(_unescape, key[1:-1])


def _unescape(match: re.Match[str]) -> str:
    digits = match[1] or match[2]
    return chr(int(digits, 16)) if digits else _ESCAPED_LETTERS.get(match[3], match[3])
