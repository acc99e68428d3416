# SPDX-License-Identifier: BSD-2-Clause
"""P2, mark confinement: a packet with an uplink's mark leaves only by that uplink or by lo."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.symbolic.box import points
from ..model.symbolic.field_values import CT_STATES
from .bypass import confinement_violations
from .context import ProofContext
from .counterexample import search_mark_misuse, search_outcome
from .exemption_spec import REPORT_EXEMPTIONS, exemption
from .findings import finding
from .lemmas import Violation, final_chains, guard_violation, hook_bypasses
from .spec import IP_FAMILIES, Region, Spec, UplinkSpec
from .verdict import Finding

_TRACKED = points(*(CT_STATES[state] for state in ("new", "established", "related")))


def check_mark_confinement(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Iterator[Finding]:
    """Yield the findings of P2 for one uplink."""
    violations: list[Violation] = [*hook_bypasses(context), *confinement_violations(context, uplink)]
    for family in IP_FAMILIES:
        region = Region(marks=(uplink.has_mark,), not_oifname=(*uplink.devices, "lo"))
        reports = [box for name in REPORT_EXEMPTIONS for box in exemption(name).headers.get(family, ())]
        chains = final_chains(context, family, context.filter_chains(family, "postrouting"), uplink)
        violation = guard_violation(context, family, chains, region, reports)
        if violation is not None:
            violations.append(violation)
    subject = f"packets with the mark that leave by another device than {', '.join(uplink.devices)}"
    examples, unsupported = search_mark_misuse(context, uplink, violations, True)
    yield finding(context, "P2", uplink, subject, violations, examples, unsupported, spec.has_policy)
    if uplink.publishes:
        yield _requests(context, spec, uplink)
    if uplink.unmarked_uids:
        yield _unmarked_users(context, spec, uplink)


def _requests(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Finding:
    """Return the finding that requests from the uplink leave inside only by devices of published ports."""
    outside = (device for other in spec.uplinks for device in other.devices)
    published = (publish.device for publish in uplink.publishes)
    region = Region(
        {"ct.state": _TRACKED, "ct.direction": points(0)},
        (uplink.flow_has_mark,),
        not_oifname=(*outside, "lo", *published),
        iifname=uplink.devices,
    )
    violations = []
    for family in IP_FAMILIES:
        chains = context.filter_chains(family, "postrouting")
        violation = guard_violation(context, family, chains, region)
        if violation is not None:
            violations.append(violation)
    subject = "requests from the uplink that leave by devices without a published port"
    return finding(context, "P2", uplink, subject, violations, *search_outcome(context, violations, "leaves"))


def _unmarked_users(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Finding:
    """Return the finding that users of mark-less services are confined to uplinks and lo.

    Other uplinks require marks of their own, so their devices are allowed here.
    """
    allowed = (*(device for other in spec.uplinks for device in other.devices), "lo")
    region = Region({"socket": points(1), "uid": points(*uplink.unmarked_uids)}, not_oifname=allowed)
    violations = []
    for family in IP_FAMILIES:
        violation = guard_violation(context, family, context.filter_chains(family, "postrouting"), region)
        if violation is not None:
            violations.append(violation)
    subject = "packets of users without marks that leave by devices inside"
    return finding(context, "P2", uplink, subject, violations, *search_outcome(context, violations, "leaves"))
