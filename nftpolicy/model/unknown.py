# SPDX-License-Identifier: BSD-2-Clause
"""Nondeterministic choices: each unsupported construct branches the trace.

Only what all branches agree on is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import field, frozen, mutable

CAP = 64

Result = TypeVar("Result")


@mutable
class Doubts:
    """The choices of one branch. Questions beyond `script` are answered with yes."""

    script: tuple[bool, ...] = ()
    given: list[bool] = field(factory=list, init=False)
    asked: list[str] = field(factory=list, init=False)
    noted: list[str] = field(factory=list, init=False)

    def ask(self, what: str) -> bool:
        """Return this branch's answer to an open question, for example whether a match holds."""
        answer = self.script[len(self.given)] if len(self.given) < len(self.script) else True
        self.given.append(answer)
        self.asked.append(what)
        return answer

    def note(self, what: str) -> None:
        """Record an effect that is not modelled: the outcome of this branch is unknown."""
        self.noted.append(what)


@frozen
class Forks(Generic[Result]):
    """The results of all branches; `complete` is False if the limit cut some of them off."""

    results: tuple[Result, ...]
    complete: bool
    # Questions and unsupported constructs of all branches, without duplicates, in order
    doubts: tuple[str, ...]
    noted: tuple[str, ...]  # those of them that leave even a single branch without a known outcome


def explore(run: Callable[[Doubts], Result], cap: int = CAP) -> Forks[Result]:
    """Run under all answers, depth first; the first branch answers every question with yes."""
    first = Doubts()
    result = run(first)
    if not first.given and not first.noted:  # the usual case
        return Forks((result,), True, (), ())
    script: tuple[bool, ...] | None = _next(first.given)
    results = [result]
    doubts = dict.fromkeys((*first.asked, *first.noted))
    noted = dict.fromkeys(first.noted)
    while script is not None and len(results) < cap:
        choices = Doubts(script)
        results.append(run(choices))
        if choices.asked or choices.noted:
            doubts |= dict.fromkeys((*choices.asked, *choices.noted))
            noted |= dict.fromkeys(choices.noted)
        script = _next(choices.given)
    return Forks(tuple(results), script is None, tuple(doubts), tuple(noted))


def _next(answers: list[bool]) -> tuple[bool, ...] | None:
    """Return the script of the next branch: the last yes becomes a no; None: no branch is left."""
    for index in range(len(answers) - 1, -1, -1):
        if answers[index]:
            return (*answers[:index], False)
    return None
