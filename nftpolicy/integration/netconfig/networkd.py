# SPDX-License-Identifier: BSD-2-Clause
"""systemd-networkd: systemd.network(5), networkd.conf(5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_interface

from ...generated_text import CheckedText, device_name, fill, join, own_text, word
from ...policy.objects import Policy
from .generated_file import GeneratedFile, header_line, uplink_devices
from .networkd_parser import OWN_PREFIX, Section, network_file_of, parse_sections

_DAEMON = """\
{head}
[Network]
# Without these, networkd deletes ip rules and routes of other programs when it starts.
ManageForeignRoutingPolicyRules=no
ManageForeignRoutes=no
"""
_DEVICE = """\
{head}
# networkd uses only the first file that matches a device, in the order of their names. If another file configures
# this device, 'nftpolicy netconfig --to' writes a drop-in of it instead: NAME.network.d/nftpolicy.conf.
[Match]
Name={device}

[Network]
DHCP=yes
IPv6AcceptRA=yes
{settings}"""
_DROPIN = """\
{head}
[Network]
{settings}{routes}"""
_SETTINGS = """\
LLMNR=no
MulticastDNS=no
DNSDefaultRoute=no

[DHCPv4]
RouteTable={table}
UseGateway=yes
UseRoutes=yes
UseDNS=no
UseDomains=no
UseNTP=no

[IPv6AcceptRA]
RouteTable={table}
UseDNS=no
UseDomains=no

[DHCPv6]
UseDNS=no
UseNTP=no
"""
_ROUTE = """
# A static route of {file}, for the uplink.
[Route]
{lines}
Table={table}
"""
# Keys of [Route] that a copy keeps.
_ROUTE_KEYS = ("Gateway", "Destination", "GatewayOnLink", "Metric", "PreferredSource", "Scope", "Type")


def files(policy: Policy, present: Mapping[str, str] | None = None) -> tuple[GeneratedFile, ...]:
    """Return a file for the daemon, and one for each device.

    `present`: path -> text of the .network files of the system; for a device that one of them configures, the file is
    a drop-in of it.

    Raises:
        SharedNetworkFile: one of them configures other devices too.
        Unwritable: a name or a static route there has a character with a special meaning.
    """
    admin_files = {path: text for path, text in (present or {}).items() if OWN_PREFIX not in path}
    head = header_line(policy)
    texts = {own_text("/etc/systemd/networkd.conf.d/nftpolicy.conf"): fill(_DAEMON, head=head)}
    for device, _, uplink in uplink_devices(policy):
        settings = fill(_SETTINGS, table=uplink.table)
        admin_file = network_file_of(device, frozenset(uplink.network_devices), admin_files)
        if admin_file is None:
            path = fill(
                "/etc/systemd/network/{prefix}{device}.network", prefix=own_text(OWN_PREFIX), device=device_name(device)
            )
            texts[path] = fill(_DEVICE, head=head, device=device_name(device), settings=settings)
        else:
            name = word(admin_file.rpartition("/")[2])
            routes = join("", _static_routes(name, parse_sections(admin_files[admin_file]), uplink.table))
            path = fill("/etc/systemd/network/{name}.d/nftpolicy.conf", name=name)
            texts[path] = fill(_DROPIN, head=head, settings=settings, routes=routes)
    return tuple(GeneratedFile(path, text) for path, text in texts.items())


def _static_routes(file: CheckedText, sections: Iterator[Section], table: int) -> Iterator[CheckedText]:
    """Yield copies of the routes in a file for the table of the uplink, networks of its addresses first."""
    networks = list[list[tuple[str, str]]]()
    gateways = list[list[tuple[str, str]]]()
    for section in sections:
        if section.name in ("Network", "Address"):
            networks += [
                [("Destination", network), ("Scope", "link")]
                for network in map(_network, section.values("Address"))
                if network
            ]
        if section.name == "Network":
            gateways += [[("Gateway", value)] for value in section.values("Gateway")]
        if section.name == "Route" and not section.values("Table"):
            gateways.append([setting for setting in section.settings if setting[0] in _ROUTE_KEYS])
    for settings in networks + gateways:
        lines = join("\n", (fill("{key}={value}", key=word(key), value=word(value)) for key, value in settings))
        yield fill(_ROUTE, file=file, lines=lines, table=table)


def _network(address: str) -> str | None:
    """Return the network of an address with a length, None without one and of a pool such as 0.0.0.0/24."""
    try:
        network = ip_interface(address).network
    except ValueError:
        return None
    return None if network.num_addresses == 1 or network.network_address.is_unspecified else str(network)
