# SPDX-License-Identifier: BSD-2-Clause
"""Check of the policy-routing rules: the tables for packets with, and without, an uplink's mark.

P1 does not depend on it, since the guard drops misrouted packets. It keeps the marked packets of an
uplink that is down from being sent elsewhere (P2), and covers the lookups of unmarked packets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve

from ..netstate.routing import TABLE_MAIN, IpRule
from ..netstate.state import NetState
from .assumptions import TABLE_DEFAULT, TABLE_LOCAL
from .entitlement import DNS_PORT
from .spec import UplinkSpec

_TERMINAL_ACTIONS = ("unreachable", "prohibit", "blackhole")
_LINK_LOCAL = "fe80::/10"


def rpdb_faults(state: NetState, uplink: UplinkSpec, family: int, other_uplinks: Sequence[UplinkSpec]) -> list[str]:
    """Return the faults in the ip rules of an uplink in one family, as text.

    `other_uplinks` are the other uplinks of the specification.
    """
    rules = [rule for rule in state.rules if rule.family == family]
    other_tables = {other.table for other in other_uplinks}
    faults = [
        *_faults_of_marked(rules, uplink),
        *_faults_of_table(state, uplink, family),
        *_faults_of_unmarked(state, rules, uplink, other_tables),
    ]
    for uid in uplink.unmarked_uids:
        faults += _faults_of_user(rules, uplink, uid, other_tables)
    if family == 6 and not any(_reaches_neighbours(rule) for rule in _deciding_rules(rules, uplink, True)):
        faults.append("packets with the mark do not reach link-local neighbours on the device that they name")
    return faults


def _faults_of_marked(rules: Sequence[IpRule], uplink: UplinkSpec) -> Iterator[str]:
    """Yield the faults in the lookups of packets with the mark."""
    deciding = list(_deciding_rules(rules, uplink, True))
    for rule in deciding:
        if rule.action == "lookup":
            if not _is_allowed_lookup(rule, uplink):
                yield f"packets with the mark may be looked up in table {rule.table} (ip rule {rule.priority})"
        elif rule.action not in (*_TERMINAL_ACTIONS, "nop"):
            yield f"ip rule {rule.priority} ({rule.action}) is not supported by this check"
    if not any(_sends_all_to_table(rule, uplink, True) for rule in deciding):
        yield f"no ip rule sends all packets with the mark to table {uplink.table}"
    if not _ends_terminally(deciding, uplink, True):
        yield f"if table {uplink.table} is emptied, packets with the mark continue at the next rule"


def _faults_of_table(state: NetState, uplink: UplinkSpec, family: int) -> Iterator[str]:
    """Yield the fault of a table without a terminal default route."""
    has_terminal_route = any(
        route.family == family
        and route.table == uplink.table
        and route.destination == "default"
        and route.kind in _TERMINAL_ACTIONS
        for route in state.routes
    )
    if not has_terminal_route:
        yield f"table {uplink.table} does not end in an unreachable route"


def _faults_of_unmarked(
    state: NetState, rules: Sequence[IpRule], uplink: UplinkSpec, other_tables: set[int | None]
) -> Iterator[str]:
    """Yield the faults in the lookups of packets without the mark."""
    deciding = list(_deciding_rules(rules, uplink, False))
    allowed = {TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT, *other_tables}
    for rule in deciding:
        if rule.action == "lookup" and rule.table not in allowed and not _is_uid_rule(rule, uplink):
            if _leads_to_loopback(state, rule):
                continue
            yield f"packets without the mark may be looked up in table {rule.table} (ip rule {rule.priority})"
    if not _ends_terminally(deciding, uplink, False):
        yield "no unreachable rule ends the lookups of packets without a route"


def _faults_of_user(
    rules: Sequence[IpRule], uplink: UplinkSpec, uid: int, other_tables: set[int | None]
) -> Iterator[str]:
    """Yield the faults in the lookups of unmarked packets of one user."""
    user_rules = [evolve(rule, uids=None) for rule in rules if rule.uids is None or rule.uids[0] <= uid <= rule.uids[1]]
    deciding = list(_deciding_rules(user_rules, uplink, False))
    for rule in deciding:
        is_allowed = _is_allowed_lookup(rule, uplink) or (rule.mask and rule.table in other_tables)
        if rule.action == "lookup" and not is_allowed:
            yield f"packets of user {uid} may be looked up in table {rule.table} (ip rule {rule.priority})"
    if not any(_sends_all_to_table(rule, uplink, False) for rule in deciding):
        yield f"no ip rule sends the packets of user {uid} to table {uplink.table}"
    if not _ends_terminally(deciding, uplink, False):
        yield f"if table {uplink.table} is emptied, packets of user {uid} continue at the next rule"


# --- single rules ---------------------------------------------------------------------------


def _deciding_rules(rules: Sequence[IpRule], uplink: UplinkSpec, marked: bool) -> Iterator[IpRule]:
    """Yield the rules that may match, in order, up to one that ends all of these lookups."""
    for rule in rules:
        if _may_match(rule, uplink, marked):
            yield rule
            if rule.action in _TERMINAL_ACTIONS and _must_match(rule, uplink, marked):
                return


def _may_match(rule: IpRule, uplink: UplinkSpec, marked: bool) -> bool:
    mark_match = _mark_match(rule, uplink, marked)
    if rule.invert:
        return _has_other_selectors(rule) or mark_match != "always"
    return mark_match != "never"


def _must_match(rule: IpRule, uplink: UplinkSpec, marked: bool) -> bool:
    if _has_other_selectors(rule):
        return False
    return _mark_match(rule, uplink, marked) == ("never" if rule.invert else "always")


def _mark_match(rule: IpRule, uplink: UplinkSpec, marked: bool) -> str:
    """Return how a rule's fwmark matches packets with (or without) the mark: always, never, maybe."""
    if not rule.mask:
        return "always"
    if marked and rule.mask & ~uplink.mask == 0:
        return "always" if uplink.value & rule.mask == rule.mark else "never"
    if not marked and rule.mask == uplink.mask and rule.mark == uplink.value:
        return "never"
    return "maybe"


