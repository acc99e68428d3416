# SPDX-License-Identifier: BSD-2-Clause
"""Fate of the ip rules and routes of UCI's `network` when the policy is in force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...compiler.object_names import MARK_RULE_PRIORITY, MARK_RULE_STEP, UNREACHABLE_OFFSET
from ...netstate.routing import IpRule
from .interfaces import table_number
from .netifd_model import NetifdState
from .netifd_sections import SECTION_FAMILIES, section_origin
from .uci_parser import ParsedSection
from .uplinks import UplinkCandidate

_OWN_SECTIONS = "nftpolicy_"  # those of a policy that was compiled before


def describe_configured_routing(
    sections: Sequence[ParsedSection],
    state: NetifdState,
    uplinks: Sequence[UplinkCandidate],
    table_names: Mapping[str, int],
) -> Iterator[tuple[ParsedSection, str]]:
    """Yield each section of an ip rule or route that netifd applies, and what becomes of it."""
    rules = {rule.origin: rule for rule in state.rules}
    for section in sections:
        if section.type not in SECTION_FAMILIES or (section.name or "").startswith(_OWN_SECTIONS):
            continue
        if section.type.startswith("route"):
            yield section, _route_fate(section, uplinks, table_names)
        elif rule := rules.get(section_origin(section)):
            yield section, _rule_fate(rule, uplinks)


def _rule_fate(rule: IpRule, uplinks: Sequence[UplinkCandidate]) -> str:
    for index, uplink in enumerate(uplinks):
        own = MARK_RULE_PRIORITY + index * MARK_RULE_STEP
        if rule.priority < own and _may_select(rule, uplink):
            return (
                f"it stays, and its priority {rule.priority} is before that of the policy ({own}): it may take packets "
                f"with the mark {uplink.mark} from the table of uplink {uplink.name}; give it a priority above "
                f"{own + UNREACHABLE_OFFSET}"
            )
    return (
        f"it stays (priority {rule.priority}); without an uplink's mark, packets that it leads to an uplink are dropped"
    )


def _may_select(rule: IpRule, uplink: UplinkCandidate) -> bool:
    """Return True if a rule may match a packet with the uplink's mark; it has other selectors, too."""
    known = rule.mask & uplink.mark.mask
    is_equal = uplink.mark.value & known == rule.mark & known
    return is_equal or rule.invert


def _route_fate(section: ParsedSection, uplinks: Sequence[UplinkCandidate], table_names: Mapping[str, int]) -> str:
    table = table_number(section.get("table"), table_names) if section.get("table") else None
    for uplink in uplinks:
        if section.get("interface") not in {interface.name for interface in uplink.interfaces}:
            continue
        if table in (None, uplink.table):
            return f"it moves with its interface to table {uplink.table}, for packets with the mark {uplink.mark}"
        return f"it stays in table {table}, which packets with the mark {uplink.mark} do not use; others are dropped"
    return "it stays: the policy changes no route inside"
