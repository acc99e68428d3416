# SPDX-License-Identifier: BSD-2-Clause
"""Draft policy for a router, from its configuration.

The draft is TOML, with the source of each line as a comment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from ..policy import values
from .answers_in import Let, let_in
from .netifd import Made, made
from .network import MODEMS, NAMED_TABLES, Network, network, with_leases
from .programs import Program, programs, unserved
from .roles import NotUsable, Packages, Role, roles, wan_zones
from .rule_warnings import UciWarning
from .uci_in import Section

_NOT_REACHED = "its ip rules come after those of a policy (priority 910), so they never match while one is in force"
_NOT_MAPPED = {
    "pbr": f"pbr routes packets of other hosts; {_NOT_REACHED}",
    "mwan3": f"mwan3 balances packets of other hosts over uplinks; {_NOT_REACHED}",
}


@frozen
class Note:
    """Sentence of the report, with its place in the configuration."""

    place: str
    text: str


@frozen
class Proposal:
    """Draft policy of a configuration, with the report.

    `made` is the state that the configuration makes now.
    """

    text: str
    uplinks: tuple[Role, ...]
    exempt: tuple[str, ...]
    network: Network
    made: Made
    assumed: tuple[str, ...]
    traps: tuple[UciWarning, ...]
    changes: tuple[Note, ...]
    doing: tuple[Note, ...]
    unmapped: tuple[Note, ...]
    forwards: tuple[str, ...]  # devices with hosts that the firewall allows to send by an uplink


def propose(
    packages: Packages,
    interface_names: Sequence[str] = (),
    groups: Mapping[str, int] | None = None,
    tables: Mapping[str, int] | None = None,
) -> Proposal:
    """Return the draft for a router.

    `interface_names` are uplink interfaces given by the user, `groups` the numbers of the router's groups, and
    `tables` the names of its routing tables.

    Raises:
        NotUsable: the configuration has no uplink.
    """
    names = {**NAMED_TABLES, **(tables or {})}
    sections = packages["network"]
    configured, faults = network(sections, packages.get("wireless", ()))
    network_config = with_leases(configured)
    uplinks = roles(packages, network_config, interface_names)
    for uplink in uplinks:
        for device in uplink.devices:
            _require_valid_device(device, uplink.interfaces[0].section)
    inbound = tuple(let_in(packages.get("firewall", ())))
    services = programs(packages, network_config, uplinks, groups or {})
    state = made(sections, network_config, names)
    inside, unnamed = _inside(network_config, uplinks)
    exempt = {uplink.name: _exempt(uplink, network_config) for uplink in uplinks}
    traps = [UciWarning(section.place(option), f"{section.shown}: {fault}") for section, option, fault in faults]
    traps += state.traps
    traps += _dhcp_on_uplinks(packages, uplinks)
    return Proposal(
        "\n".join(_toml(packages, uplinks, inside, exempt, inbound, services)),
        uplinks,
        tuple(dict.fromkeys(exemption for exemptions in exempt.values() for exemption in exemptions)),
        network_config,
        state,
        (*(text for interface in network_config.interfaces for text in interface.assumed), *_assumed(network_config)),
        tuple(traps),
        tuple(_changes(packages, network_config, uplinks)),
        tuple(Note(location, step) for service in services for location, step in service.doing),
        (*unnamed, *_unmapped(packages, inbound, services)),
        tuple(_forwards(packages, network_config, uplinks)),
    )


def _require_valid_device(device: str, section: Section) -> None:
    try:
        values.device(device)
    except ValueError as error:
        raise NotUsable(f"{section.place()}: {section.shown}: {error}") from None


def _inside(network_config: Network, uplinks: Iterable[Role]) -> tuple[dict[str, str], list[Note]]:
    """Return the devices of no uplink with their places, and notes on devices without a name."""
    uplink_devices = {device for uplink in uplinks for device in uplink.devices} | {"lo"}
    uplink_devices |= {port for device in uplink_devices for port in network_config.ports.get(device, ())}
    inside: dict[str, str] = {}
    notes = []
    for interface in network_config.interfaces:
        if not interface.device:
            if interface.name != "loopback" and interface.proto != "none":
                fact = "its device is unknown; packets that leave by it are dropped until 'inside' names it"
                notes.append(Note(interface.section.place(), f"{interface.section.shown}: {fact}"))
            continue
        if interface.device in uplink_devices or interface.device in inside:
            continue
        try:
            inside[values.device(interface.device)] = f"{interface.section.place()} {interface.section.shown}"
        except ValueError as error:
            notes.append(Note(interface.section.place(), f"{interface.section.shown}: {error}"))
    return inside, notes


def _exempt(role: Role, network_config: Network) -> tuple[str, ...]:
    protos = role.protos
    exemptions = ["arp"]
    if "dhcp" in protos or protos & MODEMS:
        exemptions.append("dhcpv4")
    if "dhcpv6" in protos or protos & MODEMS:
        exemptions.append("dhcpv6")
    exemptions += ["ndp", "mld", "igmp"]
    if any(
        interface.device in role.devices and interface.proto == "gluon_wired" for interface in network_config.interfaces
    ):
        exemptions += ["vxlan-mesh", "respondd"]
    if "pppoe" in protos:
        exemptions.append("pppoe")
    return tuple(exemptions)


# --- TOML -------------------------------------------------------------------------------------


def _toml(
    packages: Packages,
    uplinks: Sequence[Role],
    inside: Mapping[str, str],
    exempt: Mapping[str, tuple[str, ...]],
    inbound: Sequence[Let],
    services: Sequence[Program],
) -> Iterator[str]:
    is_gluon = "gluon-wan-dnsmasq" in packages or any(service.selector == ("group", "800") for service in services)
    yield "# Written by 'nftpolicy import openwrt'. The comments name the source of each line."
    yield ""
    yield f'name = "{"gluon-node" if is_gluon else "openwrt"}"'
    yield "inside = ["
    for device, place in inside.items():
        yield f"  {_string(device)},  # {_comment(place)}"
    yield "]  # all other devices count as uplinks"
    for uplink in uplinks:
        yield ""
        yield f"[uplink.{uplink.name}]"
        sources = ", ".join(f"{interface.section.place()} {interface.section.shown}" for interface in uplink.interfaces)
        yield f"devices = {_list(uplink.devices)}  # {_comment(sources)}"
        origin = ", ".join(interface.place("mark") for interface in uplink.given) or "chosen here"
        yield f'mark = "{uplink.mark}"  # {_comment(origin)}'
        tables = [interface.section.place(option) for interface in uplink.interfaces for family, option in _TABLES
                  if interface.tables.get(family) == uplink.table]  # fmt: skip
        yield f"table = {uplink.table}  # {_comment(', '.join(tables) or 'chosen here')}"
        yield f"exempt = {_list(exempt[uplink.name])}  # needed by {_comment(', '.join(sorted(uplink.protos)))}"
        yield from _answers(inbound)
        yield from _gateways(uplink)
        yield from _resolver(packages, uplink, first=uplink is uplinks[0])
    for service in services:
        yield ""
        yield f"[service.{service.name}]  # {_comment(service.why)}"
        yield f'uplink = "{service.uplink}"'
        yield f"{service.selector[0]} = {service.selector[1]}"
        if service.sport:
            yield f"sport = {_list(service.sport)}"
        yield f'marks = "{service.marks}"'
        for place, step in service.doing:
            yield f"# TO DO, {_comment(place)}: {_comment(step)}"
    yield ""


_TABLES = ((4, "ip4table"), (6, "ip6table"))


def _answers(inbound: Iterable[Let]) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for allowed in inbound:
        for answer in allowed.answers:
            places.setdefault(answer, []).append(allowed.section.place())
    if not places:
        return
    yield "answer = ["
    for answer, locations in places.items():
        yield f"  {_string(answer)},  # {_comment(', '.join(locations))}"
    yield "]"


def _gateways(role: Role) -> Iterator[str]:
    """Yield the static gateways; netifd does not put their routes into the uplink's table."""
    gateways = {str(gateway): interface.section.place("gateway" if gateway.version == 4 else "ip6gw")
             for interface in role.interfaces if interface.proto == "static" for gateway in interface.gateways
             if not (gateway.is_loopback or gateway.is_multicast or gateway.is_unspecified)}  # fmt: skip
    if gateways:
        yield f"gateways = {_list(tuple(gateways))}  # {_comment(', '.join(dict.fromkeys(gateways.values())))}"


