# SPDX-License-Identifier: BSD-2-Clause
"""Sysctls that the compiled state requires (kernel: Documentation/networking/ip-sysctl.rst)."""

from __future__ import annotations

from ..netstate.routing import Sysctl
from ..policy.objects import Policy

# The kernel's replies and accepted sockets get the mark of the packet that they answer, and the
# reverse path check uses the table that the mark selects.
HOST_SYSCTLS = {
    "net/ipv4/fwmark_reflect": "1",
    "net/ipv6/fwmark_reflect": "1",
    "net/ipv4/tcp_fwmark_accept": "1",
    "net/ipv4/conf/all/src_valid_mark": "1",
    # The kernel combines "all" and the device's value of these by OR, so "all" must be off.
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/all/secure_redirects": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/all/proxy_arp": "0",
    "net/ipv6/conf/all/proxy_ndp": "0",
    # Of these the kernel takes the greater one. An ARP request has no mark: what the route to its sender decides
    # would be decided by table main, which does not lead to the uplink.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/all/arp_filter": "0",
}

# Of each uplink device.
DEVICE_SYSCTLS = {
    # Routes and redirects that a neighbour sends do not change any route.
    "net/ipv4/conf/{device}/accept_redirects": "0",
    "net/ipv4/conf/{device}/secure_redirects": "0",
    "net/ipv4/conf/{device}/accept_source_route": "0",
    "net/ipv6/conf/{device}/accept_redirects": "0",
    "net/ipv6/conf/{device}/accept_source_route": "-1",
    "net/ipv6/conf/{device}/accept_ra_defrtr": "0",
    "net/ipv6/conf/{device}/accept_ra_rt_info_max_plen": "0",
    # No ARP or ND reply reveals addresses of other devices, and no redirect reveals routes. (arp_ignore 2 would also
    # ignore senders outside the subnet of the address, such as the gateway of a host with a /32.)
    "net/ipv4/conf/{device}/arp_ignore": "1",
    "net/ipv4/conf/{device}/arp_announce": "2",
    "net/ipv4/conf/{device}/proxy_arp": "0",
    "net/ipv6/conf/{device}/proxy_ndp": "0",
    "net/ipv4/conf/{device}/send_redirects": "0",
    # As for "all". The guard separates the uplink's packets instead.
    "net/ipv4/conf/{device}/rp_filter": "0",
    "net/ipv4/conf/{device}/arp_filter": "0",
    # Packets of 127.0.0.0/8 do not use the device.
    "net/ipv4/conf/{device}/route_localnet": "0",
}

# Of each device of an uplink that learns from router advertisements; they replace the values above.
# accept_ra 2: even if forwarding is on.
ROUTER_ADVERTISEMENT_SYSCTLS = {
    "net/ipv6/conf/{device}/accept_ra": "2",
    "net/ipv6/conf/{device}/accept_ra_defrtr": "1",
    "net/ipv6/conf/{device}/accept_ra_rt_info_max_plen": "64",
}


# Of each device by which the packets of a CLAT leave: the kernel answers solicitations for the address that the
# translator has, if a program named it (ip neigh add proxy).
CLAT_SYSCTLS = {"net/ipv6/conf/{device}/proxy_ndp": "1"}

# Of each device of a forward or published port, if its name is no pattern. The reverse path check looks up the
# mark (src_valid_mark), whose route leads to the uplink: 2 accepts any route to the source.
FORWARD_SYSCTL = "net/ipv4/conf/{device}/rp_filter"


def required_sysctls(policy: Policy) -> tuple[Sysctl, ...]:
    """Return the required sysctls of the host and of each uplink device."""
    host = [Sysctl(path, value) for path, value in HOST_SYSCTLS.items()]
    devices = []
    for name, uplink in policy.uplink.items():
        settings = DEVICE_SYSCTLS | ROUTER_ADVERTISEMENT_SYSCTLS if "ra" in uplink.learn else DEVICE_SYSCTLS
        origin = ("uplink", name, "devices")
        for device in uplink.devices:
            answers_for_clat = CLAT_SYSCTLS if uplink.clat and device in uplink.network_devices else {}
            values = (settings | answers_for_clat).items()
            # Paths under /proc/sys: a dot in a device name is not a separator.
            devices += [Sysctl(path.format(device=device), value, origin) for path, value in values]
    arrivals = [
        (device, ("forward", name, "from")) for name, forward in policy.forward.items() for device in forward.devices
    ]
    arrivals += [(publish.to, ("publish", name, "to")) for name, publish in policy.publish.items()]
    by_path = {
        path: Sysctl(path, "2", origin)
        for device, origin in arrivals
        if (path := FORWARD_SYSCTL.format(device=device)) and not device.endswith("*")
    }
    return (*host, *devices, *by_path.values())
