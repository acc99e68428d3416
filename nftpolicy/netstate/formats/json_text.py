# SPDX-License-Identifier: BSD-2-Clause
"""JSON text to values, without a loss, and values to JSON in printable ASCII."""

from __future__ import annotations

import json
from typing import Any

_MAX_EXCERPT = 20  # characters of a document that a message repeats


def parse_json(text: bytes) -> Any:
    """Return the value of a document.

    Raises:
        ValueError: it is not JSON in UTF-8, or an object has a key twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique_keys)


def describe_json_error(text: bytes, error: Exception) -> str:
    """Return what is wrong with a document for which `parse_json` raised this error."""
    if not text.strip():
        return "it is empty"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    if error.pos >= len(error.doc.rstrip()):
        lines = error.doc.rstrip().count("\n") + 1
        return f"it ends in line {lines}, before the document is complete"
    if error.doc[: error.pos].strip() in ("", "0"):  # the priority of the first ip rule is 0
        return f"it begins with {error.doc.lstrip()[:_MAX_EXCERPT]!r}"
    return f"line {error.lineno}, column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"


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
