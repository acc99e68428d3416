# SPDX-License-Identifier: BSD-2-Clause
"""netifd of OpenWrt: /etc/config/network, by a uci-defaults script that runs once, at boot."""

from __future__ import annotations

from ...generated_text import device_name, fill, join, own_text
from ...policy.objects import Policy
from .generated_file import MODE_SCRIPT, GeneratedFile, header_line, uplink_devices

_SCRIPT = """\
#!/bin/sh
{head}
# Options of every logical interface on a device of an uplink: its routes go to the uplink's table, its DNS servers do
# not go to the router's own resolver, and it gets no source-specific routes.
set_up() {{ # device, table
    for section in $(uci -q show network | sed -n "s/^network\\.\\([^.=]*\\)\\.\\(device\\|ifname\\)='$1'\\$/\\1/p"); do
        uci -q batch <<EOF
set network.$section.ip4table='$2'
set network.$section.ip6table='$2'
set network.$section.peerdns='0'
set network.$section.sourcefilter='0'
EOF
    done
}}
{calls}
uci commit network
exit 0
"""


def files(policy: Policy) -> tuple[GeneratedFile, ...]:
    """Return the uci-defaults script."""
    calls = join(
        "\n",
        (
            fill("set_up {device} {table}", device=device_name(device), table=uplink.table)
            for device, _, uplink in uplink_devices(policy)
        ),
    )
    return (
        GeneratedFile(
            own_text("/etc/uci-defaults/90-nftpolicy-settings"),
            fill(_SCRIPT, head=header_line(policy), calls=calls),
            MODE_SCRIPT,
        ),
    )
