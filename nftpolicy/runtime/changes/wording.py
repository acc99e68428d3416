# SPDX-License-Identifier: BSD-2-Clause
"""The steps of a plan in the words of nft, ip and sysctl."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from ...netstate import nft, text
from ...netstate.changes import (
    Elements,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    RuleChange,
    Rules,
    Step,
    SysctlChange,
)
from ...netstate.iproute import route, rule
from ...netstate.routing import IpRule, Route, Sysctl
from ...planner.plan import Plan

_SHOWN = 6  # things that a summary names


def lines(todo: Plan) -> list[str]:
    """A plan in the words of nft, ip and sysctl, a line each; long element lists are shortened."""
    return [line for step in todo.steps for line in step_lines(step)]


def step_lines(step: Step) -> list[str]:
    """One step of a plan."""
    match step:
        case NftTransaction(operations):
            shown = (line for one in operations for line in text.operation(one).split("\n"))
            return ["nft transaction:", *(f"    {line[:240]}" for line in shown)]
        case RuleChange(verb, item):
            return [f"ip -{item.family} rule {verb} {rule(item)}"]
        case RouteChange(verb, item):
            return [f"ip -{item.family} route {verb} {route(item)}"]
        case RouteReplacement(_, item):
            return [f"ip -{item.family} route replace {route(item)}"]
        case SysctlChange(old, new):
            return [f"sysctl {new.path.replace('/', '.')} = {new.value} (was {old})"]


def summary(steps: Sequence[Step]) -> Iterator[str]:
    """The first few things that steps do, and how many more there are."""
    done = list(chain.from_iterable(map(_short, steps)))
    yield from done[:_SHOWN]
    if len(done) > _SHOWN:
        yield f"and {len(done) - _SHOWN} more"


def _short(step: Step) -> list[str]:
    if not isinstance(step, NftTransaction):
        return step_lines(step)
    return [f"{one.verb} {describe(one.object)}" for one in step.operations]


def describe(item: object) -> str:
    """One object of a plan, short, as nft or ip write it."""
    match item:
        case nft.Rule():
            return f"the rule {text.rule(item)!r}"
        case nft.Chain(name) | nft.Set(name) | nft.NamedCounter(name):
            return f"{type(item).__name__.lower()} {name}"
        case nft.Table(family, name):
            return f"table {family} {name}"
        case Elements(of, _):
            return f"elements of set {of.name}"
        case Rules(chain, _):
            return f"rules of chain {chain.name}"
        case IpRule():
            return f"ip -{item.family} rule {rule(item)!r}"
        case Route():
            return f"ip -{item.family} route {route(item)!r}"
        case Sysctl(path, value):
            return f"sysctl {path.replace('/', '.')} = {value}"
    return ""
