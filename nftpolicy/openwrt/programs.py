# SPDX-License-Identifier: BSD-2-Clause
"""The programs of a router that use its uplinks by their configuration: fastd, WireGuard, tunneldigger, ..."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, frozen

from ..policy import values
from .network import Network, unsigned
from .roles import Packages, Role
from .uci_in import Section
from .undone import library

# Gluon's group of VPN programs (its package gluon-mesh-vpn-core), so by this number on every node.
GLUON = {"gluon-mesh-vpn": 800}
_FREE = 801  # the group that is proposed where a program has none


@frozen
class Program:
    """A service to be: `selector` is its key and value in TOML. `doing` are things that somebody has to do.

    `marks` is a word of policy.words.MARKS. `sport` are the kernel's own ports, as a policy writes them.
    """

    name: str
    uplink: str
    selector: tuple[str, str]
    why: str
    sections: tuple[Section, ...]
    doing: tuple[tuple[str, str], ...] = ()  # (place, what)
    marks: str = "itself"
    sport: tuple[str, ...] = ()

    def beside(self, other: Program) -> Program:
        """Both as one service. A library that marks does not disturb a program that marks its sockets itself."""
        return evolve(
            self,
            why=f"{self.why}; {other.why}",
            sections=(*self.sections, *other.sections),
            doing=(*self.doing, *other.doing),
            marks=max(self.marks, other.marks, key=("itself", "preload").index),
        )


def programs(
    packages: Packages, found: Network, uplinks: Sequence[Role], groups: Mapping[str, int]
) -> tuple[Program, ...]:
    """All of them; those that share a group are one service."""
    uplink = uplinks[0]
    made: dict[object, Program] = {}
    for one in _all(packages, found, uplink, {**GLUON, **groups}):
        key = (one.selector, bool(one.sport))
        made[key] = made[key].beside(one) if key in made else one
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
            told = f"{one.shown}: the ntpd that it calls marks nothing: {_preload(uplink)}"
            todo = (*doing, (one.place(), told))
            yield Program("wgpeerselector", uplink.name, selector, why, (one,), todo, "preload")
    tunnels = [one.section for one in found.interfaces if one.proto == "wireguard" and one.up]
    for with_port in (True, False):  # two services: one that names its ports has these alone
        listed = [one for one in tunnels if bool(_port(one)) is with_port]
        if listed:
            yield _wireguard(packages["network"], listed, uplink)


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
    told = (f"{one.shown}: tunneldigger binds its socket to a device and puts no mark on it, so the guard drops it: "
            f"{_preload(uplink)}")  # fmt: skip
    return Program("tunneldigger", uplink.name, selector, f"{one.place()} {one.shown}", (one,),
                   (*doing, (one.place("bind_interface"), told)), "preload")  # fmt: skip


def _preload(uplink: Role) -> str:
    """What a router has to do for a program that marks nothing: the cgroups of `nftpolicy run` are not there."""
    return f"start it with {library(uplink.mark.value)}"


def _wireguard(network: Sequence[Section], tunnels: Sequence[Section], uplink: Role) -> Program:
    peers = tuple(one for one in network if one.type in {f"wireguard_{tunnel.name}" for tunnel in tunnels})
    doing = [one for tunnel in tunnels for one in _marked(tunnel, "fwmark", uplink, "WireGuard")]
    doing += [(one.place("listen_port"), _portless(one)) for one in tunnels if not _port(one)]
    doing += [
        (one.place("endpoint_host"), f"{one.shown}: root looks up {one.get('endpoint_host')!r}, {_BY_ROOT}")
        for one in peers
        if one.get("endpoint_host") and not _numeric(one.get("endpoint_host"))
    ]
    listed = ", ".join(f"{one.place()} {one.shown}" for one in tunnels)
    sport = tuple(dict.fromkeys(filter(None, map(_port, tunnels))))
    return Program("wireguard", uplink.name, ("kernel", "true"), listed, (*tunnels, *peers), tuple(doing), sport=sport)


def _port(tunnel: Section) -> str:
    """The port of WireGuard's own socket as a policy writes it, "" where the kernel chooses one (that is 0, too)."""
    given = tunnel.get("listen_port")
    try:
        return str(values.port(f"udp/{given}")) if "-" not in given else ""
    except ValueError:
        return ""


def _portless(tunnel: Section) -> str:
    given = tunnel.get("listen_port")
    said = f"is {given!r}, which is no port" if given else "is missing"
    return (f"{tunnel.shown}: option listen_port {said}: set one, such as '51820', and write it into the policy, "
            'sport = ["udp/51820"]; until then what the router\'s own programs send through this tunnel is '
            "dropped")  # fmt: skip


_BY_ROOT = "and may not use the uplink for that; write an address, or let a program with a group of its own look it up"


def _numeric(text: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(text)
    except ValueError:
        return False
    return True


# --- tunnels that a policy has no service for -------------------------------------------------

# What sends for the tunnels of a protocol of netifd. The kernel: include/net/ip_tunnels.h and drivers/net/vxlan leave
# the mark of the packet inside on the outer one (skb_scrub_packet), and a tunnel's own `fwmark` is for its route alone.
_BY_KERNEL = frozenset(
    {"gre", "gretap", "grev6", "grev6tap", "vxlan", "vxlan6", "6in4", "6to4", "6rd", "ipip", "ipip6", "dslite", "map",
     "464xlat"}
)  # fmt: skip
_BY_PROGRAM = {"l2tp": "xl2tpd", "openconnect": "openconnect", "vpnc": "vpnc", "sstp": "sstpc", "openvpn": "openvpn"}
_IPSEC = frozenset({"vti", "vtiv6", "xfrm"})

_NO_SERVICE = "what such a tunnel sends by an uplink is dropped; WireGuard or fastd can carry it"


def unserved(found: Network, uplinks: Sequence[Role]) -> Iterator[tuple[str, str]]:
    """(place, what is so) of tunnels that may go by an uplink, and that no service of the policy is for."""
    ours = {one.name for role in uplinks for one in role.interfaces}
    for one in found.interfaces:
        below = one.section.get("tunlink")
        if not one.up or (below and below not in ours):
            continue
        if one.proto in _BY_KERNEL:
            told = (f"the packets of a tunnel of proto '{one.proto}' are the kernel's and wear the mark of what is "
                    f"inside, never an uplink's; 'kernel' and 'sport' don't help: {_NO_SERVICE}")  # fmt: skip
        elif one.proto in _IPSEC:
            told = f"ESP is neither TCP nor UDP, and no service has it: {_NO_SERVICE}"
        elif one.proto in _BY_PROGRAM:
            told = (f"{_BY_PROGRAM[one.proto]} runs as root and marks nothing, so it is dropped; write a service for "
                    f"it, with marks = \"preload\" and a group of its own, and {_preload(uplinks[0])}")  # fmt: skip
        else:
            continue
        yield one.section.place("proto"), f"{one.section.shown}: {told}"
