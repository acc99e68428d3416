# SPDX-License-Identifier: BSD-2-Clause
"""Looks for rules and programs outside nftables that mark, rewrite or move packets, in one network namespace."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ..netstate.bypass import AF_XDP, ANY_EFFECT, ENCAPSULATION, TC, XDP, Actor, Look, Move
from ..netstate.routing import Route
from .bpf.packet_programs import look_at_cgroup_programs, look_at_device_programs
from .errors import error_reason
from .netlink.rtnetlink import Link, open_rtnetlink
from .netlink.tc import look_at_tc
from .netlink.xfrm import look_at_xfrm
from .xtables import look_at_ebtables, look_at_xtables

_PROTOCOLS = Path("/proc/thread-self/net/protocols")
_PLATFORM_LABELS = Path("/proc/sys/net/mpls/platform_labels")
_ENCAP = "encap type "  # begin of the text that rtnl_decode has for RTA_ENCAP_TYPE
# LWTUNNEL_ENCAP_*: the device of the route sends the packet later, so that it passes the guard (IP, IP6),
# or the packet leaves by the device of the route, for which it passed the guard (MPLS).
_HARMLESS_ENCAPSULATIONS = {"1", "2", "4"}


def take_looks(routes: Iterable[Route], links: Sequence[Link]) -> tuple[Look, ...]:
    """Return all looks at this network namespace; `routes` and `links` are all that it has.

    Raises DumpInterrupted, or OSError if rtnetlink refuses.
    """
    names = {link.index: link.device.name for link in links}
    kinds = {link.index: link.device.kind for link in links}
    with_xdp = [link.device.name for link in links if link.has_xdp]
    with open_rtnetlink() as netlink:
        try:
            tc = look_at_tc(netlink, names)
        except OSError as error:
            has_tc = error.errno != errno.EOPNOTSUPP
            tc = Look(TC, missing=error_reason(error) if has_tc else "")
    return (
        look_at_xtables(),
        look_at_ebtables(),
        tc,
        Look(XDP, tuple(Actor(f"XDP program on {name}", ANY_EFFECT) for name in with_xdp)),
        look_at_xdp_sockets(),
        look_at_device_programs(names, kinds),
        look_at_cgroup_programs(),
        look_at_xfrm(),
        look_at_encapsulations(routes),
    )


def look_at_xdp_sockets() -> Look:
    """Return the AF_XDP sockets of this network namespace: their frames do not pass the egress hook."""
    try:
        lines = _PROTOCOLS.read_text().splitlines()
    except OSError as error:
        return Look(AF_XDP, missing=error_reason(error))
    counts = (line.split()[2] for line in lines if line.startswith("XDP "))  # name, size, sockets, ...
    return Look(AF_XDP, tuple(Actor(f"AF_XDP sockets: {count}", (Move(),)) for count in counts if count != "0"))


def look_at_encapsulations(routes: Iterable[Route], platform_labels: Path = _PLATFORM_LABELS) -> Look:
    """Return the routes whose encapsulation can mark packets or send them past the guard (BPF, SRv6, ...).

    Packets with MPLS labels are routed without the hooks of IP: `platform_labels` is 0 if they are not routed.
    """
    actors = []
    with suppress(OSError):  # a kernel without MPLS
        labels = platform_labels.read_text().strip()
        if labels != "0":
            actors.append(Actor(f"MPLS routing (net.mpls.platform_labels = {labels})", (Move(),)))
    for route in routes:
        for entry in route.unknown:
            if entry.startswith(_ENCAP) and entry.removeprefix(_ENCAP) not in _HARMLESS_ENCAPSULATIONS:
                location = f"route to {route.destination} in table {route.table} ({entry})"
                actors.append(Actor(location, ANY_EFFECT))
    return Look(ENCAPSULATION, tuple(dict.fromkeys(actors)))
