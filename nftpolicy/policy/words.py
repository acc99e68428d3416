# SPDX-License-Identifier: BSD-2-Clause
"""The words that a policy may use, each with its reason; nftpolicy.toml(5) prints these tables."""

from __future__ import annotations

# What may leave by an uplink without its mark. What each one matches: compiler/exemptions.py.
EXEMPTIONS = {
    "arp": "IPv4 neighbours are found by ARP (RFC 826)",
    "dhcpv4": "the uplink's IPv4 address comes by DHCP (RFC 2131), whose client sends from a raw socket",
    "dhcpv6": "the uplink's IPv6 addresses may come by DHCPv6 (RFC 8415)",
    "ndp": "IPv6 neighbours and routers are found by neighbour and router solicitation (RFC 4861)",
    "mld": "switches that snoop forward IPv6 multicast only to hosts that report (RFC 3810)",
    "igmp": "switches that snoop forward IPv4 multicast only to hosts that report (RFC 3376)",
    "vxlan-mesh": "mesh neighbours on the same wire are reached by link-local VXLAN (RFC 7348)",
    "respondd": "mesh neighbours on the same wire are described by respondd (UDP port 1001, link-local)",
    "eapol": "the wire wants IEEE 802.1X authentication",
    "pppoe": "the uplink is a PPPoE session (RFC 2516)",
}

# What else the kernel itself takes from an uplink's network; compiler/sysctls.py.
LEARNED = {
    "ra": "the kernel takes default routes and others from router advertisements (RFC 4861, RFC 4191)",
}

# Inbound services by name; others are written as "tcp/PORT" or "udp/PORT".
ANSWERS = {
    "ping": "ICMP and ICMPv6 echo",
    "ssh": "tcp/22",
    "http": "tcp/80",
    "https": "tcp/443",
    "respondd": "udp/1001",
}

# Where a resolver learns the uplink's DNS servers. How each one is read: runtime/dns_sources/.
SOURCES = {
    "auto": "all of those below, as far as they are there",
    "networkd": "systemd-networkd, what DHCP and its own configuration brought (/run/systemd/netif)",
    "networkmanager": "NetworkManager, what DHCP brought (/run/NetworkManager/devices); the rest by D-Bus",
    "resolved": "systemd-resolved, what somebody told it of the device (/run/systemd/resolve/netif)",
    "dhclient": "ISC dhclient, its lease files (/var/lib/dhcp)",
    "dhcpcd": "dhcpcd, its lease files (/var/lib/dhcpcd)",
    "udhcpc": "udhcpc, a file that our hook writes (/run/nftpolicy/udhcpc)",
    "netifd": "netifd of OpenWrt, by ubus; what peerdns 0 keeps from the machine's own resolver, too",
    "ra": "router advertisements (RFC 8106), heard on the devices, for as long as they say",
}

# How the sockets of a service come by their mark.
MARKS = {
    "itself": "the program sets SO_MARK (fastd's packet mark, WireGuard's FwMark, OpenVPN's --mark)",
    "preload": "a library loaded with the program sets it (LD_PRELOAD=libpacketmark.so LIBPACKETMARK_MARK=MARK)",
    "cgroup": "a BPF program on the service's cgroup marks each socket when it is made, whatever program opens it",
    "uid-rule": "nobody does: an ip rule for its user leads to the uplink, and the guard knows the user",
}

# Keys of a service that say something of one way to mark sockets: key -> that way.
MARKS_KEYS = {"cgroup": "cgroup", "confine": "cgroup"}
