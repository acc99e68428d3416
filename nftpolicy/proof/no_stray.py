# SPDX-License-Identifier: BSD-2-Clause
"""P2, mark confinement: a packet with an uplink's mark leaves only by that uplink or by lo."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.box import only
from . import ladder
from .claim import BOTH, Claim, Region, UplinkClaim
from .findings import finding
from .ground import Ground
from .lemmas import Hit, guard, round_the_hooks, settled
from .promise import REPORTS, hole
from .verdict import PROVED, REFUTED, Finding
from .witness import search_marked, seen


def no_stray(ground: Ground, claim: Claim, uplink: UplinkClaim) -> Iterator[Finding]:
    """Yield the findings of P2 for one uplink."""
    hits: list[Hit] = round_the_hooks(ground)
    for family in BOTH:
        region = Region(marks=(uplink.marked,), not_out=(*uplink.devices, "lo"))
        reports = [box for name in REPORTS for box in hole(name).headers.get(family, ())]
        chains = settled(ground, family, ground.at(family, "postrouting"), uplink)
        hit = guard(ground, family, chains, region, reports)
        if hit is not None:
            hits.append(hit)
    subject = f"packets with the mark that leave by another device than {', '.join(uplink.devices)}"
    examples, unsupported = search_marked(ground, uplink, hits, True)
    yield finding("P2", uplink, subject, hits, examples, unsupported, claim.whole)
    if uplink.users:
        yield _unmarked_users(ground, claim, uplink)


def _unmarked_users(ground: Ground, claim: Claim, uplink: UplinkClaim) -> Finding:
    """Return the finding that users of mark-less services are confined to uplinks and lo.

    Other uplinks require marks of their own, so their devices are allowed here.
    """
    allowed = (*(device for other in claim.uplinks for device in other.devices), "lo")
    region = Region({"socket": only(1), "uid": only(*uplink.users)}, not_out=allowed)
    hits = []
    for family in BOTH:
        hit = guard(ground, family, ground.at(family, "postrouting"), region)
        if hit is not None:
            hits.append(hit)
    subject = "packets of users without marks that leave by devices inside"
    return finding("P2", uplink, subject, hits, *seen(ground, hits, "leaves"))


def kept_in_table(ground: Ground, claim: Claim, uplink: UplinkClaim) -> Iterator[Finding]:
    """Yield the findings about ip rules, which must keep marked packets in the uplink's table."""
    other_uplinks = [other for other in claim.uplinks if other is not uplink]
    for family in claim.families:
        faults = ladder.faults(ground.state, uplink, family, other_uplinks)
        subject = f"IPv{family} rules keep marked packets in table {uplink.table}"
        verdict = REFUTED if faults else PROVED
        yield Finding("P2", uplink.name, subject, verdict, "; ".join(faults), origin=(*uplink.origin, "table"))
