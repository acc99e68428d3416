# SPDX-License-Identifier: BSD-2-Clause
"""Addresses of an uplink: those of its devices, and those of the key `addresses`.

No other address is the destination of an accepted packet from the uplink, or the source of one that leaves by it:
so no network learns the addresses that the machine has in another, such as the inner address of a tunnel.
"""

from __future__ import annotations

from attrs import evolve

from ..netstate.nft import (
    AnonymousSet,
    Chain,
    Concat,
    Fib,
    Match,
    OriginPath,
    Payload,
    Rule,
    Set,
    SetRef,
    SetUpdate,
    Verdict,
)
from ..policy.objects import Uplink
from . import matches, service_sets
from .matches import IP_HEADERS
from .object_names import object_name

_UNSPECIFIED = {4: "0.0.0.0", 6: "::"}  # of hosts without an address: DHCP, duplicate address detection (RFC 4862)
# Not anycast: the kernel has no anycast address of one device here (nft_fib6_eval_type).
_OF_DEVICE = AnonymousSet(frozenset({"local", "broadcast", "multicast"}))
_ASKED_TIMEOUT, _MAX_ASKED = 3600, 64  # seconds, pairs of a family that are remembered
_OF_MACHINE = AnonymousSet(frozenset({"local", "anycast"}))


def address_sets(name: str, uplink: Uplink) -> tuple[Set, ...]:
    """Return the sets of `addresses` ("wan.addresses4"), and the empty ones of refused addresses ("wan.not-local4")."""
    sets = []
    for family, (_, data_type) in IP_HEADERS.items():
        flags, pair = frozenset({"dynamic", "timeout"}), (data_type, data_type)
        origin: OriginPath = ("uplink", name, "addresses")
        sets.append(Set(asked_set(name, family), pair, frozenset(), flags, origin, _ASKED_TIMEOUT, size=_MAX_ASKED))
        networks = service_sets.merge_networks([prefix for prefix in uplink.addresses if prefix.version == family])
        elements = frozenset(map(service_sets.network_text, networks))
        if elements:
            sets.append(Set(_set_name(name, family), (data_type,), elements, frozenset({"interval"}), origin=origin))
    return tuple(sets)


def source_rules(
    name: str, uplink: Uplink, forwarded: tuple[Match, ...] = (), families: tuple[int, ...] = (4, 6)
) -> tuple[Rule, ...]:
    """Return the rules of the guard that drop packets from an address that is not the uplink's.

    In postrouting, the source is that after NAT. Packets that one of `forwarded` matches have the
    addresses of other hosts; the guard tests them later.
    """
    origin = ("uplink", name, "addresses")
    of_others = [evolve(match, op="!=") for match in forwarded]
    rules = []
    for family in families:
        tests = [Match(Payload(IP_HEADERS[family][0], "saddr"), _UNSPECIFIED[family], "!="), *of_others]
        tests += _in_addresses(name, uplink, "saddr", family, "!=")
        tests.append(matches.HAS_FOREIGN_SOURCE)
        rules.append(matches.count_and_drop(object_name(name, "foreign-source"), *tests, origin=origin))
    return tuple(rules)


def destination_rules(name: str) -> tuple[Rule, ...]:
    """Return the rules of an arrival that drop packets to addresses that are not the uplink's.

    They get no reply, so that the address is not revealed (CVE-2019-14899).
    """
    is_foreign = Match(Fib("type", ("daddr", "iif")), _OF_DEVICE, "!=")
    to_chain = Verdict("jump", object_name(name, "destination"))
    return (Rule((is_foreign, to_chain), origin=("uplink", name, "addresses")),)


def destination_chain(name: str, uplink: Uplink) -> Chain:
    """Return the chain "wan.destination": let packets to `addresses` of this machine pass, and drop others.

    It remembers who asked for which address of another device, for the administrator.
    """
    origin = ("uplink", name, "addresses")
    is_ours = Match(Fib("type", ("daddr",)), _OF_MACHINE)
    returns = (
        Rule((match, is_ours, Verdict("return")), origin=origin)
        for family in IP_HEADERS
        for match in _in_addresses(name, uplink, "daddr", family)
    )
    # A rule of its own: a set that is full ends it (nft_dynset_eval).
    updates = (
        Rule((is_ours, SetUpdate("update", asked_set(name, family), Concat((address, asker)))), origin=origin)
        for family, (header, _) in IP_HEADERS.items()
        for address, asker in [(Payload(header, "daddr"), Payload(header, "saddr"))]
    )
    drop = matches.count_and_drop(object_name(name, "not-local"), origin=origin)
    return Chain(object_name(name, "destination"), (*returns, *updates, drop), origin=origin)


def asked_set(name: str, family: int) -> str:
    """Return the set of (address, asker) that were dropped lately: "wan.not-local4"."""
    return object_name(name, f"not-local{family}")


def _in_addresses(name: str, uplink: Uplink, field: str, family: int, op: str = "==") -> list[Match]:
    """Return the match of a family's addresses; [] if the policy names none of this family."""
    if all(network.version != family for network in uplink.addresses):
        return []
    return [Match(Payload(IP_HEADERS[family][0], field), SetRef(_set_name(name, family)), op)]


def _set_name(name: str, family: int) -> str:
    return object_name(name, f"addresses{family}")
