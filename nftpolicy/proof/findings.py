# SPDX-License-Identifier: BSD-2-Clause
"""Findings from the violations of lemmas: refuted with a packet, or unknown with what is known."""

from __future__ import annotations

from collections.abc import Sequence

from .context import ProofContext
from .counterexample import search_leaks
from .lemmas import Violation
from .spec import IP_FAMILIES, UplinkSpec
from .verdict import PROVED, REFUTED, UNKNOWN, Counterexample, Finding


def finding_by_search(
    context: ProofContext,
    name: str,
    uplink: UplinkSpec,
    subject: str,
    violations: Sequence[Violation],
    origin: str,
    devices: Sequence[str],
    families: Sequence[int] = IP_FAMILIES,
    deciding: bool = True,
) -> Finding:
    """Return proved without violations; else judge by a search for unentitled packets."""
    if not violations:
        return Finding(name, uplink.name, subject, PROVED, deciding=deciding)
    examples, unsupported = search_leaks(context, uplink, origin, families, devices, violations)
    return finding(name, uplink, subject, violations, examples, unsupported, deciding)


def finding(
    name: str,
    uplink: UplinkSpec | None,
    subject: str,
    violations: Sequence[Violation],
    examples: Sequence[Counterexample],
    unsupported: Sequence[str],
    deciding: bool = True,
) -> Finding:
    """Return proved without violations, refuted with a counterexample, else unknown.

    `unsupported` are the constructs that the search met and the model does not support.
    """
    uplink_name, origin = (uplink.name, uplink.origin) if uplink else ("", ())
    if not violations:
        return Finding(name, uplink_name, subject, PROVED, deciding=deciding)
    if examples:
        return Finding(
            name, uplink_name, subject, REFUTED, examples[0].reason, tuple(examples), (), deciding, origin
        )  # fmt: skip
    constructs = [*(text for violation in violations for text in violation.unsupported), *unsupported]
    locations = "; ".join(dict.fromkeys(violation.location for violation in violations if violation.location))
    detail = locations or "no chain drops all of these packets, and no packet was found that gets through"
    return Finding(
        name, uplink_name, subject, UNKNOWN, detail, (), tuple(dict.fromkeys(constructs)), deciding, origin
    )  # fmt: skip
