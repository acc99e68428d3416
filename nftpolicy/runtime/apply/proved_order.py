# SPDX-License-Identifier: BSD-2-Clause
"""A plan together with the proofs of all states that it passes through."""

from __future__ import annotations

from attrs import frozen

from ...planner.plan import Plan
from ...proof.transition_proof import StateProof, worst_state_verdict


@frozen
class ProvedOrder:
    """A plan with the proofs of its states.

    `own_proofs`: proofs of nftpolicy's objects alone; `full_proofs`: of the same states together
    with the foreign tables, rules and routes, empty if these states could not be computed.
    """

    plan: Plan
    own_proofs: tuple[StateProof, ...]
    full_proofs: tuple[StateProof, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict over nftpolicy's own objects."""
        return worst_state_verdict(self.own_proofs)

    @property
    def full_verdict(self) -> str:
        """The worst verdict over the whole kernel state.

        If `verdict` is proved, a refutation or an unknown comes from a foreign ruleset.
        """
        return worst_state_verdict(self.full_proofs)
