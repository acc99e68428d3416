# SPDX-License-Identifier: BSD-2-Clause
"""Events: what a base chain does with part of a region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from attrs import Factory, frozen

from ...netstate import nft
from ...netstate.formats import nft_text
from .box import Box, points
from .header_space import HeaderSpace

BaseChain: TypeAlias = tuple[nft.Table, nft.Chain]
FieldValues: TypeAlias = Mapping[str, int | str]  # by field: a number, or the name of the field with the same value


@frozen
class ChainEvent:
    """The effect of a base chain on part of a region; dropped packets are not an event.

    `kind` is "accept", "write" or "nat". The part is `box` without the boxes of `excluded`, which
    earlier rules decided (a superset of the ones that overlap `box`). `rule` is None where the
    policy of the chain decided; `statement` is the one that decides, writes or translates. `written`
    are the fields that rules have changed up to this point.
    """

    kind: str
    base_chain: BaseChain
    rule: nft.Rule | None
    box: Box
    excluded: Sequence[Box]
    statement: nft.Statement | None = None
    written: FieldValues = Factory(dict)


def unsupported_box(space: HeaderSpace, base_chain: BaseChain, box: Box, statement: nft.Statement) -> Box:
    """Return the packets of `box` that a statement accepts which is not modelled: those of a new artificial field."""
    table, chain = base_chain
    description = f"{table.family} {table.name} {chain.name}: {nft_text.display_text(statement)}"
    return {**box, space.unsupported_field(description): points(1)}
