# SPDX-License-Identifier: BSD-2-Clause
"""The ruleset as nft lists it in JSON, piece by piece where nft 1.0.6 fails on the whole.

It breaks off at a table with an owner, since it prints its flags from memory that is not its own, and it
aborts on an anonymous set with neighbouring wildcards. In text it lists both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .libnft import Nft, Unreadable

_TABLE = re.compile(r"^table (\S+) (\S+) \{")
_FLAGS = re.compile(r"^\tflags (\S+)$")
NOTHING: Any = {"nftables": []}
_OBJECT = re.compile(r"^\t((?:ct )?[a-z]+) (\S+) \{$")


def ruleset(nft: Nft) -> Any:
    """A document as of `nft -j -t list ruleset`. What can't be listed is an object "unreadable" in it.

    Raises:
        Unreadable: not even the text says what there is.
    """
    return _listed(nft, "list ruleset")


def table(nft: Nft, family: str, name: str) -> Any:
    """The same of at least one table, whatever else there is. Empty if there is no such table."""
    # Of all list commands of nft 1.0.6 this one alone leaves the elements of named sets in the kernel.
    try:
        return nft.json(f"list ruleset {family}", terse=True) or NOTHING
    except Unreadable:
        return _listed(nft, f"list table {family} {name}")


def _listed(nft: Nft, command: str) -> Any:
    try:
        return nft.json(command, terse=True) or NOTHING
    except Unreadable:
        return {"nftables": list(_pieces(nft, nft.listing(command, terse=True) or ""))}


def _pieces(nft: Nft, listing: str) -> Iterator[dict[str, Any]]:
    family = name = ""
    for line in listing.splitlines():
        if begun := _TABLE.match(line):
            family, name = begun.groups()
            yield {"table": {"family": family, "name": name}}
        elif flags := _FLAGS.match(line):
            yield {"table": {"family": family, "name": name, "flags": flags[1].split(",")}}
        elif found := _OBJECT.match(line):
            yield from _piece(nft, found[1], family, name, found[2])


def _piece(nft: Nft, kind: str, family: str, table: str, name: str) -> Iterator[dict[str, Any]]:
    try:
        listed = nft.json(f"list {kind} {family} {table} {name}", terse=True)
    except Unreadable:
        listed = None
    if listed is None:
        yield {"unreadable": {"kind": kind, "family": family, "table": table, "name": name}}
    else:
        yield from (one for one in listed["nftables"] if "table" not in one and "metainfo" not in one)
