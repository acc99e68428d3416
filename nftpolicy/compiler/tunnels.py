# SPDX-License-Identifier: BSD-2-Clause
"""Packets of the kernel that their protocol and destination identify: its tunnels, its connections over TCP.

The outer packet of a tunnel has the mark of the inner one, whatever mark the tunnel is looked up with
(iptunnel_xmit), and belongs to the socket that sent the inner packet. So it gets its mark in the output
hook, which forwarded packets do not pass, and an ip rule selects the uplink before that. Any process may
send L2TP over IP by a socket of its own, but with the session ID 0 alone (l2tp_ip_sendmsg). A TCP socket of
the kernel, as of NFS, has no mark either, and no owner; packets of processes to the same port have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product

from ..netstate.nft import (
    ACCEPT,
    PROTOCOL_NAMES,
    AnonymousSet,
    Chain,
    Concat,
    Element,
    Hook,
    Match,
    OpaqueExpression,
    Payload,
    Rule,
    Set,
    SetRef,
    Verdict,
)
from ..netstate.routing import IpRule
from ..policy.objects import Network, Policy, Port, Service
from . import matches, object_names
from .matches import IP_HEADERS, L4PROTO
from .object_names import object_name
from .service_sets import is_port_range, merge_networks, merge_ports, network_text, uplink_services

# IP protocol numbers.
PROTOCOLS = {"ipip": 4, "6in4": 41, "gre": 47, "esp": 50, "l2tp": 115}
_TCP, _ESP, _L2TP = 6, 50, 115
# The first four bytes of L2TP over IP, in two fields that nft has a name for.
_SESSION_ID = Concat((Payload("th", "sport"), matches.DEST_PORT))
_IS_DATA = Match(_SESSION_ID, AnonymousSet(frozenset({(0, 0)})), "!=")
# Sets of other ends: their protocols, and what the packets have beside. That of ESP has addresses alone. (A rule with
# `meta l4proto` and the session ID makes nft abort when it lists the rule: payload_expr_complete, nft 1.0.6 to 1.1.3.)
_KINDS: Mapping[str, tuple[frozenset[int], tuple[Match, ...]]] = {
    "tunnels": (frozenset({4, 41, 47}), ()),
    "esp": (frozenset({_ESP}), ()),
    "l2tp": (frozenset({_L2TP}), (_IS_DATA,)),
}


def tunnel_sets(name: str, policy: Policy) -> tuple[Set, ...]:
    """Return the sets of protocols and destinations of an uplink's tunnels: "wan.tunnels4", "wan.l2tp6"."""
    ends = _ends(name, policy)
    sets = []
    for (kind, (protocols, _)), (family, (_, address)) in product(_KINDS.items(), IP_HEADERS.items()):
        of_family = ends.get(family, {})
        by_protocol = {number: merge_networks(nets) for number, nets in of_family.items() if number in protocols}
        elements: frozenset[Element] = frozenset(
            network_text(net) if kind == "esp" else (PROTOCOL_NAMES.get(number, number), network_text(net))
            for number, nets in by_protocol.items()
            for net in nets
        )
        if elements:
            is_wide = any(net.prefixlen < net.max_prefixlen for nets in by_protocol.values() for net in nets)
            flags = frozenset({"interval"}) if is_wide else frozenset[str]()
            types = (address,) if kind == "esp" else ("inet_proto", address)
            sets.append(Set(_set_name(name, kind, family), types, elements, flags, origin=("uplink", name)))
    return tuple(sets)


def _ends(name: str, policy: Policy) -> dict[int, dict[int, list[Network]]]:
    """Return the other ends of an uplink's tunnels: by family and protocol number, each network once."""
    ends: dict[int, dict[int, list[Network]]] = {}
    for service in _senders(name, policy):
        for port in service.ports:
            if port.protocol not in PROTOCOLS:
                continue
            for net in service.to:
                listed = ends.setdefault(net.version, {}).setdefault(PROTOCOLS[port.protocol], [])
                if net not in listed:
                    listed.append(net)
    return ends


def _senders(name: str, policy: Policy) -> list[Service]:
    return [service for service in uplink_services(name, policy).values() if service.by_destination]


def tcp_sets(name: str, policy: Policy) -> tuple[Set, ...]:
    """Return the sets of destinations and ports of the kernel's connections: "wan.kernel-tcp4", "wan.kernel-tcp6"."""
    sets = []
    for family, (_, address) in IP_HEADERS.items():
        elements = _servers(name, policy, family)
        if elements:
            texts = frozenset((network_text(net), matches.port_value(port)) for net, port in elements)
            is_wide = any(net.prefixlen < net.max_prefixlen or is_port_range(port) for net, port in elements)
            flags = frozenset({"interval"}) if is_wide else frozenset[str]()
            sets.append(Set(_tcp_set(name, family), (address, "inet_service"), texts, flags, origin=("uplink", name)))
    return tuple(sets)


