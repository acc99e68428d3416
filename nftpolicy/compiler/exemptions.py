# SPDX-License-Identifier: BSD-2-Clause
"""What each exemption of a policy matches, at the IP layer and at the link layer.

The words and their reasons are policy/words.py's; a test holds the two tables together.
"""

from __future__ import annotations

from attrs import frozen

from ..netstate.nft import ACCEPT, AnonymousSet, CounterRef, Match, Meta, Payload, Right, Rule
from .names import of

LINK_LOCAL, LINK_LOCAL_GROUPS = "fe80::/10", "ff02::/16"


def _is(protocol: str, field: str, value: Right) -> Match:
    return Match(Payload(protocol, field), value)


def _any(*values: int | str) -> AnonymousSet:
    return AnonymousSet(frozenset(values))


@frozen
class Exemption:
    """`packets`: alternatives, each a list of matches that all hold. `family` says which IP they are
    of where the matches alone do not. `frames`: ethertypes that pass whole."""

    packets: tuple[tuple[Match, ...], ...] = ()
    family: str | None = None
    frames: tuple[int | str, ...] = ()


_FROM_LINK_LOCAL = _is("ip6", "saddr", LINK_LOCAL)
_TO_NEIGHBOURS = _is("ip6", "daddr", _any(LINK_LOCAL, LINK_LOCAL_GROUPS))

# Fields of one header are in the order of their offsets: so the kernel lists them.
EXEMPTIONS: dict[str, Exemption] = {
    "arp": Exemption(frames=("arp",)),
    "dhcpv4": Exemption(((_is("udp", "sport", 68), _is("udp", "dport", 67)),), family="ip"),
    "dhcpv6": Exemption(((_FROM_LINK_LOCAL, _is("udp", "sport", 546), _is("udp", "dport", 547)),)),
    # Solicitations and neighbour advertisements; neither router advertisements nor redirects.
    "ndp": Exemption(
        (
            (
                _is("ip6", "hoplimit", 255),
                _is("icmpv6", "type", _any("nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert")),
            ),
        )
    ),
    "mld": Exemption(
        (
            (
                _is("ip6", "hoplimit", 1),
                _is("ip6", "daddr", LINK_LOCAL_GROUPS),
                _is("icmpv6", "type", _any("mld-listener-report", "mld-listener-done", "mld2-listener-report")),
            ),
        )
    ),
    "igmp": Exemption(((_is("ip", "ttl", 1), _is("ip", "protocol", "igmp"), _is("ip", "daddr", "224.0.0.0/4")),)),
    "vxlan-mesh": Exemption(((_FROM_LINK_LOCAL, _TO_NEIGHBOURS, _is("udp", "dport", 4789)),)),
    "respondd": Exemption(
        tuple((_FROM_LINK_LOCAL, _TO_NEIGHBOURS, _is("udp", end, 1001)) for end in ("sport", "dport")),
    ),
    "eapol": Exemption(frames=(0x888E,)),
    "pppoe": Exemption(frames=(0x8863, 0x8864)),
}

# How each table's family says "this is an IPv4 packet".
_IPV4 = {"inet": Match(Meta("nfproto"), "ipv4"), "netdev": Match(Meta("protocol"), "ip")}


def rules(uplink: str, exempt: tuple[str, ...], family: str) -> tuple[Rule, ...]:
    """The rules of an uplink's exemptions in a table of `family` ("inet" or "netdev")."""
    return tuple(
        Rule((*matches, CounterRef(of(uplink, "exempt", word)), ACCEPT), origin=("uplink", uplink, "exempt"))
        for word in exempt
        for matches in _matches(EXEMPTIONS[word], family)
    )


# Kernel-made reports can wear any mark by accident: their skb->mark shares its place with
# reserved_tailroom (include/linux/skbuff.h), whose value depends on the device's MTU.
REPORTS = ("mld", "igmp")


def reports_of(exempt: tuple[str, ...]) -> tuple[str, ...]:
    """Those of an uplink's exemptions whose packets may wear a mark that nobody put on."""
    return tuple(word for word in exempt if word in REPORTS)


def reports() -> list[tuple[Match, ...]]:
    """What matches such packets, whatever the policy exempts."""
    return [matches for word in REPORTS for matches in EXEMPTIONS[word].packets]


def _matches(exemption: Exemption, family: str) -> list[tuple[Match, ...]]:
    first = (_IPV4[family],) if exemption.family == "ip" else ()
    found = [(*first, *matches) for matches in exemption.packets]
    if exemption.frames and family == "netdev":
        right: Right = exemption.frames[0] if len(exemption.frames) == 1 else _any(*exemption.frames)
        found.append((Match(Meta("protocol"), right),))
    return found


def counters(uplink: str, exempt: tuple[str, ...], family: str) -> tuple[str, ...]:
    """The counters that those rules count with."""
    return tuple(of(uplink, "exempt", word) for word in exempt if _matches(EXEMPTIONS[word], family))
