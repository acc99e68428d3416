# SPDX-License-Identifier: BSD-2-Clause
"""Counts as English phrases."""

from __future__ import annotations


def quantity(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 step" or "2 steps"."""
    return f"{number} {_inflect(number, noun)}"


def and_more(number: int, noun: str = "") -> str:
    """Return "and 3 more", or with a noun "and 3 more kinds"."""
    return f"and {number} more {_inflect(number, noun)}" if noun else f"and {number} more"


def _inflect(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}s"
