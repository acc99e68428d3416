# SPDX-License-Identifier: BSD-2-Clause
"""Tests of `ct status confirmed` as boxes; the other bits of `ct status` are not supported.

The kernel confirms a flow when its first packet has passed all hooks.
"""

from __future__ import annotations

from collections.abc import Collection

from ...netstate import nft
from .box import Box, points

_STATUS, _CONFIRMED = nft.Ct("status"), ("confirmed", 8)  # IPS_CONFIRMED
_MASKED = tuple(nft.Bitwise(_STATUS, and_mask=mask) for mask in _CONFIRMED)
_FLAG_OPERATORS = {"in": 1, "&": 1, "!": 0}


def confirmed_boxes(
    left: nft.Expression, elements: Collection[nft.Element], op: str, readable: Box
) -> list[Box] | None:
    """Return the packets of `readable` that pass the test; None: another test."""
    if len(elements) != 1:
        return None
    (element,) = elements
    wanted = None
    if left == _STATUS and element in _CONFIRMED:
        wanted = _FLAG_OPERATORS.get(op)
    elif left in _MASKED and element in (0, *_CONFIRMED) and op in ("==", "!="):
        wanted = int((element != 0) == (op == "=="))
    return None if wanted is None else [{**readable, "ct.confirmed": points(wanted)}]
