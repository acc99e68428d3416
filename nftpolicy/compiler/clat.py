# SPDX-License-Identifier: BSD-2-Clause
"""464XLAT (RFC 6877): the device of a translator (CLAT) that lets IPv4 packets use an IPv6-only uplink.

The translator reads IPv4 packets from its device, so the device is one of the uplink: the guard judges what
leaves by it, and lets nothing in but IPv4 packets with the mark, and answers from behind the NAT64 prefix. What
the translator writes arrives by the device as IPv6 packets to the prefix. They get the mark, as packets of a
forward do, and no mark of the flow.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..netstate.nft import ACCEPT, CounterRef, Ct, Match, Payload, Rule, Verdict
from ..policy.objects import Clat, Uplink
from . import matches
from .matches import ICMPV6_ERROR, INPUT_DEVICE, IS_NOT_LOCAL, IS_RELATED, IS_REPLY, NFPROTO
from .object_names import object_name

_IS_IPV6 = Match(NFPROTO, "ipv6")


def guard_entry(name: str, uplink: Uplink, device: str) -> Verdict:
    """Return the verdict of the guard for packets that leave by a device of the uplink."""
    is_clat = uplink.clat is not None and device == uplink.clat.device
    return Verdict("goto", object_name(name, "clat" if is_clat else "guard"))


def counter_names(name: str, uplink: Uplink) -> tuple[str, ...]:
    """Return the counter name of translated packets, in both directions."""
    return (object_name(name, "clat"),) if uplink.clat else ()


def arrival_rules(name: str, uplink: Uplink) -> Iterator[Rule]:
    """Yield the rules of an arrival that mark translated packets, and answers to them.

    An answer is for the address that the translator has, which is not of this machine: the uplink's table leads it
    to the device of the translator.
    """
    if uplink.clat is None:
        return
    origin, marks = ("uplink", name, "clat"), (matches.set_mark(uplink.mark), ACCEPT)
    from_clat = Match(INPUT_DEVICE, uplink.clat.device)
    yield Rule((from_clat, _is_to(uplink.clat), *marks), origin=origin)
    other_flow = matches.lacks_mark(uplink.mark, matches.FLOW_MARK)
    for device in uplink.network_devices:
        arrives = (Match(INPUT_DEVICE, device), IS_NOT_LOCAL, IS_REPLY, other_flow)
        for tests in _answers(uplink.clat):
            yield Rule((*arrives, *tests, *marks), origin=origin)


def _answers(clat: Clat) -> tuple[tuple[Match, ...], ...]:
    """Return the tests of answers: from the prefix, or errors about translated packets, which any router sends."""
    return (Match(Payload("ip6", "saddr"), str(clat.prefix)),), (IS_RELATED, ICMPV6_ERROR)


def _is_to(clat: Clat) -> Match:
    return Match(Payload("ip6", "daddr"), str(clat.prefix))


def inward_rules(name: str, uplink: Uplink) -> Iterator[Rule]:
    """Yield the rules by which answers to the CLAT keep the mark that answers to forwarded packets lose.

    NAT has translated those, and no program translates the address of the CLAT.
    """
    if uplink.clat is not None:
        is_untranslated = Match(Ct("status"), "snat", "!")
        for tests in _answers(uplink.clat):
            yield Rule((IS_NOT_LOCAL, IS_REPLY, is_untranslated, *tests, ACCEPT), origin=("uplink", name, "clat"))


def network_guard_rules(name: str, uplink: Uplink) -> Iterator[Rule]:
    """Yield the first rules of the guard of the other devices: of the translator's packets, those to the prefix leave.

    An answer to the translator does not leave again.
    """
    if uplink.clat is None:
        return
    origin, dropped = ("uplink", name, "clat"), object_name(name, "dropped")
    from_clat = Match(INPUT_DEVICE, uplink.clat.device)
    passes = (CounterRef(object_name(name, "clat")), ACCEPT)
    yield Rule((from_clat, _is_to(uplink.clat), matches.has_mark(uplink.mark), *passes), origin=origin)
    yield matches.count_and_drop(dropped, from_clat, origin=origin)
    for device in uplink.network_devices:
        yield matches.count_and_drop(dropped, Match(INPUT_DEVICE, device), _answers(uplink.clat)[0][0], origin=origin)


def device_guard_rules(name: str, uplink: Uplink) -> Iterator[Rule]:
    """Yield the first rules of the guard of the translator's device: of IPv6 packets, answers pass."""
    assert uplink.clat is not None
    origin, passes = ("uplink", name, "clat"), (CounterRef(object_name(name, "clat")), ACCEPT)
    for device in uplink.network_devices:
        arrived = (Match(INPUT_DEVICE, device), IS_REPLY, matches.has_mark(uplink.mark))
        for tests in _answers(uplink.clat):
            yield Rule((*arrived, *tests, *passes), origin=origin)
    yield matches.count_and_drop(object_name(name, "dropped"), _IS_IPV6, origin=origin)
