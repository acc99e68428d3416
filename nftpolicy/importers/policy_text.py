# SPDX-License-Identifier: BSD-2-Clause
"""Values and comments of a drafted policy file as TOML."""

from __future__ import annotations

import json
from collections.abc import Iterable


def toml_string(text: str) -> str:
    """Return a string in quotes."""
    return json.dumps(text)


def toml_list(items: Iterable[str]) -> str:
    """Return a list of strings on one line."""
    return f"[{', '.join(map(toml_string, items))}]"


def toml_comment(text: str) -> str:
    """Return text that is valid in a TOML comment, without control characters."""
    return "".join(char if char.isprintable() else "?" for char in text)
