# SPDX-License-Identifier: BSD-2-Clause
"""Status: the state in force compared with the policy."""

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
    """Result of the comparison.

    `parts`: guard, link guard, ip rules, routes, sysctls -> True if as expected. `differences`: the
    steps to the policy, as text. `misplaced_routes`: foreign routes over an uplink outside its
    table; they open no path and do not count for `as_expected`. `sockets`: the sockets related to
    an uplink, None if they cannot be read, for the reason in `socket_error`; they do not count for
    `as_expected`, since the guard drops packets of wrong sockets.
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
        """True if the kernel holds exactly the compiled policy."""
        return all(self.parts.values())

    @property
    def guarded(self) -> bool:
        """True if nothing can leave against the policy, whatever else differs."""
        return self.parts["guard"] and self.parts["ip rules"]

    def as_json(self) -> dict[str, Any]:
        """Return the fields for `status --json`."""
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
            "sockets": None if self.sockets is None else [socket.as_json() for socket in self.sockets],
        }


LAYERS = dict(zip(names.FAMILIES, ("ip", "link"), strict=True))


def status(kernel: Kernel, policy: Policy, planned: Prospect) -> Status:
    """Compare the kernel with a policy. Changes nothing."""
    steps = planned.plan.steps
    changed = {operation.family for step in steps if isinstance(step, NftTransaction) for operation in step.operations}
    parts = {
        "guard": "inet" not in changed,
        "link guard": not planned.unhooked and "netdev" not in changed,
        "ip rules": not any(isinstance(step, RuleChange) for step in steps),
        "routes": not any(isinstance(step, RouteChange | RouteReplacement) for step in steps),
        "sysctls": not any(isinstance(step, SysctlChange) for step in steps),
    }
    sockets, trouble = asked(kernel, policy)
    return Status(
        policy,
        parts,
        missing=tuple(lines(planned.plan)),
        counters=kernel.counters(names.TABLE),
        sockets=None if sockets is None else tuple(sockets),
        trouble=trouble,
    )
