# SPDX-License-Identifier: BSD-2-Clause
"""A policy for a router, out of its configuration: TOML in which each line says where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from ..policy import values
from .answers_in import Let, let_in
from .netifd import Made, Trap, made
from .network import MODEMS, NAMED_TABLES, Network, network, with_leases
from .programs import Program, programs, unserved
from .roles import NotUsable, Packages, Role, roles, wan_zones
from .uci_in import Section

_BEHIND = "its ip rules are behind the ladder of a policy (priority 910) and are not reached while one is in force"
_NOT_MAPPED = {
    "pbr": f"pbr is about which way other hosts' packets go; {_BEHIND}",
    "mwan3": f"mwan3 spreads other hosts' packets over uplinks; {_BEHIND}",
}


@frozen
class Note:
    """A sentence of the report, with the place in the configuration that it is about."""

    place: str
    text: str


@frozen
class Proposal:
    """What came of a configuration. `made` is the state that it makes now."""

    text: str
    uplinks: tuple[Role, ...]
    exempt: tuple[str, ...]
    network: Network
    made: Made
    assumed: tuple[str, ...]
    traps: tuple[Trap, ...]
    changes: tuple[Note, ...]
    doing: tuple[Note, ...]
    unmapped: tuple[Note, ...]
    forwards: tuple[str, ...]  # devices whose hosts' packets the firewall lets out by an uplink


def propose(
    packages: Packages,
    asked: Sequence[str] = (),
    groups: Mapping[str, int] | None = None,
    tables: Mapping[str, int] | None = None,
) -> Proposal:
    """The proposal for a router. `groups`: numbers of its groups. `tables`: names of routing tables.

    Raises:
        NotUsable: there is no uplink in it.
    """
    names = {**NAMED_TABLES, **(tables or {})}
    sections = packages["network"]
    bare, faults = network(sections, packages.get("wireless", ()))
    found = with_leases(bare)
    uplinks = roles(packages, found, asked)
    for one in uplinks:
        for device in one.devices:
            _valid(device, one.interfaces[0].section)
    lets = tuple(let_in(packages.get("firewall", ())))
    used = programs(packages, found, uplinks, groups or {})
    state = made(sections, found, names)
    inside, left = _inside(found, uplinks)
    exempt = {one.name: _exempt(one, found) for one in uplinks}
    traps = [*(Trap(one.place(option), f"{one.shown}: {said}") for one, option, said in faults), *state.traps]
    traps += _dhcp_on_uplinks(packages, uplinks)
    return Proposal(
        "\n".join(_toml(packages, uplinks, inside, exempt, lets, used)),
        uplinks,
        tuple(dict.fromkeys(word for listed in exempt.values() for word in listed)),
        found,
        state,
        (*(said for one in found.interfaces for said in one.assumed), *_assumed(found)),
        tuple(traps),
        tuple(_changes(packages, found, uplinks)),
        tuple(Note(place, said) for one in used for place, said in one.doing),
        (*left, *_unmapped(packages, lets, used)),
        tuple(_forwards(packages, found, uplinks)),
    )


def _valid(device: str, section: Section) -> None:
    try:
        values.device(device)
    except ValueError as error:
        raise NotUsable(f"{section.place()}: {section.shown}: {error}") from None


def _inside(found: Network, uplinks: Iterable[Role]) -> tuple[dict[str, str], list[Note]]:
    """The devices that lead to no uplink, each with where it stands; and those that can't be named."""
    taken = {device for one in uplinks for device in one.devices} | {"lo"}
    taken |= {port for device in taken for port in found.ports.get(device, ())}
    inside: dict[str, str] = {}
    left = []
    for one in found.interfaces:
        if not one.device:
            if one.name != "loopback" and one.proto != "none":
                said = "its device is not known; what leaves by it is dropped until 'inside' names it"
                left.append(Note(one.section.place(), f"{one.section.shown}: {said}"))
            continue
        if one.device in taken or one.device in inside:
            continue
        try:
            inside[values.device(one.device)] = f"{one.section.place()} {one.section.shown}"
        except ValueError as error:
            left.append(Note(one.section.place(), f"{one.section.shown}: {error}"))
    return inside, left


