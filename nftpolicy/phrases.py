# SPDX-License-Identifier: BSD-2-Clause
"""Counts as English phrases, and the first few of many names."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_NAMES = 4


def quantity(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 step" or "2 steps"."""
    return f"{number} {_inflect(number, noun)}"


def and_more(number: int, noun: str = "") -> str:
    """Return "and 3 more", or with a noun "and 3 more kinds"."""
    return f"and {number} more {_inflect(number, noun)}" if noun else f"and {number} more"


def first_few(texts: Iterable[str], most: int) -> list[str]:
    """Return the first texts, and as a last text how many more there are."""
    listed = list(texts)
    return listed if len(listed) <= most else [*listed[:most], and_more(len(listed) - most)]


def name_some(names: Iterable[object], most: int = _MOST_NAMES) -> str:
    """Return the first names as text, such as "a, b and 3 more"."""
    listed = list(map(str, names))
    text = ", ".join(listed[:most])
    return text if len(listed) <= most else f"{text} {and_more(len(listed) - most)}"


def _inflect(number: int, noun: str) -> str:
    if number == 1:
        return noun
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
