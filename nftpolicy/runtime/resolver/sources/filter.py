# SPDX-License-Identifier: BSD-2-Clause
"""Filter of the entries that sources yield: DNS servers that the resolver may use. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from attrs import Factory, evolve, frozen

from ....policy.objects import Address, Server
from ....policy.scalars import parse_address

MAX_SERVERS = 16  # servers of one uplink; a DHCP server can announce hundreds
MAX_REJECTED = 16  # entries whose rejection has a reason
_NOT_A_SERVER = "not the address of a DNS server"
_BRACKETED = re.compile(r"\[([^\]]*)\](?::(\d+))?\Z")
_DNS_PORTS = ("", "53")
_MAX_INDEX_DIGITS = 9
_MAX_SHOWN_PORT, _MAX_SHOWN_ZONE = 5, 15  # characters of an entry in a message; 15: IFNAMSIZ


@frozen
class HostAddresses:
    """Addresses of this host, and its devices by interface index."""

    own: frozenset[Address] = frozenset()
    device_names: Mapping[int, str] = Factory(dict)


@frozen
class ServerList:
    """Usable servers in order, without duplicates, and the first rejected entries with the reason.

    `rejects_more`: there are more rejected entries.
    """

    servers: tuple[Server, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()
    rejects_more: bool = False


def usable_servers(
    entries: Iterable[tuple[str, str | Server]], devices: tuple[str, ...], host: HostAddresses
) -> ServerList:
    """Return the usable servers of these (device, entry) pairs; an entry is text, or a server of the policy.

    Rejected are addresses of this host, and servers behind another device than those of the uplink.
    """
    servers: list[Server] = []
    rejected: dict[str, str] = {}
    for device, entry in entries:
        try:
            server = _server(entry, device, devices, host)
        except ValueError as error:
            reason = str(error)
        else:
            if server in servers:
                continue
            if len(servers) < MAX_SERVERS:
                servers.append(server)
                continue
            reason = f"more than {MAX_SERVERS} servers"
        if len(rejected) <= MAX_REJECTED:
            rejected[str(entry)] = reason
    return ServerList(tuple(servers), tuple(rejected.items())[:MAX_REJECTED], len(rejected) > MAX_REJECTED)


def _server(entry: str | Server, device: str, devices: tuple[str, ...], host: HostAddresses) -> Server:
    """Return the server of an entry. Raises ValueError with the reason for its rejection."""
    named = entry if isinstance(entry, Server) else _parse_entry(entry)
    server, zone = named.address, named.zone or ""
    if server.is_loopback or server in host.own:
        raise ValueError("address of this host: would create a forwarding loop")
    if server.is_unspecified or server.is_multicast:
        raise ValueError(_NOT_A_SERVER)
    if server.version == 4:
        if server.is_reserved or server.packed[0] == 0:
            raise ValueError(_NOT_A_SERVER)
        return evolve(named, zone=None)
    if not server.is_link_local:
        return evolve(named, zone=None)
    if zone.isdecimal() and len(zone) <= _MAX_INDEX_DIGITS:
        zone = host.device_names.get(int(zone), zone)
    if zone and zone not in devices:
        raise ValueError(f"behind {zone[:_MAX_SHOWN_ZONE]}, which is not a device of the uplink")
    if "@" in (zone or device):
        raise ValueError(f"behind {zone or device}, a name that dnsmasq cannot read")
    return evolve(named, zone=zone or device)


def _parse_entry(entry: str) -> Server:
    text, zone, port = _parts(entry)
    try:
        address = parse_address(text)
    except ValueError:
        raise ValueError(_NOT_A_SERVER) from None
    if port not in _DNS_PORTS:
        raise ValueError(f"port {port[:_MAX_SHOWN_PORT]}: the guard lets only queries to port 53 pass")
    return Server(address, zone or None)


def _parts(entry: str) -> tuple[str, str, str]:
    """Return address, zone and port.

    Formats of systemd: ADDRESS%ZONE#NAME, ADDRESS:PORT, [ADDRESS]:PORT%ZONE.
    """
    host, _, zone = entry.partition("#")[0].partition("%")
    if bracketed := _BRACKETED.match(host):
        return bracketed[1], zone, bracketed[2] or ""
    if host.count(":") == 1:
        host, _, port = host.partition(":")
        return host, zone, port
    return host, zone, ""
