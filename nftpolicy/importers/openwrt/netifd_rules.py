# SPDX-License-Identifier: BSD-2-Clause
"""ip rules of netifd: those of the kernel, of ip4table and ip6table, and of `config rule` sections.

Observed on netifd of 2024-12 and 2026-07, and read in its sources (iprule.c, interface-ip.c).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_interface

from attrs import evolve

from ...netstate.routing import RTPROT_KERNEL, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, IpRule
from .interfaces import NetworkConfig, parse_unsigned, table_number
from .netifd_sections import SECTION_FAMILIES, IgnoredSection, section_number, section_origin
from .rule_warnings import UciWarning, rule_warnings
from .uci_parser import ParsedSection

IPRULE_PRIORITY_ADDR, IPRULE_PRIORITY_ADDR_MASK, IPRULE_PRIORITY_NW, IPRULE_PRIORITY_REJECT = (
    10000,
    20000,
    90000,
    4200000000,
)  # IPRULE_PRIORITY_* of iprule.h
_ACTIONS = {"prohibit": "prohibit", "unreachable": "unreachable", "blackhole": "blackhole", "throw": "blackhole"}
_RULE_OPTIONS = frozenset({"in", "out", "invert", "src", "dest", "priority", "tos", "mark", "lookup", "action", "goto",
                           "suppress_prefixlength", "uidrange", "disabled", "ipproto", "sport", "dport", "name",
                           "comment"})  # fmt: skip
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}


def netifd_rules(
    sections: Sequence[ParsedSection], network: NetworkConfig, names: Mapping[str, int], warnings: list[UciWarning]
) -> list[IpRule]:
    """Return all ip rules, in the order of the kernel; add the faults of sections to `warnings`."""
    rules = [*_kernel_rules(), *_interface_rules(network), *_configured_rules(sections, network, names, warnings)]
    return sorted(rules, key=lambda rule: (rule.family, rule.priority))


def _kernel_rules() -> Iterator[IpRule]:
    for family in (4, 6):
        yield IpRule(family, 0, table=TABLE_LOCAL, protocol=RTPROT_KERNEL)
        yield IpRule(family, 32766, table=TABLE_MAIN, protocol=RTPROT_KERNEL)
    yield IpRule(4, 32767, table=TABLE_DEFAULT, protocol=RTPROT_KERNEL)


def _interface_rules(network: NetworkConfig) -> Iterator[IpRule]:
    """Yield the rules of ip4table and ip6table, which netifd adds without a section."""
    for interface in network.interfaces:
        if not interface.up or not interface.device:
            continue
        for family, number in interface.tables.items():
            origin = section_origin(interface.section, f"ip{family}table")
            index = network.ifindex[interface.device]
            for address in interface.addresses:
                if address.version != family:
                    continue
                width = address.max_prefixlen
                yield IpRule(
                    family,
                    IPRULE_PRIORITY_ADDR,
                    table=number,
                    source=f"{address.ip}/{width}",
                    protocol=0,
                    origin=origin,
                )
                yield IpRule(
                    family,
                    IPRULE_PRIORITY_ADDR_MASK,
                    table=number,
                    destination=str(address.network),
                    protocol=0,
                    origin=origin,
                )
            if family == 4 or interface.device in network.ipv6_devices:
                yield IpRule(family, IPRULE_PRIORITY_NW + index, table=number, iif="lo", protocol=0, origin=origin)
            if family == 6 and interface.device in network.ipv6_devices:
                yield IpRule(
                    6, IPRULE_PRIORITY_REJECT + index, "unreachable", iif=interface.device, protocol=0, origin=origin
                )


def _configured_rules(
    sections: Sequence[ParsedSection], network: NetworkConfig, names: Mapping[str, int], warnings: list[UciWarning]
) -> Iterator[IpRule]:
    count = {4: 0, 6: 0}
    for section in sections:
        family = SECTION_FAMILIES.get(section.type)
        if section.type not in ("rule", "rule6") or family is None or section.flag("disabled"):
            continue
        count[family] += 1  # a section that netifd cannot parse has a number, too
        for option in section.options:
            if option not in _RULE_OPTIONS:
                warnings.append(
                    UciWarning(
                        section.location(option), f"{section.title}: netifd ignores the unknown option {option!r}"
                    )
                )
        try:
            rule = _rule(section, family, count[family], network, names)
        except IgnoredSection as fault:
            warnings.append(
                UciWarning(section.location(), f"{section.title}: netifd silently ignores this rule: {fault}")
            )
            continue
        if rule is None:
            warnings.append(
                UciWarning(
                    section.location(), f"{section.title}: its interface is not up, so netifd does not add the rule"
                )
            )
            continue
        warnings += rule_warnings(section, rule)
        yield rule


def _rule(
    section: ParsedSection, family: int, number: int, network: NetworkConfig, names: Mapping[str, int]
) -> IpRule | None:
    value, mask = _mark(section)
    rule = IpRule(
        family,
        section_number(section, "priority", number),
        mark=value,
        mask=mask,
        protocol=0,
        origin=section_origin(section),
        invert=section.flag("invert"),
    )
    if section.get("src"):
        rule = evolve(rule, source=_prefix(section, "src", family))
    if section.get("dest"):
        rule = evolve(rule, destination=_prefix(section, "dest", family))
    devices: dict[str, str] = {}
    for option in ("in", "out"):
        if section.get(option):
            interface = network.find_interface(section.get(option))
            if interface is None or not interface.up or not interface.device:
                return None
            devices[option] = interface.device
    rule = evolve(rule, iif=devices.get("in"), oif=devices.get("out"))
    if section.get("tos"):
        rule = evolve(rule, tos=section_number(section, "tos", 0))
        if rule.tos > 255:
            raise IgnoredSection(f"tos {section.get('tos')!r} is above 255")
    if section.get("uidrange"):
        rule = evolve(rule, uids=_uids(section))
    if section.get("suppress_prefixlength"):
        rule = evolve(rule, suppress_prefix=section_number(section, "suppress_prefixlength", 0))
    return _ports(section, _with_action(section, rule, names))


def _with_action(section: ParsedSection, rule: IpRule, names: Mapping[str, int]) -> IpRule:
    """Return the rule with its action, which precedes a table as in netifd's system_iprule."""
    lookup = None
    if section.get("lookup"):
        lookup = table_number(section.get("lookup"), names)
        if lookup is None:
            raise IgnoredSection(f"there is no table {section.get('lookup')!r}")
    if section.get("action"):
        if section.get("action") not in _ACTIONS:
            raise IgnoredSection(f"there is no action {section.get('action')!r}")
        return evolve(rule, action=_ACTIONS[section.get("action")])
    if section.get("goto"):
        target = section_number(section, "goto", 0)
        if target <= rule.priority:
            raise IgnoredSection(f"goto {target} is not after priority {rule.priority}")
        return evolve(rule, action="goto", goto=target)
    return evolve(rule, action="nop") if lookup is None else evolve(rule, table=lookup)


