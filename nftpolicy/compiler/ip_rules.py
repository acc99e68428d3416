# SPDX-License-Identifier: BSD-2-Clause
"""Policy-routing rules, equal in both families, and the routes of the uplinks' tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from ..netstate.nft import OriginPath
from ..netstate.routing import TABLE_MAIN, IpRule, Route
from ..policy.objects import Policy
from . import object_names


class _Selector(TypedDict, total=False):
    """Selector fields of IpRule that a lookup rule and its unreachable rule share."""

    mark: int
    mask: int
    uids: tuple[int, int]
    origin: OriginPath


def ip_rules(policy: Policy) -> tuple[IpRule, ...]:
    """Return the ip rules of both families.

    Order: IPv6 link-local to main; each mark, then each user without a mark, to its uplink's table
    and unreachable; everything else to main and unreachable.
    """
    return tuple(rule for family in (4, 6) for rule in _family_rules(policy, family))


def _family_rules(policy: Policy, family: int) -> Iterator[IpRule]:
    if family == 6:
        # Without this rule a marked packet to fe80::/10 would be looked up in the uplink's table,
        # which has no such route for the other devices.
        yield IpRule(6, object_names.LINK_LOCAL_RULE_PRIORITY, table=TABLE_MAIN, destination="fe80::/10")
    for index, (name, uplink) in enumerate(policy.uplink.items()):
        priority = object_names.MARK_RULE_PRIORITY + index * object_names.MARK_RULE_STEP
        selector: _Selector = {
            "mark": uplink.mark.value,
            "mask": uplink.mark.mask,
            "origin": ("uplink", name, "mark"),
        }
        yield IpRule(family, priority, table=uplink.table, **selector)
        yield IpRule(family, priority + object_names.UNREACHABLE_OFFSET, action="unreachable", **selector)
    users = [
        (service.user.number, name, service.uplink)
        for name, service in policy.service.items()
        if service.unmarked and service.user
    ]
    for uid, name, uplink_name in sorted(users, key=lambda user: user[0]):
        table = policy.uplink[uplink_name].table
        user_selector: _Selector = {"uids": (uid, uid), "origin": ("service", name, "marks")}
        yield IpRule(family, object_names.USER_RULE_PRIORITY, table=table, **user_selector)
        yield IpRule(family, object_names.USER_UNREACHABLE_PRIORITY, action="unreachable", **user_selector)
    yield IpRule(family, object_names.MAIN_RULE_PRIORITY, table=TABLE_MAIN)
    yield IpRule(family, object_names.FINAL_UNREACHABLE_PRIORITY, action="unreachable")


def uplink_routes(policy: Policy) -> tuple[Route, ...]:
    """Return the routes in each uplink's table: its gateways, and an unreachable default route."""
    table_routes: list[Route] = []
    for name, uplink in policy.uplink.items():
        for gateway in uplink.gateways:
            family_gateways = [other for other in uplink.gateways if other.version == gateway.version]
            table_routes.append(
                Route(
                    gateway.version,
                    uplink.table,
                    gateway=str(gateway),
                    device=uplink.devices[0],
                    metric=object_names.FIRST_GATEWAY_METRIC + family_gateways.index(gateway),  # the first is preferred
                    onlink=True,
                    origin=("uplink", name, "gateways"),
                )
            )
        for family in (4, 6):
            table_routes.append(
                Route(
                    family,
                    uplink.table,
                    kind="unreachable",
                    # The kernel attaches IPv6 routes without a device to lo.
                    device="lo" if family == 6 else None,
                    metric=object_names.UNREACHABLE_METRIC,
                    origin=("uplink", name, "table"),
                )
            )
    return tuple(table_routes)
