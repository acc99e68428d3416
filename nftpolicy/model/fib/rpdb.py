# SPDX-License-Identifier: BSD-2-Clause
"""Policy-routing rules as the kernel evaluates them (fib_rules_lookup)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import frozen

from ...netstate.formats import ip_text
from ...netstate.routing import RTPROT_KERNEL, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, IpRule
from ...netstate.state import Device
from ..branching import Choices
from .tables import parse_prefix

LOOPBACK = "lo"  # the iif of packets that this machine sends
_TOS_MASK = {4: 0x1C, 6: 0xFC}
_MAIN_PRIORITY, _DEFAULT_PRIORITY = 32766, 32767


@frozen
class FlowKey:
    """The selectors of a lookup (struct flowi).

    `source` None: not selected yet. `iif` is "lo" for packets that this machine sends.
    """

    family: int
    destination: int
    source: int | None = None
    mark: int = 0
    iif: str = LOOPBACK
    oif: str | None = None
    uid: int = 0
    tos: int = 0
    protocol: int = 0
    sport: int = 0
    dport: int = 0


def default_rules(family: int) -> tuple[IpRule, ...]:
    """Return the rules that a kernel starts with."""
    tables = {0: TABLE_LOCAL, _MAIN_PRIORITY: TABLE_MAIN}
    if family == 4:
        tables[_DEFAULT_PRIORITY] = TABLE_DEFAULT
    return tuple(IpRule(family, priority, table=table, protocol=RTPROT_KERNEL) for priority, table in tables.items())


def are_kernel_defaults(rules: Iterable[IpRule], family: int) -> bool:
    """Return True if these are the rules that a kernel starts with, whatever their protocol."""
    ordered = list(rules)
    positions = [(rule.priority, rule.table) for rule in ordered]
    if positions != [(rule.priority, rule.table) for rule in default_rules(family)]:
        return False
    plain = _selectors(IpRule(family, 0))
    return all(_selectors(rule) == plain and not rule.unknown for rule in ordered)


def _selectors(rule: IpRule) -> tuple[object, ...]:
    return (rule.action, rule.mask, rule.source, rule.destination, rule.iif, rule.oif, rule.uids, rule.l4proto,
            rule.sports, rule.dports, rule.tos, rule.invert, rule.suppress_prefix, rule.suppress_group,
            rule.l3mdev)  # fmt: skip


@frozen
class SelectorUse:
    """The selectors that the rules of a family use, besides addresses, devices and the TOS.

    `mark` has every bit of the mark that a rule tests.
    """

    mark: int
    uid: bool
    protocol: bool
    ports: bool

    @classmethod
    def from_rules(cls, rules: Iterable[IpRule]) -> SelectorUse:
        """Return the selectors that any of the rules uses."""
        mark, uid, protocol, ports = 0, False, False, False
        for rule in rules:
            mark |= rule.mask
            uid = uid or rule.uids is not None
            protocol = protocol or rule.l4proto is not None
            ports = ports or rule.sports is not None or rule.dports is not None
        return cls(mark, uid, protocol, ports)


class Rpdb:
    """The policy-routing rules of one family, in order."""

    def __init__(self, family: int, rules: Iterable[IpRule], devices: Iterable[Device]) -> None:
        of_family = (rule for rule in rules if rule.family == family)
        ordered = sorted(of_family, key=lambda rule: rule.priority)
        self.rules = tuple(ordered) or default_rules(family)
        self.selector_use = SelectorUse.from_rules(self.rules)
        self.is_default = are_kernel_defaults(self.rules, family)
        self._tos = _TOS_MASK[family]
        width = 32 if family == 4 else 128
        self._prefixes = [
            (_bits(rule.source, width, family), _bits(rule.destination, width, family)) for rule in self.rules
        ]
        # Only such rules make the kernel dissect received packets (fib_rule_requires_fldissect).
        self.reads_ports = any(
            rule.iif != LOOPBACK and (rule.l4proto or rule.sports or rule.dports) for rule in self.rules
        )
        self._first: dict[int, int] = {}
        for index, rule in enumerate(self.rules):
            self._first.setdefault(rule.priority, index)
        listed_devices = tuple(devices)
        self.has_vrf: bool | None = None  # None: the devices are not known
        if listed_devices:
            self.has_vrf = any(device.kind == "vrf" for device in listed_devices)

    def matching_rules(self, flow_key: FlowKey, choices: Choices) -> Iterator[IpRule]:
        """Yield the matching rules in order; after a "goto", continue at its target."""
        index = 0
        while index < len(self.rules):
            rule = self.rules[index]
            if not self._matches(index, flow_key, choices):
                index += 1
                continue
            yield rule
            target = self._first.get(rule.goto or 0) if rule.action == "goto" else None
            index = target if target is not None and target > index else index + 1

    def _matches(self, index: int, flow_key: FlowKey, choices: Choices) -> bool:
        rule = self.rules[index]
        matches = self._selects(index, flow_key) and self._is_in_vrf(rule, choices)
        if matches and rule.unknown:
            matches = choices.branch_on(f"ip rule: {ip_text.display_text(rule)}")
        return matches != rule.invert

    def _selects(self, index: int, flow_key: FlowKey) -> bool:
        rule = self.rules[index]
        if (rule.mark ^ flow_key.mark) & rule.mask:
            return False
        if rule.iif not in (None, flow_key.iif) or (rule.oif is not None and rule.oif != flow_key.oif):
            return False
        if rule.uids and not rule.uids[0] <= flow_key.uid <= rule.uids[1]:
            return False
        source, destination = self._prefixes[index]
        if destination and flow_key.destination >> destination[1] != destination[0]:
            return False
        if source:
            if flow_key.source is None and flow_key.family == 6:
                return False
            if (flow_key.source or 0) >> source[1] != source[0]:
                return False
        if rule.tos and rule.tos != flow_key.tos & self._tos:
            return False
        if rule.l4proto and rule.l4proto != flow_key.protocol:
            return False
        return _contains(rule.sports, flow_key.sport) and _contains(rule.dports, flow_key.dport)

    def _is_in_vrf(self, rule: IpRule, choices: Choices) -> bool:
        """Return True if an "l3mdev" rule matches.

        VRF membership is not modelled, only their absence.
        """
        if not rule.l3mdev or self.has_vrf is False:
            return not rule.l3mdev
        return choices.branch_on(f"ip rule: {ip_text.display_text(rule)}")


def _contains(ports: tuple[int, int] | None, port: int) -> bool:
    return ports is None or ports[0] <= port <= ports[1]


def _bits(prefix: str | None, width: int, family: int) -> tuple[int, int] | None:
    """Return the bits of the prefix and the number of host bits; None: any address."""
    if prefix is None:
        return None
    first, length = parse_prefix(prefix, family)
    host_bits = width - length
    return (first >> host_bits, host_bits) if length else None
