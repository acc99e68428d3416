# SPDX-License-Identifier: BSD-2-Clause
"""Text of the steps of a plan, in the syntax of nft(8), ip(8) and sysctl(8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from ...netstate import nft
from ...netstate.formats import nft_text
from ...netstate.formats.ip_text import route_text, rule_text
from ...netstate.operations import (
    ChainRules,
    IpRuleChange,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    SetElements,
    Step,
    SysctlChange,
)
from ...netstate.routing import IpRule, Route, Sysctl
from ...phrases import first_few
from ...planner.plan import Plan

_MOST_OBJECTS = 6  # that a summary names
_LINE_LENGTH = 240  # characters of an nft operation, since element lists may be long


def plan_lines(todo: Plan) -> list[str]:
    """Return the text of a plan, a line each; long element lists are cut."""
    return [line for step in todo.steps for line in step_lines(step)]


def step_lines(step: Step) -> list[str]:
    """Return the text of one step; an nft transaction has one line for each operation."""
    match step:
        case NftTransaction(operations):
            commands = (line for item in operations for line in nft_text.operation_text(item).split("\n"))
            return ["nft transaction:", *(f"    {line[:_LINE_LENGTH]}" for line in commands)]
        case IpRuleChange(verb, item):
            return [f"ip -{item.family} rule {verb} {rule_text(item)}"]
        case RouteChange(verb, item):
            return [f"ip -{item.family} route {verb} {route_text(item)}"]
        case RouteReplacement(_, item):
            return [f"ip -{item.family} route replace {route_text(item)}"]
        case SysctlChange(old, new):
            return [f"sysctl {new.path.replace('/', '.')} = {new.value} (was {old})"]


def summarize(steps: Sequence[Step]) -> Iterator[str]:
    """Yield the first few changes that steps make, and how many more there are."""
    yield from first_few(chain.from_iterable(map(_short_lines, steps)), _MOST_OBJECTS)


def _short_lines(step: Step) -> list[str]:
    if not isinstance(step, NftTransaction):
        return step_lines(step)
    return [f"{operation.verb} {describe_object(operation.object)}" for operation in step.operations]


def describe_object(item: object) -> str:
    """Return a short description of one object of a plan, as nft or ip write it."""
    match item:
        case nft.Rule():
            return f"the rule {nft_text.rule_text(item)!r}"
        case nft.Chain(name):
            return f"chain {name}"
        case nft.Set(name):
            return f"set {name}"
        case nft.NamedCounter(name):
            return f"counter {name}"
        case nft.Table(family, name):
            return f"table {family} {name}"
        case SetElements(nft_set, _):
            return f"elements of set {nft_set.name}"
        case ChainRules(nft_chain, _):
            return f"rules of chain {nft_chain.name}"
        case IpRule():
            return f"ip -{item.family} rule {rule_text(item)!r}"
        case Route():
            return f"ip -{item.family} route {route_text(item)!r}"
        case Sysctl(path, value):
            return f"sysctl {path.replace('/', '.')} = {value}"
    return ""
