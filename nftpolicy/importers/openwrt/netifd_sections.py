# SPDX-License-Identifier: BSD-2-Clause
"""Values of UCI sections as netifd parses them. Pure."""

from __future__ import annotations

from .interfaces import parse_unsigned
from .uci_parser import ParsedSection

SECTION_FAMILIES = {"rule": 4, "rule6": 6, "route": 4, "route6": 6}


class IgnoredSection(Exception):
    """Section that netifd ignores; the text is the reason."""


def section_origin(section: ParsedSection, option: str = "") -> tuple[str, str]:
    """Return the position of a section, (FILE, LINE), as the origin of an object."""
    return section.file, str(section.line_of(option) if option else section.line)


def section_number(section: ParsedSection, option: str, default: int) -> int:
    """Return the number in an option, or `default` if the option is missing.

    Raises:
        IgnoredSection: the option is not a number.
    """
    text = section.get(option)
    number = parse_unsigned(text) if text else default
    if number is None:
        raise IgnoredSection(f"{option} {text!r} is not a number")
    return number