def _servers(name: str, policy: Policy, family: int) -> list[tuple[Network, Port]]:
    """Return the networks and ports that the kernel connects to; those of two services do not overlap."""
    return [
        (net, port)
        for service in _senders(name, policy)
        for net in merge_networks([net for net in service.to if net.version == family])
        for port in merge_ports(tuple(port for port in service.ports if port.protocol == "tcp"))
    ]


def tcp_matches(name: str, policy: Policy) -> list[tuple[Match, ...]]:
    """Return the matches for packets to the kernel's servers, one tuple for each family that has some.

    They are of flows that began here: a reply may be that of any server of this machine.
    """
    return [
        (
            matches.IS_ORIGINAL,
            Match(Concat((Payload(header, "daddr"), Payload("tcp", "dport"))), SetRef(_tcp_set(name, family))),
        )
        for family, (header, _) in IP_HEADERS.items()
        if _servers(name, policy, family)
    ]


def tunnel_matches(name: str, policy: Policy) -> list[tuple[Match, ...]]:
    """Return the matches for packets of an uplink's tunnels, one tuple for each set of their other ends."""
    ends = _ends(name, policy)
    tunnels: list[tuple[Match, ...]] = []
    for (kind, (protocols, more)), (family, (header, _)) in product(_KINDS.items(), IP_HEADERS.items()):
        if protocols & ends.get(family, {}).keys():
            address, listed = Payload(header, "daddr"), SetRef(_set_name(name, kind, family))
            if kind == "esp":
                tunnels.append((Match(L4PROTO, "esp"), Match(address, listed)))
            else:
                tunnels.append((Match(Concat((L4PROTO, address)), listed), *more))
    return tunnels


def ipsec_rules(name: str, policy: Policy, families: tuple[int, ...] = (4, 6)) -> tuple[Rule, ...]:
    """Return the rules of the guard that accept what IPsec is about to transform for the other ends of these families.

    Such a packet has its own destination, and the device of the outer route. The result passes the guard again.
    """
    ends = _ends(name, policy)
    return tuple(
        Rule(
            (Match(OpaqueExpression(f"ipsec out {header} daddr"), SetRef(_set_name(name, "esp", family))), ACCEPT),
            origin=("uplink", name),
        )
        for family, (header, _) in IP_HEADERS.items()
        if family in families and _ESP in ends.get(family, {})
    )


def tunnel_chain(policy: Policy) -> Chain | None:
    """Return the chain that marks the kernel's packets by their destination; None without such a service.

    Packets with the mark of another uplink may be those of its services.
    """
    of_tunnels = _marking_rules(policy, lambda name: tunnel_matches(name, policy))
    of_tcp = _marking_rules(policy, lambda name: tcp_matches(name, policy))
    without_owner = (Rule((matches.HAS_OWNER, Verdict("return"))), *of_tcp) if of_tcp else ()
    rules = (*of_tunnels, *without_owner)
    return Chain("tunnels", rules, Hook("filter", "output", object_names.TUNNEL_PRIORITY)) if rules else None


def _marking_rules(policy: Policy, list_matches: Callable[[str], list[tuple[Match, ...]]]) -> tuple[Rule, ...]:
    return tuple(
        Rule((*match, *_lack_other_marks(name, policy), matches.set_mark(uplink.mark)), origin=("uplink", name))
        for name, uplink in policy.uplink.items()
        for match in list_matches(name)
    )


def _lack_other_marks(name: str, policy: Policy) -> Iterator[Match]:
    return (matches.lacks_mark(uplink.mark) for other, uplink in policy.uplink.items() if other != name)


def ip_rules(policy: Policy) -> Iterator[IpRule]:
    """Yield the ip rules that confine these packets to their uplink's table.

    Those of processes to a server of the kernel too: no rule knows the owner of a packet. And all to the other
    end of IPsec: older kernels look its route up without a protocol (xfrm_dst_lookup).
    """
    for name, uplink in policy.uplink.items():
        for by_protocol in _ends(name, policy).values():
            for number, networks in by_protocol.items():
                for net in merge_networks(networks):
                    yield from _confining_rules(net, number if number != _ESP else None, name, uplink.table)
        for family in IP_HEADERS:
            for net, port in _servers(name, policy, family):
                yield from _confining_rules(net, _TCP, name, uplink.table, (port.low, port.high))


def _confining_rules(
    net: Network, number: int | None, uplink: str, table: int, ports: tuple[int, int] | None = None
) -> Iterator[IpRule]:
    for priority, action in (
        (object_names.TUNNEL_RULE_PRIORITY if number else object_names.IPSEC_RULE_PRIORITY, "lookup"),
        (
            object_names.TUNNEL_UNREACHABLE_PRIORITY if number else object_names.IPSEC_UNREACHABLE_PRIORITY,
            "unreachable",
        ),
    ):
        yield IpRule(
            net.version,
            priority,
            action,
            table if action == "lookup" else 0,
            destination=str(net),
            iif="lo",  # packets of this machine
            l4proto=number,
            dports=ports,
            origin=("uplink", uplink),
        )


def _set_name(name: str, kind: str, family: int) -> str:
    return object_name(name, f"{kind}{family}")


def _tcp_set(name: str, family: int) -> str:
    return object_name(name, f"kernel-tcp{family}")
