# SPDX-License-Identifier: BSD-2-Clause
"""What is not proved, a line each, for the commands that only need to say that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..policy.errors import Source
    from ..proof.verdict import Proof


def told(proof: Proof, source: Source) -> list[str]:
    """What is not proved, the worst first."""
    from ..proof.verdict import PROVED, REFUTED, described

    found = [one for one in proof.findings if one.deciding and one.verdict != PROVED]
    lines = []
    for one in sorted(found, key=lambda one: one.verdict != REFUTED):
        packet = f"{described(one.examples[0].packet)}: " if one.examples else ""
        lines.append(f"{line(source, one.origin)}: {one.property} {one.verdict}: {one.subject}: {packet}{one.detail}")
    return lines


def line(source: Source, path: tuple[str | int, ...]) -> str:
    """FILE:LINE of a key."""
    at = source.line(path) if path else None
    return f"{source.name}{f':{at}' if at else ''}"