def _mark(section: ParsedSection) -> tuple[int, int]:
    text = section.get("mark")
    if not text:
        return 0, 0
    value_text, slash, mask_text = text.partition("/")
    value, mask = parse_unsigned(value_text), parse_unsigned(mask_text) if slash else None
    if value is None or (slash and mask is None):
        raise IgnoredSection(f"{text!r} is not a mark (VALUE or VALUE/MASK)")
    if mask is None:  # without a mask the kernel compares all bits; the value 0 matches every packet
        mask = 0xFFFFFFFF if value else 0
    return value, mask


def _prefix(section: ParsedSection, option: str, family: int) -> str:
    text = section.get(option)
    try:
        prefix = ip_interface(text)
    except ValueError:
        raise IgnoredSection(f"{option} {text!r} is not a network") from None
    if prefix.version != family:
        section_type = "rule6" if prefix.version == 6 else "rule"
        raise IgnoredSection(f"{option} {text!r} is not IPv{family}; use 'config {section_type}'")
    return str(prefix.network)


def _uids(section: ParsedSection) -> tuple[int, int]:
    parts = re.match(r"\s*([0-9]+)(?:-([0-9]+))?", section.get("uidrange"))
    if not parts:
        raise IgnoredSection(f"uidrange {section.get('uidrange')!r} is not a number; netifd does not resolve names")
    low, high = int(parts[1][:10]), int((parts[2] or parts[1])[:10])
    if low > high:
        raise IgnoredSection(f"uidrange {section.get('uidrange')!r} ends before it starts")
    return low, high


def _ports(section: ParsedSection, rule: IpRule) -> IpRule:
    """Return the rule with ipproto, sport and dport, which netifd supports since 2025.

    Protocols are numbers or names of /etc/protocols.
    """
    if section.get("ipproto"):
        number = _PROTOCOLS.get(section.get("ipproto"), parse_unsigned(section.get("ipproto")))
        rule = evolve(rule, l4proto=number) if number else evolve(rule, unknown=(f"ipproto {section.get('ipproto')}",))
    return evolve(rule, sports=_port_range(section, "sport"), dports=_port_range(section, "dport"))


def _port_range(section: ParsedSection, option: str) -> tuple[int, int] | None:
    text = section.get(option)
    if not text:
        return None
    parts = re.match(r"([0-9]{1,5})(?:-([0-9]{1,5}))?\Z", text)
    if not parts:
        raise IgnoredSection(f"{option} {text!r} is not a port")
    return int(parts[1]), int(parts[2] or parts[1])
