# SPDX-License-Identifier: BSD-2-Clause
"""Names, priorities and numbers of the compiled state, each defined once."""

from __future__ import annotations

import string

from ..netstate.routing import WORST_METRIC

TABLE = "nftpolicy"
FAMILIES = ("inet", "netdev")  # the guard at the IP layer, and at the link layer
BLOCK_TABLE = "nftpolicy-block"  # drops an uplink's packets; separate, so the guard stays unchanged
SHADOW_TABLE = "nftpolicy-second"  # shadow guard: a copy of the guard, writable by its owner only
PORT_BLOCK_TABLE = "nftpolicy-ports"  # drops all frames at ports whose names nft text cannot carry
AUXILIARY_TABLES = (BLOCK_TABLE, SHADOW_TABLE, PORT_BLOCK_TABLE)  # temporary; proofs of the guard do not rely on them
MISROUTED_REPLIES = "misrouted-reply"  # counter of UDP replies that a route leads inside
UNNAMED_DEVICE = "unnamed-device"  # counter of packets to devices that the policy does not name
UNROUTED_QUERIES = "dns-unrouted"  # chain and counter of DNS queries without a route that are not redirected

# Hook priorities. Connection tracking is at -200, destination NAT at -100, source NAT at 100
# (include/uapi/linux/netfilter_ipv4.h); the guard comes after every foreign base chain.
TUNNEL_PRIORITY = -151  # before the restore chain, which drops replies without a mark
ARRIVAL_PRIORITY = -149  # after foreign restores of a flow's mark at -150 (wg-quick), whichever is loaded first
RESTORE_PRIORITY = -150
REDIRECT_PRIORITY = -100
FORWARD_PRIORITY = -90
MASQUERADE_PRIORITY = 100
GUARD_PRIORITY = 10000
SHADOW_PRIORITY = GUARD_PRIORITY + 1  # after the guard, so that its counters have all packets that it drops
BLOCK_PRIORITY = 20000  # after the guard, so it also drops packets that the guard accepts

# Priorities of the ip rules: before l3mdev's 1000, mwan3's 1001 and netifd's 10000.
MARK_RULE_PRIORITY = 510
MARK_RULE_STEP = 10
LINK_LOCAL_OFFSET = -2  # IPv6 link-local destinations, before the lookup rule of each mark
UNREACHABLE_OFFSET = 5  # offset after the lookup rule of each mark
# After the marks of all uplinks, so that a mark takes precedence over a user.
USER_LINK_LOCAL_PRIORITY = 848
USER_RULE_PRIORITY = 850
USER_UNREACHABLE_PRIORITY = 855
TUNNEL_RULE_PRIORITY = 860
TUNNEL_UNREACHABLE_PRIORITY = 865
# Of their own: the kernel deletes the first rule of a priority with all given attributes, and these name no protocol.
IPSEC_RULE_PRIORITY = 861
IPSEC_UNREACHABLE_PRIORITY = 866
DEVICE_RULE_PRIORITY = 870
LAN_RULE_PRIORITY = 880
EXCLUSIVE_NETWORK_PRIORITY = 890
EXCLUSIVE_RULE_PRIORITY = 895
# Behind main (32766), default (32767) and the rules of other software, which decide for unmarked packets.
QUERY_RULE_PRIORITY = 33000
NETWORK_RULE_PRIORITY = 33090
REPLY_RULE_PRIORITY = 33100
FINAL_UNREACHABLE_PRIORITY = 40000

FIRST_GATEWAY_METRIC = 1024  # of an uplink's gateways; the kernel's default for IPv6
UNREACHABLE_METRIC = WORST_METRIC

_ACCEPT_COUNTERS = frozenset({"exempt", "lan", "answer", "forward", "publish", "clat"})  # second part of their names
_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "._-")


def mark_rule_priority(index: int) -> int:
    """Return the priority of the lookup rule of an uplink's mark; `index` is that of the uplink in the policy."""
    return MARK_RULE_PRIORITY + index * MARK_RULE_STEP


def object_name(uplink: str, *parts: str) -> str:
    """Return the name of a chain, set or counter of an uplink: "wan.exempt.arp"."""
    return ".".join((uplink, *parts))


def is_drop_counter(name: str) -> bool:
    """Return True for a counter of packets that the guard drops, False for one of packets that it accepts."""
    return _ACCEPT_COUNTERS.isdisjoint(name.split(".")[1:2])


def device_chain(device: str) -> str:
    """Return the name of the link guard's chain at a device: "device-eth0".

    A byte that an nft name cannot carry is "/" and two hexadecimal digits; "/" is in no device name.
    """
    raw = device.encode("utf-8", "surrogateescape")
    return "device-" + "".join(chr(byte) if chr(byte) in _NAME_CHARACTERS else f"/{byte:02x}" for byte in raw)
