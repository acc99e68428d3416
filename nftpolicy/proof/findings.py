# SPDX-License-Identifier: BSD-2-Clause
"""Findings from the violations of lemmas: refuted with a packet, or unknown with what is known."""

from __future__ import annotations

from collections.abc import Sequence

from ..model.packet import FRAME, KERNEL, SOCKET
from .concretize import choose, concretize
from .context import ProofContext
from .counterexample import search_leaks
from .lemmas import Violation
from .spec import IP_FAMILIES, UplinkSpec
from .verdict import Counterexample, Finding, Proved, Refuted, Unknown, describe_packet


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
        return Finding(name, uplink.name, subject, Proved(), deciding)
    examples, unsupported = search_leaks(context, uplink, origin, families, devices, violations)
    return finding(context, name, uplink, subject, violations, examples, unsupported, deciding)


def finding(
    context: ProofContext,
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
        return Finding(name, uplink_name, subject, Proved(), deciding)
    if examples:
        return Finding(name, uplink_name, subject, Refuted(examples[0], tuple(examples[1:])), deciding, origin)
    constructs = [*(text for violation in violations for text in violation.unsupported), *unsupported]
    locations = "; ".join(dict.fromkeys(violation.location for violation in violations if violation.location))
    reason = locations or (
        f"no chain drops all of these packets, for example {_sample(context, violations[0])}, "
        "and no packet was found that gets through"
    )
    return Finding(name, uplink_name, subject, Unknown(reason, tuple(dict.fromkeys(constructs))), deciding, origin)


def _sample(context: ProofContext, violation: Violation) -> str:
    """Return a packet of a violation as text; the rules that accept it may depend on more than its headers."""
    family, sockets = violation.family, violation.box.get("socket", ((0, 1),))
    origin = FRAME if not family else KERNEL if choose(sockets, 1) == 0 else SOCKET
    return describe_packet(concretize(context.space(family), violation.box, origin))
