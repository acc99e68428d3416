# SPDX-License-Identifier: BSD-2-Clause
"""From violations of lemmas to findings: refuted with a packet, or unknown with what is known."""

from __future__ import annotations

from collections.abc import Sequence

from .claim import BOTH, UplinkClaim
from .ground import Ground
from .lemmas import Hit
from .verdict import PROVED, REFUTED, UNKNOWN, Counterexample, Finding
from .witness import search


def judged(
    ground: Ground,
    name: str,
    uplink: UplinkClaim,
    subject: str,
    hits: Sequence[Hit],
    origin: str,
    devices: Sequence[str],
    families: Sequence[int] = BOTH,
    deciding: bool = True,
) -> Finding:
    """Return proved without violations; else judge by a search for unentitled packets."""
    if not hits:
        return Finding(name, uplink.name, subject, PROVED, deciding=deciding)
    examples, unsupported = search(ground, uplink, origin, families, devices, hits)
    return finding(name, uplink, subject, hits, examples, unsupported, deciding)


def finding(
    name: str,
    uplink: UplinkClaim | None,
    subject: str,
    hits: Sequence[Hit],
    examples: Sequence[Counterexample],
    unsupported: Sequence[str],
    deciding: bool = True,
) -> Finding:
    """Return proved without violations, refuted with a counterexample, else unknown.

    `unsupported` are the constructs that the search met and the model does not support.
    """
    uplink_name, origin = (uplink.name, uplink.origin) if uplink else ("", ())
    if not hits:
        return Finding(name, uplink_name, subject, PROVED, deciding=deciding)
    if examples:
        return Finding(
            name, uplink_name, subject, REFUTED, examples[0].why, tuple(examples), (), deciding, origin
        )  # fmt: skip
    constructs = [*(text for hit in hits for text in hit.doubts), *unsupported]
    locations = "; ".join(dict.fromkeys(hit.where for hit in hits if hit.where))
    detail = locations or "no chain drops all of these packets, and no packet was found that gets through"
    return Finding(
        name, uplink_name, subject, UNKNOWN, detail, (), tuple(dict.fromkeys(constructs)), deciding, origin
    )  # fmt: skip
