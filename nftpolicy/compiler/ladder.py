# SPDX-License-Identifier: BSD-2-Clause
"""The ladder: which packet is routed by which table, in both families alike."""

from __future__ import annotations

from ..netstate.routing import TABLE_MAIN, IpRule, Route
from ..policy.objects import Policy
from . import names


def rules(policy: Policy) -> tuple[IpRule, ...]:
    """Link-local to main; each mark, and each user without one, to its table and no further; the rest to main and no
    further."""
    return tuple(rule for family in (4, 6) for rule in _of_family(policy, family))


def _of_family(policy: Policy, family: int) -> list[IpRule]:
    found = []
    if family == 6:
        # Without this a marked packet to fe80::/10 would ask the uplink's table, which has no such
        # route for the other devices.
        found.append(IpRule(6, names.LINK_LOCAL_TO_MAIN, table=TABLE_MAIN, destination="fe80::/10"))
    for index, (name, uplink) in enumerate(policy.uplink.items()):
        priority = names.FIRST_MARK + index * names.MARK_STEP
        selector = {"mark": uplink.mark.value, "mask": uplink.mark.mask, "origin": ("uplink", name, "mark")}
        found.append(IpRule(family, priority, table=uplink.table, **selector))
        found.append(IpRule(family, priority + names.MARK_UNREACHABLE, action="unreachable", **selector))
    users = ((one.user.number, name, one) for name, one in policy.service.items() if one.unmarked and one.user)
    for user, name, service in sorted(users, key=lambda one: one[0]):
        selector = {"uids": (user, user), "origin": ("service", name, "marks")}
        table = policy.uplink[service.uplink].table
        found.append(IpRule(family, names.USER_TO_TABLE, table=table, **selector))
        found.append(IpRule(family, names.USER_UNREACHABLE, action="unreachable", **selector))
    found.append(IpRule(family, names.ALL_TO_MAIN, table=TABLE_MAIN))
    found.append(IpRule(family, names.ALL_UNREACHABLE, action="unreachable"))
    return found


def routes(policy: Policy) -> tuple[Route, ...]:
    """What each uplink's table holds of ours: its gateways, and an end that never falls through."""
    found = []
    for name, uplink in policy.uplink.items():
        for gateway in uplink.gateways:
            same = [one for one in uplink.gateways if one.version == gateway.version]
            found.append(
                Route(
                    gateway.version,
                    uplink.table,
                    gateway=str(gateway),
                    device=uplink.devices[0],
                    metric=names.FIRST_METRIC + same.index(gateway),  # the first one is preferred
                    onlink=True,
                    origin=("uplink", name, "gateways"),
                )
            )
        for family in (4, 6):
            found.append(
                Route(
                    family,
                    uplink.table,
                    kind="unreachable",
                    # The kernel itself hangs IPv6 routes without a device on lo.
                    device="lo" if family == 6 else None,
                    metric=names.LAST_METRIC,
                    origin=("uplink", name, "table"),
                )
            )
    return tuple(found)
