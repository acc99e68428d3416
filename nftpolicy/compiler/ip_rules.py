# SPDX-License-Identifier: BSD-2-Clause
"""Policy-routing rules, equal in both families, and the routes of the uplinks' tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from ..netstate.nft import OriginPath
from ..netstate.routing import TABLE_MAIN, IpRule, Route
from ..policy.objects import Policy
from . import object_names, reply_routing


class _Selector(TypedDict, total=False):
    """Selector fields of IpRule that a lookup rule and its unreachable rule share."""

    mark: int
    mask: int
    uids: tuple[int, int]
    origin: OriginPath


def ip_rules(policy: Policy) -> tuple[IpRule, ...]:
    """Return the ip rules of both families.

    Each mark, then each user without a mark, is looked up in its uplink's table, and is unreachable
    without a route there. Packets without a mark are left to all other rules; the last rule is an
    error for those that no rule has a route for.
    """
    return tuple(rule for family in (4, 6) for rule in _family_rules(policy, family))


def _family_rules(policy: Policy, family: int) -> Iterator[IpRule]:
    for index, (name, uplink) in enumerate(policy.uplink.items()):
        selector: _Selector = {
            "mark": uplink.mark.value,
            "mask": uplink.mark.mask,
            "origin": ("uplink", name, "mark"),
        }
        priority = object_names.mark_rule_priority(index)
        link_local = priority + object_names.LINK_LOCAL_OFFSET
        unreachable = priority + object_names.UNREACHABLE_OFFSET
        yield from _confining_rules(family, uplink.table, (link_local, priority, unreachable), selector)
    users = [
        (service.user.number, name, service.uplink)
        for name, service in policy.service.items()
        if service.unmarked and service.user
    ]
    priorities = (
        object_names.USER_LINK_LOCAL_PRIORITY,
        object_names.USER_RULE_PRIORITY,
        object_names.USER_UNREACHABLE_PRIORITY,
    )
    for uid, name, uplink_name in sorted(users, key=lambda user: user[0]):
        user_selector: _Selector = {"uids": (uid, uid), "origin": ("service", name, "marks")}
        yield from _confining_rules(family, policy.uplink[uplink_name].table, priorities, user_selector)
    yield IpRule(family, object_names.FINAL_UNREACHABLE_PRIORITY, action="unreachable")


def _confining_rules(
    family: int, table: int, priorities: tuple[int, int, int], selector: _Selector
) -> Iterator[IpRule]:
    """Yield the rules that confine the selected packets to a table; `priorities` in their order."""
    link_local, lookup, unreachable = priorities
    if family == 6:
        # The uplink's table has no route to fe80::/10 for the other devices.
        yield IpRule(6, link_local, table=TABLE_MAIN, destination="fe80::/10", **selector)
    yield IpRule(family, lookup, table=table, **selector)
    yield IpRule(family, unreachable, action="unreachable", **selector)


def uplink_routes(policy: Policy) -> tuple[Route, ...]:
    """Return the routes in each uplink's table: its gateways, and an unreachable default route.

    The tables of several uplinks with unmarked UDP packets have no unreachable route: the rules of these
    look into one after the other, and the route would end that at an uplink without routes.
    """
    table_routes: list[Route] = []
    answering = reply_routing.uplinks_with_unmarked_udp(policy)
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
        is_passed = name in answering and len(answering) > 1
        for family in () if is_passed else (4, 6):
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
