# SPDX-License-Identifier: BSD-2-Clause
"""Files of lines KEY=VALUE, with sections or without. Pure."""

from __future__ import annotations

from collections.abc import Iterator


def pairs(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Line (from 1), section ("" before the first), key and value of each assignment. Comments are left out."""
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


def words_of(text: str, *keys: tuple[str, str]) -> Iterator[str]:
    """The words of the values of these (section, key), in the order of the file."""
    for _, section, key, value in pairs(text):
        if (section, key) in keys:
            yield from value.split()
