# SPDX-License-Identifier: BSD-2-Clause
"""The look at everything that the watch has done in a child: a comparison and, if it is asked for, a proof."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from ...compiler import names
from ...kernel.interface import Kernel
from ...netstate.state import NetState
from ...policy.objects import Policy
from ...proof.promise import claim
from ...proof.prover import prove
from ...proof.verdict import PROVED
from ..changes.apply import prospect
from ..changes.change import Changer

_SHOWN = 6  # failures that are told


def inspect(kernel: Kernel, policy: Policy, changer: Changer, proves: bool, known: int | None) -> dict[str, Any]:
    """Whether the kernel differs from what the policy wants; and if not and it is asked for, the proof with the
    tables of everybody, without what stands beside our guard. A state that is `known` is not proved again. For JSON."""
    found = prospect(kernel, policy, changer.memory)
    if found.plan.steps or not proves:
        return {"differs": bool(found.plan.steps)}
    state = kernel.everything()
    state = evolve(state, tables=tuple(one for one in state.tables if one.name not in names.ASIDE))
    mark = hash(_decisive(state))
    if mark == known:
        return {"differs": False, "state": mark, "verdict": "", "failures": []}
    asked = evolve(claim(policy, found.ports), frames=not found.unhooked, families=kernel.ip_families())
    proof = prove(state, asked, use=False)
    failures = [
        " ".join(filter(None, (one.property, one.uplink, one.verdict, one.subject, one.detail, *one.doubts[:1])))
        for one in proof.findings
        if one.deciding and one.verdict != PROVED
    ]
    return {"differs": False, "state": mark, "verdict": proof.verdict, "failures": failures[:_SHOWN]}


def _decisive(state: NetState) -> object:
    return state.tables, state.rules, state.routes, state.sysctls, state.devices
