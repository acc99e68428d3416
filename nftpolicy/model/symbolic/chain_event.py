# SPDX-License-Identifier: BSD-2-Clause
"""Events: what a base chain does with part of a region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from attrs import frozen

from ...netstate import nft
from .box import Box

BaseChain: TypeAlias = tuple[nft.Table, nft.Chain]
MarkValues: TypeAlias = dict[str, int | str]  # by field: a number, or the name of the field with the same value


@frozen
class ChainEvent:
    """The effect of a base chain on part of a region; dropped packets are not an event.

    `kind` is "accept", "write" or "nat". The part is `box` without the boxes of `excluded`, which
    earlier rules decided (a superset of the ones that overlap `box`). `rule` is None where the
    policy of the chain decided; `statement` is the one that writes or translates, `marks` are the
    marks at that point.
    """

    kind: str
    base_chain: BaseChain
    rule: nft.Rule | None
    box: Box
    excluded: Sequence[Box]
    statement: nft.Statement | None = None
    marks: MarkValues | None = None
