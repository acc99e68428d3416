# SPDX-License-Identifier: BSD-2-Clause
"""Errors of tomllib in the words of this program, with their place."""

from __future__ import annotations

import re
import tomllib

from .errors import PolicyError, PolicyText, format_path, quote_excerpt
from .toml_positions import find_positions

_MAX_MESSAGE = 200  # characters of tomllib's message that an error repeats
_LOCATION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")
_WORD = re.compile(r"[^\s,\]}#=\"']+")
_REPEATED = re.compile(r"Cannot (?:declare|overwrite|mutate|redefine)|Duplicate inline table key")
_LONG_NUMBER = re.compile(r"[0-9_]{4301,}")  # sys.get_int_max_str_digits()
_BYTE_ORDER_MARK = "\ufeff"

_CHARACTER = "(?:Illegal|Found invalid) character "
# Message of tomllib -> message here, with its group for {}. The first that matches counts.
_MESSAGES = (
    (r"Invalid statement", "expected KEY = VALUE, [TABLE] or a comment after #"),
    (r"Expected newline", "expected the end of the line; one KEY = VALUE is a line, and a string needs quotes"),
    (r"Expected '=' after", "expected = after the key: KEY = VALUE"),
    (r"Expected '\]{1,2}' at the end", "the name of a table ends with ]: [uplink.wan]"),
    (
        r"Expected |Unterminated string|(?:Illegal|Found invalid) character '\\n'",
        "a string is not closed; add the quote",
    ),
    (r"(?:Illegal|Found invalid) character (.*)", "{} cannot be in a string or comment"),
    (r"Invalid initial character", "expected a key: letters, digits, - and _, or a string in quotes"),
    (r"Unclosed array", "a list is not closed; expected , or ]"),
    (r"Unclosed inline table", "an inline table is not closed on its line; expected , or }"),
    (r"Unescaped '\\'", r"\ begins an escape; write \\, or put the string in single quotes"),
    (r"Invalid hex value|Escaped character", r"\u has 4 and \U has 8 hexadecimal digits of a character"),
    (r"Invalid date", "there is no such date"),
    (r"Invalid value", "expected a value: a string in quotes, a number, true, false, a list in [ ] or a table in { }"),
)


def explain_syntax_error(error: tomllib.TOMLDecodeError, source: PolicyText) -> PolicyError:
    """Return tomllib's error as an error of the policy."""
    message = _LOCATION.sub("", str(error))
    if _REPEATED.match(message) and (repetition := _explain_repetition(source)):
        return repetition
    offset = _offset_of(error, source.text)
    word = _WORD.match(source.text, offset)
    place = (offset, word.end() if word else offset + 1)
    return source.error_at(place, f"not TOML: {_reword(message, source.text, offset)}")


def explain_long_number(source: PolicyText) -> PolicyError:
    """Return the error of a number for which tomllib passes on int()'s error, without a place."""
    number = _LONG_NUMBER.search(source.text)
    return source.error_at(number.span() if number else (0, 1), "not TOML: a number has too many digits")


def _offset_of(error: tomllib.TOMLDecodeError, text: str) -> int:
    """Return the offset of an error: in the text as it is, whose lines may end with CR LF."""
    location = _LOCATION.search(str(error))
    if location is None or location[1] is None:  # the end of the document
        return min(find_positions(text).end, len(text.rstrip("\r\n")))
    start = 0
    for _ in range(int(location[1]) - 1):
        start = text.index("\n", start) + 1
    return start + int(location[2]) - 1


def _explain_repetition(source: PolicyText) -> PolicyError | None:
    """Return the error of a key or table that the file has twice, with the line of the first one."""
    positions = find_positions(source.text)
    if positions.repeated is None:
        return None
    path, place = positions.repeated
    first = source.line_of(path)
    key = format_path(path)
    problem = f"{key} is already set" if path in positions.values else f"[{key}] is already declared"
    return source.error_at(place, f"not TOML: {problem} in line {first}; write it once")


def _reword(message: str, text: str, offset: int) -> str:
    if text.startswith(_BYTE_ORDER_MARK):
        return "the file begins with a byte order mark; save it as UTF-8 without one"
    if message == "Invalid statement" and text.lstrip().startswith("{"):
        return "the file begins like JSON; a policy is TOML: KEY = VALUE"
    if message.startswith("Expected '='") and text.startswith(":", offset):
        return "expected = and not : after the key; a policy is TOML, not YAML"
    if message.startswith("Expected newline") and text.startswith("\r", offset):
        return "the lines end with CR alone; save the file with LF or CR LF"
    if message == "Invalid value":
        return _reword_value(text, offset)
    for pattern, words in _MESSAGES:
        if match := re.match(pattern, message):
            return words.replace("{}", match[1]) if match.lastindex else words
    return message[:_MAX_MESSAGE]


def _reword_value(text: str, offset: int) -> str:
    expected = _MESSAGES[-1][1]
    word = _WORD.match(text, offset)
    if text[offset : offset + 1] in ("", "\n", "\r", "#"):
        return f"the value is missing; {expected}"
    if not word:
        return expected
    if word[0].lower() in ("true", "false", "yes", "no", "on", "off"):
        return f"{quote_excerpt(word[0])} is not a value; write true or false"
    if word[0][0].isalpha():
        return f'a string needs quotes: "{word[0][:60]}"'
    return f"{quote_excerpt(word[0])} is not a value; {expected}"
