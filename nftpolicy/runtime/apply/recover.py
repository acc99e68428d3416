# SPDX-License-Identifier: BSD-2-Clause
"""Recovery of a change that was interrupted."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from ...kernel.errors import StepRefused
from .errors import NoSafeOrder, PolicyNotProved
from .executor import ReadBackMismatch
from .journal import APPLY, InconsistentState, InterruptedChange, PolicySource
from .transaction import ChangeReport, CheckedPlan, PolicyApplier, TargetPolicy

_TRY_NEXT = (StepRefused, ReadBackMismatch, PolicyNotProved, NoSafeOrder, ValueError)


@frozen
class RecoveryResult:
    """Result of a recovery: the policy in force now, its checked plan, and the report."""

    target: TargetPolicy
    checked: CheckedPlan
    report: ChangeReport


class RecoveryFailed(InconsistentState):
    """Neither the new nor the old policy could be applied; the guard stays as it was."""


def recover(
    applier: PolicyApplier,
    undo: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> RecoveryResult | None:
    """Complete or undo an interrupted change. The caller holds the lock.

    An interrupted apply is completed, or else undone (with `undo`, the other way round); an
    interrupted release is undone. Returns None if nothing was interrupted.

    Raises:
        RecoveryFailed: neither was possible; `log` got the reasons.
    """
    interrupted = applier.state_dir.journal.interrupted()
    if interrupted is None:
        return None
    log(str(interrupted))
    for source in _candidates(interrupted, applier.state_dir.policy(), undo):
        try:
            wanted = TargetPolicy(applier.load(source), source)
            checked_plan = applier.check(wanted)
            return RecoveryResult(wanted, checked_plan, applier.apply(checked_plan, wanted, why="recover"))
        except _TRY_NEXT as error:
            log(f"{source[0]}: {error}")
    raise RecoveryFailed("no policy of the interrupted change can be applied; apply one: nftpolicy apply FILE")


def _candidates(interrupted: InterruptedChange, saved: PolicySource | None, undo: bool) -> list[PolicySource]:
    """Return the policies to try, in order, without duplicates."""
    ends = [interrupted.before]
    if interrupted.kind == APPLY:
        ends = [interrupted.after, interrupted.before]
    if undo:
        ends.reverse()
    sources = [source for source in (*ends, saved) if source is not None]
    return list(dict.fromkeys(sources))
