# SPDX-License-Identifier: BSD-2-Clause
"""Files of KEY=VALUE lines, with or without sections. Pure."""

from __future__ import annotations

from collections.abc import Iterator


def assignments(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield line (from 1), section ("" before the first one), key and value of each assignment."""
    section = ""
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif "=" in line:
            key, _, value = line.partition("=")
            yield number, section, key.strip(), value.strip()


def value_words(text: str, *keys: tuple[str, str]) -> Iterator[str]:
    """Yield the words of the values of these (section, key) pairs, in the order of the file."""
    for _, section, key, value in assignments(text):
        if (section, key) in keys:
            yield from value.split()
