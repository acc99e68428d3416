# SPDX-License-Identifier: BSD-2-Clause
"""Value of an expression for one packet: a number, or why there is none."""

from __future__ import annotations

from typing import Final


class Sentinel:
    """Sentinel for "no value" and "not modelled"."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


NFT_BREAK: Final = Sentinel("breaks")
NOT_MODELLED: Final = Sentinel("unknown")
FieldValue = int | Sentinel
