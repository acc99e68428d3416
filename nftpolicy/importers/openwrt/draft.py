# SPDX-License-Identifier: BSD-2-Clause
"""Draft policy for a router, from its configuration.

The draft is TOML, with the source of each line as a comment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from ...policy import scalars
from ..policy_text import toml_comment, toml_list, toml_string
from .configured_routing import describe_configured_routing
from .firewall import AllowedInbound, allowed_inbound
from .forwards import ForwardedTraffic, forwarded_traffic
from .interfaces import MODEM_PROTOCOLS, NAMED_TABLES, Interface, NetworkConfig, add_assumed_leases, read_network
from .netifd_model import NetifdState, netifd_state
from .rule_warnings import UciWarning
from .services import ServiceCandidate, service_candidates, tunnels_without_service
from .uci_parser import ParsedSection
from .uplinks import NotImportable, Packages, UplinkCandidate, uplink_candidates, wan_zones

_NO_MARK = "its ip rules stay in force, but set no uplink's mark, so the guard drops what they lead to an uplink"
_NOT_MAPPED = {
    "pbr": f"pbr routes packets of other hosts; {_NO_MARK}",
    "mwan3": f"mwan3 balances packets of other hosts over uplinks; {_NO_MARK}",
}


@frozen
class Note:
    """Sentence of the report, with its location in the configuration."""

    location: str
    text: str


@frozen
class Draft:
    """Draft policy of a configuration, with the report.

    `netifd_state` is the state that the configuration makes now.
    """

    text: str
    uplinks: tuple[UplinkCandidate, ...]
    exempt: tuple[str, ...]
    network: NetworkConfig
    netifd_state: NetifdState
    assumptions: tuple[str, ...]
    warnings: tuple[UciWarning, ...]
    changes: tuple[Note, ...]
    manual_steps: tuple[Note, ...]
    unmapped: tuple[Note, ...]
    forwarding_devices: tuple[str, ...]  # devices with hosts that the firewall allows to send by an uplink


def draft_policy(
    packages: Packages,
    interface_names: Sequence[str] = (),
    groups: Mapping[str, int] | None = None,
    tables: Mapping[str, int] | None = None,
) -> Draft:
    """Return the draft for a router.

    `interface_names` are uplink interfaces given by the user, `groups` the numbers of the router's groups, and
    `tables` the names of its routing tables.

    Raises:
        NotImportable: the configuration has no uplink.
    """
    names = {**NAMED_TABLES, **(tables or {})}
    sections = packages["network"]
    configured, faults = read_network(sections, packages.get("wireless", ()))
    network_config = add_assumed_leases(configured)
    uplinks = uplink_candidates(packages, network_config, interface_names)
    for uplink in uplinks:
        for device in uplink.devices:
            _require_valid_device(device, uplink.interfaces[0].section)
    firewall = packages.get("firewall", ())
    forwarded = tuple(forwarded_traffic(firewall, network_config, uplinks))
    inbound = tuple(allowed_inbound(firewall, forwarded))
    services = service_candidates(packages, network_config, uplinks, groups or {})
    state = netifd_state(sections, network_config, names)
    inside, unnamed = _inside(network_config, uplinks, firewall)
    routing = describe_configured_routing(sections, state, uplinks, names)
    exempt = {uplink.name: _exempt(uplink, network_config) for uplink in uplinks}
    traps = [UciWarning(section.location(option), f"{section.title}: {fault}") for section, option, fault in faults]
    traps += state.warnings
    traps += _dhcp_on_uplinks(packages, uplinks)
    return Draft(
        "\n".join(_toml(packages, uplinks, inside, exempt, inbound, services, forwarded)),
        uplinks,
        tuple(dict.fromkeys(exemption for exemptions in exempt.values() for exemption in exemptions)),
        network_config,
        state,
        (
            *(text for interface in network_config.interfaces for text in interface.assumptions),
            *_assumed(network_config),
        ),
        tuple(traps),
        tuple(_changes(packages, network_config, uplinks, forwarded)),
        tuple(Note(location, step) for service in services for location, step in service.manual_steps),
        (
            *unnamed,
            *(Note(section.location(), f"{section.title}: {fate}") for section, fate in routing),
            *_unmapped(packages, inbound, services),
        ),
        tuple(dict.fromkeys(device for traffic in forwarded for device in traffic.devices)),
    )


def _require_valid_device(device: str, section: ParsedSection) -> None:
    try:
        scalars.parse_device(device)
    except ValueError as error:
        raise NotImportable(f"{section.location()}: {section.title}: {error}") from None


def _inside(
    network_config: NetworkConfig, uplinks: Iterable[UplinkCandidate], firewall: Iterable[ParsedSection]
) -> tuple[dict[str, str], list[Note]]:
    """Return the devices of no uplink with their locations, and notes on devices without a name."""
    uplink_devices = {device for uplink in uplinks for device in uplink.devices} | {"lo"}
    uplink_devices |= {port for device in uplink_devices for port in network_config.ports.get(device, ())}
    outside = {name for zone in wan_zones(firewall) for name in zone.words("network")}
    inside: dict[str, str] = {}
    notes = []
    for interface in network_config.interfaces:
        if not interface.device:
            if interface.name != "loopback" and interface.proto != "none":
                key = "'devices' of an uplink" if interface.name in outside else "'inside'"
                fact = f"its device is unknown; packets that leave by it are dropped until {key} names it"
                notes.append(Note(interface.section.location(), f"{interface.section.title}: {fact}"))
            continue
        # netifd makes the device of the VXLAN while it runs; no file has its name.
        devices = (*([f"vx_{interface.name}"] if _is_vxlan_mesh(interface) else ()), interface.device)
        for device in devices:
            if device in uplink_devices or device in inside:
                continue
            try:
                inside[scalars.parse_device(device)] = f"{interface.section.location()} {interface.section.title}"
            except ValueError as error:
                notes.append(Note(interface.section.location(), f"{interface.section.title}: {error}"))
    return inside, notes


def _is_vxlan_mesh(interface: Interface) -> bool:
    """Return True if Gluon's wired mesh of an interface goes by a VXLAN device (its gluon_wired.sh)."""
    return interface.proto == "gluon_wired" and interface.section.flag("vxlan", True)


