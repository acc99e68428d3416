# SPDX-License-Identifier: BSD-2-Clause
"""Findings of a proof and warnings as lines, each with its location in the policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..policy.errors import PolicyText
    from ..policy.toml_positions import KeyPath
    from ..proof.verdict import Proof
    from ..runtime.apply.errors import NoSafeOrder, PolicyNotProved
    from .render.trace import SourceLocator

_HINT_BLOCK = "add --via-block: it stops all traffic on the uplinks during the change"
_HINT_FOREIGN = (
    "remove the foreign rules that let these packets out, or add --ignore-foreign: "
    "it applies the policy, and these packets still leak"
)


def finding_lines(proof: Proof, source: PolicyText | None) -> list[str]:
    """Return a line for each deciding finding that is not proved, the refuted ones first."""
    from ..proof.verdict import PROVED, REFUTED, describe_packet

    failed = [finding for finding in proof.findings if finding.deciding and finding.verdict != PROVED]
    lines = []
    for finding in sorted(failed, key=lambda finding: finding.verdict != REFUTED):
        packet = f"{describe_packet(finding.examples[0].packet)}: " if finding.examples else ""
        location = f"{key_location(source, finding.origin)}: " if source is not None else ""
        head = f"{location}{finding.property} {finding.verdict}: {finding.subject}"
        lines.append(f"{head}: {packet}{finding.detail}")
    return lines


def refusal_lines(error: PolicyNotProved | NoSafeOrder, source: PolicyText | None) -> tuple[list[str], bool]:
    """Return why a change was refused, and True if only unknown verdicts are the reason."""
    from ..proof.verdict import PROVED, UNKNOWN
    from ..runtime.apply.errors import PolicyNotProved
    from ..runtime.apply.transaction import first_failures

    if isinstance(error, PolicyNotProved):
        return finding_lines(error.proof, source), error.proof.verdict == UNKNOWN
    lines: list[str] = []
    verdicts: set[str] = set()
    hints: dict[str, None] = {}  # a set that keeps its order
    for order, number, state in first_failures(error.orders):
        foreign = order.verdict == PROVED
        verdicts.add(state.verdict)
        hints[_HINT_FOREIGN if foreign else _HINT_BLOCK] = None
        step = f"after step {number} of {len(order.plan.steps)}" if number else "before the first step"
        rules = "with the foreign rules of this machine, " if foreign else ""
        lines.append(f"{order.plan.order}: {step}, {rules}this is not safe:")
        if state.proof is not None:
            reasons = [f"  {line}" for line in finding_lines(state.proof, source)]
            lines += ["  for the same reason"] if reasons[0] in lines else reasons
    return [*lines, *hints], verdicts == {UNKNOWN}


def warning_lines(source: PolicyText, notes: Iterable[tuple[KeyPath, str]]) -> Iterator[str]:
    """Yield a line for each note about a key of the policy, with its location."""
    from ..policy.errors import format_path

    for path, message in notes:
        yield f"{key_location(source, path)}: {format_path(path)}: {message}"


def key_location(source: PolicyText, path: KeyPath) -> str:
    """Return FILE:LINE of a key, or FILE if it has no line."""
    line = source.line_of(path) if path else None
    return f"{source.name}:{line}" if line else source.name


def source_locator(source: PolicyText | None) -> SourceLocator:
    """Return the locator of the keys of a policy; without a policy, it locates nothing."""
    from ..policy.errors import format_path

    return lambda key: f"{key_location(source, key)} {format_path(key)}" if source is not None and key else ""
