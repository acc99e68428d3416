# SPDX-License-Identifier: BSD-2-Clause
"""Verdicts of the proofs of one watch daemon, each logged once."""

from __future__ import annotations

from typing import Any

from ...proof.verdict import PROVED
from . import repair_plan
from .environment import Environment


class ProofLog:
    """Last verdict, and the state that it is about.

    `state` is a hash of that state; None: no state, so the next one is proved. `verdict` is "" before
    the first proof. `failures` are the statements that it did not prove, `leaks` those of them with a
    packet that leaves. `is_starved`: a foreign ip rule decides for all packets of services.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.clear()

    def clear(self) -> None:
        """Forget the verdict, since there is another policy. Its first verdict is logged, whatever it is."""
        self._logged: object = None
        self.state: int | None = None
        self.verdict = ""
        self.failures: list[str] = []
        self.is_starved = False
        self._foreign_rules: frozenset[str] = frozenset()
        self.leaks: list[str] = []
        self._leak_verdict = ""

    def record(self, result: dict[str, Any]) -> None:
        """Take over the result of a full check that includes a proof; log a verdict that is new."""
        if result["state"] == self.state:
            return
        self.state, self.verdict, self.failures = result["state"], result["verdict"], result["failures"]
        self._leak_verdict, self.leaks = result["leak_verdict"], result["leaks"]
        proof = (self.verdict, self.failures)
        if proof != self._logged:
            self._logged = proof
            why = {"why": self.failures} if self.failures else {}
            self._environment.log_event("proof", {"verdict": self.verdict, **why})
        self._record_foreign_rules(result.get("foreign_rules", []))

    def _record_foreign_rules(self, conflicts: list[dict[str, Any]]) -> None:
        """Log the foreign ip rules that conflict with the policy since this check."""
        for conflict in conflicts:
            if conflict["what"] not in self._foreign_rules:
                self._environment.log_event("foreign-rule", {"what": conflict["what"]})
        self._foreign_rules = frozenset(conflict["what"] for conflict in conflicts)
        self.is_starved = any(conflict["starves"] for conflict in conflicts)

    @property
    def requires_block(self) -> bool:
        """True if a packet leaves, so that the uplinks have to be blocked; with block_unknown also if one may."""
        return repair_plan.requires_block(self._leak_verdict, self._environment.block_unknown)

    @property
    def is_leak_free(self) -> bool:
        """True if the last proof shows that no packet leaves against the policy."""
        return self._leak_verdict == PROVED
