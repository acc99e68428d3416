# SPDX-License-Identifier: BSD-2-Clause
"""Which interfaces of a router lead to an uplink, and which mark and table each uplink has or gets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from ..policy import values
from ..policy.mark import FULL, Mark
from .network import TUNNELS, Interface, Network, table, unsigned
from .uci_in import Section

Packages = Mapping[str, tuple[Section, ...]]  # name of the file in /etc/config -> its sections

_NAMES = re.compile(r"(wan|wwan|cellular|lte|umts|modem)([0-9a-z_]*)\Z")
_TUNNEL_DEVICE = re.compile(r"(tun|tap|wg|mesh-vpn|l2tp)")
_RESERVED = frozenset({0, 128, 253, 254, 255})


class NotUsable(Exception):
    """What was read makes no policy. The text says where and what to do."""


@frozen
class Role:
    """An uplink: its interfaces, its devices (that of a session and the one below it), its mark and table.

    `given` are the sections that mark and table come from; without any they were chosen here.
    """

    name: str
    interfaces: tuple[Interface, ...]
    devices: tuple[str, ...]
    mark: Mark
    table: int
    given: tuple[Section, ...] = ()

    @property
    def protos(self) -> frozenset[str]:
        """The protocols of its interfaces."""
        return frozenset(one.proto for one in self.interfaces)


def wan_zones(firewall: Iterable[Section]) -> tuple[Section, ...]:
    """The zones that lead to uplinks: those named wan, and those that masquerade."""
    zones = [one for one in firewall if one.type == "zone"]
    named = tuple(one for one in zones if one.get("name").startswith("wan"))
    return named or tuple(one for one in zones if one.flag("masq"))


def roles(packages: Packages, found: Network, asked: Sequence[str] = ()) -> tuple[Role, ...]:
    """The uplinks, in the order of their interfaces.

    Raises:
        NotUsable: there is none, or one that was asked for is not there.
    """
    chosen = _asked(found, asked) if asked else _found(packages, found)
    if not chosen:
        raise NotUsable(
            "no interface leads to an uplink: no firewall zone is named 'wan' or masquerades, and no interface is "
            "named wan, wwan, cellular or the like; name the interfaces with --uplink"
        )
    groups: dict[str, list[Interface]] = {}
    for one in chosen:
        if one.proto in TUNNELS:
            continue
        groups.setdefault(one.device, []).append(one)
    if not groups:
        raise NotUsable(f"interface {chosen[0].name!r} is a tunnel, which leads through an uplink and is none; "
                        "name another with --uplink")  # fmt: skip
    return tuple(_numbered(packages, groups))


def _asked(found: Network, asked: Sequence[str]) -> list[Interface]:
    from ..policy.errors import nearest

    chosen = []
    for name in asked:
        one = found.named(name)
        if one is None:
            known = [other.name for other in found.interfaces]
            raise NotUsable(f"--uplink: there is no interface {name!r}{nearest(name, known)}; "
                            f"there are {', '.join(known) or 'none'}")  # fmt: skip
        if not one.device or one.device == "lo":
            raise NotUsable(f"--uplink: interface {name!r} ({one.section.place()}) has no device that leads out")
        chosen.append(one)
    return _with_siblings(found, chosen)


def _found(packages: Packages, found: Network) -> list[Interface]:
    zones = wan_zones(packages.get("firewall", ()))
    names = {name for zone in zones for name in zone.words("network")}
    names |= {one.name or "" for one in packages.get("mwan3", ()) if one.type == "interface" and one.flag("enabled")}
    if not zones:
        names |= {one.name for one in found.interfaces if _NAMES.match(one.name)}
    chosen = [one for one in found.interfaces if one.name in names and one.device and not _tunnel(one)]
    return _with_siblings(found, chosen)


def _tunnel(one: Interface) -> bool:
    return one.device == "lo" or one.proto in TUNNELS or bool(_TUNNEL_DEVICE.match(one.device))


def _with_siblings(found: Network, chosen: Sequence[Interface]) -> list[Interface]:
    """With all interfaces on the same devices, such as wan6 beside wan."""
    devices = {one.device for one in chosen}
    return [one for one in found.interfaces if one.device in devices and (one in chosen or one.proto not in TUNNELS)]


def _numbered(packages: Packages, groups: Mapping[str, Sequence[Interface]]) -> Iterator[Role]:
    network = packages["network"]
    has = {device: next((number for one in listed for number in (one.tables.get(6), one.tables.get(4)) if number), 0)
           for device, listed in groups.items()}  # fmt: skip
    used = {unsigned(one.get(key)) or 0 for one in network for key in ("lookup", "table", "ip4table", "ip6table")}
    tables: dict[str, int] = {}
    for device, number in has.items():
        taken = number in _RESERVED or number in tables.values()
        tables[device] = number if not taken else _free({*used, *has.values(), *tables.values()})
    marks = {device: _mark(network, has[device]) for device in groups}
    kept = [mark for mark, _ in marks.values() if mark]
    keep = len(kept) == len(groups) and not any(a.overlaps(b) for at, a in enumerate(kept) for b in kept[:at])
    names: set[str] = set()
    for at, (device, listed) in enumerate(groups.items()):
        mark, given = marks[device]
        if mark is None or not keep:
            mark, given = (Mark(1, 1), ()) if len(groups) == 1 else (Mark(at + 1, 0xFF), ())
        below = [one.below for one in listed if one.below and one.below not in groups]
        devices = tuple(dict.fromkeys([device, *below]))
        yield Role(_name(listed[0].name, names), tuple(listed), devices, mark, tables[device], given)


def _mark(network: Iterable[Section], number: int) -> tuple[Mark | None, tuple[Section, ...]]:
    """The mark by which rules lead to a table."""
    for one in network:
        if one.type not in ("rule", "rule6") or one.flag("disabled") or not number:
            continue
        if table(one.get("lookup")) != number or not one.get("mark") or one.flag("invert"):
            continue
        value, slash, mask = one.get("mark").partition("/")
        first, second = unsigned(value), unsigned(mask) if slash else FULL
        if first and second and first & ~second == 0:
            return Mark(first, second), (one,)
    return None, ()


def _free(used: set[int]) -> int:
    return next(number for number in range(1, 1000) if number not in used and number not in _RESERVED)


def _name(wanted: str, taken: set[str]) -> str:
    """A name of a policy that is like the interface's."""
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", wanted)[:20]
    stem = stem if stem[:1].isalpha() else f"u{stem}"
    name = next(one for one in (stem, *(f"{stem}-{at}" for at in range(2, 99))) if one not in taken)
    taken.add(name)
    return values.name(name)