def _has_other_selectors(rule: IpRule) -> bool:
    """Return True if the rule has a selector other than a mark, or an unsupported one."""
    selectors = (
        rule.source, rule.destination, rule.iif, rule.oif, rule.uids, rule.l4proto, rule.sports, rule.dports,
    )  # fmt: skip
    return any(selector is not None for selector in selectors) or bool(rule.tos or rule.l3mdev or rule.unknown)


def _sends_all_to_table(rule: IpRule, uplink: UplinkSpec, marked: bool) -> bool:
    return rule.action == "lookup" and rule.table == uplink.table and _must_match(rule, uplink, marked)


def _ends_terminally(deciding: Sequence[IpRule], uplink: UplinkSpec, marked: bool) -> bool:
    return bool(deciding) and deciding[-1].action in _TERMINAL_ACTIONS and _must_match(deciding[-1], uplink, marked)


def _leads_to_loopback(state: NetState, rule: IpRule) -> bool:
    """Return True if the rule is for DNS queries of this machine, and all routes of its table leave by lo."""
    hops = (
        hop
        for route in state.routes
        if (route.family, route.table) == (rule.family, rule.table)
        for hop in route.all_nexthops
    )
    return (rule.iif, rule.dports) == ("lo", (DNS_PORT, DNS_PORT)) and all(hop.device == "lo" for hop in hops)


def _is_uid_rule(rule: IpRule, uplink: UplinkSpec) -> bool:
    """Return True if the rule is for one unmarked user of the uplink's services."""
    return (
        rule.table == uplink.table
        and rule.uids is not None
        and not rule.invert
        and rule.uids[0] == rule.uids[1]
        and rule.uids[0] in uplink.unmarked_uids
    )


def _reaches_neighbours(rule: IpRule) -> bool:
    return rule.action == "lookup" and rule.table == TABLE_MAIN and rule.destination == _LINK_LOCAL


def _is_allowed_lookup(rule: IpRule, uplink: UplinkSpec) -> bool:
    return rule.table in (TABLE_LOCAL, uplink.table) or _reaches_neighbours(rule)
