# SPDX-License-Identifier: BSD-2-Clause
"""Errors of policy files: source line, key path and message."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import evolve, frozen

from ..exceptions import NftpolicyError
from .toml_positions import KeyPath, Span, TomlPositions, key_lines

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}\Z")
_MAX_EXCERPT = 60  # characters of the file that a message repeats
_MIN_PREFIX = 3  # letters of a word that a longer word completes
_LINE_WIDTH = 72  # characters of a source line that an excerpt has
_LINE_BEFORE = 40  # of them before the error
_MAX_DECIMAL_BITS = 128  # str() refuses integers of thousands of digits


class PolicyError(NftpolicyError):
    """Error in a policy file: source, line, column, key path, and a message with what to do.

    `excerpt` is the source line with carets below the error, or "". `more_errors` are further errors of the file.
    """

    def __init__(
        self, message: str, path: KeyPath = (), source: str = "policy", line: int | None = None,
        column: int | None = None, excerpt: str = "", more_errors: tuple[PolicyError, ...] = (),
    ) -> None:  # fmt: skip
        self.message, self.path, self.source, self.line = message, path, source, line
        self.column, self.excerpt, self.more_errors = column, excerpt, more_errors
        super().__init__(str(self))

    def __str__(self) -> str:
        location = ":".join(str(part) for part in (self.source, self.line, self.column) if part is not None)
        key = f" {format_path(self.path)}:" if self.path else ""
        return f"{location}:{key} {self.message}"


@frozen
class Fault:
    """Fault of a policy: the key path, what to do, and whether the key is wrong rather than its value."""

    path: KeyPath
    message: str
    of_key: bool = False

    def below(self, *parents: str | int) -> Fault:
        """Return the same fault with the path of a parent of the value."""
        return evolve(self, path=(*parents, *self.path))


def format_path(path: KeyPath) -> str:
    """Return a key path in dotted form: uplink.wan.devices[0]."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif text:
            text += f".{_format_key(part)}"
        else:
            text = _format_key(part)
    return text


def _format_key(part: str) -> str:
    """Return a key, quoted if it is not a bare TOML key, truncated if it is long."""
    return part if _BARE_KEY.match(part) else quote_excerpt(part)


def quote_excerpt(item: object) -> str:
    """Return a value of the file as a quoted Python string, truncated to 60 characters."""
    if isinstance(item, int) and item.bit_length() > _MAX_DECIMAL_BITS:
        return f"{item:#x}"[:_MAX_EXCERPT] + "..."
    text = item if isinstance(item, str) else str(item)
    return repr(text if len(text) <= _MAX_EXCERPT else text[:_MAX_EXCERPT] + "...")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return the suffix " (did you mean 'WORD'?)" for the entries of `words` closest to `word`, or ""."""
    near = " or ".join(map(repr, near_words(word, words)))
    return f" (did you mean {near}?)" if near else ""


def near_words(word: str, words: Iterable[str]) -> list[str]:
    """Return the words that begin with `word`, else the closest one, if any."""
    from difflib import get_close_matches  # slow to import, and only needed for errors

    choices = list(words)
    longer = [choice for choice in choices if len(word) >= _MIN_PREFIX and choice.startswith(word)]
    return longer or get_close_matches(word[:_MAX_EXCERPT], choices, n=1)


@frozen
class PolicyText:
    """Text of a policy file with its name, used to find the line of a key."""

    name: str
    text: str

    def line_of(self, path: KeyPath) -> int | None:
        """Return the line (from 1) of a key or list item, or of its nearest known parent; None if none is known."""
        lines = key_lines(self.text)
        for length in range(len(path), 0, -1):
            if path[:length] in lines:
                return lines[path[:length]]
        return None

    def error_of(self, fault: Fault, positions: TomlPositions) -> PolicyError:
        """Return the error of a fault, with the place of the value, or of the key or table that should have it."""
        if not fault.of_key and fault.path in positions.values:
            return self.error_at(positions.values[fault.path], fault.message, fault.path)
        for length in range(len(fault.path), 0, -1):
            if fault.path[:length] in positions.keys:
                return self.error_at(positions.keys[fault.path[:length]], fault.message, fault.path)
        return PolicyError(fault.message, fault.path, self.name)

    def error_at(self, place: Span, message: str, path: KeyPath = ()) -> PolicyError:
        """Return an error with the line and the column of a place in the text."""
        start, end = place
        number = self.text.count("\n", 0, start) + 1
        first = self.text.rfind("\n", 0, start) + 1
        last = self.text.find("\n", start)
        line = self.text[first : last if last >= 0 else len(self.text)].rstrip("\r")
        excerpt = _mark_in_line(line, start - first, end - first)
        return PolicyError(message, path, self.name, number, start - first + 1, excerpt)


def _mark_in_line(line: str, start: int, end: int) -> str:
    """Return a line, or the part of it around the marked characters, and carets below these."""
    first = max(0, start - _LINE_BEFORE) if len(line) > _LINE_WIDTH else 0
    last = first + _LINE_WIDTH
    before, marked = line[first:start], line[start : min(end, last)]
    cut = "..." if len(line) > last else ""
    part = "".join(character if character.isprintable() else _stand_in(character) for character in line[first:last])
    return f"    {part}{cut}\n    {' ' * _columns(before)}{'^' * max(1, _columns(marked))}".rstrip()


def _stand_in(character: str) -> str:
    """Return a character of the same width for one that a terminal must not get."""
    return " " if character == "\t" else "?"


def _columns(text: str) -> int:
    """Return the number of columns of a terminal that a text takes."""
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(character) else 1 + (east_asian_width(character) in "WF") for character in text)
