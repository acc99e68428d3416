# SPDX-License-Identifier: BSD-2-Clause
"""UCI's text, as in /etc/config and as `uci export` prints it, read strictly: nothing is dropped without a word.

The grammar is libuci's (file.c): words, 'quoted' without escapes, "quoted" and bare with a backslash before the
next character, `#` outside quotes begins a comment, `;` ends a statement as a new line does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from attrs import Factory, frozen

_NAME = re.compile(r"[A-Za-z0-9_]+\Z")  # of sections; uci_validate_name
_OPTION = re.compile(r"[A-Za-z0-9_-]+\Z")
_TYPE = re.compile(r"[\x21-\x7e]+\Z")
# libuci takes the first letter for the word.
_WORDS = {"p": "package", "c": "config", "o": "option", "l": "list"}
_WORDS |= {word: word for word in _WORDS.values()}
_LONGEST = 60


class UciError(Exception):
    """A fault of a file: `file`, `line` (from 1), and what was expected."""

    def __init__(self, file: str, line: int, message: str) -> None:
        self.file, self.line, self.message = file, line, message
        super().__init__(f"{file}:{line}: {message}")


@frozen
class Value:
    """One value of an option, and the line where it begins."""

    text: str
    line: int


@frozen
class Section:
    """A section of a package. `name` is None for an anonymous one. Options of several lines have several values."""

    package: str
    type: str
    name: str | None
    file: str
    line: int
    options: Mapping[str, tuple[Value, ...]] = Factory(dict)
    lists: frozenset[str] = frozenset()

    def get(self, option: str, default: str = "") -> str:
        """The option's value, the last one of a list; `default` if it is not there."""
        found = self.options.get(option)
        return found[-1].text if found else default

    def words(self, option: str) -> tuple[str, ...]:
        """The words of an option: the entries of a list, or a value that is split at white space."""
        return tuple(word for one in self.options.get(option, ()) for word in one.text.split())

    def flag(self, option: str, default: bool = False) -> bool:
        """A boolean, as libubox reads it: 1, true, on, yes, enabled; anything else that is there is false."""
        text = self.get(option)
        return text in ("1", "true", "on", "yes", "enabled") if text else default

    def line_of(self, option: str) -> int:
        """The line of the option, or of the section if it has no such option."""
        found = self.options.get(option)
        return found[-1].line if found else self.line

    @property
    def shown(self) -> str:
        """The section as a person names it: interface 'wan'."""
        return f"{self.type} '{self.name}'" if self.name else self.type

    def place(self, option: str = "") -> str:
        """FILE:LINE of the section, or of one of its options."""
        return f"{self.file}:{self.line_of(option) if option else self.line}"


