# SPDX-License-Identifier: BSD-2-Clause
"""dhclient of ISC, as Debian has it: dhclient-script(8). Its hooks are read by the script, not run."""

from __future__ import annotations

from ..policy.objects import Policy
from .file import MOVE, SERVERS, File, choice, head

# When it renews a lease it asks the server from a socket without a device, which is routed by main. What it sends
# to all, when that was in vain, is exempted (dhcpv4).
_ENTER = """\
{head}
# The DNS servers are for the resolver of the uplink, and for nobody else on this machine.
# To renew a lease at its half, write into dhclient.conf, for each device of an uplink:
#   interface "DEVICE" {{ supersede dhcp-server-identifier 255.255.255.255; }}
{servers}
nftpolicy_enter() {{
{choice}
    nftpolicy_for=$servers
    make_resolv_conf() {{
        # shellcheck disable=SC2086 # words
        [ -z "$new_domain_name_servers" ] || nftpolicy_servers "$nftpolicy_for" 4 $new_domain_name_servers
        # shellcheck disable=SC2086
        [ -z "$new_dhcp6_name_servers" ] || nftpolicy_servers "$nftpolicy_for" 6 $new_dhcp6_name_servers
    }}
}}
nftpolicy_enter
"""
# Its name puts it behind rfc3442-classless-routes, which adds the routes of option 121 to main.
_EXIT = """\
{head}
{move}
nftpolicy_exit() {{
{choice}
    case "$reason" in
        BOUND | REBOOT | RENEW | REBIND | TIMEOUT)
            [ -z "$old_ip_address" ] || [ "$old_ip_address" = "$new_ip_address" ] ||
                ip -4 route flush table "$table" dev "$interface" proto boot
            nftpolicy_move "$interface" "$table"
            ;;
        BOUND6 | RENEW6 | REBIND6) nftpolicy_move "$interface" "$table" ;;
        EXPIRE | FAIL | RELEASE | STOP) ip -4 route flush table "$table" dev "$interface" proto boot ;;
    esac
    return 0
}}
nftpolicy_exit
"""


def files(policy: Policy) -> tuple[File, ...]:
    """A hook before the script does anything, and one after it."""
    chosen = choice(policy, "interface", "return 0", "    ")
    return (
        File(
            "/etc/dhcp/dhclient-enter-hooks.d/nftpolicy",
            _ENTER.format(head=head(policy), servers=SERVERS, choice=chosen),
        ),
        File("/etc/dhcp/dhclient-exit-hooks.d/zz-nftpolicy", _EXIT.format(head=head(policy), move=MOVE, choice=chosen)),
    )
