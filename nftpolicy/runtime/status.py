# SPDX-License-Identifier: BSD-2-Clause
"""What is in force, held against what the policy wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from attrs import frozen

from ..compiler import names
from ..kernel.interface import Kernel
from ..netstate import nft, text
from ..netstate.changes import (
    Elements,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    RuleChange,
    Rules,
    Step,
    SysctlChange,
)
from ..netstate.iproute import route, rule
from ..netstate.routing import IpRule, Route, Sysctl
from ..netstate.state import Counters
from ..planner.plan import Plan
from ..policy.objects import Policy
from .changes.apply import Prospect
from .service.whose import Judged
from .watch.sockets import asked


@frozen
class Status:
    """`parts` says of guard, link guard, ladder, routes and sysctls whether they are as expected.

    `strays` are routes of others over an uplink that are not in its table. They open nothing, and take no part in that.
    `sockets` are those that have to do with an uplink, None where they can't be had, which `trouble` explains. They
    do not count for `as_expected`: the guard holds whatever programs do.
    """

    policy: Policy
    parts: dict[str, bool]
    missing: tuple[str, ...]
    counters: Counters
    strays: tuple[str, ...] = ()
    sockets: tuple[Judged, ...] | None = None
    trouble: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether the kernel holds exactly what the policy wants."""
        return all(self.parts.values())

    @property
    def guarded(self) -> bool:
        """Whether nothing can leave by another way than the policy's, whatever else is amiss."""
        return self.parts["guard"] and self.parts["ladder"]

    def as_json(self) -> dict[str, Any]:
        """The same facts, for `status --json`."""
        return {
            "policy": self.policy.name,
            "as_expected": self.as_expected,
            "parts": self.parts,
            "differences": list(self.missing),
            "strays": list(self.strays),
            "uplinks": {
                name: {"devices": list(uplink.devices), "mark": str(uplink.mark), "table": uplink.table}
                for name, uplink in self.policy.uplink.items()
            },
            "services": {name: {"uplink": service.uplink} for name, service in self.policy.service.items()},
            "counters": [
                {"layer": LAYERS[family], "counter": name, "packets": counts.packets, "bytes": counts.bytes}
                for (family, _, name), counts in sorted(self.counters.items())
            ],
            "sockets": None if self.sockets is None else [one.as_json() for one in self.sockets],
        }


_SHOWN = 6  # things that a summary names
LAYERS = dict(zip(names.FAMILIES, ("ip", "link"), strict=True))


def status(kernel: Kernel, policy: Policy, found: Prospect) -> Status:
    """Compare; changes nothing."""
    steps = found.plan.steps
    changed = {one.family for step in steps if isinstance(step, NftTransaction) for one in step.operations}
    parts = {
        "guard": "inet" not in changed,
        "link guard": not found.unhooked and "netdev" not in changed,
        "ladder": not any(isinstance(step, RuleChange) for step in steps),
        "routes": not any(isinstance(step, RouteChange | RouteReplacement) for step in steps),
        "sysctls": not any(isinstance(step, SysctlChange) for step in steps),
    }
    sockets, trouble = asked(kernel, policy)
    shown = None if sockets is None else tuple(sockets)
    return Status(policy, parts, tuple(lines(found.plan)), kernel.counters(names.TABLE), (), shown, trouble)


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
