# SPDX-License-Identifier: BSD-2-Clause
"""dhcpcd: dhcpcd-run-hooks(8).

The first hook runs before those that write resolv.conf, the other one last.
"""

from __future__ import annotations

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
    choice = device_case(policy, "interface", "return 0", "    ")
    return (
        GeneratedFile("/etc/dhcpcd.enter-hook", _ENTER.format(head=header_line(policy), choice=choice)),
        GeneratedFile(
            "/etc/dhcpcd.exit-hook",
            _EXIT.format(head=header_line(policy), move=MOVE_ROUTES, servers=WRITE_SERVERS, choice=choice),
        ),
    )
