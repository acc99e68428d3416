# SPDX-License-Identifier: BSD-2-Clause
"""Every name and number that the compiled state is known by, each written once."""

from __future__ import annotations

TABLE = "nftpolicy"
FAMILIES = ("inet", "netdev")  # the guard at the IP layer, and at the link layer
BLOCK_TABLE = "nftpolicy-block"  # what stops an uplink for a while, apart, so that neither touches the other
SECOND_TABLE = "nftpolicy-second"  # a copy of the guard that only its owner can change
ASIDE = (BLOCK_TABLE, SECOND_TABLE)  # what stands beside the guard for a time, and proves nothing about it
UNKNOWN_DEVICE = "unknown-device"  # the counter of packets to devices that the policy does not name

# Hook priorities. Connection tracking is at -200, destination NAT at -100, source NAT at 100
# (include/uapi/linux/netfilter_ipv4.h); the guard comes after everything that others hook.
ARRIVAL = -150
RESTORE = -150
REDIRECT = -100
GUARD = 10000
BLOCK = 20000  # behind the guard: whatever gets past that one

# The ladder. Before l3mdev's 1000, mwan3's 1001 and netifd's 10000.
LINK_LOCAL_TO_MAIN = 500
FIRST_MARK = 510
MARK_STEP = 10
MARK_UNREACHABLE = 5  # behind each mark's own rule
# Behind the marks of all uplinks, so that a mark decides before a user does.
USER_TO_TABLE = 850
USER_UNREACHABLE = 855
ALL_TO_MAIN = 900
ALL_UNREACHABLE = 910

FIRST_METRIC = 1024  # of an uplink's gateways, as the kernel itself takes for IPv6
# The worst metric that both families take for a route of ours; 0xffffffff is IPv6's own null route.
LAST_METRIC = 0xFFFFFFFE


def of(uplink: str, *parts: str) -> str:
    """The name of a chain, set or counter that belongs to an uplink: "wan.exempt.arp"."""
    return ".".join((uplink, *parts))
