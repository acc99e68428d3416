# SPDX-License-Identifier: BSD-2-Clause
"""What is in force, held against what the policy wants."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from ..compiler import names
from ..kernel.interface import Kernel
from ..netstate.changes import (
    NftTransaction,
    RouteChange,
    RouteReplacement,
    RuleChange,
    SysctlChange,
)
from ..netstate.state import Counters
from ..policy.objects import Policy
from .changes.apply import Prospect
from .changes.wording import lines
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
