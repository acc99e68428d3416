# SPDX-License-Identifier: BSD-2-Clause
"""dhcpcd: dhcpcd-run-hooks(8).

The first hook runs before those that write resolv.conf, the other one last.
"""

from __future__ import annotations

from ...generated_text import fill, own_text
from ...policy.objects import Policy
from .generated_file import MOVE_ROUTES, WRITE_SERVERS, GeneratedFile, device_case, header_line

_ENTER = """\
{head}
# The DNS servers of an uplink do not go to resolv.conf.
nftpolicy_enter() {{
{choice}
    skip_hooks="$skip_hooks resolv.conf"
}}
nftpolicy_enter
"""
# dhcpcd processes router advertisements instead of the kernel; their servers: nd1_rdnss1_servers.
_EXIT = """\
{head}
{move}
{servers}
nftpolicy_exit() {{
{choice}
    $if_up || return 0
    # shellcheck disable=SC2086,SC2154 # words
    [ -z "$new_domain_name_servers" ] || nftpolicy_servers "$servers" 4 $new_domain_name_servers
    # shellcheck disable=SC2086,SC2154
    set -- $new_dhcp6_name_servers $nd1_rdnss1_servers
    [ $# = 0 ] || nftpolicy_servers "$servers" 6 "$@"
    nftpolicy_move "$interface" "$table"
}}
nftpolicy_exit
"""


def files(policy: Policy) -> tuple[GeneratedFile, ...]:
    """Return the enter hook and the exit hook."""
    choice = device_case(policy, own_text("interface"), own_text("return 0"), own_text("    "))
    return (
        GeneratedFile(own_text("/etc/dhcpcd.enter-hook"), fill(_ENTER, head=header_line(policy), choice=choice)),
        GeneratedFile(
            own_text("/etc/dhcpcd.exit-hook"),
            fill(_EXIT, head=header_line(policy), move=MOVE_ROUTES, servers=WRITE_SERVERS, choice=choice),
        ),
    )