def _exempt(role: UplinkCandidate, network_config: NetworkConfig) -> tuple[str, ...]:
    protos = role.protocols
    exemptions = ["arp"]
    if "dhcp" in protos or protos & MODEM_PROTOCOLS:
        exemptions.append("dhcpv4")
    if "dhcpv6" in protos or protos & MODEM_PROTOCOLS:
        exemptions.append("dhcpv6")
    exemptions += ["ndp", "mld", "igmp"]
    wired = [
        interface
        for interface in network_config.interfaces
        if interface.device in role.devices and interface.proto == "gluon_wired"
    ]
    exemptions += ["vxlan-mesh"] if any(map(_is_vxlan_mesh, wired)) else []
    # respondd listens on the VXLAN device, or without one on the uplink.
    exemptions += [] if all(map(_is_vxlan_mesh, wired)) else ["batman-adv", "respondd"]
    if "pppoe" in protos:
        exemptions.append("pppoe")
    return tuple(exemptions)


# --- TOML -------------------------------------------------------------------------------------


def _toml(
    packages: Packages,
    uplinks: Sequence[UplinkCandidate],
    inside: Mapping[str, str],
    exempt: Mapping[str, tuple[str, ...]],
    inbound: Sequence[AllowedInbound],
    services: Sequence[ServiceCandidate],
    forwarded: Iterable[ForwardedTraffic],
) -> Iterator[str]:
    is_gluon = "gluon-wan-dnsmasq" in packages or any(service.selector == ("group", "800") for service in services)
    yield "# Written by 'nftpolicy import openwrt'. The comments name the source of each line."
    yield ""
    yield f'name = "{"gluon-node" if is_gluon else "openwrt"}"'
    yield "inside = ["
    for device, location in inside.items():
        yield f"  {toml_string(device)},  # {toml_comment(location)}"
    yield "]  # all other devices count as uplinks"
    for uplink in uplinks:
        yield ""
        yield f"[uplink.{uplink.name}]"
        sources = ", ".join(
            f"{interface.section.location()} {interface.section.title}" for interface in uplink.interfaces
        )
        yield f"devices = {toml_list(uplink.devices)}  # {toml_comment(sources)}"
        origin = ", ".join(interface.location("mark") for interface in uplink.mark_sections) or "chosen here"
        yield f'mark = "{uplink.mark}"  # {toml_comment(origin)}'
        tables = [interface.section.location(option) for interface in uplink.interfaces for family, option in _TABLES
                  if interface.tables.get(family) == uplink.table]  # fmt: skip
        yield f"table = {uplink.table}  # {toml_comment(', '.join(tables) or 'chosen here')}"
        protocols = toml_comment(", ".join(sorted(uplink.protocols)))
        yield f"exempt = {toml_list(exempt[uplink.name])}  # needed by {protocols}"
        yield from _answers(inbound)
        yield from _gateways(uplink)
        yield from _resolver(packages, uplink, first=uplink is uplinks[0])
    for service in services:
        yield ""
        yield f"[service.{service.name}]  # {toml_comment(service.source)}"
        yield f'uplink = "{service.uplink}"'
        yield f"{service.selector[0]} = {service.selector[1]}"
        if service.sport:
            yield f"sport = {toml_list(service.sport)}"
        yield f'marks = "{service.marks}"'
        for location, step in service.manual_steps:
            yield f"# TO DO, {toml_comment(location)}: {toml_comment(step)}"
    locations = {table: traffic.section.location() for traffic in forwarded for table in traffic.tables}
    for table, location in locations.items():
        yield ""
        yield f"# Forwarded now by {toml_comment(location)}; to keep it, remove the first '#' of these lines."
        yield from (f"#{line}" for line in table)
    yield ""


