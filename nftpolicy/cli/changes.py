# SPDX-License-Identifier: BSD-2-Clause
"""Helpers of the commands that change the kernel: applier, announcement, report, confirmation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .common import Failure, resolve_account, warn
from .render.phrases import quantity

if TYPE_CHECKING:
    from ..kernel.interface import Kernel
    from ..policy.objects import Policy
    from ..proof.stages import Stage
    from ..runtime.changes.change import Carried, Changer, Options, Outlook
    from ..runtime.changes.journal import Text


def changer(kernel: Kernel, options: Options) -> Changer:
    """Return the applier for the network namespace of this process."""
    from ..policy.load import load
    from ..runtime.changes.change import Changer
    from ..runtime.changes.memory import of_this_namespace

    def load_policy(text: Text) -> Policy:
        return load(text[1], text[0], resolve_account)[0]

    return Changer(kernel, of_this_namespace(), load_policy, options)


def announce(outlook: Outlook) -> None:
    """Warn of an interrupted change, and of foreign rules that are not proved safe."""
    if outlook.interrupted is not None and outlook.steps:
        warn(f"{outlook.interrupted}; continuing from the state of the kernel")
    for line in _foreign_lines(outlook):
        warn(line)


def dry_run_text(outlook: Outlook, unchanged: str) -> str:
    """Return each step of a plan with the proof of the state after it; else `unchanged`."""
    if not outlook.steps or outlook.way is None:
        return unchanged
    from ..runtime.changes.wording import step_lines

    plan, (now, *after_steps) = outlook.way.plan, outlook.way.own
    lines = [f"{quantity(len(plan.steps), 'step')}, {plan.order}", f"  now: {_describe_state(now)}"]
    for number, (step, state) in enumerate(zip(plan.steps, after_steps, strict=True), 1):
        first, *more = step_lines(step)
        lines.append(f"{number:3}. {first}  -> {_describe_state(state)}")
        lines += [f"     {line}" for line in more]
    return "\n".join([*lines, *_foreign_lines(outlook)])


def _foreign_lines(outlook: Outlook) -> Iterator[str]:
    if outlook.way is None:
        return
    from ..runtime.changes.way import others_say

    for line in others_say(outlook.way):
        yield f"with the foreign rules of this machine: {line}"


def _describe_state(state: Stage) -> str:
    if state.promise is None:
        return "no guard, nothing to prove"
    return f"P1, P2 {state.verdict} ({state.promise.name})"


def print_report(report: Carried) -> None:
    """Print the warnings of a change, and the sockets and flows that it ended."""
    for line in report.warnings:
        warn(line)
    for line in report.closed:
        print(line)


@contextmanager
def confirm_guard(changer: Changer, outlook: Outlook, seconds: float = 0) -> Iterator[None]:
    """Roll the change inside back unless it is confirmed within `seconds`; 0 needs no confirmation.

    Raises:
        Failure: another change waits for its confirmation.
    """
    from ..runtime.changes import history, pending

    with confirm_errors_as_failure():
        if seconds and outlook.steps:
            from ..runtime.changes import deadman

            snapshots = history.of_this_namespace(changer.memory)
            with deadman.confirmed_within(changer.kernel, changer.memory, snapshots, seconds, warn):
                yield
        else:
            with pending.unless_pending(changer.memory):
                yield


@contextmanager
def confirm_errors_as_failure() -> Iterator[None]:
    """Turn conflicts with a change that waits for its confirmation into Failures."""
    from ..runtime.changes import pending

    try:
        yield
    except pending.Declined as error:
        raise Failure(str(error)) from None
    except pending.Gone:
        raise Failure(
            "the policy on trial was confirmed or rolled back just now: look at 'nftpolicy history'"
        ) from None
