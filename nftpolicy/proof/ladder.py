# SPDX-License-Identifier: BSD-2-Clause
"""Which tables packets with an uplink's mark, and packets without, may be looked up in.

No part of P1: the guard drops what is routed wrongly. It is what keeps the marked packets of a dead
uplink from being sent elsewhere (P2), and what an unmarked packet meets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve

from ..netstate.routing import TABLE_MAIN, IpRule
from ..netstate.state import NetState
from .claim import UplinkClaim
from .surroundings import TABLE_LOCAL

_ENDS = ("unreachable", "prohibit", "blackhole")
_LINK_LOCAL = "fe80::/10"


def _selective(rule: IpRule) -> bool:
    """Whether the rule asks for anything but a mark."""
    asked = (rule.source, rule.destination, rule.iif, rule.oif, rule.uids, rule.l4proto, rule.sports, rule.dports)
    return any(one is not None for one in asked) or bool(rule.tos) or rule.l3mdev or bool(_unread(rule))


def _unread(rule: IpRule) -> tuple[str, ...]:
    return tuple(getattr(rule, "unknown", ()))


def _mark_fits(rule: IpRule, one: UplinkClaim, marked: bool) -> str:
    """Whether the mark of the packets in question fits the rule: "always", "never" or "maybe"."""
    if not rule.mask:
        return "always"
    if marked and rule.mask & ~one.mask == 0:
        return "always" if one.value & rule.mask == rule.mark else "never"
    if not marked and rule.mask == one.mask and rule.mark == one.value:
        return "never"
    return "maybe"


def _may(rule: IpRule, one: UplinkClaim, marked: bool) -> bool:
    fits = _mark_fits(rule, one, marked)
    if rule.invert:
        return _selective(rule) or fits != "always"
    return fits != "never"


def _must(rule: IpRule, one: UplinkClaim, marked: bool) -> bool:
    fits = _mark_fits(rule, one, marked)
    if _selective(rule):
        return False
    return fits == ("never" if rule.invert else "always")


def _looked_up(rules: Sequence[IpRule], one: UplinkClaim, marked: bool) -> Iterator[IpRule]:
    """The rules that may decide, in order, up to one that decides for all of these packets."""
    for rule in rules:
        if _may(rule, one, marked):
            yield rule
            if rule.action in _ENDS and _must(rule, one, marked):
                return


def faults(state: NetState, one: UplinkClaim, family: int, others: Sequence[UplinkClaim]) -> list[str]:
    """What is wrong with the ladder of an uplink in a family, in words; nothing if it is as it should be."""
    rules = [rule for rule in state.rules if rule.family == family]
    found: list[str] = []
    marked = list(_looked_up(rules, one, True))
    for rule in marked:
        if rule.action == "lookup" and not _fine(rule, one):
            found.append(f"packets with the mark may be looked up in table {rule.table} (ip rule {rule.priority})")
        elif rule.action not in ("lookup", *_ENDS, "nop"):
            found.append(f"ip rule {rule.priority} ({rule.action}) is not understood here")
    if not any(rule.action == "lookup" and rule.table == one.table and _must(rule, one, True) for rule in marked):
        found.append(f"no ip rule sends all packets with the mark to table {one.table}")
    if not marked or marked[-1].action not in _ENDS:
        found.append(f"if table {one.table} is emptied, packets with the mark go on to the next rule")
    if not _closed(state, one, family):
        found.append(f"table {one.table} does not end in an unreachable route")
    plain = list(_looked_up(rules, one, False))
    tables = {TABLE_LOCAL, TABLE_MAIN, *(other.table for other in others)}
    for rule in plain:
        if rule.action == "lookup" and rule.table not in tables and not _is_for(rule, one):
            found.append(f"packets without the mark may be looked up in table {rule.table} (ip rule {rule.priority})")
    if not plain or plain[-1].action not in _ENDS:
        found.append("packets without a route are not ended by an unreachable rule")
    for user in one.users:
        found += _of_user(rules, one, user, {other.table for other in others})
    if family == 6 and not any(_neighbours(rule) for rule in marked):
        found.append("packets with the mark do not reach link-local neighbours on the device that they name")
    return found


def _is_for(rule: IpRule, one: UplinkClaim) -> bool:
    """Whether the rule is for users that the uplink's services are known by."""
    return (
        rule.table == one.table
        and rule.uids is not None
        and not rule.invert
        and rule.uids[0] == rule.uids[1]
        and (rule.uids[0] in one.users)
    )


def _of_user(rules: Sequence[IpRule], one: UplinkClaim, user: int, others: set[int | None]) -> Iterator[str]:
    """What is wrong with how the unmarked packets of a user are looked up."""
    mine = [evolve(rule, uids=None) for rule in rules if rule.uids is None or rule.uids[0] <= user <= rule.uids[1]]
    asked = list(_looked_up(mine, one, False))
    for rule in asked:
        fine = _fine(rule, one) or (rule.mask and rule.table in others)
        if rule.action == "lookup" and not fine:
            yield f"packets of user {user} may be looked up in table {rule.table} (ip rule {rule.priority})"
    if not any(rule.action == "lookup" and rule.table == one.table and _must(rule, one, False) for rule in asked):
        yield f"no ip rule sends what user {user} sends to table {one.table}"
    if not asked or asked[-1].action not in _ENDS:
        yield f"if table {one.table} is emptied, packets of user {user} go on to the next rule"


def _neighbours(rule: IpRule) -> bool:
    return rule.action == "lookup" and rule.table == TABLE_MAIN and rule.destination == _LINK_LOCAL


def _fine(rule: IpRule, one: UplinkClaim) -> bool:
    return rule.table in (TABLE_LOCAL, one.table) or _neighbours(rule)


def _closed(state: NetState, one: UplinkClaim, family: int) -> bool:
    return any(
        route.family == family and route.table == one.table and route.destination == "default" and route.kind in _ENDS
        for route in state.routes
    )
