# SPDX-License-Identifier: BSD-2-Clause
"""Places of keys, values and list items in a TOML text (tomllib reports none)."""

from __future__ import annotations

import re
from contextlib import suppress

from attrs import frozen

KeyPath = tuple[str | int, ...]
Span = tuple[int, int]  # offsets of the first character, and after the last one

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


@frozen
class TomlPositions:
    """Places in a TOML text: `keys` of each key, table and list item where it first appears, and of its value.

    `repeated` is the first key or table that is written twice, with its place; None without one. `end` is the offset
    where the scanner stopped, such as the quote of a string that is not closed.
    """

    keys: dict[KeyPath, Span]
    values: dict[KeyPath, Span]
    repeated: tuple[KeyPath, Span] | None
    end: int


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) on which each key, table and list item first appears."""
    line, last, lines = 1, 0, {}
    for path, (offset, _) in find_positions(text).keys.items():  # in ascending order
        line += text.count("\n", last, offset)
        lines[path], last = line, offset
    return lines


def find_positions(text: str) -> TomlPositions:
    """Return the places of keys and values; of a text that is not TOML, those before the error."""
    scanner = _Scanner(text)
    # Not TOML, or nested too deeply.
    with suppress(_NotToml, IndexError, RecursionError):
        scanner.document()
    return TomlPositions(scanner.keys, scanner.values, scanner.repeated, scanner.position)


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self.keys: dict[KeyPath, Span] = {}
        self.values: dict[KeyPath, Span] = {}
        self.headers: set[KeyPath] = set()
        self.repeated: tuple[KeyPath, Span] | None = None

    def document(self) -> None:
        """Scan the whole text."""
        table: KeyPath = ()
        repeated: dict[KeyPath, int] = {}  # [[table]] -> index of the last one
        while self.skip(_BLANK):
            if self.text[self.position] != "[":
                self.pair(table)
                continue
            double = self.text.startswith("[[", self.position)
            self.position += 1 + double
            table, place = self.key(())
            if double:
                repeated[table] = repeated.get(table, -1) + 1
                table = (*table, repeated[table])
                self.keys[table] = place
            if table in self.headers:
                self.repeated = self.repeated or (table, place)
            self.headers.add(table)
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

    def key(self, table: KeyPath) -> tuple[KeyPath, Span]:
        """Consume a dotted key of `table` and the space around it; return its path and the place of its last part.

        The place of each part is recorded, unless it is known.
        """
        path = table
        while True:
            self.skip(_SPACE)
            start = self.position
            is_quoted = self.text[start] in "\"'"
            part = self.take(_STRING if is_quoted else _BARE)
            path = (*path, _unquote(part) if is_quoted else part)
            place = (start, self.position)
            self.keys.setdefault(path, place)
            self.skip(_SPACE)
            if self.text[self.position] != ".":
                return path, place
            self.position += 1

    def pair(self, table: KeyPath) -> None:
        """Consume a key/value pair of `table`."""
        path, place = self.key(table)
        if path in self.values:
            self.repeated = self.repeated or (path, place)
        self.position += 1  # "="
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: KeyPath) -> None:
        """Consume the value at `path`."""
        start = self.position
        opening = self.text[start]
        if opening == "[":
            self.members(path, "]")
        elif opening == "{":
            self.members(path, "}")
        else:
            self.skip(_STRING if opening in "\"'" else _SCALAR)
        self.values.setdefault(path, (start, start + len(self.text[start : self.position].rstrip())))

    def members(self, path: KeyPath, closing: str) -> None:
        """Consume the items of a list or the pairs of an inline table."""
        self.position += 1
        index = 0
        while self.skip(_BLANK) and self.text[self.position] != closing:
            if self.text[self.position] == ",":
                self.position += 1
            elif closing == "]":
                self.keys.setdefault((*path, index), (self.position, self.position + 1))
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
