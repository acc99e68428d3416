# SPDX-License-Identifier: BSD-2-Clause
"""Model of netifd: the ip rules and routes that it makes of UCI's `network`, even unintended ones.

Observed on netifd of 2024-12 and 2026-07, and read in its sources (iprule.c, interface-ip.c). netifd
silently ignores sections that it cannot parse; each one is a UciWarning here. The origin of an
object is its place, (FILE, LINE).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from attrs import evolve, frozen

from ...netstate.routing import TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, IpRule, Route
from .interfaces import (
    LEASE_PROTOCOLS_IPV6,
    NAMED_TABLES,
    Interface,
    NetworkConfig,
    parse_unsigned,
    table_number,
)
from .rule_warnings import UciWarning, rule_warnings
from .uci_parser import ParsedSection

RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC = 2, 3, 4  # RTPROT_*, include/uapi/linux/rtnetlink.h
IPRULE_PRIORITY_ADDR, IPRULE_PRIORITY_ADDR_MASK, IPRULE_PRIORITY_NW, IPRULE_PRIORITY_REJECT = (
    10000,
    20000,
    90000,
    4200000000,
)  # IPRULE_PRIORITY_* of iprule.h
_KINDS = {"rule": 4, "rule6": 6, "route": 4, "route6": 6}
_ACTIONS = {"prohibit": "prohibit", "unreachable": "unreachable", "blackhole": "blackhole", "throw": "blackhole"}
_TERMINAL_TYPES = frozenset({"unreachable", "blackhole", "prohibit", "throw"})
_RULE_OPTIONS = frozenset({"in", "out", "invert", "src", "dest", "priority", "tos", "mark", "lookup", "action", "goto",
                           "suppress_prefixlength", "uidrange", "disabled", "ipproto", "sport", "dport", "name",
                           "comment"})  # fmt: skip
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}


class _Dropped(Exception):
    """Section that netifd ignores; the text is the reason."""


@frozen
class NetifdState:
    """ip rules and routes of netifd, and the warnings about its configuration."""

    rules: tuple[IpRule, ...]
    routes: tuple[Route, ...]
    warnings: tuple[UciWarning, ...]


def netifd_state(
    sections: Sequence[ParsedSection], network: NetworkConfig, names: Mapping[str, int] = NAMED_TABLES
) -> NetifdState:
    """Return all ip rules and routes of netifd, with every interface up."""
    warnings: list[UciWarning] = []
    rules = [*_kernel_rules(), *_interface_rules(network), *_configured_rules(sections, network, names, warnings)]
    routes = [*_connected_routes(network), *_static_routes(sections, network, names, warnings)]
    rules.sort(key=lambda rule: (rule.family, rule.priority))
    return NetifdState(tuple(rules), tuple(dict.fromkeys(routes)), tuple(warnings))


def _kernel_rules() -> Iterator[IpRule]:
    for family in (4, 6):
        yield IpRule(family, 0, table=TABLE_LOCAL, protocol=RTPROT_KERNEL)
        yield IpRule(family, 32766, table=TABLE_MAIN, protocol=RTPROT_KERNEL)
    yield IpRule(4, 32767, table=TABLE_DEFAULT, protocol=RTPROT_KERNEL)


def section_origin(section: ParsedSection, option: str = "") -> tuple[str, str]:
    """Return the place of a section, (FILE, LINE), as the origin of an object."""
    return section.file, str(section.line_of(option) if option else section.line)


def _interface_rules(network: NetworkConfig) -> Iterator[IpRule]:
    """Yield the rules of ip4table and ip6table, which netifd adds without a section."""
    for interface in network.interfaces:
        if not interface.up or not interface.device:
            continue
        for family, number in interface.tables.items():
            place = section_origin(interface.section, f"ip{family}table")
            index = network.ifindex[interface.device]
            for address in interface.addresses:
                if address.version != family:
                    continue
                width = address.max_prefixlen
                yield IpRule(
                    family, IPRULE_PRIORITY_ADDR, table=number, source=f"{address.ip}/{width}", protocol=0, origin=place
                )
                yield IpRule(
                    family,
                    IPRULE_PRIORITY_ADDR_MASK,
                    table=number,
                    destination=str(address.network),
                    protocol=0,
                    origin=place,
                )
            if family == 4 or interface.device in network.ipv6_devices:
                yield IpRule(family, IPRULE_PRIORITY_NW + index, table=number, iif="lo", protocol=0, origin=place)
            if family == 6 and interface.device in network.ipv6_devices:
                yield IpRule(
                    6, IPRULE_PRIORITY_REJECT + index, "unreachable", iif=interface.device, protocol=0, origin=place
                )


# --- rules ------------------------------------------------------------------------------------


def _configured_rules(
    sections: Sequence[ParsedSection], network: NetworkConfig, names: Mapping[str, int], warnings: list[UciWarning]
) -> Iterator[IpRule]:
    count = {4: 0, 6: 0}
    for section in sections:
        family = _KINDS.get(section.type)
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
        except _Dropped as fault:
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
        _number(section, "priority", number),
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
        rule = evolve(rule, tos=_number(section, "tos", 0))
        if rule.tos > 255:
            raise _Dropped(f"tos {section.get('tos')!r} is above 255")
    if section.get("uidrange"):
        rule = evolve(rule, uids=_uids(section))
    if section.get("suppress_prefixlength"):
        rule = evolve(rule, suppress_prefix=_number(section, "suppress_prefixlength", 0))
    return _ports(section, _with_action(section, rule, names))


def _with_action(section: ParsedSection, rule: IpRule, names: Mapping[str, int]) -> IpRule:
    """Return the rule with its action, which precedes a table as in netifd's system_iprule."""
    lookup = None
    if section.get("lookup"):
        lookup = table_number(section.get("lookup"), names)
        if lookup is None:
            raise _Dropped(f"there is no table {section.get('lookup')!r}")
    if section.get("action"):
        if section.get("action") not in _ACTIONS:
            raise _Dropped(f"there is no action {section.get('action')!r}")
        return evolve(rule, action=_ACTIONS[section.get("action")])
    if section.get("goto"):
        target = _number(section, "goto", 0)
        if target <= rule.priority:
            raise _Dropped(f"goto {target} is not after priority {rule.priority}")
        return evolve(rule, action="goto", goto=target)
    return evolve(rule, action="nop") if lookup is None else evolve(rule, table=lookup)


