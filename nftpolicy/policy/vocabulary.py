# SPDX-License-Identifier: BSD-2-Clause
"""Vocabulary of policy files: the values of each enumerated key, with descriptions.

nftpolicy.toml(5) prints these tables.
"""

from __future__ import annotations

# Packets that may leave by an uplink without its mark. Their matches: compiler/exemptions.py.
EXEMPTIONS = {
    "arp": "IPv4 neighbours are found by ARP (RFC 826)",
    "dhcpv4": "the uplink's IPv4 address comes by DHCP (RFC 2131); its client sends from a raw socket",
    "dhcpv4-unicast": "the DHCP client fails if it cannot renew its lease by unicast (RFC 2131 4.4.5)",
    "dhcpv4-server": "hosts of the uplink's network get their addresses from this machine (RFC 2131)",
    "dhcpv6": "the uplink's IPv6 addresses may come by DHCPv6 (RFC 8415)",
    "dhcpv6-server": "hosts of the uplink's network get their configuration from this machine (RFC 8415)",
    "ndp": "IPv6 neighbours and routers are found by neighbour and router solicitation (RFC 4861)",
    "mld": "switches that snoop forward IPv6 multicast only to hosts that report (RFC 3810)",
    "igmp": "switches that snoop forward IPv4 multicast only to hosts that report (RFC 3376)",
    "vxlan-mesh": "mesh neighbours on the same wire are reached by link-local VXLAN (RFC 7348)",
    "respondd": "mesh neighbours on the same wire are described by respondd (UDP port 1001, link-local)",
    "mdns": "names and services on the uplink's own network are found by multicast DNS (RFC 6762)",
    "ssdp": "devices on the uplink's own network are found by SSDP (UPnP)",
    "eapol": "the wire requires IEEE 802.1X authentication",
    "pppoe": "the uplink is a PPPoE session (RFC 2516)",
    "lldp": "switches learn which machine is at their port (IEEE 802.1AB)",
    "stp": "switches find loops by the spanning tree protocol (IEEE 802.1D)",
    "lacp": "the uplink is a link aggregation (IEEE 802.1AX), or has OAM of Ethernet: the slow protocols",
    "ptp": "clocks on the wire are synchronized by frames (IEEE 1588)",
    "mpls": "the uplink carries labelled packets (RFC 3032)",
    "batman-adv": "mesh neighbours on the same wire are reached by batman-adv without VXLAN",
    "wake-on-lan": "hosts on the wire are woken by frames of their own ethertype",
}

