# SPDX-License-Identifier: BSD-2-Clause
"""Symbolic constants of nft for protocols, types and flags.

Numbers are from the kernel's headers: include/uapi/linux/in.h, icmp.h, icmpv6.h, if_ether.h,
if_packet.h.
"""

from __future__ import annotations

from .expressions import ETHERTYPE_NAMES, PROTOCOL_NAMES

FAMILIES = {"ipv4": 2, "ipv6": 10}  # of meta nfproto
PKTTYPES = {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3}
ETHERTYPE_NUMBERS = {**{name: number for number, name in ETHERTYPE_NAMES.items()}, "vlan": 0x8100}
# Types of devices, the first three being those of uplinks with link header, of PPP, and without
# any (include/uapi/linux/if_arp.h).
DEVICE_TYPES = {"ether": 1, "ppp": 512, "none": 0xFFFE, "ipip": 768, "ipip6": 769, "loopback": 772, "sit": 776}
IGMP_TYPES = {
    "membership-query": 0x11, "membership-report-v1": 0x12, "membership-report-v2": 0x16,
    "membership-report-v3": 0x22, "leave-group": 0x17,
}  # fmt: skip
PROTOCOL_NUMBERS = {
    **{name: number for number, name in PROTOCOL_NAMES.items()},
    "icmpv6": 58, "ah": 51, "udplite": 136, "dccp": 33, "comp": 108, "ipip": 4, "ipencap": 4, "ipv6": 41, "ospf": 89,
    "vrrp": 112, "pim": 103, "ip": 0, "hopopt": 0,
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
ARP_OPERATIONS = {"request": 1, "reply": 2}
# Bits of `ct state` and `ct status` (include/uapi/linux/netfilter/nf_conntrack_common.h).
CT_STATE_BITS = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
CT_STATUS_BITS = {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32, "dying": 512}
CT_DIRECTIONS = {"original": 0, "reply": 1}
TCP_OPTIONS = {
    "eol": 0, "nop": 1, "maxseg": 2, "window": 3, "sack-perm": 4, "sack": 5, "timestamp": 8, "md5sig": 19, "mptcp": 30,
    "fastopen": 34,
}  # fmt: skip
TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")
TCP_FLAG_BITS = {name: 1 << bit for bit, name in enumerate(TCP_FLAGS)}


def names_by_number(symbols: dict[str, int]) -> dict[int, str]:
    """Return the name of each number: of several, the first, which is the one that nft lists."""
    return {number: name for name, number in reversed(symbols.items())}
