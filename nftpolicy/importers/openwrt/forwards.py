# SPDX-License-Identifier: BSD-2-Clause
"""Packets of other machines that a router's firewall forwards by an uplink: tables `forward` and `publish`.

The draft has them as comments: without them a policy forwards nothing between an uplink and other devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from attrs import frozen

from ...netstate.formats.state_check import parses
from ...policy import scalars
from .interfaces import Interface, NetworkConfig
from .uci_parser import ParsedSection
from .uplinks import UplinkCandidate, wan_zones


@frozen
class ForwardedTraffic:
    """Section of the firewall that forwards packets, and the policy's tables for it; none if it cannot be mapped.

    `tables` are lines of TOML. `devices` are those that the packets of other hosts arrive by.
    """

    section: ParsedSection
    uplink: str
    tables: tuple[tuple[str, ...], ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """Return how to keep the packets, as the end of a sentence."""
        names = " and ".join(table[0] for table in self.tables)
        if names:
            return f"; to keep that, uncomment {names} in the draft"
        kind = "forward" if self.section.type == "forwarding" else "publish"
        return f"; to keep that, add a table [{kind}.NAME], for which the configuration says too little"


def forwarded_traffic(
    firewall: Sequence[ParsedSection], network_config: NetworkConfig, uplinks: Sequence[UplinkCandidate]
) -> Iterator[ForwardedTraffic]:
    """Yield the sections `forwarding` and `redirect` that concern an uplink, in the order of the file."""
    zones = {section.get("name"): section for section in firewall if section.type == "zone"}
    wans = {section.get("name") for section in wan_zones(firewall)}
    uplink_devices = {device for uplink in uplinks for device in uplink.devices}

    def devices_of(zone: str) -> tuple[str, ...]:
        names = zones[zone].words("network") if zone in zones else []
        interfaces = (network_config.find_interface(name) for name in names)
        devices = (each.device for each in interfaces if each and each.device)
        return tuple(dict.fromkeys(device for device in devices if device not in uplink_devices))

    for section in firewall:
        source, destination = section.get("src"), section.get("dest")
        if not section.flag("enabled", True):
            continue
        if section.type == "forwarding" and destination in wans:
            uplink = _uplink_of(zones[destination], uplinks)
            devices = devices_of(source)
            tables = _forward_tables(source, uplink, devices, zones[destination].flag("masq"))
            yield ForwardedTraffic(section, uplink, tables, devices)
        elif section.type == "redirect" and source in wans and section.get("target", "DNAT") == "DNAT":
            uplink = _uplink_of(zones[source], uplinks)
            device = _target_device(section, devices_of(destination), network_config.interfaces)
            yield ForwardedTraffic(section, uplink, tuple(_publish_tables(section, uplink, device)))


def _uplink_of(zone: ParsedSection, uplinks: Sequence[UplinkCandidate]) -> str:
    names = set(zone.words("network"))
    owners = (uplink.name for uplink in uplinks if names & {interface.name for interface in uplink.interfaces})
    return next(owners, "")


def _forward_tables(
    zone: str, uplink: str, devices: Sequence[str], is_masqueraded: bool
) -> tuple[tuple[str, ...], ...]:
    if not (uplink and devices and parses(scalars.parse_name, zone)):
        return ()
    if not all(parses(scalars.parse_device, device) for device in devices):
        return ()
    listed = ", ".join(f'"{device}"' for device in devices)
    masquerade = ("masquerade = true",) if is_masqueraded else ()
    return ((f"[forward.{zone}]", f'uplink = "{uplink}"', f"from = [{listed}]", *masquerade),)


def _target_device(section: ParsedSection, devices: Sequence[str], interfaces: Sequence[Interface]) -> str:
    """Return the device of the host that gets the requests; "" if it is not known."""
    if len(devices) == 1:
        return devices[0]
    try:
        target = ip_address(section.get("dest_ip"))
    except ValueError:
        return ""
    devices_there = (
        each.device for each in interfaces if each.device and any(target in own.network for own in each.addresses)
    )
    return next(devices_there, "")


def _publish_tables(section: ParsedSection, uplink: str, device: str) -> Iterator[tuple[str, ...]]:
    protocols = [word.lower() for word in section.words("proto")] or ["tcpudp"]
    ports = section.get("src_dport").replace(":", "-")
    if not uplink or not parses(scalars.parse_device, device):
        return
    for protocol in ("tcp", "udp"):
        port, name = f"{protocol}/{ports}", f"{protocol}-{ports}"
        is_meant = not {protocol, "tcpudp"}.isdisjoint(protocols)
        if is_meant and parses(scalars.parse_port, port) and parses(scalars.parse_name, name):
            yield (f"[publish.{name}]", f'uplink = "{uplink}"', f'port = "{port}"', f'to = "{device}"')