def _exempt(role: Role, found: Network) -> tuple[str, ...]:
    protos = role.protos
    words = ["arp"]
    words += ["dhcpv4"] if "dhcp" in protos or protos & MODEMS else []
    words += ["dhcpv6"] if "dhcpv6" in protos or protos & MODEMS else []
    words += ["ndp", "mld", "igmp"]
    meshes = [one for one in found.interfaces if one.device in role.devices and one.proto == "gluon_wired"]
    words += ["vxlan-mesh", "respondd"] if meshes else []
    words += ["pppoe"] if "pppoe" in protos else []
    return tuple(words)


# --- TOML -------------------------------------------------------------------------------------


def _toml(
    packages: Packages,
    uplinks: Sequence[Role],
    inside: Mapping[str, str],
    exempt: Mapping[str, tuple[str, ...]],
    lets: Sequence[Let],
    used: Sequence[Program],
) -> Iterator[str]:
    gluon = "gluon-wan-dnsmasq" in packages or any(one.selector == ("group", "800") for one in used)
    yield "# Written by 'nftpolicy import openwrt'. Each line says where it comes from."
    yield ""
    yield f'name = "{"gluon-node" if gluon else "openwrt"}"'
    yield "inside = ["
    for device, place in inside.items():
        yield f"  {_string(device)},  # {_comment(place)}"
    yield "]  # all other devices count as uplinks"
    for one in uplinks:
        yield ""
        yield f"[uplink.{one.name}]"
        listed = ", ".join(f"{each.section.place()} {each.section.shown}" for each in one.interfaces)
        yield f"devices = {_list(one.devices)}  # {_comment(listed)}"
        origin = ", ".join(each.place("mark") for each in one.given) or "chosen here"
        yield f'mark = "{one.mark}"  # {_comment(origin)}'
        tables = [each.section.place(option) for each in one.interfaces for family, option in _TABLES
                  if each.tables.get(family) == one.table]  # fmt: skip
        yield f"table = {one.table}  # {_comment(', '.join(tables) or 'chosen here')}"
        yield f"exempt = {_list(exempt[one.name])}  # what the protocols {_comment(', '.join(sorted(one.protos)))} need"
        yield from _answers(lets)
        yield from _gateways(one)
        yield from _resolver(packages, one, first=one is uplinks[0])
    for service in used:
        yield ""
        yield f"[service.{service.name}]  # {_comment(service.why)}"
        yield f'uplink = "{service.uplink}"'
        yield f"{service.selector[0]} = {service.selector[1]}"
        if service.sport:
            yield f"sport = {_list(service.sport)}"
        yield f'marks = "{service.marks}"'
        for place, said in service.doing:
            yield f"# TO DO, {_comment(place)}: {_comment(said)}"
    yield ""


_TABLES = ((4, "ip4table"), (6, "ip6table"))


def _answers(lets: Iterable[Let]) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for let in lets:
        for word in let.answers:
            places.setdefault(word, []).append(let.section.place())
    if not places:
        return
    yield "answer = ["
    for word, found in places.items():
        yield f"  {_string(word)},  # {_comment(', '.join(found))}"
    yield "]"


def _gateways(role: Role) -> Iterator[str]:
    """Static gateways, of interfaces whose routes netifd doesn't put into the uplink's table as it is."""
    found = {str(gateway): one.section.place("gateway" if gateway.version == 4 else "ip6gw")
             for one in role.interfaces if one.proto == "static" for gateway in one.gateways
             if not (gateway.is_loopback or gateway.is_multicast or gateway.is_unspecified)}  # fmt: skip
    if found:
        yield f"gateways = {_list(tuple(found))}  # {_comment(', '.join(dict.fromkeys(found.values())))}"


def _resolver(packages: Packages, role: Role, first: bool) -> Iterator[str]:
    gluon = packages.get("gluon-wan-dnsmasq")
    if gluon is None or not first:
        return
    yield ""
    yield f"[uplink.{role.name}.resolver]  # in place of gluon-wan-dnsmasq"
    yield 'listen = ["127.0.0.1:54", "[::1]:54"]'
    servers = []
    for one in gluon:
        for text in one.words("server"):
            try:
                servers.append(str(values.server(text)))
            except ValueError:
                continue
    if servers:
        yield f"servers = {_list(tuple(dict.fromkeys(servers)))}  # {_comment(gluon[0].place('server'))}"


def _string(text: str) -> str:
    return json.dumps(text)


def _list(items: Iterable[str]) -> str:
    return f"[{', '.join(map(_string, items))}]"


