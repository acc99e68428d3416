# SPDX-License-Identifier: BSD-2-Clause
"""Helpers of the commands that change the kernel: applier, announcement, report, confirmation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..phrases import quantity
from .common import Failure, resolve_account, warn

if TYPE_CHECKING:
    from ..kernel.interface import Kernel
    from ..netstate.state import NetState
    from ..policy.objects import Policy
    from ..proof.transition_proof import StateProof
    from ..runtime.apply.journal import PolicySource
    from ..runtime.apply.transaction import ChangeOptions, ChangeReport, CheckedPlan, PolicyApplier

_TAKEOVER = 10.0  # seconds that a running watch has to take over a policy


def create_applier(kernel: Kernel, options: ChangeOptions) -> PolicyApplier:
    """Return the applier for the network namespace of this process."""
    from ..policy.load import load
    from ..runtime.apply.state_dir import current_state_dir
    from ..runtime.apply.transaction import PolicyApplier

    def load_policy(text: PolicySource) -> Policy:
        return load(text[1], text[0], resolve_account)[0]

    return PolicyApplier(kernel, current_state_dir(), load_policy, options)


def announce(checked_plan: CheckedPlan) -> None:
    """Warn of an interrupted change, and of foreign rules that are not proved safe."""
    if checked_plan.interrupted is not None and checked_plan.step_count:
        warn(f"{checked_plan.interrupted}; continuing from the state of the kernel")
    for line in _foreign_lines(checked_plan):
        warn(line)


def dry_run_text(checked_plan: CheckedPlan, unchanged: str) -> str:
    """Return each step of a plan with the proof of the state after it; else `unchanged`."""
    if not checked_plan.step_count:
        return unchanged
    from ..runtime.apply.step_text import plan_lines, step_lines

    if checked_plan.order is None:
        return "\n".join(plan_lines(checked_plan.planned.plan))
    plan, (now, *after_steps) = checked_plan.order.plan, checked_plan.order.own_proofs
    lines = [f"{quantity(len(plan.steps), 'step')}, {plan.order}", f"  now: {_describe_state(now)}"]
    for number, (step, state) in enumerate(zip(plan.steps, after_steps, strict=True), 1):
        first, *more = step_lines(step)
        lines.append(f"{number:3}. {first}  -> {_describe_state(state)}")
        lines += [f"     {line}" for line in more]
    return "\n".join([*lines, *_foreign_lines(checked_plan)])


def _foreign_lines(checked_plan: CheckedPlan) -> Iterator[str]:
    if checked_plan.order is None:
        return
    from ..runtime.apply.step_order import foreign_findings

    for line in foreign_findings(checked_plan.order):
        yield f"with the foreign rules of this machine: {line}"


def _describe_state(state: StateProof) -> str:
    if state.named_spec is None:
        return "no guard, nothing to prove"
    return f"P1, P2 {state.verdict} ({state.named_spec.name})"


def print_report(report: ChangeReport) -> None:
    """Print the warnings of a change, and the sockets and flows that it ended."""
    for line in report.warnings:
        warn(line)
    for line in report.cleanup_lines:
        print(line)


def warn_of_earlier_shadow_guard(kernel: Kernel, desired: NetState) -> None:
    """Wait until a running `watch` has loaded the shadow guard of the new state; warn if it does not."""
    from ..runtime.shadow_guard_state import EARLIER_SHADOW_GUARD, await_shadow_guard

    if not await_shadow_guard(kernel, desired, _TAKEOVER):
        warn(EARLIER_SHADOW_GUARD)


@contextmanager
def confirm_guard(applier: PolicyApplier, checked_plan: CheckedPlan, seconds: float = 0) -> Iterator[None]:
    """Roll the change inside back unless it is confirmed within `seconds`; 0 needs no confirmation.

    Raises:
        Failure: another change waits for its confirmation.
    """
    from ..runtime.apply import history, pending_confirm

    with confirm_errors_as_failure():
        if seconds and checked_plan.step_count:
            from ..runtime.apply import confirm_timer

            snapshots = history.current_history(applier.state_dir)
            with confirm_timer.roll_back_unless_confirmed(applier.kernel, applier.state_dir, snapshots, seconds, warn):
                yield
        else:
            with pending_confirm.reject_if_pending(applier.state_dir):
                yield


@contextmanager
def confirm_errors_as_failure() -> Iterator[None]:
    """Turn conflicts with a change that waits for its confirmation into Failures."""
    from ..runtime.apply import pending_confirm

    try:
        yield
    except pending_confirm.ConfirmError as error:
        raise Failure(str(error)) from None
    except pending_confirm.AlreadyResolved:
        raise Failure(
            "the policy on trial was confirmed or rolled back just now: look at 'nftpolicy history'"
        ) from None
