# SPDX-License-Identifier: BSD-2-Clause
"""Output of all commands: control characters in it are escaped, wherever the text came from.

Names of processes, devices, tables and cgroups, and texts of documents, can have escape sequences
that move the cursor, hide a line, or answer on the terminal's behalf. Only line feeds and tabs pass, and
on a terminal the colours that this program sets.
"""

from __future__ import annotations

import io
import re
import sys
from typing import TextIO

# Control characters (C0 without tab and line feed, DEL, C1), marks that reorder a line (Unicode's
# bidirectional controls), other line ends, and halves of surrogate pairs, which stand for bytes that are not UTF-8.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROLS}]")
_UNSAFE_LINE = re.compile(f"[\t\n{_CONTROLS}]")
# Colours of rich: bold, dim and the eight colours.
_COLOUR_OR_UNSAFE = re.compile(rf"(\x1b\[(?:0|1|2|3[0-7]|1;3[0-7]|2;3[0-7])m)|[{_CONTROLS}]")


def plain_line(text: str) -> str:
    """Return the text with escapes instead of control characters, line feeds and tabs."""
    return _UNSAFE_LINE.sub(_escape, text)


def plain_text(text: str) -> str:
    """Return the text with escapes instead of control characters, except line feeds and tabs."""
    return _UNSAFE.sub(_escape, text)


def plain_streams() -> None:
    """Escape control characters in all that this process prints from now on."""
    sys.stdout, sys.stderr = _plain_stream(sys.stdout), _plain_stream(sys.stderr)


def write_controls(stream: TextIO, text: str) -> None:
    """Write text with control characters of this program, at once."""
    (stream.write_controls if isinstance(stream, _PlainStream) else stream.write)(text)
    stream.flush()


def _plain_stream(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, _PlainStream):
        return stream
    options = stream.encoding, stream.line_buffering
    return _PlainStream(stream.detach(), options[0], "backslashreplace", line_buffering=options[1])


class _PlainStream(io.TextIOWrapper):
    """Text stream that escapes control characters."""

    def write(self, text: str) -> int:
        pattern = _COLOUR_OR_UNSAFE if self.isatty() else _UNSAFE
        return super().write(pattern.sub(_escape, text))

    def write_controls(self, text: str) -> int:
        """Write text with control characters of this program."""
        return super().write(text)


def _escape(match: re.Match[str]) -> str:
    if match.lastindex:  # a colour
        return match[0]
    return match[0].encode("unicode_escape").decode()
