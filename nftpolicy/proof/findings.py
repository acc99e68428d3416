# SPDX-License-Identifier: BSD-2-Clause
"""From the failures of lemmas to findings: refuted with a packet, or unknown with what is known of it."""

from __future__ import annotations

from collections.abc import Sequence

from .claim import BOTH, UplinkClaim
from .ground import Ground
from .lemmas import Hit
from .verdict import PROVED, REFUTED, UNKNOWN, Counterexample, Finding
from .witness import search, search_marked


def judged(
    ground: Ground,
    name: str,
    one: UplinkClaim,
    subject: str,
    hits: Sequence[Hit],
    origin: str,
    devices: Sequence[str],
    families: Sequence[int] = BOTH,
    deciding: bool = True,
) -> Finding:
    """Proved without hits; else what a search for packets that are not entitled brings."""
    if not hits:
        return Finding(name, one.name, subject, PROVED, deciding=deciding)
    examples, doubts = search(ground, one, origin, families, devices, hits)
    return finding(name, one, subject, hits, examples, doubts, deciding)


def by_mark(
    ground: Ground, one: UplinkClaim, hits: Sequence[Hit], stray: bool = False
) -> tuple[list[Counterexample], list[str]]:
    """Packets that wear the mark where they may not."""
    return search_marked(ground, one, hits, stray) if hits else ([], [])


def finding(
    name: str,
    one: UplinkClaim | None,
    subject: str,
    hits: Sequence[Hit],
    examples: Sequence[Counterexample],
    doubts: Sequence[str],
    deciding: bool = True,
) -> Finding:
    """Proved without hits; refuted with a packet; else unknown, with what is known of it."""
    uplink, origin = (one.name, one.origin) if one else ("", ())
    if not hits:
        return Finding(name, uplink, subject, PROVED, deciding=deciding)
    if examples:
        return Finding(name, uplink, subject, REFUTED, examples[0].why, tuple(examples), (), deciding, origin)
    resting = tuple(dict.fromkeys([*(doubt for hit in hits for doubt in hit.doubts), *doubts]))
    where = "; ".join(dict.fromkeys(hit.where for hit in hits if hit.where))
    detail = where or "no chain drops all of it, and no packet was found that gets through"
    return Finding(name, uplink, subject, UNKNOWN, detail, (), resting, deciding, origin)
