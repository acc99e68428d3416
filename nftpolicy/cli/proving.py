# SPDX-License-Identifier: BSD-2-Clause
"""Proofs that a command needs before it writes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import EXIT_REFUTED, EXIT_UNKNOWN, Failure
from .findings_text import finding_lines

if TYPE_CHECKING:
    from ..policy.errors import PolicyText
    from ..policy.objects import Policy
    from ..proof.verdict import Proof
    from ..runtime.install.boot_guard import BootGuard

_NOTHING_WRITTEN = "nothing was written"


def require_proof(policy: Policy, source: PolicyText, note: str = _NOTHING_WRITTEN) -> None:
    """Prove what the policy compiles to; `note` is the last line of the message.

    Raises:
        Failure: it is not proved.
    """
    from ..compiler.compile import compile_policy
    from ..proof.policy_spec import build_spec
    from ..proof.prover import prove

    proof = prove(compile_policy(policy), build_spec(policy))
    if proof.verdict != "proved":
        raise _unproved(proof, source, note)


def proved_boot_tables(policy: Policy, source: PolicyText) -> BootGuard:
    """Return the tables that are loaded at boot: the guard alone, and the block table.

    Raises:
        Failure: they are not proved.
    """
    from ..runtime.apply.errors import PolicyNotProved
    from ..runtime.install.boot_guard import build_boot_guard

    try:
        return build_boot_guard(policy)
    except PolicyNotProved as error:
        note = f"the guard without ip rules and routes is not proved; {_NOTHING_WRITTEN}"
        raise _unproved(error.proof, source, note) from None


def _unproved(proof: Proof, source: PolicyText, note: str) -> Failure:
    message = "\n".join([*finding_lines(proof, source), f"nftpolicy: {note}"])
    return Failure(message, EXIT_UNKNOWN if proof.verdict == "unknown" else EXIT_REFUTED)
