# SPDX-License-Identifier: BSD-2-Clause
"""Interfaces of a router that lead to an uplink, with the mark and table of each uplink."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from ...exceptions import NftpolicyError
from ...policy import scalars
from ...policy.mark import FULL_MASK, Mark
from .interfaces import TUNNEL_PROTOCOLS, Interface, NetworkConfig, parse_unsigned, table_number
from .uci_parser import ParsedSection

Packages = Mapping[str, tuple[ParsedSection, ...]]  # file name in /etc/config -> its sections

_NAMES = re.compile(r"(wan|wwan|cellular|lte|umts|modem)([0-9a-z_]*)\Z")
_TUNNEL_DEVICE = re.compile(r"(tun|tap|wg|mesh-vpn|l2tp)")
_RESERVED = frozenset({0, 128, 253, 254, 255})


class NotImportable(NftpolicyError):
    """Configuration that cannot become a policy; the text has the location and the fix."""


@frozen
class UplinkCandidate:
    """Uplink: its interfaces, its devices (of a session and the one below it), its mark and table.

    `mark_sections` define mark and table; without any, the importer chose them.
    """

    name: str
    interfaces: tuple[Interface, ...]
    devices: tuple[str, ...]
    mark: Mark
    table: int
    mark_sections: tuple[ParsedSection, ...] = ()

    @property
    def protocols(self) -> frozenset[str]:
        """Return the protocols of its interfaces."""
        return frozenset(interface.proto for interface in self.interfaces)


def wan_zones(firewall: Iterable[ParsedSection]) -> tuple[ParsedSection, ...]:
    """Return the zones of uplinks: those named wan*, else those that masquerade."""
    zones = [zone for zone in firewall if zone.type == "zone"]
    wan_named = tuple(zone for zone in zones if zone.get("name").startswith("wan"))
    return wan_named or tuple(zone for zone in zones if zone.flag("masq"))


def uplink_candidates(
    packages: Packages, network: NetworkConfig, names: Sequence[str] = ()
) -> tuple[UplinkCandidate, ...]:
    """Return the uplinks in the order of their interfaces.

    `names` are interfaces given by the user; without any, the uplinks are detected.

    Raises:
        NotImportable: no uplink was found, or a given interface does not exist.
    """
    chosen = _named_interfaces(network, names) if names else _detected_interfaces(packages, network)
    if not chosen:
        raise NotImportable(
            "no uplink found: no firewall zone is named 'wan' or masquerades, and no interface is "
            "named wan, wwan, cellular or the like; name the interfaces with --uplink"
        )
    groups: dict[str, list[Interface]] = {}
    for interface in chosen:
        if interface.proto in TUNNEL_PROTOCOLS:
            continue
        groups.setdefault(interface.device, []).append(interface)
    if not groups:
        raise NotImportable(
            f"interface {chosen[0].name!r} is a tunnel, which uses an uplink but is not one; name another with --uplink"
        )
    return tuple(_with_marks_and_tables(packages, _merged_by_table(groups)))


def _merged_by_table(groups: Mapping[str, Sequence[Interface]]) -> dict[str, list[Interface]]:
    """Return the groups, those with one routing table as one: its mark leads to all of their devices.

    So the WAN and the modem of a node with Gluon are one uplink.
    """
    merged: dict[str, list[Interface]] = {}
    device_by_table: dict[int, str] = {}
    for device, interfaces in groups.items():
        table = _configured_table(interfaces)
        key = device if table in _RESERVED else device_by_table.setdefault(table, device)
        merged.setdefault(key, []).extend(interfaces)
    return merged


def _named_interfaces(network: NetworkConfig, names: Sequence[str]) -> list[Interface]:
    from ...policy.errors import did_you_mean

    chosen = []
    for name in names:
        interface = network.find_interface(name)
        if interface is None:
            known = [other.name for other in network.interfaces]
            raise NotImportable(
                f"--uplink: there is no interface {name!r}{did_you_mean(name, known)}; "
                f"there are {', '.join(known) or 'none'}"
            )
        if not interface.device or interface.device == "lo":
            raise NotImportable(
                f"--uplink: interface {name!r} ({interface.section.location()}) has no device for outgoing packets"
            )
        chosen.append(interface)
    return _with_siblings(network, chosen)


def _detected_interfaces(packages: Packages, network: NetworkConfig) -> list[Interface]:
    zones = wan_zones(packages.get("firewall", ()))
    names = {name for zone in zones for name in zone.words("network")}
    names |= {
        interface.name or ""
        for interface in packages.get("mwan3", ())
        if interface.type == "interface" and interface.flag("enabled")
    }
    if not zones:
        names |= {interface.name for interface in network.interfaces if _NAMES.match(interface.name)}
    chosen = [
        interface
        for interface in network.interfaces
        if interface.name in names and interface.device and not _is_tunnel(interface)
    ]
    return _with_siblings(network, chosen)


def _is_tunnel(interface: Interface) -> bool:
    return (
        interface.device == "lo" or interface.proto in TUNNEL_PROTOCOLS or bool(_TUNNEL_DEVICE.match(interface.device))
    )


def _with_siblings(network: NetworkConfig, chosen: Sequence[Interface]) -> list[Interface]:
    """Return the interfaces with all others on the same devices, such as wan6 beside wan."""
    devices = {interface.device for interface in chosen}
    return [
        interface
        for interface in network.interfaces
        if interface.device in devices and (interface in chosen or interface.proto not in TUNNEL_PROTOCOLS)
    ]


def _with_marks_and_tables(packages: Packages, groups: Mapping[str, Sequence[Interface]]) -> Iterator[UplinkCandidate]:
    network = packages["network"]
    configured = {device: _configured_table(interfaces) for device, interfaces in groups.items()}
    used_numbers = {
        parse_unsigned(item.get(key)) or 0 for item in network for key in ("lookup", "table", "ip4table", "ip6table")
    }
    tables: dict[str, int] = {}
    for device, number in configured.items():
        is_taken = number in _RESERVED or number in tables.values()
        tables[device] = number if not is_taken else _free({*used_numbers, *configured.values(), *tables.values()})
    marks = {device: _mark(network, configured[device]) for device in groups}
    found_marks = [mark for mark, _ in marks.values() if mark]
    keep_marks = len(found_marks) == len(groups) and not any(
        a.overlaps(b) for index, a in enumerate(found_marks) for b in found_marks[:index]
    )
    names: set[str] = set()
    claimed = {item.device for interfaces in groups.values() for item in interfaces}
    for index, (device, interfaces) in enumerate(groups.items()):
        mark, sections = marks[device]
        if mark is None or not keep_marks:
            mark, sections = (Mark(1, 1), ()) if len(groups) == 1 else (Mark(index + 1, 0xFF), ())
        below = [item.lower_device for item in interfaces if item.lower_device not in {"", *claimed}]
        devices = tuple(dict.fromkeys([*(item.device for item in interfaces), *below]))
        yield UplinkCandidate(
            _name(interfaces[0].name, names), tuple(interfaces), devices, mark, tables[device], sections
        )


def _configured_table(interfaces: Iterable[Interface]) -> int:
    """Return the first table of the interfaces, IPv6 before IPv4; 0 if there is none."""
    for interface in interfaces:
        for family in (6, 4):
            number = interface.tables.get(family)
            if number:
                return number
    return 0


def _mark(network: Iterable[ParsedSection], number: int) -> tuple[Mark | None, tuple[ParsedSection, ...]]:
    """Return the mark of the ip rules that use a table, and its section; or (None, ())."""
    for section in network:
        if section.type not in ("rule", "rule6") or section.flag("disabled") or not number:
            continue
        if table_number(section.get("lookup")) != number or not section.get("mark") or section.flag("invert"):
            continue
        value, slash, mask = section.get("mark").partition("/")
        mark_value, mark_mask = parse_unsigned(value), parse_unsigned(mask) if slash else FULL_MASK
        if mark_value and mark_mask and mark_value & ~mark_mask == 0:
            return Mark(mark_value, mark_mask), (section,)
    return None, ()


def _free(used_numbers: set[int]) -> int:
    return next(number for number in range(1, 1000) if number not in used_numbers and number not in _RESERVED)


def _name(interface_name: str, used_names: set[str]) -> str:
    """Return a policy name similar to the interface's, and add it to `used_names`."""
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", interface_name)[:20]
    stem = stem if stem[:1].isalpha() else f"u{stem}"
    name = next(
        candidate for candidate in (stem, *(f"{stem}-{index}" for index in range(2, 99))) if candidate not in used_names
    )
    used_names.add(name)
    return scalars.parse_name(name)
