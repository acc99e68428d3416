# SPDX-License-Identifier: BSD-2-Clause
"""What the commands that change the kernel share: who makes the change, how it is told, what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .common import account, warn

if TYPE_CHECKING:
    from ..kernel.linux import Linux
    from ..policy.objects import Policy
    from ..proof.stages import Stage
    from ..runtime.changes.change import Carried, Changer, Options, Outlook
    from ..runtime.changes.journal import Text


def changer(kernel: Linux, options: Options) -> Changer:
    """Who makes changes in the network namespace of this process."""
    from ..policy.load import load
    from ..runtime.changes.change import Changer
    from ..runtime.changes.memory import of_this_namespace

    def loaded(text: Text) -> Policy:
        return load(text[1], text[0], account)[0]

    return Changer(kernel, of_this_namespace(), loaded, options)


def foretell(outlook: Outlook) -> None:
    """Say what a person should know before anything is done."""
    if outlook.interrupted is not None and outlook.steps:
        warn(f"{outlook.interrupted}; going on from what the kernel holds")
    if outlook.way is not None:
        from ..runtime.changes.way import others_say

        for line in others_say(outlook.way):
            warn(f"with the rules of others: {line}")


def dry(outlook: Outlook, nothing: str) -> str:
    """Every step of a plan with the proof of the state behind it, or `nothing`."""
    if not outlook.steps or outlook.way is None:
        return nothing
    from ..runtime.changes.way import others_say
    from ..runtime.changes.wording import step_lines

    plan, (now, *behind) = outlook.way.plan, outlook.way.own
    lines = [f"{_count(len(plan.steps), 'step')}, {plan.order}", f"  now: {_said(now)}"]
    for number, (step, stage) in enumerate(zip(plan.steps, behind, strict=True), 1):
        first, *rest = step_lines(step)
        lines += [f"{number:3}. {first}  -> {_said(stage)}", *(f"     {line}" for line in rest)]
    lines += [f"with the rules of others: {line}" for line in others_say(outlook.way)]
    return "\n".join(lines)


def _said(stage: Stage) -> str:
    if stage.promise is None:
        return "no guard, nothing is promised"
    return f"P1, P2 {stage.verdict} ({stage.promise.name})"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def afterwards(carried: Carried) -> None:
    """Say what came of it beside the change."""
    for line in carried.warnings:
        warn(line)
    for line in carried.closed:
        print(line)


@contextmanager
def on_trial(changer: Changer, outlook: Outlook, seconds: float = 0) -> Iterator[None]:
    """A change that is taken back unless it is confirmed within so many seconds; without them, an ordinary one.

    Either is refused while another one is on trial.
    """
    from ..runtime.changes import history, pending
    from .rollback import declining

    with declining():
        if seconds and outlook.steps:
            from ..runtime.changes import deadman

            kept = history.of_this_namespace(changer.memory)
            with deadman.confirmed_within(changer.kernel, changer.memory, kept, seconds, warn):
                yield
        else:
            with pending.unless_pending(changer.memory):
                yield
