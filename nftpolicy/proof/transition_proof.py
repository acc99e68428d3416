# SPDX-License-Identifier: BSD-2-Clause
"""Proof of a transition: P1 and P2 in each intermediate state, for the old or new policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from ..netstate.state import NetState
from .prover import prove_guard
from .spec import Spec
from .verdict import PROVED, Finding, Proof, worst

# The sysctls by which the proof of the guard knows that packets are not forwarded (ProofContext.may_forward), that a
# family is switched off, and that accepted sockets take no mark: the ends of their paths.
_GUARD_SYSCTLS = (
    "ip_forward",
    "forwarding",  # of a device, bc_forwarding, mc_forwarding, force_forwarding
    "bridge-nf-call-iptables",
    "bridge-nf-call-ip6tables",
    "disable_ipv6",
    "tcp_fwmark_accept",
)


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


@frozen
class ProvedState:
    """State that was proved, with its specification and the proof."""

    state: NetState
    named_spec: NamedSpec
    proof: Proof


def prove_states(
    states: Sequence[NetState], specs: Sequence[NamedSpec | None], known: list[ProvedState] | None = None
) -> tuple[StateProof, ...]:
    """Return the proof of each state against its specification; states that are proved are added to `known`.

    The proof of the guard reads tables, devices, looks and some sysctls; it reads ip rules and routes only to search
    for a packet where it fails. So a state that differs from a proved one only in those is proved too.
    """
    results: list[StateProof] = []
    proved = known if known is not None else []
    for state, named_spec in zip(states, specs, strict=True):
        if named_spec is None:
            results.append(StateProof(None, None))
            continue
        proof = _proof_of_equal_state(proved, state, named_spec)
        if proof is None:
            proof = prove_guard(state, named_spec.spec)
            if proof.verdict == PROVED:
                proved.append(ProvedState(state, named_spec, proof))
        results.append(StateProof(named_spec, proof))
    return tuple(results)


def _proof_of_equal_state(proved: Sequence[ProvedState], state: NetState, named_spec: NamedSpec) -> Proof | None:
    """Return the proof of a state with equal tables, devices, looks and specification, or None."""
    for known in proved:
        if known.named_spec is named_spec and _guard_inputs(known.state) == _guard_inputs(state):
            return known.proof
    return None


def _guard_inputs(state: NetState) -> tuple[object, ...]:
    """Return the parts of a state that the proof of the guard reads."""
    sysctls = [sysctl for sysctl in state.sysctls if sysctl.path.endswith(_GUARD_SYSCTLS)]
    return state.devices, state.tables, state.looks, sysctls


def worst_state_verdict(results: Sequence[StateProof]) -> str:
    """Return the worst verdict of all states."""
    return worst(result.verdict for result in results if result.verdict)