_TABLES = ((4, "ip4table"), (6, "ip6table"))


def _answers(inbound: Iterable[AllowedInbound]) -> Iterator[str]:
    locations_by_answer: dict[str, list[str]] = {}
    for allowed in inbound:
        for answer in allowed.answers:
            locations_by_answer.setdefault(answer, []).append(allowed.section.location())
    if not locations_by_answer:
        return
    yield "answer = ["
    for answer, locations in locations_by_answer.items():
        yield f"  {toml_string(answer)},  # {toml_comment(', '.join(locations))}"
    yield "]"


def _gateways(role: UplinkCandidate) -> Iterator[str]:
    """Yield the static gateways; netifd does not put their routes into the uplink's table."""
    gateways = {str(gateway): interface.section.location("gateway" if gateway.version == 4 else "ip6gw")
             for interface in role.interfaces if interface.proto == "static" for gateway in interface.gateways
             if not (gateway.is_loopback or gateway.is_multicast or gateway.is_unspecified)}  # fmt: skip
    if gateways:
        yield f"gateways = {toml_list(tuple(gateways))}  # {toml_comment(', '.join(dict.fromkeys(gateways.values())))}"


def _resolver(packages: Packages, role: UplinkCandidate, first: bool) -> Iterator[str]:
    gluon_sections = packages.get("gluon-wan-dnsmasq")
    if gluon_sections is None or not first:
        return
    yield ""
    yield f"[uplink.{role.name}.resolver]  # in place of gluon-wan-dnsmasq"
    yield 'listen = ["127.0.0.1:54", "[::1]:54"]'
    servers = []
    for section in gluon_sections:
        for server in section.words("server"):
            try:
                servers.append(str(scalars.parse_server(server)))
            except ValueError:
                continue
    if servers:
        location = toml_comment(gluon_sections[0].location("server"))
        yield f"servers = {toml_list(tuple(dict.fromkeys(servers)))}  # {location}"


# --- the report -------------------------------------------------------------------------------


