# SPDX-License-Identifier: BSD-2-Clause
"""Matches of each exemption of a policy, at the IP layer and at the link layer.

The keywords and their reasons are in policy/vocabulary.py; a test keeps both tables consistent.
"""

from __future__ import annotations

from attrs import frozen

from ..netstate.nft import (
    ACCEPT,
    AnonymousSet,
    Chain,
    CounterRef,
    Match,
    MatchRight,
    Meta,
    Payload,
    RawPayload,
    Rule,
    Verdict,
)
from ..policy.vocabulary import LINK_LOCAL_NETWORK, PRIVATE_NETWORKS
from .matches import HAS_OWNER
from .object_names import object_name

LINK_LOCAL, LINK_LOCAL_GROUPS = LINK_LOCAL_NETWORK, "ff02::/16"


def _is(protocol: str, field: str, value: MatchRight) -> Match:
    return Match(Payload(protocol, field), value)


def _any(*values: int | str) -> MatchRight:
    return values[0] if len(values) == 1 else AnonymousSet(frozenset(values))


@frozen
class ExemptionMatches:
    """Matches of one exemption.

    `packets`: alternatives; all matches of an alternative have to match. `kernel_packets`: more
    alternatives, for packets that no process sends. `frames`: ethertypes, any if there are none; their
    frames pass if `frame_form` matches.
    """

    packets: tuple[tuple[Match, ...], ...] = ()
    kernel_packets: tuple[tuple[Match, ...], ...] = ()
    frames: tuple[int | str, ...] = ()
    frame_form: tuple[Match, ...] = ()


_FROM_LINK_LOCAL = _is("ip6", "saddr", LINK_LOCAL)
_FROM_LINK = _is("ip6", "saddr", _any("::", LINK_LOCAL))
_TO_NEIGHBOURS = _is("ip6", "daddr", _any(LINK_LOCAL, LINK_LOCAL_GROUPS))
_TO_HOSTS = "1.0.0.0-223.255.255.255"  # neither this network nor a group nor reserved


def _ports(source: int, destination: int) -> tuple[Match, ...]:
    return (_is("udp", "sport", source), _is("udp", "dport", destination))


_DHCPV4 = _ports(68, 67)
_TO_DHCPV4_CLIENTS = (_is("ip", "daddr", _any(_TO_HOSTS, "255.255.255.255")), *_ports(67, 68))
_IS_NEIGHBOUR_DISCOVERY = _is("ip6", "hoplimit", 255)
_CODE_0 = _is("icmpv6", "code", 0)
# All nodes and all routers, and the solicited-node groups.
_DISCOVERY_GROUPS = ("ff02::1-ff02::2", "ff02::1:ff00:0/104")


# An ARP packet for IPv4 on Ethernet (RFC 826), without padding and without other bytes behind it: 14 bytes of link
# header and 28 bytes. Hardware type 1, protocol type IPv4, addresses of 6 and 4 bytes.
_ARP_LENGTH = Match(Meta("length"), 14 + 28)
_ARP_FORMAT = Match(RawPayload("nh", 0, 48), 0x0001_0800_06_04)


def _mld(group: str, *types: str) -> tuple[Match, ...]:
    return (_is("ip6", "hoplimit", 1), _FROM_LINK, _is("ip6", "daddr", group), _is("icmpv6", "type", _any(*types)))


def _igmp(group: str, *types: str) -> tuple[Match, ...]:
    return (_is("ip", "ttl", 1), _is("ip", "daddr", group), _is("igmp", "type", _any(*types)))


def _local_discovery(port: int, group: str, *groups: str) -> tuple[tuple[Match, ...], ...]:
    """Return packets to the groups of a protocol, and its unicast answers: from its port, to local addresses."""
    from_port, to_port = _is("udp", "sport", port), _is("udp", "dport", port)
    return (
        (_is("ip", "daddr", group), to_port),
        (_is("ip6", "daddr", _any(*groups)), to_port),
        (_is("ip", "daddr", _any(*PRIVATE_NETWORKS[4])), from_port),
        (_is("ip6", "daddr", _any(*PRIVATE_NETWORKS[6], LINK_LOCAL)), from_port),
    )


# A frame with its length in place of an ethertype (IEEE 802.3 3.2.6), and the LLC header of the spanning tree
# protocol (IEEE 802.1D 7.12.3): its SAP twice, unnumbered information.
_STP_FORM = (Match(Payload("ether", "type"), 0x0600, "<"), Match(RawPayload("nh", 0, 24), 0x42_42_03))

