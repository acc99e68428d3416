# SPDX-License-Identifier: BSD-2-Clause
"""Proof of a transition: P1 and P2 in each intermediate state, for the old or new policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from ..netstate.state import NetState
from .prover import prove_guard
from .spec import Spec
from .verdict import PROVED, Finding, Proof, worst


@frozen
class NamedSpec:
    """Specification with a title of its policy, such as "gluon-fastd, as it is"."""

    name: str
    spec: Spec


@frozen
class StateProof:
    """P1 and P2 in one state of a transition; None where no tables of nftpolicy exist."""

    named_spec: NamedSpec | None
    proof: Proof | None

    @property
    def verdict(self) -> str:
        """Return proved, refuted or unknown; "" where there is nothing to prove."""
        return self.proof.verdict if self.proof is not None else ""

    def failures(self) -> Iterator[Finding]:
        """Yield the deciding findings that are not proved."""
        if self.proof is None:
            return
        for finding in self.proof.findings:
            if finding.deciding and finding.verdict != PROVED:
                yield finding


def prove_states(states: Sequence[NetState], specs: Sequence[NamedSpec | None]) -> tuple[StateProof, ...]:
    """Return the proof of each state against its specification.

    The proof of the guard reads tables, devices and looks; it reads ip rules and routes only to search for
    a packet where it fails. So a state that differs from a proved one only in those is proved too.
    """
    results: list[StateProof] = []
    proved: list[tuple[NetState, NamedSpec, Proof]] = []
    for state, named_spec in zip(states, specs, strict=True):
        if named_spec is None:
            results.append(StateProof(None, None))
            continue
        proof = _proof_of_equal_state(proved, state, named_spec)
        if proof is None:
            proof = prove_guard(state, named_spec.spec)
            if proof.verdict == PROVED:
                proved.append((state, named_spec, proof))
        results.append(StateProof(named_spec, proof))
    return tuple(results)


def _proof_of_equal_state(
    proved: Sequence[tuple[NetState, NamedSpec, Proof]], state: NetState, named_spec: NamedSpec
) -> Proof | None:
    """Return the proof of a state with equal tables, devices, looks and specification, or None."""
    for proved_state, proved_spec, proof in proved:
        is_equal = (proved_state.devices, proved_state.tables, proved_state.looks) == (
            state.devices,
            state.tables,
            state.looks,
        )
        if proved_spec is named_spec and is_equal:
            return proof
    return None


def worst_state_verdict(results: Sequence[StateProof]) -> str:
    """Return the worst verdict of all states."""
    return worst(result.verdict for result in results if result.verdict)
