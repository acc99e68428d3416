# SPDX-License-Identifier: BSD-2-Clause
"""UDP replies that a route leads inside: dropped, since they have the wrong source address or device.

A socket that is bound to no address gets its source address from the route of the reply. With a
default route inside, that is an address of the tunnel: the reply is a new flow, and would go into
the tunnel. So the set "wan.peers4" has the peers that asked an answered port lately, also by
broadcast or multicast, whose answers are no replies to conntrack; "wan.asked4" has the addresses
that they asked, which a reply keeps after its conntrack entry has ended; and "wan.askers4" has each
peer with the address that it asked, since a server may answer from another port than the one that was
asked (TFTP, RFC 1350 section 4), which begins a flow.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..netstate.nft import Concat, Fib, Match, Payload, Rule, Set, SetRef, SetUpdate
from ..policy.objects import Policy, Uplink
from . import matches, object_names, service_sets
from .matches import IP_HEADERS
from .object_names import object_name
from .reply_routing import answered_udp_ports

_PEER_TIMEOUT = 180  # seconds; that of a UDP flow in conntrack (nf_conntrack_udp_timeout_stream) is 120
_ADDRESS_TIMEOUT = 86_400  # seconds
_IS_UDP = Match(matches.L4PROTO, "udp")


def sets(name: str, uplink: Uplink) -> tuple[Set, ...]:
    """Return the empty sets of an uplink, none if it answers no UDP port. nft limits each to 65535 elements."""
    if not answered_udp_ports(uplink):
        return ()
    flags, origin = frozenset({"dynamic", "timeout"}), ("uplink", name, "answer")
    service = "inet_service"
    return tuple(
        nft_set
        for family, (_, address) in IP_HEADERS.items()
        for nft_set in (
            Set(_peer_set(name, family), (address, service, service), frozenset(), flags, origin, _PEER_TIMEOUT),
            Set(_asked_set(name, family), (address,), frozenset(), flags, origin, _ADDRESS_TIMEOUT),
            Set(_asker_set(name, family), (address, address), frozenset(), flags, origin, _PEER_TIMEOUT),
        )
    )


def arrival_rules(name: str, uplink: Uplink) -> Iterator[Rule]:
    """Yield the rules that remember who asked an answered port, and which address."""
    if not answered_udp_ports(uplink):
        return
    is_address = Match(Fib("type", ("daddr",)), "local")
    for family, (header, _) in IP_HEADERS.items():
        peer = Concat((Payload(header, "saddr"), Payload("udp", "sport"), Payload("udp", "dport")))
        pair = Concat((Payload(header, "saddr"), Payload(header, "daddr")))
        asks = Match(Payload("udp", "dport"), service_sets.any_port(answered_udp_ports(uplink)))
        for tests, update in (
            ((asks, matches.IS_LOCAL), SetUpdate("update", _peer_set(name, family), peer)),
            ((asks, is_address), SetUpdate("update", _asked_set(name, family), Payload(header, "daddr"))),
            ((asks, is_address), SetUpdate("update", _asker_set(name, family), pair)),
        ):
            yield Rule((*tests, update), origin=("uplink", name, "answer"))


def inside_drops(policy: Policy) -> Iterator[Rule]:
    """Yield the rules that drop these replies at devices inside."""
    for name, uplink in policy.uplink.items():
        if not answered_udp_ports(uplink):
            continue
        from_port = Match(Payload("udp", "sport"), service_sets.any_port(answered_udp_ports(uplink)))
        for family, (header, _) in IP_HEADERS.items():
            peer = Concat((Payload(header, "daddr"), Payload("udp", "dport"), Payload("udp", "sport")))
            pair = Concat((Payload(header, "daddr"), Payload(header, "saddr")))
            for tests in (
                (matches.IS_ORIGINAL, from_port, Match(peer, SetRef(_peer_set(name, family)))),
                (matches.IS_ORIGINAL, from_port, Match(Payload(header, "saddr"), SetRef(_asked_set(name, family)))),
                # Not flows that are there already: a request with a forged source must not end them.
                (
                    matches.BEGINS_FLOW,
                    _IS_UDP,
                    matches.HAS_FOREIGN_SOURCE,
                    Match(pair, SetRef(_asker_set(name, family))),
                ),
            ):
                yield matches.count_and_drop(
                    object_name(name, object_names.MISROUTED_REPLIES), *tests, origin=("uplink", name, "answer")
                )


def _peer_set(name: str, family: int) -> str:
    return object_name(name, f"peers{family}")


def _asked_set(name: str, family: int) -> str:
    return object_name(name, f"asked{family}")


def _asker_set(name: str, family: int) -> str:
    return object_name(name, f"askers{family}")
