# SPDX-License-Identifier: BSD-2-Clause
"""Addresses of an uplink: those of its devices, and those of the key `addresses`.

No other address is the destination of an accepted packet from the uplink, or the source of one that leaves by it:
so no network learns the addresses that the machine has in another, such as the inner address of a tunnel.
"""

from __future__ import annotations

from ..netstate.nft import AnonymousSet, Chain, Fib, Match, Payload, Rule, Set, SetRef, Verdict
from ..policy.objects import Policy, Uplink
from . import forwards, matches, service_sets
from .object_names import object_name

_HEADERS = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}
_UNSPECIFIED = {4: "0.0.0.0", 6: "::"}  # of hosts without an address: DHCP, duplicate address detection (RFC 4862)
# Not anycast: the kernel has no anycast address of one device here (nft_fib6_eval_type).
_OF_DEVICE = AnonymousSet(frozenset({"local", "broadcast", "multicast"}))
_OF_MACHINE = AnonymousSet(frozenset({"local", "anycast"}))


def address_sets(name: str, uplink: Uplink) -> tuple[Set, ...]:
    """Return the sets of `addresses`: "wan.addresses4", "wan.addresses6"."""
    sets = []
    for family, (_, data_type) in _HEADERS.items():
        networks = service_sets.merge_networks([prefix for prefix in uplink.addresses if prefix.version == family])
        elements = frozenset(map(service_sets.network_text, networks))
        if elements:
            flags, origin = frozenset({"interval"}), ("uplink", name, "addresses")
            sets.append(Set(_set_name(name, family), (data_type,), elements, flags, origin=origin))
    return tuple(sets)


def source_rule(name: str) -> Rule:
    """Return the rule of the guard that checks packets whose source is not an address of the output device.

    In postrouting, the source is that after NAT.
    """
    is_foreign = Match(Fib("type", ("saddr", "oif")), "local", "!=")
    return Rule((is_foreign, Verdict("jump", object_name(name, "source"))), origin=("uplink", name, "addresses"))


def source_chain(name: str, policy: Policy) -> Chain:
    """Return the chain "wan.source": drop packets from an address that is not the uplink's.

    Packets of forwards and published ports have the addresses of their hosts; the guard tests them later.
    """
    uplink = policy.uplink[name]
    origin = ("uplink", name, "addresses")
    allowed = [Match(Payload(_HEADERS[family][0], "saddr"), address) for family, address in _UNSPECIFIED.items()]
    allowed += [*_in_addresses(name, uplink, "saddr"), *forwards.arrival_matches(name, policy)]
    returns = (Rule((match, Verdict("return")), origin=origin) for match in allowed)
    drop = matches.count_and_drop(object_name(name, "foreign-source"), origin=origin)
    return Chain(object_name(name, "source"), (*returns, drop), origin=origin)


def destination_rules(name: str, uplink: Uplink) -> tuple[Rule, ...]:
    """Return the rules of an arrival that drop packets to addresses that are not the uplink's.

    They get no reply, so that the address is not revealed (CVE-2019-14899).
    """
    origin = ("uplink", name, "addresses")
    is_foreign = Match(Fib("type", ("daddr", "iif")), _OF_DEVICE, "!=")
    if uplink.addresses:
        return (Rule((is_foreign, Verdict("jump", object_name(name, "destination"))), origin=origin),)
    return (matches.count_and_drop(object_name(name, "not-local"), is_foreign, origin=origin),)


def destination_chains(name: str, uplink: Uplink) -> tuple[Chain, ...]:
    """Return the chain "wan.destination", which lets packets to `addresses` of this machine pass; () without any."""
    if not uplink.addresses:
        return ()
    origin = ("uplink", name, "addresses")
    is_ours = Match(Fib("type", ("daddr",)), _OF_MACHINE)
    returns = (
        Rule((match, is_ours, Verdict("return")), origin=origin) for match in _in_addresses(name, uplink, "daddr")
    )
    drop = matches.count_and_drop(object_name(name, "not-local"), origin=origin)
    return (Chain(object_name(name, "destination"), (*returns, drop), origin=origin),)


def _in_addresses(name: str, uplink: Uplink, field: str) -> list[Match]:
    families = dict.fromkeys(network.version for network in uplink.addresses)
    return [Match(Payload(_HEADERS[family][0], field), SetRef(_set_name(name, family))) for family in sorted(families)]


def _set_name(name: str, family: int) -> str:
    return object_name(name, f"addresses{family}")
