# SPDX-License-Identifier: BSD-2-Clause
"""What is not understood: every question about it forks the walk, and only what all forks agree on is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import field, frozen, mutable

CAP = 64

Result = TypeVar("Result")


@mutable
class Doubts:
    """The answers of one run. Questions beyond `script` are answered with yes."""

    script: tuple[bool, ...] = ()
    given: list[bool] = field(factory=list, init=False)
    asked: list[str] = field(factory=list, init=False)
    noted: list[str] = field(factory=list, init=False)

    def ask(self, what: str) -> bool:
        """Does this thing, which nobody here understands, match?"""
        answer = self.script[len(self.given)] if len(self.given) < len(self.script) else True
        self.given.append(answer)
        self.asked.append(what)
        return answer

    def note(self, what: str) -> None:
        """Something happens to the packet here that has no two answers: this run's outcome is not known."""
        self.noted.append(what)


@frozen
class Forks(Generic[Result]):
    """The results of all runs; not `complete` if there would have been more of them than the cap allows."""

    results: tuple[Result, ...]
    complete: bool
    doubts: tuple[str, ...]  # what was asked or noted in any run, once each, in order
    noted: tuple[str, ...]  # the part of it that leaves even a single run without a known outcome


def explore(run: Callable[[Doubts], Result], cap: int = CAP) -> Forks[Result]:
    """Run under all answers, depth first, the first run with yes to everything."""
    first = Doubts()
    result = run(first)
    if not first.given and not first.noted:  # as nearly always
        return Forks((result,), True, (), ())
    script: tuple[bool, ...] | None = _next(first.given)
    results = [result]
    doubts = dict.fromkeys((*first.asked, *first.noted))
    noted = dict.fromkeys(first.noted)
    while script is not None and len(results) < cap:
        oracle = Doubts(script)
        results.append(run(oracle))
        if oracle.asked or oracle.noted:
            doubts |= dict.fromkeys((*oracle.asked, *oracle.noted))
            noted |= dict.fromkeys(oracle.noted)
        script = _next(oracle.given)
    return Forks(tuple(results), script is None, tuple(doubts), tuple(noted))


def _next(given: list[bool]) -> tuple[bool, ...] | None:
    """The script after the run that gave these answers: the last yes becomes a no."""
    for at in range(len(given) - 1, -1, -1):
        if given[at]:
            return (*given[:at], False)
    return None
