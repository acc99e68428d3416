# SPDX-License-Identifier: BSD-2-Clause
"""P2: what wears an uplink's mark leaves by that uplink, or by lo, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.box import only
from . import ladder
from .claim import BOTH, Claim, Region, UplinkClaim
from .findings import by_mark, finding
from .ground import Ground
from .lemmas import Hit, guard, round_the_hooks, settled
from .promise import REPORTS, hole
from .verdict import PROVED, REFUTED, Finding
from .witness import seen


def no_stray(ground: Ground, claim: Claim, one: UplinkClaim) -> Iterator[Finding]:
    """P2 of one uplink: what wears its mark leaves by it, or by lo, or nowhere."""
    hits: list[Hit] = round_the_hooks(ground)
    for family in BOTH:
        region = Region(marks=(one.marked,), not_out=(*one.devices, "lo"))
        reports = [box for word in REPORTS for box in hole(word).headers.get(family, ())]
        places = settled(ground, family, ground.at(family, "postrouting"), one)
        hit = guard(ground, family, places, region, reports)
        hits += [hit] if hit else []
    subject = f"what wears the mark and leaves by another device than {', '.join(one.devices)}"
    examples, doubts = by_mark(ground, one, hits, stray=True)
    yield finding("P2", one, subject, hits, examples, doubts, claim.whole)
    if one.users:
        yield _of_users(ground, claim, one)


def _of_users(ground: Ground, claim: Claim, one: UplinkClaim) -> Finding:
    """Who needs no mark is the uplink's with all that it sends; other uplinks ask for marks of their own."""
    known = (*(device for each in claim.uplinks for device in each.devices), "lo")
    region = Region({"socket": only(1), "uid": only(*one.users)}, not_out=known)
    found = (guard(ground, family, ground.at(family, "postrouting"), region) for family in BOTH)
    hits = [hit for hit in found if hit]
    subject = "what users without marks send by devices inside"
    return finding("P2", one, subject, hits, *seen(ground, hits, "leaves"))


def kept_in_table(ground: Ground, claim: Claim, one: UplinkClaim) -> Iterator[Finding]:
    """Whether the ip rules lead what wears the mark to the uplink's table, and no further."""
    others = [other for other in claim.uplinks if other is not one]
    for family in claim.families:
        wrong = ladder.faults(ground.state, one, family, others)
        yield Finding(
            "P2", one.name, f"IPv{family} rules keep marked packets in table {one.table}",
            REFUTED if wrong else PROVED, "; ".join(wrong), origin=(*one.origin, "table"),
        )  # fmt: skip
