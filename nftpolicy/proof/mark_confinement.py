# SPDX-License-Identifier: BSD-2-Clause
"""P2, mark confinement: a packet with an uplink's mark leaves only by that uplink or by lo."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.symbolic.box import points
from . import rpdb_check
from .context import ProofContext
from .counterexample import search_mark_misuse, search_outcome
from .findings import finding
from .lemmas import Violation, final_chains, guard_violation, hook_bypasses
from .policy_spec import REPORT_EXEMPTIONS, exemption
from .spec import IP_FAMILIES, Region, Spec, UplinkSpec
from .verdict import PROVED, REFUTED, Finding


def check_mark_confinement(ground: ProofContext, claim: Spec, uplink: UplinkSpec) -> Iterator[Finding]:
    """Yield the findings of P2 for one uplink."""
    hits: list[Violation] = hook_bypasses(ground)
    for family in IP_FAMILIES:
        region = Region(marks=(uplink.has_mark,), not_oifname=(*uplink.devices, "lo"))
        reports = [box for name in REPORT_EXEMPTIONS for box in exemption(name).headers.get(family, ())]
        chains = final_chains(ground, family, ground.filter_chains(family, "postrouting"), uplink)
        hit = guard_violation(ground, family, chains, region, reports)
        if hit is not None:
            hits.append(hit)
    subject = f"packets with the mark that leave by another device than {', '.join(uplink.devices)}"
    examples, unsupported = search_mark_misuse(ground, uplink, hits, True)
    yield finding("P2", uplink, subject, hits, examples, unsupported, claim.has_policy)
    if uplink.unmarked_uids:
        yield _unmarked_users(ground, claim, uplink)


def _unmarked_users(ground: ProofContext, claim: Spec, uplink: UplinkSpec) -> Finding:
    """Return the finding that users of mark-less services are confined to uplinks and lo.

    Other uplinks require marks of their own, so their devices are allowed here.
    """
    allowed = (*(device for other in claim.uplinks for device in other.devices), "lo")
    region = Region({"socket": points(1), "uid": points(*uplink.unmarked_uids)}, not_oifname=allowed)
    hits = []
    for family in IP_FAMILIES:
        hit = guard_violation(ground, family, ground.filter_chains(family, "postrouting"), region)
        if hit is not None:
            hits.append(hit)
    subject = "packets of users without marks that leave by devices inside"
    return finding("P2", uplink, subject, hits, *search_outcome(ground, hits, "leaves"))


def check_ip_rules(ground: ProofContext, claim: Spec, uplink: UplinkSpec) -> Iterator[Finding]:
    """Yield the findings about ip rules, which must keep marked packets in the uplink's table."""
    other_uplinks = [other for other in claim.uplinks if other is not uplink]
    for family in claim.families:
        faults = rpdb_check.rpdb_faults(ground.state, uplink, family, other_uplinks)
        subject = f"IPv{family} rules keep marked packets in table {uplink.table}"
        verdict = REFUTED if faults else PROVED
        yield Finding("P2", uplink.name, subject, verdict, "; ".join(faults), origin=(*uplink.origin, "table"))