# Fields of one header are in the order of their offsets, as the kernel lists them.
EXEMPTION_MATCHES: dict[str, ExemptionMatches] = {
    "arp": ExemptionMatches(frames=("arp",), frame_form=(_ARP_LENGTH, _ARP_FORMAT)),
    "dhcpv4": ExemptionMatches(((_is("ip", "daddr", "255.255.255.255"), *_DHCPV4),)),
    "dhcpv4-unicast": ExemptionMatches(((_is("ip", "daddr", _TO_HOSTS), *_DHCPV4),)),
    # An offer goes to all, or to the address that the client will have.
    "dhcpv4-server": ExemptionMatches((_TO_DHCPV4_CLIENTS,)),
    "dhcpv6": ExemptionMatches(((_FROM_LINK_LOCAL, _is("ip6", "daddr", "ff02::1:2"), *_ports(546, 547)),)),
    "dhcpv6-server": ExemptionMatches(((_FROM_LINK_LOCAL, _is("ip6", "daddr", LINK_LOCAL), *_ports(547, 546)),)),
    # Solicitations and neighbour advertisements; neither router advertisements nor redirects. The
    # kernel also asks and answers neighbours by their global addresses.
    "ndp": ExemptionMatches(
        (
            (
                _IS_NEIGHBOUR_DISCOVERY,
                _is("ip6", "daddr", _any(LINK_LOCAL, *_DISCOVERY_GROUPS)),
                _is("icmpv6", "type", _any("nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert")),
                _CODE_0,
            ),
        ),
        (
            (
                _IS_NEIGHBOUR_DISCOVERY,
                Match(Payload("ip6", "daddr"), "ff00::/8", "!="),
                _is("icmpv6", "type", _any("nd-neighbor-solicit", "nd-neighbor-advert")),
                _CODE_0,
            ),
        ),
    ),
    # Version 2 to its own group; version 1 to the group that it reports, and to all routers.
    "mld": ExemptionMatches(
        (
            _mld("ff02::16", "mld2-listener-report"),
            _mld("ff02::2", "mld-listener-done"),
            _mld(LINK_LOCAL_GROUPS, "mld-listener-report"),
        )
    ),
    "igmp": ExemptionMatches(
        (
            _igmp("224.0.0.22", "membership-report-v3"),
            _igmp("224.0.0.2", "leave-group"),
            _igmp("224.0.0.0/4", "membership-report-v1", "membership-report-v2"),
        )
    ),
    "vxlan-mesh": ExemptionMatches(((_FROM_LINK_LOCAL, _TO_NEIGHBOURS, _is("udp", "dport", 4789)),)),
    "respondd": ExemptionMatches(
        tuple((_FROM_LINK_LOCAL, _TO_NEIGHBOURS, _is("udp", end, 1001)) for end in ("sport", "dport")),
    ),
    "mdns": ExemptionMatches(_local_discovery(5353, "224.0.0.251", "ff02::fb")),
    "ssdp": ExemptionMatches(_local_discovery(1900, "239.255.255.250", "ff02::c", "ff05::c")),
    "eapol": ExemptionMatches(frames=(0x888E,)),
    "pppoe": ExemptionMatches(frames=(0x8863, 0x8864)),
    "lldp": ExemptionMatches(frames=(0x88CC,)),
    "stp": ExemptionMatches(frame_form=_STP_FORM),
    "lacp": ExemptionMatches(frames=(0x8809,)),
    "ptp": ExemptionMatches(frames=(0x88F7,)),
    "mpls": ExemptionMatches(frames=(0x8847, 0x8848)),
    "batman-adv": ExemptionMatches(frames=(0x4305,)),
    "wake-on-lan": ExemptionMatches(frames=(0x0842,)),
}

# The link header as the frame has it; `meta protocol` is what the sender says, also of an AF_PACKET
# socket.
FRAME_TYPE, _SAID_TYPE = Payload("ether", "type"), Meta("protocol")
IP_PROTOCOLS = ("ip", "ip6")
_ARPHRD_ETHER = 1  # include/uapi/linux/if_arp.h


def exemption_rules(uplink: str, exempt: tuple[str, ...]) -> tuple[Rule, ...]:
    """Return the rules of an uplink's exemptions for IP packets."""
    origin = ("uplink", uplink, "exempt")
    rules = []
    for word in exempt:
        passes = (CounterRef(object_name(uplink, "exempt", word)), ACCEPT)
        exemption = EXEMPTION_MATCHES[word]
        rules += [Rule((*matches, *passes), origin=origin) for matches in exemption.packets]
        to_kernel = Verdict("jump", _kernel_chain_name(uplink, word))
        rules += [Rule((*matches, to_kernel), origin=origin) for matches in exemption.kernel_packets]
    return tuple(rules)


