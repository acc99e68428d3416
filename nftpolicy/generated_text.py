# SPDX-License-Identifier: BSD-2-Clause
"""Text for other programs: templates that take only numbers and text that a gate has checked.

A gate is a function that returns CheckedText: those below for sh, units, key files, UCI and lists of words,
`netstate.formats.nft_text` for nft, `netstate.formats.ip_text` for ip. `fill` refuses all other text, so that no name
of a policy, a document or a process becomes a line, a word or a command of its own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

from .exceptions import NftpolicyError

# Without a meaning in sh, ip, systemd units, key files, UCI and dnsmasq, and no option: it does not begin with "-".
_WORD = re.compile(r"[A-Za-z0-9_./+@:,=][A-Za-z0-9_./+@:,=-]*\Z")
_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+-]{0,14}\Z")
_DOMAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*\Z")
_SYSCTL = re.compile(r"net(/[A-Za-z0-9_][A-Za-z0-9_.@:+-]*)+\Z")
_MARK = re.compile(r"@([A-Z]+)@")


class Unwritable(NftpolicyError, ValueError):
    """Text that another program would read as more than one value."""


class CheckedText(str):
    """Text that is safe in the language that it is for. Only gates make it."""

    __slots__ = ()


CheckedValue = int | CheckedText


def fill(template: str, /, **values: CheckedValue) -> CheckedText:
    """Return a template of this program with values in its fields, as `str.format` puts them in.

    Raises:
        TypeError: a value is text that no gate has checked; a defect of the caller.
    """
    for name, value in values.items():
        _require_checked(name, value)
    return CheckedText(template.format(**values))


def fill_marks(template: str, values: Mapping[str, CheckedValue]) -> CheckedText:
    """Return a template of this program with a value for each @NAME@. Raises TypeError as `fill`."""
    for name, value in values.items():
        _require_checked(name, value)
    return CheckedText(_MARK.sub(lambda match: str(values[match[1]]), template))


def join(separator: str, parts: Iterable[CheckedValue]) -> CheckedText:
    """Return checked texts in a row; `separator` is text of this program. Raises TypeError as `fill`."""
    return CheckedText(separator.join(str(_require_checked("part", part)) for part in parts))


def _require_checked(name: str, value: CheckedValue) -> CheckedValue:
    if not isinstance(value, int | CheckedText):
        raise TypeError(f"{name} was not checked: {value!r}")
    return value


def own_text(text: str) -> CheckedText:
    """Return text of this program itself: a literal or a constant."""
    return CheckedText(text)


# --- gates ---------------------------------------------------------------------------------


def word(text: str) -> CheckedText:
    """Return one plain word, without a special meaning in any of the languages. Raises Unwritable."""
    if not _WORD.match(text):
        raise Unwritable(f"{text!r} cannot be written for another program; use letters, digits and _ . / + @ : , = -")
    return CheckedText(text)


def words(texts: Iterable[str]) -> CheckedText:
    """Return plain words with a space between them. Raises Unwritable."""
    return join(" ", map(word, texts))


def device_name(text: str) -> CheckedText:
    """Return the name of a network device, which is a part of paths too. Raises Unwritable."""
    if not _DEVICE.match(text):
        raise Unwritable(f"{text!r} is not the name of a device; use up to 15 letters, digits and _ . @ : + -")
    return CheckedText(text)


def sysctl_path(text: str) -> CheckedText:
    """Return a path below /proc/sys. Raises Unwritable."""
    if not _SYSCTL.match(text):
        raise Unwritable(f"{text!r} is not the path of a sysctl")
    return CheckedText(text)


def scoped_address(address: str, device: str | None) -> CheckedText:
    """Return ADDRESS or ADDRESS%DEVICE. Raises Unwritable."""
    return (
        word(address)
        if device is None
        else fill("{address}%{device}", address=word(address), device=device_name(device))
    )


def domain_name(text: str) -> CheckedText:
    """Return a domain of the DNS. Raises Unwritable."""
    if not _DOMAIN.match(text):
        raise Unwritable(f"{text!r} is not a domain; use letters, digits and _ - with dots between labels")
    return CheckedText(text)


def quoted(text: str) -> CheckedText:
    """Return text of one line as a quoted word of sh. Raises Unwritable."""
    return CheckedText(shlex.quote(_printable(text)))


def comment(text: str) -> CheckedText:
    """Return text for the rest of a comment: characters that could end the line become spaces."""
    return CheckedText(" ".join("".join(char if char.isprintable() else " " for char in text).split()))


def document_line(text: str, end: str) -> CheckedText:
    """Return a line of a here-document of sh without expansions, which the line `end` ends. Raises Unwritable."""
    if text == end:
        raise Unwritable(f"{text!r} would end a here-document")
    _printable(text.replace("\t", " "))
    return CheckedText(text)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise Unwritable(f"{text!r} has characters that cannot be written in a script")
    return text
