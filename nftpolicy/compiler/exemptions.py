# SPDX-License-Identifier: BSD-2-Clause
"""Matches of each exemption of a policy, at the IP layer and at the link layer.

The keywords and their reasons are in policy/vocabulary.py; a test keeps both tables consistent.
"""

from __future__ import annotations

from attrs import frozen

from ..netstate.nft import ACCEPT, AnonymousSet, CounterRef, Match, MatchRight, Meta, Payload, Rule
from .object_names import object_name

LINK_LOCAL, LINK_LOCAL_GROUPS = "fe80::/10", "ff02::/16"


def _is(protocol: str, field: str, value: MatchRight) -> Match:
    return Match(Payload(protocol, field), value)


def _any(*values: int | str) -> AnonymousSet:
    return AnonymousSet(frozenset(values))


@frozen
class ExemptionMatches:
    """Matches of one exemption.

    `packets`: alternatives; all matches of an alternative have to match. `family`: "ip" if the
    matches alone do not imply IPv4. `frames`: ethertypes; all of their frames pass.
    """

    packets: tuple[tuple[Match, ...], ...] = ()
    family: str | None = None
    frames: tuple[int | str, ...] = ()


_FROM_LINK_LOCAL = _is("ip6", "saddr", LINK_LOCAL)
_TO_NEIGHBOURS = _is("ip6", "daddr", _any(LINK_LOCAL, LINK_LOCAL_GROUPS))

# Fields of one header are in the order of their offsets, as the kernel lists them.
EXEMPTION_MATCHES: dict[str, ExemptionMatches] = {
    "arp": ExemptionMatches(frames=("arp",)),
    "dhcpv4": ExemptionMatches(((_is("udp", "sport", 68), _is("udp", "dport", 67)),), family="ip"),
    "dhcpv6": ExemptionMatches(((_FROM_LINK_LOCAL, _is("udp", "sport", 546), _is("udp", "dport", 547)),)),
    # Solicitations and neighbour advertisements; neither router advertisements nor redirects.
    "ndp": ExemptionMatches(
        (
            (
                _is("ip6", "hoplimit", 255),
                _is("icmpv6", "type", _any("nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert")),
            ),
        )
    ),
    "mld": ExemptionMatches(
        (
            (
                _is("ip6", "hoplimit", 1),
                _is("ip6", "daddr", LINK_LOCAL_GROUPS),
                _is("icmpv6", "type", _any("mld-listener-report", "mld-listener-done", "mld2-listener-report")),
            ),
        )
    ),
    "igmp": ExemptionMatches(
        ((_is("ip", "ttl", 1), _is("ip", "protocol", "igmp"), _is("ip", "daddr", "224.0.0.0/4")),)
    ),
    "vxlan-mesh": ExemptionMatches(((_FROM_LINK_LOCAL, _TO_NEIGHBOURS, _is("udp", "dport", 4789)),)),
    "respondd": ExemptionMatches(
        tuple((_FROM_LINK_LOCAL, _TO_NEIGHBOURS, _is("udp", end, 1001)) for end in ("sport", "dport")),
    ),
    "eapol": ExemptionMatches(frames=(0x888E,)),
    "pppoe": ExemptionMatches(frames=(0x8863, 0x8864)),
}

# Match for IPv4 packets in tables of each family.
_IPV4 = {"inet": Match(Meta("nfproto"), "ipv4"), "netdev": Match(Meta("protocol"), "ip")}


def exemption_rules(uplink: str, exempt: tuple[str, ...], family: str) -> tuple[Rule, ...]:
    """Return the rules of an uplink's exemptions in a table of `family` ("inet" or "netdev")."""
    return tuple(
        Rule((*matches, CounterRef(object_name(uplink, "exempt", word)), ACCEPT), origin=("uplink", uplink, "exempt"))
        for word in exempt
        for matches in _matches(EXEMPTION_MATCHES[word], family)
    )


# Membership reports of the kernel can have any mark: skb->mark shares its memory with
# reserved_tailroom (include/linux/skbuff.h), which depends on the device's MTU.
MEMBERSHIP_REPORTS = ("mld", "igmp")


def report_exemptions(exempt: tuple[str, ...]) -> tuple[str, ...]:
    """Return the exemptions of packets that may have a mark which no rule or socket set."""
    return tuple(word for word in exempt if word in MEMBERSHIP_REPORTS)


def report_matches() -> list[tuple[Match, ...]]:
    """Return the matches of membership reports, independent of the policy's exemptions."""
    return [matches for word in MEMBERSHIP_REPORTS for matches in EXEMPTION_MATCHES[word].packets]


def _matches(exemption: ExemptionMatches, family: str) -> list[tuple[Match, ...]]:
    first = (_IPV4[family],) if exemption.family == "ip" else ()
    alternatives = [(*first, *matches) for matches in exemption.packets]
    if exemption.frames and family == "netdev":
        frames = exemption.frames
        right: MatchRight = frames[0] if len(frames) == 1 else _any(*frames)
        alternatives.append((Match(Meta("protocol"), right),))
    return alternatives


def exemption_counters(uplink: str, exempt: tuple[str, ...], family: str) -> tuple[str, ...]:
    """Return the counter names of an uplink's exemption rules."""
    return tuple(object_name(uplink, "exempt", word) for word in exempt if _matches(EXEMPTION_MATCHES[word], family))
