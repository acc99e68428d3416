# SPDX-License-Identifier: BSD-2-Clause
"""The sysctls that the compiled state rests on (kernel: Documentation/networking/ip-sysctl.rst)."""

from __future__ import annotations

from ..netstate.routing import Sysctl
from ..policy.objects import Policy

# Replies of the kernel and accepted sockets carry the mark of what they answer, and the reverse
# path check asks the table that the mark leads to.
MACHINE = {
    "net/ipv4/fwmark_reflect": "1",
    "net/ipv6/fwmark_reflect": "1",
    "net/ipv4/tcp_fwmark_accept": "1",
    "net/ipv4/conf/all/src_valid_mark": "1",
    # The kernel takes "all" or the device's own value for these, so that "all" must not be on.
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/all/secure_redirects": "0",
    "net/ipv4/conf/all/send_redirects": "0",
}

# For each uplink device.
DEVICE = {
    # No route and no redirect that a neighbour sends changes where anything goes.
    "net/ipv4/conf/{device}/accept_redirects": "0",
    "net/ipv4/conf/{device}/secure_redirects": "0",
    "net/ipv4/conf/{device}/accept_source_route": "0",
    "net/ipv6/conf/{device}/accept_redirects": "0",
    "net/ipv6/conf/{device}/accept_source_route": "-1",
    "net/ipv6/conf/{device}/accept_ra_defrtr": "0",
    "net/ipv6/conf/{device}/accept_ra_rt_info_max_plen": "0",
    # Nothing is said of the addresses of other devices, nor of routes.
    "net/ipv4/conf/{device}/arp_ignore": "2",
    "net/ipv4/conf/{device}/arp_announce": "2",
    "net/ipv4/conf/{device}/proxy_arp": "0",
    "net/ipv6/conf/{device}/proxy_ndp": "0",
    "net/ipv4/conf/{device}/send_redirects": "0",
    # ARP questions carry no mark, so that the reverse path check would look for their senders in the
    # main table. It is the guard that keeps the uplink's packets apart.
    "net/ipv4/conf/{device}/rp_filter": "0",
    # 127.0.0.0/8 stays at home.
    "net/ipv4/conf/{device}/route_localnet": "0",
}

# For each device of an uplink that learns from router advertisements, in the place of those above. 2: also
# where the machine forwards.
BY_ROUTER = {
    "net/ipv6/conf/{device}/accept_ra": "2",
    "net/ipv6/conf/{device}/accept_ra_defrtr": "1",
    "net/ipv6/conf/{device}/accept_ra_rt_info_max_plen": "64",
}


def sysctls(policy: Policy) -> tuple[Sysctl, ...]:
    """All of them, with the policy's devices filled in."""
    machine = [Sysctl(path, value) for path, value in MACHINE.items()]
    devices = [
        # A dot in a device's name is no separator: the path is the one under /proc/sys.
        Sysctl(path.format(device=device), value, ("uplink", name, "devices"))
        for name, uplink in policy.uplink.items()
        for device in uplink.devices
        for path, value in (DEVICE | BY_ROUTER if "ra" in uplink.learn else DEVICE).items()
    ]
    return (*machine, *devices)
