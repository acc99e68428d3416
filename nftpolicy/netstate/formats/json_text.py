# SPDX-License-Identifier: BSD-2-Clause
"""JSON text to values, without a loss, and values to JSON in printable ASCII."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: bytes) -> Any:
    """Return the value of a document.

    Raises:
        ValueError: it is not JSON in UTF-8, or an object has a key twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique_keys)


def encode_json(document: Any, indent: int | None = None) -> str:
    """Return a document as JSON in printable ASCII: json.dumps leaves DEL as it is."""
    return json.dumps(document, indent=indent).replace("\x7f", "\\u007f")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError for a key that it has twice."""
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return document
