# SPDX-License-Identifier: BSD-2-Clause
"""A table as nft lists it in JSON, object by object where nft 1.0.6 fails on the whole.

nft 1.0.6 stops at a table with an owner, because it prints its flags from foreign memory, and it
aborts on an anonymous set with neighbouring wildcards. In text it lists both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ..netstate.formats import nft_text
from .errors import RulesetUnreadable
from .libnft import Nft

_TABLE = re.compile(r"^table (\S+) (\S+) \{")
_FLAGS = re.compile(r"^\tflags (\S+)$")
_OBJECT = re.compile(r"^\t((?:ct )?[a-z]+) (\S+) \{$")
EMPTY: Any = {"nftables": []}


def list_table(nft: Nft, family: str, name: str) -> Any:
    """Return a document like `nft -j -t list ruleset` that has at least this table.

    Empty without such a table. An object that nft cannot list is "unreadable" in it.

    Raises:
        RulesetUnreadable: nft cannot list the table in text either.
    """
    try:
        path = f"{nft_text.identifier(family)} {nft_text.identifier(name)}"
    except ValueError as error:
        raise RulesetUnreadable(str(error)) from None
    # `list ruleset` is the only list command of nft 1.0.6 that does not read the elements of named
    # sets.
    commands = f"list ruleset {family}", f"list table {path}"
    for command in commands:
        with suppress(RulesetUnreadable):
            return nft.list_json(command, terse=True) or EMPTY
    return {"nftables": list(_objects(nft, nft.list_text(commands[-1], terse=True) or ""))}


def _objects(nft: Nft, listing: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each table and each object in a text listing."""
    family = name = ""
    for line in listing.splitlines():
        if table := _TABLE.match(line):
            family, name = table.groups()
            yield {"table": {"family": family, "name": name}}
        elif flags := _FLAGS.match(line):
            yield {"table": {"family": family, "name": name, "flags": flags[1].split(",")}}
        elif match := _OBJECT.match(line):
            yield from _object(nft, match[1], family, name, match[2])


def _object(nft: Nft, kind: str, family: str, table: str, name: str) -> Iterator[dict[str, Any]]:
    try:
        path = " ".join(map(nft_text.identifier, (family, table, name)))
        document = nft.list_json(f"list {kind} {path}", terse=True)
    except (RulesetUnreadable, ValueError):  # ValueError: a name that would be more than one word
        document = None
    if document is None:
        yield {"unreadable": {"kind": kind, "family": family, "table": table, "name": name}}
    else:
        yield from (entry for entry in document["nftables"] if "table" not in entry and "metainfo" not in entry)
