# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy rollback [N]"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

from ..policy.errors import PolicyText
from .apply_common import (
    announce,
    confirm_errors_as_failure,
    create_applier,
    dry_run_text,
    print_report,
    warn_of_earlier_shadow_guard,
)
from .common import (
    EXIT_BAD_INPUT,
    Failure,
    change_errors_as_failure,
    describe_result,
    parse_policy,
    this_kernel,
)
from .options import DryRun
from .parameters import argument, option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..policy.objects import Policy
    from ..runtime.apply.confirm_timer import ConfirmContext
    from ..runtime.apply.history import History
    from ..runtime.apply.pending_confirm import PendingConfirm, RollbackTarget
    from ..runtime.apply.state_dir import StateDir
    from ..runtime.apply.transaction import CheckedPlan, PolicyApplier, TargetPolicy


def command(
    number: Annotated[
        int | None,
        argument(metavar="[N]", help="Number in the history; default: the previous policy."),
    ] = None,
    dry_run: DryRun = False,
    at_deadline: Annotated[bool, option("--at-deadline", hidden=True)] = False,
) -> None:
    """Apply an earlier policy from the history.

    The same proof as for apply comes first. While a policy is on trial, the default is the policy
    before it.
    """
    if at_deadline:
        _run_confirm_worker()
        return
    kernel = this_kernel()
    from ..runtime.apply import history, pending_confirm
    from ..runtime.apply.transaction import ChangeOptions

    applier = create_applier(kernel, ChangeOptions())
    state_dir = applier.state_dir
    snapshots = history.current_history(state_dir)
    with confirm_errors_as_failure(), change_errors_as_failure(None):
        trial = _policy_on_trial(state_dir, number)
        target = _rollback_target(snapshots, state_dir, number, trial)
    around: ConfirmContext = partial(pending_confirm.reject_if_pending, state_dir)
    if trial is not None:
        around = partial(pending_confirm.rolling_back, state_dir, trial.token)
    reason = "release"
    if target is not None:
        reason = f"rollback to {target.number or target.file}"
    with _append_to_failure("nothing was changed"):
        policy, source = _parse_target(target) if target else (None, None)
    wanted = _wanted_policy(policy, target)
    with confirm_errors_as_failure(), change_errors_as_failure(source):
        if dry_run:
            print(dry_run_text(applier.check(wanted), "the kernel is in this state already"))
            return
        checked_plan = _apply_target(applier, wanted, target, reason, around)
    warn_of_earlier_shadow_guard(kernel, checked_plan.planned.desired)
    if policy is None:
        print(describe_result(checked_plan.planned, "released", "there was nothing to release"))
    else:
        result = describe_result(
            checked_plan.planned,
            f"rolled back to {target}",
            f"{target} is in force already, nothing to change",
        )
        print(f"{policy.name}: {result}")


def _policy_on_trial(state_dir: StateDir, number: int | None) -> PendingConfirm | None:
    """Return the policy on trial. With `number`, a damaged record of it is removed."""
    from ..runtime.apply import pending_confirm

    try:
        return pending_confirm.read_pending(state_dir)
    except pending_confirm.ConfirmError:
        if number is None:
            raise
        pending_confirm.remove_pending(state_dir)
        return None


def _rollback_target(
    snapshots: History, state_dir: StateDir, number: int | None, trial: PendingConfirm | None
) -> RollbackTarget | None:
    """Return the policy to roll back to; None means release.

    Raises:
        Failure: the history has no such policy, or it is damaged.
    """
    from ..runtime.apply.pending_confirm import RollbackTarget

    if number is None and trial is not None:
        return trial.back
    snapshot = snapshots.read()
    if number is None:
        last = state_dir.policy()
        if last is None:
            raise Failure("no policy is in force; 'nftpolicy rollback N' applies entry N of the history")
        entry = snapshot.previous(last[1])
        if entry is None:
            raise Failure("there is no policy before this one: type 'nftpolicy history' to list all")
    else:
        entry = snapshot.entry(number)
        path = snapshots.path(number)
        damaged = next((file for file in snapshot.damaged if file.path == path), None)
        if damaged:
            raise Failure(f"{damaged.path}: damaged, so it cannot be used: {damaged.reason}")
        if entry is None:
            raise Failure(
                f"there is no number {number} in the history: type 'nftpolicy history' to list it",
                EXIT_BAD_INPUT,
            )
    return RollbackTarget(entry.number, entry.file, entry.text)


def _parse_target(target: RollbackTarget) -> tuple[Policy, PolicyText]:
    """Return the stored policy, with the users and groups of today.

    Its source name has the number, so that an error is not looked up in the present file.
    """
    name = f"{target.file} (number {target.number})" if target.number else target.file
    return parse_policy(target.text.encode(), name)


@contextmanager
def _append_to_failure(note: str) -> Iterator[None]:
    """Append a line to the message of a Failure."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{failure}\nnftpolicy: {note}", failure.status) from None


def _wanted_policy(policy: Policy | None, target: RollbackTarget | None) -> TargetPolicy | None:
    from ..runtime.apply.transaction import TargetPolicy

    return None if policy is None or target is None else TargetPolicy(policy, (target.file, target.text.encode()))


def _apply_target(
    applier: PolicyApplier, wanted: TargetPolicy | None, target: RollbackTarget | None, why: str, around: ConfirmContext
) -> CheckedPlan:
    """Apply, or release. If this raises, the kernel's state is as it was before."""
    with applier.locked(), around():
        checked_plan = applier.check(wanted)
        announce(checked_plan)
        report = applier.apply(checked_plan, wanted, why, target.number if target else None)
    print_report(report)
    return checked_plan


def _run_confirm_worker() -> None:
    """Wait for the deadline of 'apply --confirm', and roll back unless the policy is confirmed."""
    # `step_order` is imported now, so that the import cannot fail at the deadline.
    from ..runtime.apply import confirm_process, confirm_timer, step_order  # noqa: F401
    from ..runtime.apply.state_dir import Locked
    from ..runtime.apply.transaction import ChangeOptions

    gc.enable()
    try:
        order = confirm_process.read_config()
    except (ValueError, TypeError, KeyError):
        raise Failure("--at-deadline is internal: only 'apply --confirm' starts it", EXIT_BAD_INPUT) from None
    kernel = this_kernel()
    applier = create_applier(kernel, ChangeOptions())
    # Parsed now: at the deadline its users and groups may have other names, or none.
    with confirm_timer.failure_recorded(applier.state_dir, order):
        policy, source = _parse_target(order.target) if order.target else (None, None)
    wanted = _wanted_policy(policy, order.target)
    if not order.resumes:
        with change_errors_as_failure(source):
            applier.check(wanted)  # shows that it can be planned
    goal = f"back to {order.target.number or order.target.file}" if order.target else "release"

    def roll_back(around: ConfirmContext) -> None:
        locked = None
        with change_errors_as_failure(source):
            try:
                _apply_target(applier, wanted, order.target, f"confirm timed out, {goal}", around)
            except Locked as error:
                locked = error
        if locked:
            raise locked

    with confirm_errors_as_failure(), change_errors_as_failure(source):
        confirm_timer.run_timer(applier.state_dir, order, roll_back, confirm_timer.report_ready)