# Networks whose addresses no host on the Internet has (RFC 1918, RFC 3927; RFC 4193), and the link's own.
PRIVATE_NETWORKS = {
    4: ("10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    6: ("fc00::/7",),
}
# Networks that are not globally reachable (IANA special-purpose address registries, RFC 6890): those, shared address
# space, protocol assignments, benchmarking, documentation, reserved; NAT64 by local choice, discard-only, benchmarking,
# ORCHID, documentation, segment routing, and the former site-local addresses (RFC 3879).
NOT_GLOBAL_NETWORKS = {
    4: (
        *PRIVATE_NETWORKS[4],
        *("100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
    ),
    6: (
        *PRIVATE_NETWORKS[6],
        *("64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001:2::/48", "2001:10::/28"),
        *("2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10"),
    ),
}
LINK_LOCAL_NETWORK = "fe80::/10"  # RFC 4291; those of IPv4 are private ones
# Groups whose packets stay in the link or the site, and the limited broadcast (RFC 5771 4, RFC 2365 6.1, RFC 919 7;
# RFC 4291 2.7).
LOCAL_GROUPS = {4: ("224.0.0.0/24", "239.255.0.0/16", "255.255.255.255"), 6: ("ff02::/16", "ff05::/16")}

# Configuration that the kernel itself accepts from an uplink's network; compiler/sysctls.py.
LEARN_SOURCES = {
    "ra": "the kernel accepts default and other routes from router advertisements (RFC 4861, RFC 4191)",
}

# Inbound services by name; others are written as "tcp/PORT" or "udp/PORT".
NAMED_ANSWERS = {
    "ping": "ICMP and ICMPv6 echo",
    "ssh": "tcp/22",
    "http": "tcp/80",
    "https": "tcp/443",
    "respondd": "udp/1001",
}

# Inbound services that cannot be answered, and why.
UNSUPPORTED_ANSWERS = {
    "tftp": "a TFTP server answers from another port than the one that was asked (RFC 1350 4), so its answers are no "
    "replies but to the conntrack helper 'tftp', which the guard does not rely on; let the server answer from one port "
    '(dnsmasq --tftp-single-port) and answer "udp/69", or give it a [lan.NAME] with its user',
}

# Protocols of the kernel's tunnels, whose packets no process without CAP_NET_RAW can send.
TUNNEL_PROTOCOLS = {
    "ipip": "IP protocol 4, IPv4 in IPv4 or IPv6 (RFC 2003, RFC 2473)",
    "6in4": "IP protocol 41, IPv6 in IPv4 or IPv6 (RFC 4213, RFC 2473)",
    "gre": "IP protocol 47 (RFC 2784)",
    "esp": "IP protocol 50, IPsec in tunnel mode (RFC 4303)",
    "l2tp": "data packets of L2TP over IP, protocol 115 (RFC 3931 4.1.1)",
}

# Other protocols, and what to write in their place or why there is nothing.
UNSUPPORTED_TUNNELS = {
    "ah": "IPsec authenticates by ESP too; use it without encryption, or write 'esp'",
    "ipcomp": "compression is no tunnel; leave it out of the proposals of IPsec",
    "icmp": "write 'ping' for echo requests; a service without 'ports' may send other types, too",
}

# Protocols of routers without ports -> their groups (RFC 9568, RFC 5340, RFC 7761, RFC 7868; CARP has those of VRRP).
GROUP_PROTOCOLS = {
    "vrrp": ("224.0.0.18", "ff02::12"),
    "carp": ("224.0.0.18", "ff02::12"),
    "ospf": ("224.0.0.5", "224.0.0.6", "ff02::5", "ff02::6"),
    "pim": ("224.0.0.13", "ff02::d"),
    "eigrp": ("224.0.0.10", "ff02::a"),
}

# Sources of the uplink's DNS servers. How each one is read: runtime/resolver/sources/.
DNS_SOURCES = {
    "auto": "all sources below that exist on this machine",
    "networkd": "systemd-networkd, from DHCP and its own configuration (/run/systemd/netif)",
    "networkmanager": "NetworkManager, from DHCP (/run/NetworkManager/devices); the rest by D-Bus",
    "resolved": "systemd-resolved, as configured for the device (/run/systemd/resolve/netif)",
    "dhclient": "ISC dhclient, its lease files (/var/lib/dhcp)",
    "dhcpcd": "dhcpcd, its lease files (/var/lib/dhcpcd)",
    "udhcpc": "udhcpc, a file that nftpolicy's hook writes (/run/nftpolicy/udhcpc)",
    "netifd": "netifd of OpenWrt, by ubus; including servers that peerdns 0 hides from the system resolver",
    "ra": "router advertisements (RFC 8106) received on the devices, for their lifetime",
}

# How the sockets of a service get their mark.
MARKS_VALUES = {
    "itself": "the program sets SO_MARK (fastd's packet mark, WireGuard's FwMark, OpenVPN's --mark)",
    "preload": "a library loaded with the program sets it (LD_PRELOAD=libpacketmark.so LIBPACKETMARK_MARK=MARK)",
    "cgroup": "a BPF program on the service's cgroup marks each new socket, of any program",
    "uid-rule": "no mark: an ip rule for its user selects the uplink, and the guard matches the user",
}

# Keys of a service that belong to one value of `marks`: key -> that value.
KEYS_OF_MARKS_VALUE = {"cgroup": "cgroup", "confine": "cgroup"}