def _mark(section: ParsedSection) -> tuple[int, int]:
    text = section.get("mark")
    if not text:
        return 0, 0
    value_text, slash, mask_text = text.partition("/")
    value, mask = parse_unsigned(value_text), parse_unsigned(mask_text) if slash else None
    if value is None or (slash and mask is None):
        raise _Dropped(f"{text!r} is not a mark (VALUE or VALUE/MASK)")
    if mask is None:  # without a mask the kernel compares all bits; the value 0 matches every packet
        mask = 0xFFFFFFFF if value else 0
    return value, mask


def _number(section: ParsedSection, option: str, default: int) -> int:
    text = section.get(option)
    number = parse_unsigned(text) if text else default
    if number is None:
        raise _Dropped(f"{option} {text!r} is not a number")
    return number


def _prefix(section: ParsedSection, option: str, family: int) -> str:
    text = section.get(option)
    try:
        prefix = ip_interface(text)
    except ValueError:
        raise _Dropped(f"{option} {text!r} is not a network") from None
    if prefix.version != family:
        section_type = "rule6" if prefix.version == 6 else "rule"
        raise _Dropped(f"{option} {text!r} is not IPv{family}; use 'config {section_type}'")
    return str(prefix.network)


def _uids(section: ParsedSection) -> tuple[int, int]:
    parts = re.match(r"\s*([0-9]+)(?:-([0-9]+))?", section.get("uidrange"))
    if not parts:
        raise _Dropped(f"uidrange {section.get('uidrange')!r} is not a number; netifd does not resolve names")
    low, high = int(parts[1][:10]), int((parts[2] or parts[1])[:10])
    if low > high:
        raise _Dropped(f"uidrange {section.get('uidrange')!r} ends before it starts")
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
        raise _Dropped(f"{option} {text!r} is not a port")
    return int(parts[1]), int(parts[2] or parts[1])


# --- routes -----------------------------------------------------------------------------------


def _connected_routes(network_config: NetworkConfig) -> Iterator[Route]:
    """Yield local addresses, connected networks and default routes of interfaces."""
    for family, network in ((4, "127.0.0.0/8"), (6, "::1/128")):
        yield Route(family, TABLE_LOCAL, network, "local", device="lo", protocol=RTPROT_KERNEL)
    for index, device in enumerate(_devices(network_config)):
        link_local = f"fe80::a00:27ff:fe00:{index + 2:x}/128"
        yield Route(6, TABLE_LOCAL, link_local, "local", device=device, protocol=RTPROT_KERNEL)
        yield Route(6, TABLE_LOCAL, "ff00::/8", "multicast", device=device, metric=256, protocol=RTPROT_KERNEL)
        yield Route(6, TABLE_MAIN, "fe80::/64", device=device, metric=256, protocol=RTPROT_KERNEL)
    for interface in network_config.interfaces:
        if interface.up and interface.device and interface.device != "lo":
            yield from _interface_routes(interface)


def _devices(network_config: NetworkConfig) -> list[str]:
    return list(
        dict.fromkeys(
            interface.device
            for interface in network_config.interfaces
            if interface.up and interface.device and interface.device != "lo"
        )
    )


