# SPDX-License-Identifier: BSD-2-Clause
"""Tunnels of the kernel: packets that their protocol and destination identify.

The outer packet of a tunnel has the mark of the inner one, whatever mark the tunnel is looked up with
(iptunnel_xmit), and belongs to the socket that sent the inner packet. So it gets its mark in the output
hook, which forwarded packets do not pass, and an ip rule selects the uplink before that.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..netstate.nft import PROTOCOL_NAMES, Chain, Concat, Hook, Match, Payload, Rule, Set, SetRef
from ..netstate.routing import IpRule
from ..policy.objects import Network, Policy
from . import matches, object_names
from .matches import IP_HEADERS, L4PROTO
from .object_names import object_name
from .service_sets import merge_networks, network_text, uplink_services

# IP protocol numbers.
PROTOCOLS = {"ipip": 4, "6in4": 41, "gre": 47}


def tunnel_sets(name: str, policy: Policy) -> tuple[Set, ...]:
    """Return the sets of protocols and destinations of an uplink's tunnels: "wan.tunnels4", "wan.tunnels6"."""
    ends = _ends(name, policy)
    sets = []
    for family, (_, address) in IP_HEADERS.items():
        by_protocol = {number: merge_networks(nets) for number, nets in ends.get(family, {}).items()}
        elements = frozenset(
            (PROTOCOL_NAMES.get(number, number), network_text(net))
            for number, nets in by_protocol.items()
            for net in nets
        )
        if elements:
            is_wide = any(net.prefixlen < net.max_prefixlen for nets in by_protocol.values() for net in nets)
            flags = frozenset({"interval"}) if is_wide else frozenset[str]()
            types = ("inet_proto", address)
            sets.append(Set(_set_name(name, family), types, elements, flags, origin=("uplink", name)))
    return tuple(sets)


def _ends(name: str, policy: Policy) -> dict[int, dict[int, list[Network]]]:
    """Return the other ends of an uplink's tunnels: by family and protocol number, each network once."""
    ends: dict[int, dict[int, list[Network]]] = {}
    for service in uplink_services(name, policy).values():
        for port in service.ports if service.by_destination else ():
            for net in service.to:
                listed = ends.setdefault(net.version, {}).setdefault(PROTOCOLS[port.protocol], [])
                if net not in listed:
                    listed.append(net)
    return ends


def tunnel_matches(name: str, policy: Policy) -> list[Match]:
    """Return the matches for packets of an uplink's tunnels, one for each family that has some."""
    families = _ends(name, policy)
    return [
        Match(Concat((L4PROTO, Payload(header, "daddr"))), SetRef(_set_name(name, family)))
        for family, (header, _) in IP_HEADERS.items()
        if family in families
    ]


def tunnel_chain(policy: Policy) -> Chain | None:
    """Return the chain that marks the packets of tunnels; None without tunnels.

    Packets with the mark of another uplink may be those of its services.
    """
    rules = tuple(
        Rule((match, *_lack_other_marks(name, policy), matches.set_mark(uplink.mark)), origin=("uplink", name))
        for name, uplink in policy.uplink.items()
        for match in tunnel_matches(name, policy)
    )
    return Chain("tunnels", rules, Hook("filter", "output", object_names.TUNNEL_PRIORITY)) if rules else None


def _lack_other_marks(name: str, policy: Policy) -> Iterator[Match]:
    return (matches.lacks_mark(uplink.mark) for other, uplink in policy.uplink.items() if other != name)


def ip_rules(policy: Policy) -> Iterator[IpRule]:
    """Yield the ip rules that confine tunnels to their uplink's table."""
    for name, uplink in policy.uplink.items():
        for by_protocol in _ends(name, policy).values():
            for number, networks in by_protocol.items():
                for net in merge_networks(networks):
                    yield from _confining_rules(net, number, name, uplink.table)


def _confining_rules(net: Network, number: int, uplink: str, table: int) -> Iterator[IpRule]:
    for priority, action in (
        (object_names.TUNNEL_RULE_PRIORITY, "lookup"),
        (object_names.TUNNEL_UNREACHABLE_PRIORITY, "unreachable"),
    ):
        yield IpRule(
            net.version,
            priority,
            action,
            table if action == "lookup" else 0,
            destination=str(net),
            iif="lo",  # packets of this machine
            l4proto=number,
            origin=("uplink", uplink),
        )


def _set_name(name: str, family: int) -> str:
    return object_name(name, f"tunnels{family}")
