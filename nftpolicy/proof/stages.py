# SPDX-License-Identifier: BSD-2-Clause
"""A way from one state to another: what each state on it keeps of what was promised before, or will be after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from ..netstate.state import NetState
from .claim import Claim
from .prover import guards
from .verdict import PROVED, Finding, Proof, worst


@frozen
class Promise:
    """A claim and whose it is, in words: "gluon-fastd, as it is"."""

    name: str
    claim: Claim


@frozen
class Stage:
    """One state of a way, and P1 and P2 in it; no promise: nothing of ours was there to keep one."""

    promise: Promise | None
    proof: Proof | None

    @property
    def verdict(self) -> str:
        """Proved, refuted or unknown; "" where there is nothing to prove."""
        return self.proof.verdict if self.proof is not None else ""

    def failures(self) -> Iterator[Finding]:
        """What is not proved."""
        for one in self.proof.findings if self.proof is not None else ():
            if one.deciding and one.verdict != PROVED:
                yield one


def stages(states: Sequence[NetState], promises: Sequence[Promise | None]) -> tuple[Stage, ...]:
    """Every state held against its promise.

    The guard's proof reads tables and devices, and ip rules and routes only to find a packet where it fails:
    so a state that differs from a proved one in those alone is proved too.
    """
    found: list[Stage] = []
    known: list[tuple[NetState, Promise, Proof]] = []
    for state, promise in zip(states, promises, strict=True):
        proof = None
        if promise is not None:
            proof = next(
                (
                    one
                    for like, same, one in known
                    if same is promise and like.devices == state.devices and like.tables == state.tables
                ),
                None,
            )
            if proof is None:
                proof = guards(state, promise.claim)
                if proof.verdict == PROVED:
                    known.append((state, promise, proof))
        found.append(Stage(promise, proof))
    return tuple(found)


def verdict(found: Sequence[Stage]) -> str:
    """The worst of all."""
    return worst(one.verdict for one in found if one.verdict)
