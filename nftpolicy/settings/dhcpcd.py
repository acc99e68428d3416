# SPDX-License-Identifier: BSD-2-Clause
"""dhcpcd: dhcpcd-run-hooks(8).

The first hook runs before those that write resolv.conf, the other one last.
"""

from __future__ import annotations

from ..policy.objects import Policy
from .file import MOVE, SERVERS, File, choice, head

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


def files(policy: Policy) -> tuple[File, ...]:
    """Return the enter hook and the exit hook."""
    device_case = choice(policy, "interface", "return 0", "    ")
    return (
        File("/etc/dhcpcd.enter-hook", _ENTER.format(head=head(policy), choice=device_case)),
        File(
            "/etc/dhcpcd.exit-hook",
            _EXIT.format(head=head(policy), move=MOVE, servers=SERVERS, choice=device_case),
        ),
    )
