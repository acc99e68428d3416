# SPDX-License-Identifier: BSD-2-Clause
"""Why a change is not even begun. Apart from the proof, which is slow to import, so that anybody can ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...proof.verdict import Proof
    from .way import Way


class NotProved(Exception):
    """What was wanted would let out what it forbids, or nobody can say."""

    def __init__(self, proof: Proof) -> None:
        self.proof = proof
        super().__init__(f"what it compiles to is {proof.verdict}")


class NotSafe(Exception):
    """No order of the steps keeps every state on the way safe; `ways` are those that were tried."""

    def __init__(self, ways: Sequence[Way]) -> None:
        self.ways = tuple(ways)
        super().__init__("no order of the steps is safe")
