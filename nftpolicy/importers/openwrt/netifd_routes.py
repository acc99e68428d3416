# SPDX-License-Identifier: BSD-2-Clause
"""Routes of netifd: connected networks and gateways of interfaces, and `config route` sections.

Observed on netifd of 2024-12 and 2026-07, and read in its source interface-ip.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from attrs import evolve

from ...netstate.routing import RTPROT_KERNEL, RTPROT_STATIC, TABLE_LOCAL, TABLE_MAIN, Route
from .interfaces import LEASE_PROTOCOLS_IPV6, Interface, NetworkConfig, parse_unsigned, table_number
from .netifd_sections import SECTION_FAMILIES, IgnoredSection, section_number, section_origin
from .rule_warnings import UciWarning
from .uci_parser import ParsedSection

_TERMINAL_TYPES = frozenset({"unreachable", "blackhole", "prohibit", "throw"})


def netifd_routes(
    sections: Sequence[ParsedSection], network: NetworkConfig, names: Mapping[str, int], warnings: list[UciWarning]
) -> tuple[Route, ...]:
    """Return all routes without duplicates; add the faults of sections to `warnings`."""
    routes = [*_connected_routes(network), *_static_routes(sections, network, names, warnings)]
    return tuple(dict.fromkeys(routes))


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
        origin = section_origin(interface.section, option if interface.section.get(option) else "")
        route = Route(family, number, gateway=str(gateway), device=interface.device, protocol=RTPROT_STATIC,
                      metric=metric or (1024 if family == 6 else 0), origin=origin)  # fmt: skip
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
            route = _route(section, SECTION_FAMILIES[section.type], network_config, names)
        except IgnoredSection as fault:
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
        raise IgnoredSection(f"there is no type {kind!r}")
    number = TABLE_MAIN
    if section.get("table"):
        named_table = table_number(section.get("table"), names)
        if named_table is None:
            raise IgnoredSection(f"there is no table {section.get('table')!r}")
        number = named_table
    interface = network_config.find_interface(section.get("interface"))
    if section.get("interface"):
        if interface is None or not interface.up:
            return None
        if not section.get("table") or number == TABLE_MAIN:
            number = interface.tables.get(family, number)
    elif kind not in _TERMINAL_TYPES:
        raise IgnoredSection("only routes of type unreachable, blackhole, prohibit and throw may omit the interface")
    target = _target(section, family)
    gateway = section.get("gateway")
    if gateway in ("::", "0.0.0.0"):
        gateway = ""
    if gateway:
        try:
            if ip_interface(gateway).version != family or "/" in gateway:
                raise IgnoredSection(f"gateway {gateway!r} is not an IPv{family} address")
        except ValueError:
            raise IgnoredSection(f"gateway {gateway!r} is not an IPv{family} address") from None
    metric = section_number(section, "metric", 0) or (1024 if family == 6 else 0)
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
        raise IgnoredSection(f"target {text!r} is not a network") from None
    if prefix.version != family:
        raise IgnoredSection(f"target {text!r} is not IPv{family}")
    assert isinstance(prefix, IPv4Interface | IPv6Interface)
    return "default" if not prefix.network.prefixlen else str(prefix.network)
