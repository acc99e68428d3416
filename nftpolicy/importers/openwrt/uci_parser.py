# SPDX-License-Identifier: BSD-2-Clause
"""Strict parser of UCI text, as in /etc/config and from `uci export`: ignores nothing silently.

The grammar is libuci's (file.c): words, 'quoted' without escapes, "quoted" and bare with a backslash
before the next character, `#` outside quotes starts a comment, `;` ends a statement like a newline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from attrs import Factory, frozen

from ...exceptions import NftpolicyError

_NAME = re.compile(r"[A-Za-z0-9_]+\Z")  # of sections; uci_validate_name
_OPTION = re.compile(r"[A-Za-z0-9_-]+\Z")
_TYPE = re.compile(r"[\x21-\x7e]+\Z")
# libuci accepts the first letter of a keyword.
_KEYWORDS = {"p": "package", "c": "config", "o": "option", "l": "list"}
_KEYWORDS |= {word: word for word in _KEYWORDS.values()}
_MAX_QUOTED = 60


class UciError(NftpolicyError):
    """Syntax error in a UCI file: `file`, `line` (from 1), and the expected syntax."""

    def __init__(self, file: str, line: int, message: str) -> None:
        self.file, self.line, self.message = file, line, message
        super().__init__(f"{file}:{line}: {message}")


@frozen
class ParsedValue:
    """Value of an option, and the line where it starts."""

    text: str
    line: int


@frozen
class ParsedSection:
    """Section of a package. `name` is None if anonymous. A list option has several values."""

    package: str
    type: str
    name: str | None
    file: str
    line: int
    options: Mapping[str, tuple[ParsedValue, ...]] = Factory(dict)
    lists: frozenset[str] = frozenset()

    def get(self, option: str, default: str = "") -> str:
        """Return the option's value, the last one of a list; `default` if the option is absent."""
        values = self.options.get(option)
        return values[-1].text if values else default

    def words(self, option: str) -> tuple[str, ...]:
        """Return the words of an option: list entries and values are split at white space."""
        return tuple(word for value in self.options.get(option, ()) for word in value.text.split())

    def flag(self, option: str, default: bool = False) -> bool:
        """Return a boolean as libubox parses it: true for 1, true, on, yes, enabled."""
        text = self.get(option)
        return text in ("1", "true", "on", "yes", "enabled") if text else default

    def line_of(self, option: str) -> int:
        """Return the line of the option, or of the section if it has no such option."""
        values = self.options.get(option)
        return values[-1].line if values else self.line

    @property
    def title(self) -> str:
        """Return the section as text for messages: interface 'wan'."""
        return f"{self.type} '{self.name}'" if self.name else self.type

    def location(self, option: str = "") -> str:
        """Return FILE:LINE of the section, or of one of its options."""
        return f"{self.file}:{self.line_of(option) if option else self.line}"


