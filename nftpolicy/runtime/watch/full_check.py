# SPDX-License-Identifier: BSD-2-Clause
"""Full check of the kernel state: comparison with the policy and, on request, a proof."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import evolve

from ...compiler import object_names
from ...kernel.errors import RulesetChanging
from ...kernel.interface import Kernel
from ...netstate.state import NetState
from ...policy.objects import Policy
from ...proof.prover import prove
from ...proof.verdict import PROVED, REFUTED, UNKNOWN, Finding
from ..apply.executor import plan_change
from ..apply.step_order import spec_on_host
from ..apply.transaction import PolicyApplier
from ..foreign_rules import STARVES, foreign_rules

Result = TypeVar("Result")

# A neighbour can cause any number of routes. These take 2 s and 70 MB to prove.
MAX_ROUTES = 20_000
_TOO_MANY_ROUTES = -1  # stands for the hash of such a state
_MAX_FAILURES = 6  # reported findings
_MAX_FOREIGN_RULES = 20  # reported
_LEAKING = ("leaves", "delivered")  # outcomes of a trace
_READ_TRIES, _READ_PAUSE = 20, 0.5  # seconds: some programs load their rules one by one


def run_full_check(
    kernel: Kernel, policy: Policy, applier: PolicyApplier, proves: bool, known_hash: int | None
) -> dict[str, Any]:
    """Compare the kernel with the policy; with `proves` and without a difference, prove the state.

    The proof covers the tables of all rulesets except our auxiliary tables. A state with more than
    MAX_ROUTES routes is unknown. A state with the hash `known_hash` is not proved again; its verdict
    is "". Returns a JSON object.
    """
    planned = _once_settled(lambda: plan_change(kernel, policy, applier.state_dir))
    ports = sorted(planned.unwritable_ports)
    if planned.plan.steps or not proves:
        return {"differs": bool(planned.plan.steps), "unwritable_ports": ports}
    if kernel.has_more_routes(MAX_ROUTES):
        failure = f"more than {MAX_ROUTES} routes of one family: not proved"
        return {
            "differs": False,
            "unwritable_ports": ports,
            "state": _TOO_MANY_ROUTES,
            "verdict": UNKNOWN,
            "failures": [failure],
            "leak_verdict": UNKNOWN,
            "leaks": [],
        }
    state = _once_settled(kernel.read_all)
    tables = tuple(table for table in state.tables if table.name not in object_names.AUXILIARY_TABLES)
    state = evolve(state, tables=tables)
    state_hash = hash(_relevant_parts(state))
    if state_hash == known_hash:
        return {"differs": False, "unwritable_ports": ports, "state": state_hash, "verdict": "", "failures": []}
    spec = evolve(spec_on_host(policy, planned.host), families=kernel.ip_families())
    proof = prove(state, spec, usability=False)
    failed = [finding for finding in proof.findings if finding.deciding and finding.verdict != PROVED]
    leaks = [finding for finding in failed if _has_leak(finding)]
    may_leak = any(finding.verdict == UNKNOWN for finding in failed)
    return {
        "differs": False,
        "unwritable_ports": ports,
        "state": state_hash,
        "verdict": proof.verdict,
        "foreign_rules": [
            {"what": str(conflict), "starves": conflict.effect == STARVES}
            for conflict in foreign_rules(state.rules, policy)[:_MAX_FOREIGN_RULES]
        ],
        "failures": list(map(_finding_text, failed[:_MAX_FAILURES])),
        "leak_verdict": REFUTED if leaks else UNKNOWN if may_leak else PROVED,
        "leaks": list(map(_finding_text, leaks[:_MAX_FAILURES])),
    }


def _once_settled(read: Callable[[], Result]) -> Result:
    """Return the result of `read`; wait while another program changes the ruleset all the time."""
    for _ in range(_READ_TRIES):
        try:
            return read()
        except RulesetChanging:
            time.sleep(_READ_PAUSE)
    return read()


def _has_leak(finding: Finding) -> bool:
    """Return True if a packet of the finding gets where it must not: it leaves, or reaches the uplink's resolver.

    Other refutations cost a service its connection, and no block helps against that.
    """
    return any(example.trace.outcome in _LEAKING for example in finding.examples)


def _finding_text(finding: Finding) -> str:
    parts = (finding.property, finding.uplink, finding.verdict, finding.subject, finding.detail)
    return " ".join(filter(None, (*parts, *finding.unsupported[:1])))


def _relevant_parts(state: NetState) -> object:
    return state.tables, state.rules, state.routes, state.sysctls, state.devices, state.looks
