# SPDX-License-Identifier: BSD-2-Clause
"""Addresses of an uplink: those of its devices, and those of the key `addresses`.

No other address is the destination of an accepted packet from the uplink, or the source of one that leaves by it:
so no network learns the addresses that the machine has in another, such as the inner address of a tunnel.
"""

from __future__ import annotations

from attrs import evolve

from ..netstate.nft import AnonymousSet, Chain, Fib, Match, Payload, Rule, Set, SetRef, Verdict
from ..policy.objects import Uplink
from . import matches, service_sets
from .matches import IP_HEADERS
from .object_names import object_name

_UNSPECIFIED = {4: "0.0.0.0", 6: "::"}  # of hosts without an address: DHCP, duplicate address detection (RFC 4862)
# Not anycast: the kernel has no anycast address of one device here (nft_fib6_eval_type).
_OF_DEVICE = AnonymousSet(frozenset({"local", "broadcast", "multicast"}))
_OF_MACHINE = AnonymousSet(frozenset({"local", "anycast"}))


def address_sets(name: str, uplink: Uplink) -> tuple[Set, ...]:
    """Return the sets of `addresses`: "wan.addresses4", "wan.addresses6"."""
    sets = []
    for family, (_, data_type) in IP_HEADERS.items():
        networks = service_sets.merge_networks([prefix for prefix in uplink.addresses if prefix.version == family])
        elements = frozenset(map(service_sets.network_text, networks))
        if elements:
            flags, origin = frozenset({"interval"}), ("uplink", name, "addresses")
            sets.append(Set(_set_name(name, family), (data_type,), elements, flags, origin=origin))
    return tuple(sets)


def source_rules(name: str, uplink: Uplink, forwarded: tuple[Match, ...] = ()) -> tuple[Rule, ...]:
    """Return the rules of the guard that drop packets from an address that is not the uplink's.

    In postrouting, the source is that after NAT. Packets that one of `forwarded` matches have the
    addresses of other hosts; the guard tests them later.
    """
    origin = ("uplink", name, "addresses")
    is_foreign = Match(Fib("type", ("saddr", "oif")), "local", "!=")
    of_others = [evolve(match, op="!=") for match in forwarded]
    rules = []
    for family, unspecified in _UNSPECIFIED.items():
        tests = [Match(Payload(IP_HEADERS[family][0], "saddr"), unspecified, "!="), *of_others]
        tests += _in_addresses(name, uplink, "saddr", family, "!=")
        rules.append(matches.count_and_drop(object_name(name, "foreign-source"), *tests, is_foreign, origin=origin))
    return tuple(rules)


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
        Rule((match, is_ours, Verdict("return")), origin=origin)
        for family in IP_HEADERS
        for match in _in_addresses(name, uplink, "daddr", family)
    )
    drop = matches.count_and_drop(object_name(name, "not-local"), origin=origin)
    return (Chain(object_name(name, "destination"), (*returns, drop), origin=origin),)


def _in_addresses(name: str, uplink: Uplink, field: str, family: int, op: str = "==") -> list[Match]:
    """Return the match of a family's addresses; [] if the policy names none of this family."""
    if all(network.version != family for network in uplink.addresses):
        return []
    return [Match(Payload(IP_HEADERS[family][0], field), SetRef(_set_name(name, family)), op)]


def _set_name(name: str, family: int) -> str:
    return object_name(name, f"addresses{family}")