def parse_uci(data: bytes, file: str, package: str = "") -> tuple[ParsedSection, ...]:
    """Return the sections of a file in file order. `package` applies until the text names one.

    Raises:
        UciError: the first syntax error.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UciError(file, data.count(b"\n", 0, error.start) + 1, "not UTF-8 text, so not valid UCI") from None
    builder = _SectionBuilder(file, package)
    for words in _statements(text, file):
        builder.statement(words)
    return builder.sections


class _SectionBuilder:
    """Sections of the statements read so far."""

    def __init__(self, file: str, package: str) -> None:
        self._file, self._package = file, package
        self._order: list[tuple[str, str, str | None, int, dict[str, list[ParsedValue]], set[str]]] = []
        self._named: dict[tuple[str, str], int] = {}
        self._current: int | None = None

    @property
    def sections(self) -> tuple[ParsedSection, ...]:
        return tuple(
            ParsedSection(package, kind, name, self._file, line,
                    {key: tuple(values) for key, values in options.items()}, frozenset(lists))
            for package, kind, name, line, options, lists in self._order
        )  # fmt: skip

    def statement(self, words: list[ParsedValue]) -> None:
        first = words[0]
        kind = _KEYWORDS.get(first.text)
        if kind is None:
            from ...policy.errors import did_you_mean

            known = f"'package', 'config', 'option' or 'list'{did_you_mean(first.text, _KEYWORDS)}"
            raise self._error(first, f"expected {known} at the start of a line, not {_quoted(first.text)}")
        if kind == "package":
            self._package_statement(words)
        elif kind == "config":
            self._config_statement(words)
        else:
            self._option_statement(kind, words)

    def _package_statement(self, words: list[ParsedValue]) -> None:
        if len(words) != 2 or not _OPTION.match(words[1].text):
            raise self._error(words[0], "'package' takes one name")
        self._package, self._current = words[1].text, None

    def _config_statement(self, words: list[ParsedValue]) -> None:
        if len(words) not in (2, 3):
            raise self._error(words[0], f"'config' takes a type and an optional name, not {len(words) - 1} words")
        kind, name = words[1].text, words[2].text if len(words) == 3 else None
        if not _TYPE.match(kind):
            raise self._error(words[1], f"{_quoted(kind)} is not a valid section type")
        if name is not None and not _NAME.match(name):
            raise self._error(words[2], f"{_quoted(name)} is not a valid section name (letters, digits and '_')")
        key = (self._package, name or "")
        if name is not None and key in self._named:
            self._current = self._named[key]
            other = self._order[self._current][1]
            if other != kind:
                raise self._error(words[2], f"section {_quoted(name)} exists already with type {_quoted(other)}")
            return
        self._current = len(self._order)
        self._order.append((self._package, kind, name, words[0].line, {}, set()))
        if name is not None:
            self._named[key] = self._current

    def _option_statement(self, kind: str, words: list[ParsedValue]) -> None:
        if self._current is None:
            raise self._error(words[0], f"'{kind}' outside a section; add a line 'config TYPE' before it")
        if len(words) != 3:
            raise self._error(words[0], f"'{kind}' takes a name and one value, not {len(words) - 1} words; quote it")
        if not _OPTION.match(words[1].text):
            raise self._error(words[1], f"{_quoted(words[1].text)} is not a valid option name")
        options, lists = self._order[self._current][4:]
        name, value = words[1].text, ParsedValue(words[2].text, words[0].line)
        if kind == "list":
            options.setdefault(name, []).append(value)
            lists.add(name)
        else:
            options[name] = [value]
            lists.discard(name)

    def _error(self, value: ParsedValue, message: str) -> UciError:
        return UciError(self._file, value.line, message)


_BLANKS, _TERMINATORS = " \t\r\v\f", "\n;"


def _statements(text: str, file: str) -> Iterator[list[ParsedValue]]:
    """Yield the statements of a text, each a list of words with the lines where they start."""
    words: list[ParsedValue] = []
    position, line = 0, 1
    while position < len(text):
        char = text[position]
        if char in _BLANKS:
            position += 1
        elif char in _TERMINATORS:
            if words:
                yield words
            position, line, words = position + 1, line + (char == "\n"), []
        elif char == "#":
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
        else:
            word, position, next_line = _word(text, position, line, file)
            words.append(ParsedValue(word, line))
            line = next_line
    if words:
        yield words


def _word(text: str, position: int, line: int, file: str) -> tuple[str, int, int]:
    """Return the word that starts at `position`, the position after it, and the line there."""
    parts: list[str] = []
    first_line = line
    while position < len(text):
        char = text[position]
        if char in _BLANKS or char in _TERMINATORS or char == "#":
            break
        if char == "\0":
            raise UciError(file, line, "NUL byte, so not valid UCI")
        if char in "'\"":
            piece, position, line = _quote(text, position, line, first_line, file)
            parts.append(piece)
            continue
        if char == "\\":
            position += 1
            if position == len(text):
                raise UciError(file, line, "the file ends after a backslash")
            if text[position] == "\n":  # line continuation
                position, line = position + 1, line + 1
                continue
        parts.append(text[position])
        position += 1
    return "".join(parts), position, line


def _quote(text: str, position: int, line: int, first_line: int, file: str) -> tuple[str, int, int]:
    """Return the text of the quotes at `position`, the position after them, and the line there."""
    parts: list[str] = []
    quote = text[position]
    open_line, position = line, position + 1
    while position < len(text):
        char = text[position]
        if char == quote:
            return "".join(parts), position + 1, line
        if char == "\0":
            raise UciError(file, line, "NUL byte, so not valid UCI")
        if char == "\\" and quote == '"' and position + 1 < len(text):
            position, char = position + 1, text[position + 1]
            if char == "\n":
                position, line = position + 1, line + 1
                continue
        line += char == "\n"
        parts.append(char)
        position += 1
    where = "" if open_line == first_line else f" of the value that starts in line {first_line}"
    raise UciError(file, open_line, f"the quote {quote}{where} is not closed")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "...")