def _comment(text: str) -> str:
    """Text that may stand in a comment: TOML takes no control characters there."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


# --- what changes, and what is left over ------------------------------------------------------


def _forwards(packages: Packages, found: Network, uplinks: Sequence[Role]) -> Iterator[str]:
    firewall = packages.get("firewall", ())
    zones = {one.get("name"): one for one in firewall if one.type == "zone"}
    wans = {one.get("name") for one in wan_zones(firewall)}
    taken = {device for one in uplinks for device in one.devices}
    for one in firewall:
        if one.type == "forwarding" and one.get("dest") in wans and one.get("src") in zones:
            for name in zones[one.get("src")].words("network"):
                other = found.named(name)
                if other and other.device and other.device not in taken:
                    yield other.device


def _changes(packages: Packages, found: Network, uplinks: Sequence[Role]) -> Iterator[Note]:
    firewall = packages.get("firewall", ())
    wans = {one.get("name") for one in wan_zones(firewall)}
    for one in firewall:
        if one.type == "forwarding" and one.get("dest") in wans:
            yield Note(one.place(), _FORWARDED.format(zone=one.get("src")))
    for role in uplinks:
        for one in role.interfaces:
            if one.proto not in ("static", "none") and one.section.flag("peerdns", True):
                yield Note(one.section.place(), f"{one.section.shown}: {_PEERDNS}")
        missing = [
            f"IPv{family}"
            for family, _ in _TABLES
            if not any(one.tables.get(family) == role.table for one in role.interfaces)
        ]
        if missing:
            said = _MOVED.format(name=role.name, families=" and ".join(missing), table=role.table)
            yield Note(role.interfaces[0].section.place(), said)
    yield from (Note(place, said) for place, said in unserved(found, uplinks))
    if "gluon-wan-dnsmasq" in packages:
        yield Note("gluon-wan-dnsmasq", _REDIRECT)
    yield Note("", "what the policy does not name is dropped at the uplink and counted, whatever the routes say")


_FORWARDED = (
    "hosts of zone '{zone}' no longer reach the network behind the uplink: a policy forwards nothing there. If they "
    "are to, this is no machine for a policy"
)
_PEERDNS = "its DNS servers are no longer asked by the machine itself (peerdns 0), but by the uplink's resolver alone"
_MOVED = (
    "uplink {name}: routes of {families} move from table main to table {table}: who does not wear the mark has no way "
    "there any more (updates, NTP, opkg and ssh of root among them)"
)
_REDIRECT = (
    "its redirect was for IPv4, UDP and 127.0.0.1 alone: queries by TCP and to ::1 went to the mesh's resolver. Both "
    "go to the uplink's now"
)


def _dhcp_on_uplinks(packages: Packages, uplinks: Sequence[Role]) -> Iterator[Trap]:
    names = {one.name for role in uplinks for one in role.interfaces}
    for one in packages.get("dhcp", ()):
        if one.type == "dhcp" and one.get("interface") in names and not one.flag("ignore"):
            yield Trap(one.place(), f"{one.shown}: a DHCP server answers on an uplink; option ignore '1' ends that")


def _assumed(found: Network) -> Iterator[str]:
    yield "every interface is up, and netifd numbers devices in their order in the file: " + ", ".join(
        f"{name} is {at}" for name, at in found.ifindex.items())  # fmt: skip


def _unmapped(packages: Packages, lets: Sequence[Let], used: Sequence[Program]) -> Iterator[Note]:
    """Every section that the policy has nothing of, by file and line."""
    for let in lets:
        if let.why:
            yield Note(let.section.place(), f"{let.section.shown}: {let.why}")
    mapped = {(one.file, one.line) for service in used for one in service.sections}
    for package, sections in packages.items():
        for one in sections:
            if package == "firewall" or (one.file, one.line) in mapped or one.type in _SEEN.get(package, ()):
                continue
            if package == "network" and one.type.startswith("wireguard_"):
                why = "it belongs to no WireGuard interface that is up"
            else:
                why = _NOT_MAPPED.get(package, "nothing of a policy comes of it")
            yield Note(one.place(), f"{one.shown}: {why}")


# Sections that were taken into account.
_SEEN = {
    "network": ("interface", "globals", "device", "rule", "rule6", "route", "route6", "switch", "switch_vlan",
                "switch_port", "bridge-vlan"),
    "dhcp": ("dhcp", "dnsmasq", "odhcpd", "host", "domain", "cname", "srvhost", "mxhost", "boot", "tag"),
    "gluon-wan-dnsmasq": ("static",),
    "wireless": ("wifi-device", "wifi-iface"),
}  # fmt: skip
