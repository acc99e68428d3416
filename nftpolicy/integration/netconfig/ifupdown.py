# SPDX-License-Identifier: BSD-2-Clause
"""ifupdown of Debian: interfaces(5). A script for all methods, and dhclient's hooks for DHCP."""

from __future__ import annotations

from ...generated_text import fill, own_text
from ...policy.objects import Policy
from . import dhclient
from .generated_file import MODE_SCRIPT, MOVE_ROUTES, GeneratedFile, device_case, header_line

_UP = """\
#!/bin/sh
{head}
# The routes of the device go to the uplink's table, whatever its method in interfaces(5) is.
# IPv6 by router advertisements (inet6 auto) needs learn = ["ra"] in the policy, and "nftpolicy watch".
{move}
{choice}
nftpolicy_move "$IFACE" "$table"
exit 0
"""


def files(policy: Policy) -> tuple[GeneratedFile, ...]:
    """Return the script that ifup runs, and the hooks that its DHCP client runs."""
    script = fill(
        _UP,
        head=header_line(policy),
        move=MOVE_ROUTES,
        choice=device_case(policy, own_text("IFACE"), own_text("exit 0")),
    )
    return (GeneratedFile(own_text("/etc/network/if-up.d/nftpolicy"), script, MODE_SCRIPT), *dhclient.files(policy))
