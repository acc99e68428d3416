# SPDX-License-Identifier: BSD-2-Clause
"""dhclient of ISC as in Debian: dhclient-script(8). The script sources its hooks."""

from __future__ import annotations

from ...generated_text import fill, own_text
from ...policy.objects import Policy
from .generated_file import MOVE_ROUTES, WRITE_SERVERS, GeneratedFile, device_case, header_line

# dhclient renews a lease from a socket without a device, which is routed by table main. If that
# fails it broadcasts, which is exempted (dhcpv4).
_ENTER = """\
{head}
# Only the resolver of the uplink uses these DNS servers, no other program on this machine.
# To renew a lease at half of its time, add to dhclient.conf, for each device of an uplink:
#   interface "DEVICE" {{ supersede dhcp-server-identifier 255.255.255.255; }}
{servers}
nftpolicy_enter() {{
{choice}
    nftpolicy_lease=$servers
    make_resolv_conf() {{
        # shellcheck disable=SC2086 # words
        [ -z "$new_domain_name_servers" ] || nftpolicy_servers "$nftpolicy_lease" 4 $new_domain_name_servers
        # shellcheck disable=SC2086
        [ -z "$new_dhcp6_name_servers" ] || nftpolicy_servers "$nftpolicy_lease" 6 $new_dhcp6_name_servers
    }}
}}
nftpolicy_enter
"""
# The name sorts after rfc3442-classless-routes, which adds the routes of option 121 to table main.
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


def files(policy: Policy) -> tuple[GeneratedFile, ...]:
    """Return a hook before dhclient-script acts, and a hook after it."""
    choice = device_case(policy, own_text("interface"), own_text("return 0"), own_text("    "))
    return (
        GeneratedFile(
            own_text("/etc/dhcp/dhclient-enter-hooks.d/nftpolicy"),
            fill(_ENTER, head=header_line(policy), servers=WRITE_SERVERS, choice=choice),
        ),
        GeneratedFile(
            own_text("/etc/dhcp/dhclient-exit-hooks.d/zz-nftpolicy"),
            fill(_EXIT, head=header_line(policy), move=MOVE_ROUTES, choice=choice),
        ),
    )
