# SPDX-License-Identifier: BSD-2-Clause
"""What is not proved, or deserves a word, a line each with its place in the policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..policy.errors import Path, Source
    from ..proof.verdict import Proof
    from ..runtime.changes.unproved import NotProved, NotSafe


_VIA_BLOCK = "with --via-block everything on the uplinks is stopped during the change"
_DESPITE = "take away what others do there, or add --despite-others: then it is applied, and they go on leaking"


def told(proof: Proof, source: Source | None) -> list[str]:
    """What is not proved, the worst first."""
    from ..proof.verdict import PROVED, REFUTED, described

    found = [one for one in proof.findings if one.deciding and one.verdict != PROVED]
    lines = []
    for one in sorted(found, key=lambda one: one.verdict != REFUTED):
        packet = f"{described(one.examples[0].packet)}: " if one.examples else ""
        where = f"{line(source, one.origin)}: " if source is not None else ""
        lines.append(f"{where}{one.property} {one.verdict}: {one.subject}: {packet}{one.detail}")
    return lines


def unsafe(error: NotProved | NotSafe, source: Source | None) -> tuple[list[str], bool]:
    """Why nothing was changed, a line each; and whether that is only since something is unknown."""
    from ..proof.verdict import PROVED, UNKNOWN
    from ..runtime.changes.change import failures
    from ..runtime.changes.unproved import NotProved

    if isinstance(error, NotProved):
        return told(error.proof, source), error.proof.verdict == UNKNOWN
    lines, verdicts, hints = [], set(), {}
    for way, number, stage in failures(error.ways):
        own = way.verdict != PROVED
        verdicts.add(stage.verdict)
        hints[_VIA_BLOCK if own else _DESPITE] = None
        step = f"after step {number} of {len(way.plan.steps)}" if number else "as things are"
        lines.append(f"{way.plan.order}: {step}, {'' if own else 'with the rules of others, '}this is not safe:")
        if stage.proof is not None:
            said = [f"  {one}" for one in told(stage.proof, source)]
            lines += said if said[0] not in lines else ["  for the same reason"]
    return [*lines, *hints], verdicts == {UNKNOWN}


def noted(source: Source, notes: Iterable[tuple[Path, str]]) -> Iterator[str]:
    """What deserves a word about keys of a policy, a line each with its place."""
    from ..policy.errors import shown

    for path, message in notes:
        yield f"{line(source, path)}: {shown(path)}: {message}"


def line(source: Source, path: Path) -> str:
    """FILE:LINE of a key."""
    at = source.line(path) if path else None
    return f"{source.name}{f':{at}' if at else ''}"