def _kernel_chain_name(uplink: str, word: str) -> str:
    return object_name(uplink, "kernel", word)


def kernel_chains(uplink: str, exempt: tuple[str, ...]) -> tuple[Chain, ...]:
    """Return the chains that accept packets of the kernel: those without a socket of a process."""
    origin = ("uplink", uplink, "exempt")
    return tuple(
        Chain(
            _kernel_chain_name(uplink, word),
            (
                Rule((HAS_OWNER, Verdict("return")), origin=origin),
                Rule((CounterRef(object_name(uplink, "exempt", word)), ACCEPT), origin=origin),
            ),
            origin=origin,
        )
        for word in exempt
        if EXEMPTION_MATCHES[word].kernel_packets
    )


def frame_rules(uplink: str, exempt: tuple[str, ...]) -> tuple[Rule, ...]:
    """Return the rules of an uplink's exemptions for frames of other ethertypes."""
    rules = []
    for word in exempt:
        frames, form = EXEMPTION_MATCHES[word].frames, EXEMPTION_MATCHES[word].frame_form
        if frames or form:
            passes = (CounterRef(object_name(uplink, "exempt", word)), ACCEPT)
            is_form = (*([Match(FRAME_TYPE, _any(*frames))] if frames else []), *form)
            rules.append(Rule((*is_form, *passes), origin=("uplink", uplink, "exempt")))
    return tuple(rules)


def bpdu_rules(uplink: str) -> tuple[Rule, ...]:
    """Return the rules of a port that accept the frames of the spanning tree protocol that no process sends.

    A bridge sends them by its ports only (br_send_bpdu in net/bridge/br_stp_bpdu.c).
    """
    origin = ("uplink", uplink, "stp")
    of_process = Rule((*_STP_FORM, HAS_OWNER, Verdict("goto", object_name(uplink, "link"))), origin=origin)
    return of_process, Rule((*_STP_FORM, ACCEPT), origin=origin)


def exempt_protocols(exempt: tuple[str, ...]) -> tuple[str, ...]:
    """Return the IP protocols of the packets of exemptions, of "ip" and "ip6"."""
    exemptions = (EXEMPTION_MATCHES[word] for word in exempt)
    packets = [matches for each in exemptions for matches in (*each.packets, *each.kernel_packets)]
    headers = {match.left.protocol for matches in packets for match in matches if isinstance(match.left, Payload)}
    return tuple(name for name in IP_PROTOCOLS if name in headers)


def ip_frame_rules(verdict: Verdict, protocols: tuple[str, ...] = IP_PROTOCOLS) -> tuple[Rule, ...]:
    """Return rules that apply a verdict to frames that are IP packets, whatever their sender says.

    A device without link header (PPP, a tunnel) sends what `meta protocol` says.
    """
    said_and_done = tuple(Rule((Match(_SAID_TYPE, name), Match(FRAME_TYPE, name), verdict)) for name in protocols)
    if not protocols:
        return ()
    return (Rule((Match(Meta("oiftype"), _ARPHRD_ETHER, "!="), verdict)), *said_and_done)


# Membership reports of the kernel can have any mark: skb->mark shares its memory with
# reserved_tailroom (include/linux/skbuff.h), which depends on the device's MTU.
MEMBERSHIP_REPORTS = ("mld", "igmp")


def report_exemptions(exempt: tuple[str, ...]) -> tuple[str, ...]:
    """Return the exemptions of packets that may have a mark which no rule or socket set."""
    return tuple(word for word in exempt if word in MEMBERSHIP_REPORTS)


def report_matches() -> list[tuple[Match, ...]]:
    """Return the matches of membership reports, independent of the policy's exemptions."""
    return [matches for word in MEMBERSHIP_REPORTS for matches in EXEMPTION_MATCHES[word].packets]


def exemption_counters(uplink: str, exempt: tuple[str, ...], family: str) -> tuple[str, ...]:
    """Return the counter names of an uplink's exemption rules in a table of `family` ("inet" or "netdev")."""
    words = (word for word in exempt if family == "netdev" or EXEMPTION_MATCHES[word].packets)
    return tuple(object_name(uplink, "exempt", word) for word in words)
