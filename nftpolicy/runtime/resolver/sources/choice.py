# SPDX-License-Identifier: BSD-2-Clause
"""Words that somebody gave for DNS servers of an uplink, to servers that its resolver may ask. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from attrs import Factory, frozen

from ....policy.objects import Address, Server
from ....policy.values import address

MOST = 16  # servers of one uplink; a DHCP server can name hundreds
_NONE = "it is no address of a DNS server"
_QUOTED = re.compile(r"\[([^\]]*)\](?::(\d+))?\Z")


@frozen
class Machine:
    """What decides about a word: the machine's own addresses, and its devices by the kernel's number."""

    own: frozenset[Address] = frozenset()
    names: Mapping[int, str] = Factory(dict)


@frozen
class Choice:
    """The servers, in order and each once, and the words that are none, each with the reason."""

    servers: tuple[Server, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


def chosen(words: Iterable[tuple[str, str]], devices: tuple[str, ...], machine: Machine) -> Choice:
    """What of (device, word) is a server that is neither this machine nor behind another device than the uplink's."""
    found: list[Server] = []
    refused: dict[str, str] = {}
    for device, word in words:
        try:
            one = _server(word, device, devices, machine)
        except ValueError as error:
            refused[word] = str(error)
            continue
        if one in found:
            continue
        if len(found) == MOST:
            refused[word] = f"one more than the {MOST} that are asked"
            continue
        found.append(one)
    return Choice(tuple(found), tuple(refused.items()))


def _server(word: str, device: str, devices: tuple[str, ...], machine: Machine) -> Server:
    plain, zone, port = _parts(word)
    try:
        found = address(plain)
    except ValueError:
        raise ValueError(_NONE) from None
    if port not in ("", "53"):
        raise ValueError(f"port {port[:5]} is not the one that the guard lets pass; a resolver asks port 53")
    if found.is_loopback or found in machine.own:
        raise ValueError("it is this machine itself, which would ask in a circle")
    if found.is_unspecified or found.is_multicast:
        raise ValueError(_NONE)
    if found.version == 4:
        if found.is_reserved or found.packed[0] == 0:
            raise ValueError(_NONE)
        return Server(found)
    if not found.is_link_local:
        return Server(found)
    if zone.isdecimal() and len(zone) < 10:
        zone = machine.names.get(int(zone), zone)
    if zone and zone not in devices:
        raise ValueError(f"it is behind {zone[:15]}, which is no device of the uplink")
    return Server(found, zone or device)


def _parts(word: str) -> tuple[str, str, str]:
    """Address, zone and port, as systemd writes them: ADDRESS%ZONE#NAME, ADDRESS:PORT, [ADDRESS]:PORT%ZONE."""
    rest, _, zone = word.partition("#")[0].partition("%")
    if quoted := _QUOTED.match(rest):
        return quoted[1], zone, quoted[2] or ""
    if rest.count(":") == 1:
        rest, _, port = rest.partition(":")
        return rest, zone, port
    return rest, zone, ""
