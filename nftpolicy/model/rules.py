# SPDX-License-Identifier: BSD-2-Clause
"""ip rules as the kernel walks them (fib_rules_lookup): which one matches, and where it leads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import frozen

from ..netstate import iproute
from ..netstate.routing import TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, IpRule
from ..netstate.state import Device
from .fib import network
from .unknown import Doubts

LOOPBACK = "lo"  # the iif of what this machine sends
_TOS_MASK = {4: 0x1C, 6: 0xFC}


@frozen
class Asked:
    """What rules select on. `source` None is not chosen yet; `iif` is "lo" for what this machine sends."""

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


def defaults(family: int) -> tuple[IpRule, ...]:
    """The rules that a kernel starts with."""
    tables = {0: TABLE_LOCAL, 32766: TABLE_MAIN} | ({32767: TABLE_DEFAULT} if family == 4 else {})
    return tuple(IpRule(family, priority, table=table, protocol=2) for priority, table in tables.items())


def is_default(rules: Iterable[IpRule], family: int) -> bool:
    """Whether these are the rules that a kernel starts with, whoever they say made them."""
    found = [(one.priority, one.table, one) for one in rules]
    plain = IpRule(family, 0)
    return [(priority, table) for priority, table, _ in found] == [
        (one.priority, one.table) for one in defaults(family)
    ] and all(_selectors(one) == _selectors(plain) and not one.unknown for _, _, one in found)


def _selectors(rule: IpRule) -> tuple[object, ...]:
    return (rule.action, rule.mask, rule.source, rule.destination, rule.iif, rule.oif, rule.uids, rule.l4proto,
            rule.sports, rule.dports, rule.tos, rule.invert, rule.suppress_prefix, rule.suppress_group,
            rule.l3mdev)  # fmt: skip


@frozen
class Reads:
    """What the rules of a family tell packets apart by, beside addresses, devices and the TOS.

    `mark` is every bit of it that a rule tests.
    """

    mark: int
    uid: bool
    protocol: bool
    ports: bool

    @classmethod
    def of(cls, rules: Iterable[IpRule]) -> Reads:
        mark, uid, protocol, ports = 0, False, False, False
        for one in rules:
            mark |= one.mask
            uid = uid or one.uids is not None
            protocol = protocol or one.l4proto is not None
            ports = ports or one.sports is not None or one.dports is not None
        return cls(mark, uid, protocol, ports)


class Rules:
    """The rules of one family, in order."""

    def __init__(self, family: int, rules: Iterable[IpRule], devices: Iterable[Device]) -> None:
        told = sorted((one for one in rules if one.family == family), key=lambda one: one.priority)
        self.rules = tuple(told) or defaults(family)
        self.reads = Reads.of(self.rules)
        self.untouched = is_default(self.rules, family)
        self._tos = _TOS_MASK[family]
        width = 32 if family == 4 else 128
        self._prefixes = [
            (_bits(one.source, width, family), _bits(one.destination, width, family)) for one in self.rules
        ]
        # Only then the kernel reads the protocol and ports of what comes in (fib_rule_requires_fldissect).
        self.reads_ports = any(one.iif != LOOPBACK and (one.l4proto or one.sports or one.dports) for one in self.rules)
        self._first: dict[int, int] = {}
        for index, rule in enumerate(self.rules):
            self._first.setdefault(rule.priority, index)
        known = tuple(devices)
        self.has_vrf = any(one.kind == "vrf" for one in known) if known else None

    def matching(self, asked: Asked, doubts: Doubts) -> Iterator[IpRule]:
        """The rules that match, one after the other; after a "goto" from its target on."""
        index = 0
        while index < len(self.rules):
            rule = self.rules[index]
            if not self._matches(index, asked, doubts):
                index += 1
                continue
            yield rule
            target = self._first.get(rule.goto or 0) if rule.action == "goto" else None
            index = target if target is not None and target > index else index + 1

    def _matches(self, index: int, asked: Asked, doubts: Doubts) -> bool:
        rule = self.rules[index]
        found = self._selects(index, asked) and self._is_in_vrf(rule, doubts)
        if found and rule.unknown:
            found = doubts.ask(f"ip rule: {iproute.shown(rule)}")
        return found != rule.invert

    def _selects(self, index: int, asked: Asked) -> bool:
        rule = self.rules[index]
        if (rule.mark ^ asked.mark) & rule.mask:
            return False
        if rule.iif not in (None, asked.iif) or (rule.oif is not None and rule.oif != asked.oif):
            return False
        if rule.uids and not rule.uids[0] <= asked.uid <= rule.uids[1]:
            return False
        source, destination = self._prefixes[index]
        if destination and asked.destination >> destination[1] != destination[0]:
            return False
        if source:
            if asked.source is None and asked.family == 6:
                return False
            if (asked.source or 0) >> source[1] != source[0]:
                return False
        if rule.tos and rule.tos != asked.tos & self._tos:
            return False
        if rule.l4proto and rule.l4proto != asked.protocol:
            return False
        return _holds(rule.sports, asked.sport) and _holds(rule.dports, asked.dport)

    def _is_in_vrf(self, rule: IpRule, doubts: Doubts) -> bool:
        """For "l3mdev": whether the packet belongs to a VRF, of which we can at best say that there is none."""
        if not rule.l3mdev or self.has_vrf is False:
            return not rule.l3mdev
        return doubts.ask(f"ip rule: {iproute.shown(rule)}")


def _holds(ports: tuple[int, int] | None, port: int) -> bool:
    return ports is None or ports[0] <= port <= ports[1]


def _bits(prefix: str | None, width: int, family: int) -> tuple[int, int] | None:
    """The bits of the prefix, and how many bits of an address are behind them."""
    if prefix is None:
        return None
    first, length = network(prefix, family)
    rest = width - length
    return (first >> rest, rest) if length else None
