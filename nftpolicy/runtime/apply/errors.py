# SPDX-License-Identifier: BSD-2-Clause
"""Reasons why a change is not begun.

In a file of their own, since the proof is slow to import and a caller needs only the exceptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...exceptions import NftpolicyError

if TYPE_CHECKING:
    from ...proof.verdict import Proof
    from .proved_order import ProvedOrder


class PolicyNotProved(NftpolicyError):
    """The compiled policy could not be proved: the verdict is refuted or unknown."""

    def __init__(self, proof: Proof) -> None:
        self.proof = proof
        super().__init__(f"the compiled policy is not proved: {proof.verdict}")


class NoSafeOrder(NftpolicyError):
    """Change without a safe step order: each of `orders` passes through an unproved state."""

    def __init__(self, orders: Sequence[ProvedOrder]) -> None:
        self.orders = tuple(orders)
        super().__init__("no order of the steps is safe")
