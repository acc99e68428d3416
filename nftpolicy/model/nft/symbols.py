# SPDX-License-Identifier: BSD-2-Clause
"""Symbolic constants of nft for protocols, types and flags.

Numbers are from the kernel's headers: include/uapi/linux/in.h, icmp.h, icmpv6.h, if_ether.h,
if_packet.h.
"""

from __future__ import annotations

from ...netstate import nft
from ...netstate.nft import PROTOCOL_NAMES

PKTTYPES = {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3}
ETHERTYPE_NAMES = {**{name: number for number, name in nft.ETHERTYPE_NAMES.items()}, "vlan": 0x8100}
# Types of devices, the first three being those of uplinks with link header, of PPP, and without
# any (include/uapi/linux/if_arp.h).
DEVICE_TYPES = {"ether": 1, "ppp": 512, "none": 0xFFFE, "ipip": 768, "ipip6": 769, "loopback": 772, "sit": 776}
IGMP_TYPES = {
    "membership-query": 0x11, "membership-report-v1": 0x12, "membership-report-v2": 0x16,
    "membership-report-v3": 0x22, "leave-group": 0x17,
}  # fmt: skip
PROTOCOL_NUMBERS = {
    **{name: number for number, name in PROTOCOL_NAMES.items()},
    "icmpv6": 58, "ah": 51, "udplite": 136, "dccp": 33, "comp": 108, "ipip": 4, "ipv6": 41, "ospf": 89, "vrrp": 112,
    "pim": 103, "ip": 0, "hopopt": 0,
}  # fmt: skip
ICMP_TYPES = {
    "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
    "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12,
    "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15, "info-reply": 16,
    "address-mask-request": 17, "address-mask-reply": 18,
}  # fmt: skip
ICMPV6_TYPES = {
    "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
    "echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
    "mld-listener-done": 132, "mld-listener-reduction": 132, "nd-router-solicit": 133, "nd-router-advert": 134,
    "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137, "router-renumbering": 138,
    "ind-neighbor-solicit": 141, "ind-neighbor-advert": 142, "mld2-listener-report": 143,
}  # fmt: skip
ICMPV6_CODES = {
    "no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4, "policy-fail": 5,
    "reject-route": 6,
}  # fmt: skip
TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")