def _interface_routes(interface: Interface) -> Iterator[Route]:
    metric = parse_unsigned(interface.section.get("metric")) or 0
    for address in interface.addresses:
        family, width = address.version, address.max_prefixlen
        number = interface.tables.get(family, TABLE_MAIN)
        yield Route(
            family, TABLE_LOCAL, f"{address.ip}/{width}", "local", device=interface.device, protocol=RTPROT_KERNEL
        )
        if address.network.prefixlen == width and family == 4:
            continue  # a host address has no connected network
        if address.ip.is_link_local and family == 6:
            continue  # fe80::/64 exists already
        is_moved = number != TABLE_MAIN
        yield Route(
            family,
            number,
            str(address.network),
            device=interface.device,
            protocol=RTPROT_STATIC if is_moved else RTPROT_KERNEL,
            metric=_metric(family, metric, is_moved),
            origin=section_origin(interface.section),
        )
    if not interface.section.flag("defaultroute", True):
        return
    for gateway in interface.gateways:
        family = gateway.version
        number = interface.tables.get(family, TABLE_MAIN)
        option = "gateway" if family == 4 else "ip6gw"
        place = section_origin(interface.section, option if interface.section.get(option) else "")
        route = Route(family, number, gateway=str(gateway), device=interface.device, protocol=RTPROT_STATIC,
                      metric=metric or (1024 if family == 6 else 0), origin=place)  # fmt: skip
        if interface.proto in LEASE_PROTOCOLS_IPV6 and interface.section.flag("sourcefilter", True):
            for address in interface.addresses:
                if address.version == 6:
                    yield evolve(route, source=str(address.network))
        else:
            yield route


def _metric(family: int, metric: int, is_moved: bool) -> int:
    return metric or (0 if family == 4 else 1024 if is_moved else 256)


def _static_routes(
    sections: Sequence[ParsedSection],
    network_config: NetworkConfig,
    names: Mapping[str, int],
    warnings: list[UciWarning],
) -> Iterator[Route]:
    for section in sections:
        if section.type not in ("route", "route6") or section.flag("disabled"):
            continue
        try:
            route = _route(section, _KINDS[section.type], network_config, names)
        except _Dropped as fault:
            warnings.append(
                UciWarning(section.location(), f"{section.title}: netifd silently ignores this route: {fault}")
            )
            continue
        if route is None:
            warnings.append(
                UciWarning(
                    section.location(),
                    f"{section.title}: its interface does not exist or is down, so netifd does not add the route",
                )
            )
            continue
        if route.kind in _TERMINAL_TYPES and section.get("interface"):
            fact = f"netifd removes this route while interface '{section.get('interface')}' is down"
            warnings.append(UciWarning(section.location("interface"), f"{section.title}: {fact}"))
        yield route


def _route(
    section: ParsedSection, family: int, network_config: NetworkConfig, names: Mapping[str, int]
) -> Route | None:
    kind = section.get("type", "unicast")
    if kind not in _TERMINAL_TYPES and kind not in ("unicast", "local", "broadcast", "multicast", "anycast"):
        raise _Dropped(f"there is no type {kind!r}")
    number = TABLE_MAIN
    if section.get("table"):
        named_table = table_number(section.get("table"), names)
        if named_table is None:
            raise _Dropped(f"there is no table {section.get('table')!r}")
        number = named_table
    interface = network_config.find_interface(section.get("interface"))
    if section.get("interface"):
        if interface is None or not interface.up:
            return None
        if not section.get("table") or number == TABLE_MAIN:
            number = interface.tables.get(family, number)
    elif kind not in _TERMINAL_TYPES:
        raise _Dropped("only routes of type unreachable, blackhole, prohibit and throw may omit the interface")
    target = _target(section, family)
    gateway = section.get("gateway")
    if gateway in ("::", "0.0.0.0"):
        gateway = ""
    if gateway:
        try:
            if ip_interface(gateway).version != family or "/" in gateway:
                raise _Dropped(f"gateway {gateway!r} is not an IPv{family} address")
        except ValueError:
            raise _Dropped(f"gateway {gateway!r} is not an IPv{family} address") from None
    metric = _number(section, "metric", 0) or (1024 if family == 6 else 0)
    device = interface.device if interface else None
    if kind in _TERMINAL_TYPES:
        gateway, device = "", "lo" if family == 6 else None
    return Route(
        family,
        number,
        target,
        kind,
        gateway or None,
        device or None,
        metric,
        section.flag("onlink"),
        RTPROT_STATIC,
        section_origin(section),
    )


def _target(section: ParsedSection, family: int) -> str:
    text = section.get("target", "0.0.0.0/0" if family == 4 else "::/0")
    mask = section.get("netmask")
    try:
        prefix = ip_interface(f"{text}/{mask}" if mask and "/" not in text else text)
    except ValueError:
        raise _Dropped(f"target {text!r} is not a network") from None
    if prefix.version != family:
        raise _Dropped(f"target {text!r} is not IPv{family}")
    assert isinstance(prefix, IPv4Interface | IPv6Interface)
    return "default" if not prefix.network.prefixlen else str(prefix.network)
