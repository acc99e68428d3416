# SPDX-License-Identifier: BSD-2-Clause
"""Services of a router that use its uplinks: fastd, WireGuard, tunneldigger, ..."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address

from attrs import evolve, frozen

from ...integration.openwrt.unsupported import preload_environment
from ...netstate.formats.state_check import parses
from ...policy import scalars
from .interfaces import Interface, NetworkConfig, parse_unsigned
from .uci_parser import ParsedSection
from .uplinks import Packages, UplinkCandidate

# Gluon's group of VPN programs (package gluon-mesh-vpn-core), with the same number on every node.
GLUON_GROUPS = {"gluon-mesh-vpn": 800}
_FREE = 801  # the proposed group of a program that has none


@frozen
class ServiceCandidate:
    """Proposed service: `selector` is its key and value in TOML, `manual_steps` have locations.

    `marks` is a key of vocabulary.MARKS. `sport` are the kernel's own ports, in a policy's form.
    """

    name: str
    uplink: str
    selector: tuple[str, str]
    source: str
    sections: tuple[ParsedSection, ...]
    manual_steps: tuple[tuple[str, str], ...] = ()  # (location, step)
    marks: str = "itself"
    sport: tuple[str, ...] = ()

    def merged_with(self, other: ServiceCandidate) -> ServiceCandidate:
        """Return both as one service. A preloaded library does not disturb a program that marks."""
        return evolve(
            self,
            source=f"{self.source}; {other.source}",
            sections=(*self.sections, *other.sections),
            manual_steps=(*self.manual_steps, *other.manual_steps),
            marks=max(self.marks, other.marks, key=("itself", "preload").index),
        )


def service_candidates(
    packages: Packages, network_config: NetworkConfig, uplinks: Sequence[UplinkCandidate], groups: Mapping[str, int]
) -> tuple[ServiceCandidate, ...]:
    """Return all proposed services; programs that share a group are one service."""
    uplink = uplinks[0]
    by_key: dict[tuple[tuple[str, str], bool], ServiceCandidate] = {}
    for candidate in _candidates(packages, network_config, uplink, {**GLUON_GROUPS, **groups}):
        key = (candidate.selector, bool(candidate.sport))
        by_key[key] = by_key[key].merged_with(candidate) if key in by_key else candidate
    names: dict[str, int] = {}
    for key, candidate in by_key.items():
        names[candidate.name] = names.get(candidate.name, 0) + 1
        if names[candidate.name] > 1:
            by_key[key] = evolve(candidate, name=f"{candidate.name}-{names[candidate.name]}")
    return tuple(by_key.values())


def _candidates(
    packages: Packages, network_config: NetworkConfig, uplink: UplinkCandidate, groups: Mapping[str, int]
) -> Iterator[ServiceCandidate]:
    for section in packages.get("fastd", ()):
        if section.type == "fastd" and section.flag("enabled", True) and section.name != "sample_config":
            yield _fastd(section, packages["fastd"], uplink, groups)
    for section in packages.get("tunneldigger", ()):
        if section.type == "broker" and section.flag("enabled", True):
            yield _tunneldigger(section, uplink, groups)
    for interface in network_config.interfaces:
        if interface.up and interface.proto in ("wgpeerselector", "gluon_wireguard"):
            yield _wgpeerselector(interface, packages.get("wgpeerselector", ()), uplink, groups)
    tunnels = [
        interface.section for interface in network_config.interfaces if interface.proto == "wireguard" and interface.up
    ]
    for with_port in (True, False):  # two services: one with source ports has only these
        sections = [section for section in tunnels if bool(_port(section)) is with_port]
        if sections:
            yield _wireguard(packages["network"], sections, uplink)


def _group(
    section: ParsedSection, option: str, groups: Mapping[str, int]
) -> tuple[tuple[str, str], tuple[tuple[str, str], ...]]:
    """Return the selector of a program, and its manual steps."""
    name = section.get(option)
    number = groups.get(name, int(name) if name.isascii() and name.isdigit() and len(name) < 9 else 0)
    if number:
        return ("group", str(number)), ()
    if name not in ("", "root", "0"):
        step = f"{section.title}: the number of group {name!r} is unknown; the policy assumes {_FREE}"
    else:
        step = (f"{section.title}: it runs with root's group, as other processes do; give it one of its own "
                f"(option {option}, number {_FREE})")  # fmt: skip
    return ("group", str(_FREE)), ((section.location(option), step),)


def _mark_steps(
    section: ParsedSection, option: str, uplink: UplinkCandidate, program: str
) -> tuple[tuple[str, str], ...]:
    mark = parse_unsigned(section.get(option)) if section.get(option) else 0
    if mark is not None and uplink.mark.matches(mark):
        return ()
    current = f"it is {section.get(option)!r}" if section.get(option) else "it is missing"
    step = f"{section.title}: {program} must mark its packets: set option {option} '{uplink.mark.value:#x}' ({current})"
    return ((section.location(option), step),)


def _fastd(
    section: ParsedSection, sections: Sequence[ParsedSection], uplink: UplinkCandidate, groups: Mapping[str, int]
) -> ServiceCandidate:
    selector, steps = _group(section, "group", groups)
    peers = tuple(other for other in sections if other.type in ("peer", "peer_group"))
    source = f"{section.location()} {section.title}"
    steps = (*steps, *_mark_steps(section, "packet_mark", uplink, "fastd"))
    return ServiceCandidate("fastd", uplink.name, selector, source, (section, *peers), steps)


def _tunneldigger(section: ParsedSection, uplink: UplinkCandidate, groups: Mapping[str, int]) -> ServiceCandidate:
    selector, steps = _group(section, "group", groups)
    step = (
        f"{section.title}: tunneldigger binds its socket to a device and sets no mark, so the guard drops its "
        f"packets: {_preload(uplink)}; on a node with Gluon, the package gluon-nftpolicy does it"
    )
    source = f"{section.location()} {section.title}"
    steps = (*steps, (section.location("bind_interface"), step))
    return ServiceCandidate("tunneldigger", uplink.name, selector, source, (section,), steps, "preload")


def _wgpeerselector(
    interface: Interface, peers: Sequence[ParsedSection], uplink: UplinkCandidate, groups: Mapping[str, int]
) -> ServiceCandidate:
    section = interface.section
    selector, steps = _group(section, "unix_group", groups)
    how = _preload(uplink)
    if interface.proto == "gluon_wireguard":  # it makes the interface of wgpeerselector, with Gluon's group
        selector, steps = ("group", str(groups["gluon-mesh-vpn"])), ()
        how = "the package gluon-nftpolicy does it"
    step = f"{section.title}: wgpeerselector and the ntpd that it calls set no mark: {how}"
    why = f"{section.location()} looks up WireGuard's peers, and the time"
    steps = (*steps, (section.location("proto"), step))
    return ServiceCandidate("wgpeerselector", uplink.name, selector, why, (section, *peers), steps, "preload")


def _preload(uplink: UplinkCandidate) -> str:
    """Return the step for a program that sets no mark; a router has no `nftpolicy run`."""
    return f"start it with {preload_environment(uplink.mark.value)}"


def _wireguard(
    network: Sequence[ParsedSection], tunnels: Sequence[ParsedSection], uplink: UplinkCandidate
) -> ServiceCandidate:
    peers = tuple(section for section in network if section.type in {f"wireguard_{tunnel.name}" for tunnel in tunnels})
    steps = [section for tunnel in tunnels for section in _mark_steps(tunnel, "fwmark", uplink, "WireGuard")]
    steps += [(section.location("listen_port"), _port_step(section)) for section in tunnels if not _port(section)]
    steps += [
        (
            section.location("endpoint_host"),
            f"{section.title}: root resolves {section.get('endpoint_host')!r}, {_BY_ROOT}",
        )
        for section in peers
        if section.get("endpoint_host") and not parses(ip_address, section.get("endpoint_host"))
    ]
    locations = ", ".join(f"{section.location()} {section.title}" for section in tunnels)
    sport = tuple(dict.fromkeys(filter(None, map(_port, tunnels))))
    return ServiceCandidate(
        "wireguard", uplink.name, ("kernel", "true"), locations, (*tunnels, *peers), tuple(steps), sport=sport
    )


def _port(tunnel: ParsedSection) -> str:
    """Return the port of WireGuard's own socket in a policy's form.

    "" if the kernel chooses one (also for 0).
    """
    port = tunnel.get("listen_port")
    try:
        return str(scalars.parse_port(f"udp/{port}")) if "-" not in port else ""
    except ValueError:
        return ""


def _port_step(tunnel: ParsedSection) -> str:
    port = tunnel.get("listen_port")
    fault = f"is {port!r}, which is not a port" if port else "is missing"
    return (f"{tunnel.title}: option listen_port {fault}: set one, such as '51820', and add it to the policy: "
            'sport = ["udp/51820"]; until then packets that the router\'s own programs send through this tunnel '
            "are dropped")  # fmt: skip


_BY_ROOT = "and may not use the uplink; use an address, or let a program with its own group resolve the name"


# --- tunnels that a policy has no service for -------------------------------------------------

# Senders of the outer packets of netifd's tunnel protocols. In the kernel, include/net/ip_tunnels.h and
# drivers/net/vxlan copy the mark of the inner packet to the outer one (skb_scrub_packet); a tunnel's own
# `fwmark` only selects its route.
_BY_KERNEL = frozenset(
    {"gre", "gretap", "grev6", "grev6tap", "vxlan", "vxlan6", "6in4", "6to4", "6rd", "ipip", "ipip6", "dslite", "map",
     "464xlat"}
)  # fmt: skip
# Those that a policy can name by their protocol (`ports` of a kernel service).
_PROTOCOLS = {"gre": "gre", "gretap": "gre", "grev6": "gre", "grev6tap": "gre", "6in4": "6in4", "ipip": "ipip",
              "ipip6": "ipip", "dslite": "ipip"}  # fmt: skip
_BY_PROGRAM = {"l2tp": "xl2tpd", "openconnect": "openconnect", "vpnc": "vpnc", "sstp": "sstpc", "openvpn": "openvpn"}
_IPSEC = frozenset({"vti", "vtiv6", "xfrm"})

_NO_SERVICE = "packets of such a tunnel are dropped at an uplink; run it inside WireGuard or fastd"


def _other_end(interface: Interface) -> str:
    """Return the value of `to` for a tunnel."""
    for option in ("peeraddr", "peer6addr"):
        try:
            return f'["{ip_address(interface.section.get(option))}"]'
        except ValueError:  # none, or a name
            continue
    return "the address of its other end"


def tunnels_without_service(
    network_config: NetworkConfig, uplinks: Sequence[UplinkCandidate]
) -> Iterator[tuple[str, str]]:
    """Yield (location, fact) of tunnels that may use an uplink without a service in the policy."""
    uplink_interfaces = {interface.name for role in uplinks for interface in role.interfaces}
    for interface in network_config.interfaces:
        tunlink = interface.section.get("tunlink")
        if not interface.up or (tunlink and tunlink not in uplink_interfaces):
            continue
        if interface.proto in _PROTOCOLS:
            fact = (
                f"the kernel sends the packets of a tunnel of proto '{interface.proto}' with the mark of the inner "
                "packet, never an uplink's; allow them by a service of its own: kernel = true, "
                f'ports = ["{_PROTOCOLS[interface.proto]}"], to = {_other_end(interface)}'
            )
        elif interface.proto in _BY_KERNEL:
            fact = (
                f"the kernel sends the packets of a tunnel of proto '{interface.proto}' with the mark of the inner "
                f"packet, never an uplink's; 'kernel' and 'sport' do not help: {_NO_SERVICE}"
            )
        elif interface.proto in _IPSEC:
            fact = (
                "the guard drops packets of IPsec, before and after they are encrypted; allow those to the other end "
                'by a service of its own: kernel = true, ports = ["esp"], to = the address of its other end, on a '
                "kernel with nft_xfrm, and its key exchange (UDP 500) by another"
            )
        elif interface.proto in _BY_PROGRAM:
            fact = (
                f"{_BY_PROGRAM[interface.proto]} runs as root and sets no mark, so its packets are dropped; add a "
                f'service for it, with marks = "preload" and a group of its own, and {_preload(uplinks[0])}'
            )
        else:
            continue
        yield interface.section.location("proto"), f"{interface.section.title}: {fact}"
