# SPDX-License-Identifier: BSD-2-Clause
"""Output of all commands: control characters in it are escaped, wherever the text came from.

Names of processes, devices, tables and cgroups, and texts of documents, can have escape sequences
that move the cursor, hide a line, or answer on the terminal's behalf. Only line feeds and tabs pass. The
colours and the progress line of this program have ways of their own, which no other text takes.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

from ..exceptions import NftpolicyError

Result = TypeVar("Result")

# Control characters (C0 without tab and line feed, DEL, C1), marks that reorder a line (Unicode's
# bidirectional controls), other line ends, and halves of surrogate pairs, which stand for bytes that are not UTF-8.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROLS}]")
_UNSAFE_LINE = re.compile(f"[\t\n{_CONTROLS}]")
# Standard streams in the order of their descriptors, with the access to /dev/null in their place.
_CLOSED_ACCESS = {"stdin": os.O_WRONLY, "stdout": os.O_RDONLY, "stderr": os.O_WRONLY}
# Colours of rich: bold, dim and the eight colours.
_COLOUR_OR_UNSAFE = re.compile(rf"(\x1b\[(?:0|1|2|3[0-7]|1;3[0-7]|2;3[0-7])m)|[{_CONTROLS}]")


class OutputLost(NftpolicyError):
    """Standard output or standard error takes no more text; `is_closed`: since its reader has ended."""

    def __init__(self, name: str, error: OSError) -> None:
        self.is_closed = error.errno == errno.EPIPE
        super().__init__(f"{name}: cannot be written: {error.strerror}")


def plain_line(text: str) -> str:
    """Return the text with escapes instead of control characters, line feeds and tabs."""
    return _UNSAFE_LINE.sub(_escape, text)


def plain_text(text: str) -> str:
    """Return the text with escapes instead of control characters, except line feeds and tabs."""
    return _UNSAFE.sub(_escape, text)


def plain_streams() -> None:
    """Escape control characters in all that this process prints from now on."""
    _open_closed_streams()
    sys.stdout = _plain_stream(sys.stdout, "standard output")
    sys.stderr = _plain_stream(sys.stderr, "standard error")


def flush_streams() -> None:
    """Write what is buffered.

    Raises:
        OutputLost: it cannot be written; it is dropped.
    """
    sys.stdout.flush()
    sys.stderr.flush()


def print_json(document: Any) -> None:
    """Print a document as JSON in printable ASCII: the escape of DEL here would be no JSON."""
    print(json_line(document, 1))


def json_line(document: Any, indent: int | None = None) -> str:
    """Return a document as JSON in printable ASCII."""
    from ..netstate.formats.json_text import encode_json

    return encode_json(document, indent)


def write_controls(stream: TextIO, text: str) -> None:
    """Write text with control characters of this program, at once."""
    (stream.write_controls if isinstance(stream, _PlainStream) else stream.write)(text)
    stream.flush()


class ColourFile:
    """Standard output for a console of rich, whose colours pass; the console has escaped all other text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text with colours."""
        if isinstance(self._stream, _PlainStream):
            return self._stream.write_controls(_COLOUR_OR_UNSAFE.sub(_escape, text))
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_closed_streams() -> None:
    """Open those of the standard streams that are closed: the next file or socket would take their place.

    Input and output raise EBADF, as the closed streams would; messages are dropped.
    """
    for number, (name, access) in enumerate(_CLOSED_ACCESS.items()):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, access)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def _plain_stream(stream: TextIO, title: str) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, _PlainStream):
        return stream
    encoding, line_buffering = stream.encoding, stream.line_buffering
    plain = _PlainStream(stream.detach(), encoding, "backslashreplace", line_buffering=line_buffering)
    plain.title = title
    return plain


class _PlainStream(io.TextIOWrapper):
    """Text stream that escapes control characters. It raises OutputLost instead of OSError."""

    title = ""

    def write(self, text: str) -> int:
        return self._try(lambda: super(_PlainStream, self).write(_UNSAFE.sub(_escape, text)))

    def flush(self) -> None:
        self._try(super().flush)

    def write_controls(self, text: str) -> int:
        """Write text with control characters of this program."""
        return self._try(lambda: super(_PlainStream, self).write(text))

    def _try(self, operation: Callable[[], Result]) -> Result:
        try:
            return operation()
        except OSError as error:
            self._drop()
            raise OutputLost(self.title, error) from None

    def _drop(self) -> None:
        """Drop what is buffered and what follows, so that the interpreter does not write it at its end."""
        descriptor = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(descriptor, self.fileno())
        finally:
            os.close(descriptor)


def _escape(match: re.Match[str]) -> str:
    if match.lastindex:  # a colour
        return match[0]
    return match[0].encode("unicode_escape").decode()