def _changes(
    packages: Packages,
    network_config: NetworkConfig,
    uplinks: Sequence[UplinkCandidate],
    forwarded: Iterable[ForwardedTraffic],
) -> Iterator[Note]:
    """Yield the changes in behaviour that the policy brings."""
    for traffic in forwarded:
        if traffic.section.type == "forwarding":
            yield Note(traffic.section.location(), _FORWARDED.format(zone=traffic.section.get("src")) + traffic.advice)
    for uplink in uplinks:
        for interface in uplink.interfaces:
            section = interface.section
            if interface.proto not in ("static", "none") and section.flag("peerdns", True):
                yield Note(section.location(), f"{section.title}: {_PEERDNS}")
        missing = [
            f"IPv{family}"
            for family, _ in _TABLES
            if not any(interface.tables.get(family) == uplink.table for interface in uplink.interfaces)
        ]
        if missing:
            text = _MOVED.format(name=uplink.name, families=" and ".join(missing), table=uplink.table)
            yield Note(uplink.interfaces[0].section.location(), text)
    yield from (Note(location, text) for location, text in tunnels_without_service(network_config, uplinks))
    if "gluon-wan-dnsmasq" in packages:
        yield Note("gluon-wan-dnsmasq", _REDIRECT)
    yield Note(
        "", "packets that the policy does not name are dropped at the uplink and counted, whatever the routes are"
    )


_FORWARDED = "hosts of zone '{zone}' no longer reach the network behind the uplink"
_PEERDNS = "only the uplink's resolver uses its DNS servers, no longer the machine itself (peerdns 0)"
_MOVED = (
    "uplink {name}: routes of {families} move from table main to table {table}: packets without the mark have no route "
    "there any more (also those of updates, NTP, opkg and ssh as root)"
)
_REDIRECT = (
    "its redirect covers only IPv4, UDP and 127.0.0.1: queries over TCP or to ::1 go to the mesh's resolver. With the "
    "policy, both go to the uplink's resolver"
)


def _dhcp_on_uplinks(packages: Packages, uplinks: Sequence[UplinkCandidate]) -> Iterator[UciWarning]:
    uplink_interfaces = {interface.name for role in uplinks for interface in role.interfaces}
    for section in packages.get("dhcp", ()):
        if section.type == "dhcp" and section.get("interface") in uplink_interfaces and not section.flag("ignore"):
            yield UciWarning(
                section.location(), f"{section.title}: a DHCP server answers on an uplink; set option ignore '1'"
            )


def _assumed(network_config: NetworkConfig) -> Iterator[str]:
    yield "every interface is up, and netifd numbers devices in file order: " + ", ".join(
        f"{name} is {index}" for name, index in network_config.ifindex.items())  # fmt: skip


def _unmapped(
    packages: Packages, inbound: Sequence[AllowedInbound], services: Sequence[ServiceCandidate]
) -> Iterator[Note]:
    """Yield each section that the policy does not cover, by file and line."""
    for allowed in inbound:
        if allowed.reason:
            yield Note(allowed.section.location(), f"{allowed.section.title}: {allowed.reason}")
    for package, reason in _NOT_MAPPED.items():
        by_type: dict[str, list[ParsedSection]] = {}
        for section in packages.get(package, ()):
            by_type.setdefault(section.type, []).append(section)
        for kind, members in by_type.items():
            first = members[0]
            title = first.title if len(members) == 1 else f"{len(members)} sections '{kind}'"
            yield Note(first.location(), f"{title}: {reason}")
    mapped = {(section.file, section.line) for service in services for section in service.sections}
    for package, sections in packages.items():
        for section in sections:
            if (
                package == "firewall"
                or package in _NOT_MAPPED
                or (section.file, section.line) in mapped
                or section.type in _READ_TYPES.get(package, ())
            ):
                continue
            if package == "network" and section.type.startswith("wireguard_"):
                reason = "no WireGuard interface that is up uses it"
            else:
                reason = "a policy has no counterpart for it"
            yield Note(section.location(), f"{section.title}: {reason}")


# Section types that the importer reads.
_READ_TYPES = {
    "network": ("interface", "globals", "device", "rule", "rule6", "route", "route6", "switch", "switch_vlan",
                "switch_port", "bridge-vlan"),
    "dhcp": ("dhcp", "dnsmasq", "odhcpd", "host", "domain", "cname", "srvhost", "mxhost", "boot", "tag"),
    "gluon-wan-dnsmasq": ("static",),
    "wireless": ("wifi-device", "wifi-iface"),
}  # fmt: skip
