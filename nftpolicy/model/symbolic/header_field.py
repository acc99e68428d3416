# SPDX-License-Identifier: BSD-2-Clause
"""Fields of the header space, and tests of rules for which it has none."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from ...netstate import nft
from .box import Box, Ranges


@frozen
class HeaderField:
    """The field of an expression, its value parser, and the packets in which it is readable."""

    name: str
    parse: Callable[[nft.Value], Ranges | None]
    needs: Box


@frozen
class FieldTest:
    """Match of a rule in a table, whose result is an artificial field."""

    table: nft.Table
    match: nft.Match
