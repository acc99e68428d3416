# SPDX-License-Identifier: BSD-2-Clause
"""systemd-networkd: systemd.network(5), networkd.conf(5)."""

from __future__ import annotations

from ...generated_text import device_name, fill, own_text
from ...policy.objects import Policy
from .generated_file import GeneratedFile, header_line, uplink_devices

_DAEMON = """\
{head}
[Network]
# Without these, networkd deletes ip rules and routes of other programs.
ManageForeignRoutingPolicyRules=no
ManageForeignRoutes=no
"""
_DEVICE = """\
{head}
# networkd uses only the first file that matches a device, in the order of their names. If another file configures
# this device, such as its address, make this file a drop-in of it: NAME.network.d/nftpolicy.conf.
[Match]
Name={device}

[Network]
DHCP=yes
IPv6AcceptRA=yes
LLMNR=no
MulticastDNS=no
DNSDefaultRoute=no

[DHCPv4]
RouteTable={table}
UseGateway=yes
UseRoutes=yes
UseDNS=no
UseDomains=no
UseNTP=no

[IPv6AcceptRA]
RouteTable={table}
UseDNS=no
UseDomains=no

[DHCPv6]
UseDNS=no
UseNTP=no
"""


def files(policy: Policy) -> tuple[GeneratedFile, ...]:
    """Return a file for the daemon, and one for each device."""
    return (
        GeneratedFile(own_text("/etc/systemd/networkd.conf.d/nftpolicy.conf"), fill(_DAEMON, head=header_line(policy))),
        *(
            GeneratedFile(
                fill("/etc/systemd/network/05-nftpolicy-{device}.network", device=device_name(device)),
                fill(_DEVICE, head=header_line(policy), device=device_name(device), table=uplink.table),
            )
            for device, _, uplink in uplink_devices(policy)
        ),
    )