def _resolver(packages: Packages, role: Role, first: bool) -> Iterator[str]:
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
                servers.append(str(values.server(server)))
            except ValueError:
                continue
    if servers:
        yield f"servers = {_list(tuple(dict.fromkeys(servers)))}  # {_comment(gluon_sections[0].place('server'))}"


def _string(text: str) -> str:
    return json.dumps(text)


def _list(items: Iterable[str]) -> str:
    return f"[{', '.join(map(_string, items))}]"


def _comment(text: str) -> str:
    """Return text that is valid in a TOML comment, without control characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


# --- the report -------------------------------------------------------------------------------


def _forwards(packages: Packages, network_config: Network, uplinks: Sequence[Role]) -> Iterator[str]:
    firewall = packages.get("firewall", ())
    zones = {section.get("name"): section for section in firewall if section.type == "zone"}
    wans = {section.get("name") for section in wan_zones(firewall)}
    uplink_devices = {device for uplink in uplinks for device in uplink.devices}
    for section in firewall:
        if section.type == "forwarding" and section.get("dest") in wans and section.get("src") in zones:
            for name in zones[section.get("src")].words("network"):
                interface = network_config.named(name)
                if interface and interface.device and interface.device not in uplink_devices:
                    yield interface.device


def _changes(packages: Packages, network_config: Network, uplinks: Sequence[Role]) -> Iterator[Note]:
    """Yield the changes in behaviour that the policy brings."""
    firewall = packages.get("firewall", ())
    wans = {zone.get("name") for zone in wan_zones(firewall)}
    for section in firewall:
        if section.type == "forwarding" and section.get("dest") in wans:
            yield Note(section.place(), _FORWARDED.format(zone=section.get("src")))
    for uplink in uplinks:
        for interface in uplink.interfaces:
            section = interface.section
            if interface.proto not in ("static", "none") and section.flag("peerdns", True):
                yield Note(section.place(), f"{section.shown}: {_PEERDNS}")
        missing = [
            f"IPv{family}"
            for family, _ in _TABLES
            if not any(interface.tables.get(family) == uplink.table for interface in uplink.interfaces)
        ]
        if missing:
            text = _MOVED.format(name=uplink.name, families=" and ".join(missing), table=uplink.table)
            yield Note(uplink.interfaces[0].section.place(), text)
    yield from (Note(location, text) for location, text in unserved(network_config, uplinks))
    if "gluon-wan-dnsmasq" in packages:
        yield Note("gluon-wan-dnsmasq", _REDIRECT)
    yield Note(
        "", "packets that the policy does not name are dropped at the uplink and counted, whatever the routes are"
    )


_FORWARDED = (
    "hosts of zone '{zone}' no longer reach the network behind the uplink: a policy forwards no packets there. If they "
    "must reach it, do not use a policy on this machine"
)
_PEERDNS = "only the uplink's resolver uses its DNS servers, no longer the machine itself (peerdns 0)"
_MOVED = (
    "uplink {name}: routes of {families} move from table main to table {table}: packets without the mark have no route "
    "there any more (also those of updates, NTP, opkg and ssh as root)"
)
_REDIRECT = (
    "its redirect covers only IPv4, UDP and 127.0.0.1: queries over TCP or to ::1 go to the mesh's resolver. With the "
    "policy, both go to the uplink's resolver"
)


def _dhcp_on_uplinks(packages: Packages, uplinks: Sequence[Role]) -> Iterator[UciWarning]:
    uplink_interfaces = {interface.name for role in uplinks for interface in role.interfaces}
    for section in packages.get("dhcp", ()):
        if section.type == "dhcp" and section.get("interface") in uplink_interfaces and not section.flag("ignore"):
            yield UciWarning(
                section.place(), f"{section.shown}: a DHCP server answers on an uplink; set option ignore '1'"
            )


def _assumed(network_config: Network) -> Iterator[str]:
    yield "every interface is up, and netifd numbers devices in file order: " + ", ".join(
        f"{name} is {index}" for name, index in network_config.ifindex.items())  # fmt: skip


def _unmapped(packages: Packages, inbound: Sequence[Let], services: Sequence[Program]) -> Iterator[Note]:
    """Yield each section that the policy does not cover, by file and line."""
    for allowed in inbound:
        if allowed.why:
            yield Note(allowed.section.place(), f"{allowed.section.shown}: {allowed.why}")
    mapped = {(section.file, section.line) for service in services for section in service.sections}
    for package, sections in packages.items():
        for section in sections:
            if (
                package == "firewall"
                or (section.file, section.line) in mapped
                or section.type in _READ_TYPES.get(package, ())
            ):
                continue
            if package == "network" and section.type.startswith("wireguard_"):
                reason = "no WireGuard interface that is up uses it"
            else:
                reason = _NOT_MAPPED.get(package, "a policy has no counterpart for it")
            yield Note(section.place(), f"{section.shown}: {reason}")


# Section types that the importer reads.
_READ_TYPES = {
    "network": ("interface", "globals", "device", "rule", "rule6", "route", "route6", "switch", "switch_vlan",
                "switch_port", "bridge-vlan"),
    "dhcp": ("dhcp", "dnsmasq", "odhcpd", "host", "domain", "cname", "srvhost", "mxhost", "boot", "tag"),
    "gluon-wan-dnsmasq": ("static",),
    "wireless": ("wifi-device", "wifi-iface"),
}  # fmt: skip
