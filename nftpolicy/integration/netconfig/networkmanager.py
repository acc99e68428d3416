# SPDX-License-Identifier: BSD-2-Clause
"""NetworkManager: NetworkManager.conf(5), nm-settings-keyfile(5), NetworkManager-dispatcher(8)."""

from __future__ import annotations

import uuid

from ...generated_text import device_name, fill, join, own_text, word
from ...policy.objects import Policy
from .generated_file import (
    MODE_SCRIPT,
    WRITE_SERVERS,
    GeneratedFile,
    device_case,
    header_line,
    uplink_devices,
)

_DEFAULTS = """\
{head}
# Defaults for every profile on a device of an uplink that does not set these keys. DNS servers cannot be ignored by
# a default; for a profile of your own, run
#   nmcli connection modify NAME ipv4.ignore-auto-dns yes ipv6.ignore-auto-dns yes
"""
_SECTION = """
[connection-nftpolicy-{device}]
match-device=interface-name:={device}
ipv4.route-table={table}
ipv6.route-table={table}
connection.mdns=0
connection.llmnr=0
"""
_PROFILE = """\
{head}
# For a wired device; it has no effect on other types.
[connection]
id=nftpolicy-{device}
uuid={uuid}
type=ethernet
interface-name={device}
autoconnect-priority=100

[ipv4]
method=auto
route-table={table}
ignore-auto-dns=true
dns-priority=1000

[ipv6]
method=auto
route-table={table}
ignore-auto-dns=true
dns-priority=1000
"""
_DISPATCHER = """\
#!/bin/sh
{head}
# DNS servers from DHCP, for the resolver of the uplink.
{servers}
{choice}
case "$2" in
    up | dhcp4-change | dhcp6-change | reapply) ;;
    *) exit 0 ;;
esac
# shellcheck disable=SC2086 # words
[ -z "$DHCP4_DOMAIN_NAME_SERVERS" ] || nftpolicy_servers "$servers" 4 $DHCP4_DOMAIN_NAME_SERVERS
# shellcheck disable=SC2086
[ -z "$DHCP6_DHCP6_NAME_SERVERS" ] || nftpolicy_servers "$servers" 6 $DHCP6_DHCP6_NAME_SERVERS
"""
_PRIVATE = 0o600  # file mode: profiles can hold secrets
_UUID_NAMESPACE = uuid.UUID(
    "6f1b7a0e-5b0f-4b50-9a38-0c6a4a4d5a7e"
)  # random, so that a profile has the same UUID on every machine


def files(policy: Policy) -> tuple[GeneratedFile, ...]:
    """Return defaults for the devices, a profile for each device, and a script for DNS servers."""
    sections = [
        fill(_SECTION, device=device_name(device), table=uplink.table) for device, _, uplink in uplink_devices(policy)
    ]
    profiles = [
        GeneratedFile(
            fill("/etc/NetworkManager/system-connections/nftpolicy-{device}.nmconnection", device=device_name(device)),
            fill(
                _PROFILE,
                head=header_line(policy),
                device=device_name(device),
                table=uplink.table,
                uuid=word(str(uuid.uuid5(_UUID_NAMESPACE, f"{policy.name}/{device}"))),
            ),
            _PRIVATE,
        )
        for device, _, uplink in uplink_devices(policy)
    ]
    script = fill(
        _DISPATCHER,
        head=header_line(policy),
        servers=WRITE_SERVERS,
        choice=device_case(policy, own_text("1"), own_text("exit 0")),
    )
    return (
        GeneratedFile(
            own_text("/etc/NetworkManager/conf.d/nftpolicy.conf"),
            join("", (fill(_DEFAULTS, head=header_line(policy)), *sections)),
        ),
        *profiles,
        GeneratedFile(own_text("/etc/NetworkManager/dispatcher.d/50-nftpolicy"), script, MODE_SCRIPT),
    )
