# SPDX-License-Identifier: BSD-2-Clause
"""Errors of policy files: source line, key path and message."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import frozen

from ..exceptions import NftpolicyError
from .toml_positions import KeyPath, key_lines

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}\Z")
_MAX_EXCERPT = 60  # characters of the file that a message repeats
_MAX_DECIMAL_BITS = 128  # str() refuses integers of thousands of digits


class PolicyError(NftpolicyError):
    """Error in a policy file: source, line, key path, and a message with what to do."""

    def __init__(self, message: str, path: KeyPath = (), source: str = "policy", line: int | None = None) -> None:
        self.message, self.path, self.source, self.line = message, path, source, line
        super().__init__(str(self))

    def __str__(self) -> str:
        location = self.source if self.line is None else f"{self.source}:{self.line}"
        key = f" {format_path(self.path)}:" if self.path else ""
        return f"{location}:{key} {self.message}"


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
    """Return the suffix " (did you mean 'WORD'?)" for the entry of `words` closest to `word`, or ""."""
    from difflib import get_close_matches  # slow to import, and only needed for errors

    matches = get_close_matches(word[:_MAX_EXCERPT], list(words), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


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
