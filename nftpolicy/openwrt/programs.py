# SPDX-License-Identifier: BSD-2-Clause
"""The programs of a router that use its uplinks by their configuration: fastd, WireGuard, tunneldigger, ..."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, frozen

from .network import Network, unsigned
from .roles import Packages, Role
from .uci_in import Section

# Gluon's group of VPN programs (its package gluon-mesh-vpn-core), so by this number on every node.
GLUON = {"gluon-mesh-vpn": 800}
_FREE = 801  # the group that is proposed where a program has none


@frozen
class Program:
    """A service to be: `selector` is its key and value in TOML. `doing` are things that somebody has to do."""

    name: str
    uplink: str
    selector: tuple[str, str]
    why: str
    sections: tuple[Section, ...]
    doing: tuple[tuple[str, str], ...] = ()  # (place, what)


def programs(
    packages: Packages, found: Network, uplinks: Sequence[Role], groups: Mapping[str, int]
) -> tuple[Program, ...]:
    """All of them; those that share a group are one service."""
    uplink = uplinks[0]
    made: dict[tuple[str, str], Program] = {}
    for one in _all(packages, found, uplink, {**GLUON, **groups}):
        other = made.get(one.selector)
        if other is None:
            made[one.selector] = one
        else:
            made[one.selector] = evolve(other, why=f"{other.why}; {one.why}", sections=(*other.sections, *one.sections),
                                        doing=(*other.doing, *one.doing))  # fmt: skip
    names: dict[str, int] = {}
    for key, one in made.items():
        names[one.name] = names.get(one.name, 0) + 1
        if names[one.name] > 1:
            made[key] = evolve(one, name=f"{one.name}-{names[one.name]}")
    return tuple(made.values())


def _all(packages: Packages, found: Network, uplink: Role, groups: Mapping[str, int]) -> Iterator[Program]:
    for one in packages.get("fastd", ()):
        if one.type == "fastd" and one.flag("enabled", True) and one.name != "sample_config":
            yield _fastd(one, packages["fastd"], uplink, groups)
    for one in packages.get("tunneldigger", ()):
        if one.type == "broker" and one.flag("enabled", True):
            yield _tunneldigger(one, uplink, groups)
    for one in packages.get("wgpeerselector", ()):
        if one.type == "wgpeerselector" and one.flag("enabled", True):
            selector, doing = _group(one, "unix_group", groups)
            why = f"{one.place()} looks up WireGuard's peers, and the time"
            yield Program("wgpeerselector", uplink.name, selector, why, (one,), doing)
    tunnels = [one for one in found.interfaces if one.proto == "wireguard" and one.up]
    if tunnels:
        yield _wireguard(packages["network"], [one.section for one in tunnels], uplink)


def _group(one: Section, option: str, groups: Mapping[str, int]) -> tuple[tuple[str, str], tuple[tuple[str, str], ...]]:
    """The selector of a program, and what is to be done for it."""
    name = one.get(option)
    number = groups.get(name, int(name) if name.isascii() and name.isdigit() and len(name) < 9 else 0)
    if number:
        return ("group", str(number)), ()
    if name not in ("", "root", "0"):
        told = f"{one.shown}: the number of group {name!r} is not known here; the policy assumes {_FREE}"
    else:
        told = (f"{one.shown}: it runs with root's group, which every process has; give it one of its own "
                f"(option {option}, number {_FREE})")  # fmt: skip
    return ("group", str(_FREE)), ((one.place(option), told),)


def _marked(one: Section, option: str, uplink: Role, program: str) -> tuple[tuple[str, str], ...]:
    worn = unsigned(one.get(option)) if one.get(option) else 0
    if worn is not None and uplink.mark.worn_by(worn):
        return ()
    said = f"it is {one.get(option)!r}" if one.get(option) else "it is missing"
    return ((one.place(option), f"{one.shown}: {program} has to mark its packets: option {option} "
                                f"'{uplink.mark.value:#x}' ({said})"),)  # fmt: skip


def _fastd(one: Section, sections: Sequence[Section], uplink: Role, groups: Mapping[str, int]) -> Program:
    selector, doing = _group(one, "group", groups)
    peers = tuple(each for each in sections if each.type in ("peer", "peer_group"))
    return Program("fastd", uplink.name, selector, f"{one.place()} {one.shown}", (one, *peers),
                   (*doing, *_marked(one, "packet_mark", uplink, "fastd")))  # fmt: skip


def _tunneldigger(one: Section, uplink: Role, groups: Mapping[str, int]) -> Program:
    selector, doing = _group(one, "group", groups)
    told = (
        f"{one.shown}: tunneldigger binds its socket to a device and puts no mark on it, so the guard drops it; "
        f"start it with libpacketmark (LIBPACKETMARK_MARK={uplink.mark.value})"
    )
    return Program("tunneldigger", uplink.name, selector, f"{one.place()} {one.shown}", (one,),
                   (*doing, (one.place("bind_interface"), told)))  # fmt: skip


def _wireguard(network: Sequence[Section], tunnels: Sequence[Section], uplink: Role) -> Program:
    peers = tuple(one for one in network if one.type in {f"wireguard_{tunnel.name}" for tunnel in tunnels})
    doing = [one for tunnel in tunnels for one in _marked(tunnel, "fwmark", uplink, "WireGuard")]
    doing += [
        (one.place("endpoint_host"), f"{one.shown}: root looks up {one.get('endpoint_host')!r}, {_BY_ROOT}")
        for one in peers
        if one.get("endpoint_host") and not _numeric(one.get("endpoint_host"))
    ]
    listed = ", ".join(f"{one.place()} {one.shown}" for one in tunnels)
    return Program("wireguard", uplink.name, ("kernel", "true"), listed, (*tunnels, *peers), tuple(doing))


_BY_ROOT = "and may not use the uplink for that; write an address, or let a program with a group of its own look it up"


def _numeric(text: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(text)
    except ValueError:
        return False
    return True
