# SPDX-License-Identifier: BSD-2-Clause
"""Nondeterministic choices: each unsupported construct branches the trace.

Only what all branches agree on is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import field, frozen, mutable

MAX_BRANCHES = 64

Result = TypeVar("Result")


@mutable
class Choices:
    """The choices of one branch. Questions beyond `script` are answered with yes."""

    script: tuple[bool, ...] = ()
    answers: list[bool] = field(factory=list, init=False)
    questions: list[str] = field(factory=list, init=False)
    undetermined: list[str] = field(factory=list, init=False)

    def branch_on(self, question: str) -> bool:
        """Return this branch's answer to an open question, for example whether a match holds."""
        answer = self.script[len(self.answers)] if len(self.answers) < len(self.script) else True
        self.answers.append(answer)
        self.questions.append(question)
        return answer

    def mark_unsupported(self, construct: str) -> None:
        """Record an effect that is not modelled: the outcome of this branch is unknown."""
        self.undetermined.append(construct)


@frozen
class Branches(Generic[Result]):
    """The results of all branches; `is_complete` is False if the limit cut some of them off."""

    results: tuple[Result, ...]
    is_complete: bool
    # Questions and unsupported constructs of all branches, without duplicates, in order
    unsupported: tuple[str, ...]
    undetermined: tuple[str, ...]  # those of them that leave even a single branch without a known outcome


def explore_branches(run: Callable[[Choices], Result]) -> Branches[Result]:
    """Run under all answers, depth first; the first branch answers every question with yes."""
    first = Choices()
    result = run(first)
    if not first.answers and not first.undetermined:  # the usual case
        return Branches((result,), True, (), ())
    script: tuple[bool, ...] | None = _next(first.answers)
    results = [result]
    unsupported = dict.fromkeys((*first.questions, *first.undetermined))
    undetermined = dict.fromkeys(first.undetermined)
    while script is not None and len(results) < MAX_BRANCHES:
        choices = Choices(script)
        results.append(run(choices))
        if choices.questions or choices.undetermined:
            unsupported |= dict.fromkeys((*choices.questions, *choices.undetermined))
            undetermined |= dict.fromkeys(choices.undetermined)
        script = _next(choices.answers)
    return Branches(tuple(results), script is None, tuple(unsupported), tuple(undetermined))


def _next(answers: list[bool]) -> tuple[bool, ...] | None:
    """Return the script of the next branch: the last yes becomes a no; None: no branch is left."""
    for index in range(len(answers) - 1, -1, -1):
        if answers[index]:
            return (*answers[:index], False)
    return None
