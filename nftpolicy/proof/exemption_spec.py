# SPDX-License-Identifier: BSD-2-Clause
"""Specification of the exemptions: headers and frames, each from the standard that defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..model.packet import ICMPV6, IGMP, UDP, address_range
from ..model.symbolic.box import Ranges, complement, merge_ranges, points
from .spec import ExemptionSpec, Region

_LINK_LOCAL, _ALL_GROUPS4, _ALL_GROUPS6 = "fe80::/10", "224.0.0.0/4", "ff02::/16"
# RFC 6890: private use, link-local. RFC 4193, RFC 4291.
NOT_GLOBAL = {
    4: ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
    6: ("fc00::/7", _LINK_LOCAL),
}
# RFC 5771 4, RFC 2365 6.1, RFC 919 7: packets to these stay in the link or the site. RFC 4291 2.7: link, site.
LOCAL_GROUPS = {4: ("224.0.0.0/24", "239.255.0.0/16", "255.255.255.255"), 6: (_ALL_GROUPS6, "ff05::/16")}
_UNSPECIFIED, _LAST_ADDRESS6 = "::", (1 << 128) - 1


def _udp(family: int, **fields: Ranges) -> Region:
    return Region({"protocol": points(UDP), "fragment": points(0), **fields})


def _address_range(prefix: str) -> Ranges:
    return (address_range(prefix, 6 if ":" in prefix else 4),)


def _link_local_udp(**fields: Ranges) -> tuple[Region, ...]:
    """Return UDP packets between link-local neighbours."""
    neighbours = _address_range(_LINK_LOCAL)
    destinations = merge_ranges([*neighbours, *_address_range(_ALL_GROUPS6)])
    return (_udp(6, saddr=neighbours, daddr=destinations, **fields),)


def _dhcpv4(destinations: str) -> tuple[Region, ...]:
    """Return packets of a DHCP client (RFC 2131 4.1): from port 68 to port 67."""
    return (_udp(4, sport=points(68), dport=points(67), daddr=_address_range(destinations)),)


def address_ranges(*prefixes: str) -> Ranges:
    """Return the addresses of prefixes and of ranges "first-last"."""
    return merge_ranges(span for prefix in prefixes for span in _address_range(prefix))


def _neighbour_discovery(types: Sequence[int], **fields: Ranges) -> Region:
    """Return messages with hop limit 255 and code 0 (RFC 4861 6.1.1, 7.1.1 and 7.1.2)."""
    return icmpv6_regions(types, ttl=points(255), icmpv6_code=points(0), **fields)[0]


def _mld(message_type: int, group: str) -> Region:
    """Return messages with hop limit 1 from a link-local address, or from none yet (RFC 3590 4)."""
    senders = address_ranges(_UNSPECIFIED, _LINK_LOCAL)
    return icmpv6_regions((message_type,), ttl=points(1), saddr=senders, daddr=_address_range(group))[0]


def _igmp(types: Sequence[int], group: str) -> Region:
    """Return messages with TTL 1 (RFC 3376 4)."""
    destinations = _address_range(group)
    fields = {"protocol": points(IGMP), "fragment": points(0), "ttl": points(1), "daddr": destinations}
    return Region({**fields, "igmp.type": points(*types)})


def icmpv6_regions(types: Sequence[int], **fields: Ranges) -> tuple[Region, ...]:
    """Return the ICMPv6 messages of these types. In keywords, _ stands for the dot of a field."""
    named = {name.replace("_", ".", 1): ranges for name, ranges in fields.items()}
    return (Region({"protocol": points(ICMPV6), "fragment": points(0), "icmpv6.type": points(*types), **named}),)


def _ethertypes(*ethertypes: int) -> tuple[Region, ...]:
    return (Region({"ether.type": points(*ethertypes)}),)


def _local_discovery(port: int, groups: Mapping[int, Sequence[str]]) -> Mapping[int, tuple[Region, ...]]:
    """Return queries and answers to groups, and answers to hosts with addresses that are not global."""
    return {
        family: (
            _udp(family, daddr=address_ranges(*groups[family]), dport=points(port)),
            _udp(family, daddr=address_ranges(*hosts), sport=points(port)),
        )
        for family, hosts in NOT_GLOBAL.items()
    }


# Headers and frames of each exemption, with the standard that defines them.
EXEMPTIONS: dict[str, tuple[Mapping[int, tuple[Region, ...]], tuple[Region, ...]]] = {
    "arp": ({}, _ethertypes(0x0806)),
    # RFC 2131 4.1 and 4.4: a client has no unicast address of a server before it has a lease, and
    # rebinds by broadcast.
    "dhcpv4": ({4: _dhcpv4("255.255.255.255")}, ()),
    # RFC 2131 4.4.5: it renews its lease by unicast to the server.
    "dhcpv4-unicast": ({4: _dhcpv4("1.0.0.0-223.255.255.255")}, ()),
    # RFC 2131 4.1: a server sends from its port to the port of clients, to all or to the client's new address.
    "dhcpv4-server": (
        {
            4: tuple(
                _udp(4, sport=points(67), dport=points(68), daddr=_address_range(hosts))
                for hosts in ("255.255.255.255", "1.0.0.0-223.255.255.255")
            )
        },
        (),
    ),
    # RFC 8415 7: a server answers a client at its link-local address.
    "dhcpv6-server": (
        {
            6: (
                _udp(
                    6,
                    saddr=_address_range(_LINK_LOCAL),
                    daddr=_address_range(_LINK_LOCAL),
                    sport=points(547),
                    dport=points(546),
                ),
            )
        },
        (),
    ),
    # RFC 8415 7 and 16: from a link-local address and port 546, to port 547 of all servers and relay agents.
    "dhcpv6": (
        {
            6: (
                _udp(
                    6,
                    saddr=_address_range(_LINK_LOCAL),
                    daddr=_address_range("ff02::1:2"),
                    sport=points(546),
                    dport=points(547),
                ),
            )
        },
        (),
    ),
    # RFC 4861 4.1, 4.3, 4.4: solicitations and neighbour advertisements, to link-local addresses, all
    # nodes, all routers and solicited-node groups. RFC 4861 7.2.4, 7.3.3: also to an on-link address
    # of a neighbour; only the kernel knows which ones are, so it must send these itself.
    "ndp": (
        {
            6: (
                _neighbour_discovery(
                    (133, 135, 136), daddr=address_ranges(_LINK_LOCAL, "ff02::1", "ff02::2", "ff02::1:ff00:0/104")
                ),
                _neighbour_discovery(
                    (135, 136), daddr=complement(_address_range("ff00::/8"), _LAST_ADDRESS6), socket=points(0)
                ),
            )
        },
        (),
    ),
    # RFC 3810 5.2.14: version 2 reports. RFC 2710 8: done to all routers, reports to the group itself.
    "mld": ({6: (_mld(143, "ff02::16"), _mld(132, "ff02::2"), _mld(131, _ALL_GROUPS6))}, ()),
    # RFC 3376 4.2.14: version 3 reports. RFC 2236 9: leave to all routers, reports to the group itself.
    "igmp": ({4: (_igmp((0x22,), "224.0.0.22"), _igmp((0x17,), "224.0.0.2"), _igmp((0x12, 0x16), _ALL_GROUPS4))}, ()),
    "vxlan-mesh": ({6: _link_local_udp(dport=points(4789))}, ()),
    "respondd": ({6: (*_link_local_udp(sport=points(1001)), *_link_local_udp(dport=points(1001)))}, ()),
    # RFC 6762 3, 6.7, 20: from any port to the group; to a host, an answer from the port of multicast DNS.
    "mdns": (_local_discovery(5353, {4: ["224.0.0.251"], 6: ["ff02::fb"]}), ()),
    # UPnP Device Architecture 2.0, 1.1.2, 1.3.3 and annex A.
    "ssdp": (_local_discovery(1900, {4: ["239.255.255.250"], 6: ["ff02::c", "ff05::c"]}), ()),
    "eapol": ({}, _ethertypes(0x888E)),  # IEEE 802.1X 11.1.4
    "pppoe": ({}, _ethertypes(0x8863, 0x8864)),  # RFC 2516 4
    "lldp": ({}, _ethertypes(0x88CC)),  # IEEE 802.1AB 7.4
    # IEEE 802.3 3.2.6, IEEE 802.1D 7.12.3: a frame with its length, and LLC with the SAP of the protocol.
    "stp": ({}, (Region({"ether.type": ((0, 0x05FF),), "llc": points(0x42_42_03)}),)),
    "lacp": ({}, _ethertypes(0x8809)),  # IEEE 802.3 57A.4
    "ptp": ({}, _ethertypes(0x88F7)),  # IEEE 1588 annex F
    "mpls": ({}, _ethertypes(0x8847, 0x8848)),  # RFC 3032 5, RFC 5332 4
    "batman-adv": ({}, _ethertypes(0x4305)),  # ETH_P_BATMAN, include/uapi/linux/if_ether.h
    "wake-on-lan": ({}, _ethertypes(0x0842)),
}
REPORT_EXEMPTIONS = ("mld", "igmp")


def exemption(name: str, uplink: str = "") -> ExemptionSpec:
    """Return the packets that an exemption allows.

    Raises:
        KeyError: no exemption has this name.
    """
    headers, frames = EXEMPTIONS[name]
    return ExemptionSpec(name, ("uplink", uplink, "exempt"), headers, frames, name in REPORT_EXEMPTIONS)
