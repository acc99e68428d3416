# SPDX-License-Identifier: BSD-2-Clause
"""Counts as English phrases, and text that is safe to print on a terminal."""

from __future__ import annotations


def quantity(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 step" or "2 steps"."""
    return f"{number} {_inflect(number, noun)}"


def and_more(number: int, noun: str = "") -> str:
    """Return "and 3 more", or with a noun "and 3 more kinds"."""
    return f"and {number} more {_inflect(number, noun)}" if noun else f"and {number} more"


def _inflect(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}s"


def printable_text(text: str) -> str:
    """Return `text` with "?" for each character that could control a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
