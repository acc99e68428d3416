# SPDX-License-Identifier: BSD-2-Clause
"""A kernel's state from files: what nft and ip printed on some machine, to be judged at a desk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ..netstate import ip_json, json_in
from ..netstate.state import NetState
from .common import BAD_INPUT, Failure

Found = TypeVar("Found")
_LONGEST = 300  # characters of a message

RULESET = "Tables as 'nft -j list ruleset' prints them, instead of this kernel's."
RULES = "ip rules as 'ip -j -N -4 rule' (-6) prints them; may be repeated."
ROUTES = "Routes as 'ip -j -N -4 route show table all' (-6) prints them; may be repeated."


def desk_state(ruleset: Path | None, rules: Iterable[str], routes: Iterable[str]) -> NetState:
    """The state that these files tell of, or Failure. What is not given is empty.

    A file of rules or routes is of one family: the one before it ("4:FILE", "6:FILE"), or the one of
    the addresses in it.
    """
    return NetState(
        tables=_read(str(ruleset), json_in.ruleset, "nft -j list ruleset") if ruleset else (),
        rules=tuple(one for file in rules for one in _of_family(file, ip_json.rules, "ip -j -N rule")),
        routes=tuple(
            one for file in routes for one in _of_family(file, ip_json.routes, "ip -j -N route show table all")
        ),
    )


def _of_family(file: str, reader: Callable[[Any, int | None], Found], command: str) -> Found:
    family, colon, name = file.partition(":")
    if colon and family in ("4", "6"):
        return _read(name, lambda document: reader(document, int(family)), command)
    return _read(file, lambda document: reader(document, None), command, "; write 4:FILE or 6:FILE")


def _read(file: str, reader: Callable[[Any], Found], command: str, hint: str = "") -> Found:
    name = "standard input" if file == "-" else file
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise Failure(f"{name}: can't be read: {error.strerror}", BAD_INPUT) from None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:  # UTF-8's too
        raise Failure(f"{name}: not the JSON that '{command}' prints: {_short(error)}", BAD_INPUT) from None
    try:
        return reader(document)
    except ValueError as error:
        told = hint if "IPv4 or IPv6" in str(error) else ""
        raise Failure(f"{name}: not what '{command}' prints: {_short(error)}{told}", BAD_INPUT) from None


def _short(error: Exception) -> str:
    """One line of it: these messages repeat pieces of the file."""
    said = str(error).replace("\n", " ")
    return said if len(said) < _LONGEST else said[:_LONGEST] + "..."