def read(data: bytes, file: str, package: str = "") -> tuple[Section, ...]:
    """The sections of a file in their order. `package` is their package until the text names one.

    Raises:
        UciError: at the first thing that is no UCI.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UciError(file, data.count(b"\n", 0, error.start) + 1, "not UTF-8 text, so no UCI") from None
    found = _Found(file, package)
    for words in _statements(text, file):
        found.statement(words)
    return found.sections


class _Found:
    """The sections so far."""

    def __init__(self, file: str, package: str) -> None:
        self._file, self._package = file, package
        self._order: list[tuple[str, str, str | None, int, dict[str, list[Value]], set[str]]] = []
        self._named: dict[tuple[str, str], int] = {}
        self._at: int | None = None

    @property
    def sections(self) -> tuple[Section, ...]:
        return tuple(
            Section(package, kind, name, self._file, line,
                    {key: tuple(values) for key, values in options.items()}, frozenset(lists))
            for package, kind, name, line, options, lists in self._order
        )  # fmt: skip

    def statement(self, words: list[Value]) -> None:
        first = words[0]
        kind = _WORDS.get(first.text)
        if kind is None:
            from ..policy.errors import nearest

            known = f"'package', 'config', 'option' or 'list'{nearest(first.text, _WORDS)}"
            raise self._error(first, f"a line begins with {known}, not with {_quoted(first.text)}")
        if kind == "package":
            self._set_package(words)
        elif kind == "config":
            self._begin(words)
        else:
            self._option(kind, words)

    def _set_package(self, words: list[Value]) -> None:
        if len(words) != 2 or not _OPTION.match(words[1].text):
            raise self._error(words[0], "'package' takes one name")
        self._package, self._at = words[1].text, None

    def _begin(self, words: list[Value]) -> None:
        if len(words) not in (2, 3):
            raise self._error(words[0], f"'config' takes a type and perhaps a name, not {len(words) - 1} words")
        kind, name = words[1].text, words[2].text if len(words) == 3 else None
        if not _TYPE.match(kind):
            raise self._error(words[1], f"{_quoted(kind)} is no type of a section")
        if name is not None and not _NAME.match(name):
            raise self._error(words[2], f"{_quoted(name)} is no name of a section (letters, digits and '_')")
        key = (self._package, name or "")
        if name is not None and key in self._named:
            self._at = self._named[key]
            other = self._order[self._at][1]
            if other != kind:
                raise self._error(words[2], f"{_quoted(name)} is a section of type {_quoted(other)} already")
            return
        self._at = len(self._order)
        self._order.append((self._package, kind, name, words[0].line, {}, set()))
        if name is not None:
            self._named[key] = self._at

    def _option(self, kind: str, words: list[Value]) -> None:
        if self._at is None:
            raise self._error(words[0], f"'{kind}' outside a section; a line 'config TYPE' comes first")
        if len(words) != 3:
            raise self._error(words[0], f"'{kind}' takes a name and one value, not {len(words) - 1} words; quote it")
        if not _OPTION.match(words[1].text):
            raise self._error(words[1], f"{_quoted(words[1].text)} is no name of an option")
        options, lists = self._order[self._at][4:]
        name, value = words[1].text, Value(words[2].text, words[0].line)
        if kind == "list":
            options.setdefault(name, []).append(value)
            lists.add(name)
        else:
            options[name] = [value]
            lists.discard(name)

    def _error(self, at: Value, message: str) -> UciError:
        return UciError(self._file, at.line, message)


_BLANK, _ENDS = " \t\r\v\f", "\n;"


def _statements(text: str, file: str) -> Iterator[list[Value]]:
    """The statements of a text, each a list of words with the lines where they begin."""
    at, line, words = 0, 1, []
    while at < len(text):
        sign = text[at]
        if sign in _BLANK:
            at += 1
        elif sign in _ENDS:
            if words:
                yield words
            at, line, words = at + 1, line + (sign == "\n"), []
        elif sign == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        else:
            word, at, after = _word(text, at, line, file)
            words.append(Value(word, line))
            line = after
    if words:
        yield words


def _word(text: str, at: int, line: int, file: str) -> tuple[str, int, int]:
    """The word that begins at `at`, where it ends, and the line there."""
    began, parts = line, []
    while at < len(text):
        sign = text[at]
        if sign in _BLANK or sign in _ENDS or sign == "#":
            break
        if sign == "\0":
            raise UciError(file, line, "a NUL byte, so no UCI")
        if sign in "'\"":
            piece, at, line = _quote(text, at, line, began, file)
            parts.append(piece)
            continue
        if sign == "\\":
            at += 1
            if at == len(text):
                raise UciError(file, line, "the file ends behind a backslash")
            if text[at] == "\n":  # a line that goes on
                at, line = at + 1, line + 1
                continue
        parts.append(text[at])
        at += 1
    return "".join(parts), at, line


def _quote(text: str, at: int, line: int, began: int, file: str) -> tuple[str, int, int]:
    """What stands in the quotes that begin at `at`, where they end, and the line there."""
    quote, parts = text[at], []
    opened, at = line, at + 1
    while at < len(text):
        sign = text[at]
        if sign == quote:
            return "".join(parts), at + 1, line
        if sign == "\0":
            raise UciError(file, line, "a NUL byte, so no UCI")
        if sign == "\\" and quote == '"' and at + 1 < len(text):
            at, sign = at + 1, text[at + 1]
            if sign == "\n":
                at, line = at + 1, line + 1
                continue
        line += sign == "\n"
        parts.append(sign)
        at += 1
    where = "" if opened == began else f" of the value that begins in line {began}"
    raise UciError(file, opened, f"the quote {quote}{where} is not closed")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "...")
