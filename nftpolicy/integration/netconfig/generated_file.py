# SPDX-License-Identifier: BSD-2-Clause
"""Generated configuration file, and helpers shared by the generators."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from ...generated_text import CheckedText, device_name, fill, join, own_text, quoted, word
from ...policy.objects import Policy, Uplink, lease_file

HEAD = "# Written by 'nftpolicy netconfig' for the policy {policy}; nftpolicy(1)."
MODE_FILE, MODE_SCRIPT = 0o644, 0o755  # file modes


@frozen
class GeneratedFile:
    """Generated file: absolute path, text, and mode."""

    path: CheckedText
    text: CheckedText
    mode: int = MODE_FILE


def header_line(policy: Policy) -> CheckedText:
    """Return the first line of every file."""
    return fill(HEAD, policy=word(policy.name))


def uplink_devices(policy: Policy) -> Iterator[tuple[str, str, Uplink]]:
    """Yield (device, uplink name, uplink) for each device of each uplink that leads to its network."""
    for name, uplink in policy.uplink.items():
        for device in uplink.network_devices:
            yield device, name, uplink


def servers_file(name: str, uplink: Uplink) -> str | None:
    """Return the file for the DNS servers of an uplink.

    None if the uplink has no resolver, or if the resolver takes its servers from the policy or from
    another program.
    """
    if uplink.resolver is None or uplink.resolver.servers or uplink.resolver.sources:
        return None
    lease = lease_file(name, uplink.resolver)
    return lease if lease.startswith("/run/nftpolicy/") else None


_NO_INDENT = own_text("")


def device_case(
    policy: Policy, variable: CheckedText, otherwise: CheckedText, indent: CheckedText = _NO_INDENT
) -> CheckedText:
    """Return a shell `case` that sets `table` and `servers` for the device in a variable.

    For other devices it runs `otherwise`.
    """
    lines = [
        fill(
            "    {device}) table={table} servers={servers} ;;",
            device=device_name(device),
            table=uplink.table,
            servers=quoted(servers_file(name, uplink) or ""),
        )
        for device, name, uplink in uplink_devices(policy)
    ]
    head, last = fill('case "${variable}" in', variable=variable), fill("    *) {action} ;;", action=otherwise)
    return join(
        "\n", (fill("{indent}{line}", indent=indent, line=line) for line in (head, *lines, last, own_text("esac")))
    )


# Routes to link-local IPv6 addresses stay in main, where the policy's ip rules look them up. With
# "onlink", the order of the routes does not matter. Words of "ip route show" that "ip route add" does
# not accept are removed.
MOVE_ROUTES = own_text("""\
nftpolicy_move() { # device, table: move the routes over the device to the table
    for nftpolicy_family in 4 6; do
        ip -$nftpolicy_family route show table main dev "$1" 2>/dev/null |
            sed -e '/^fe80:/d' -e 's/ \\(linkdown\\|dead\\|onlink\\)//g' -e 's/\\(expires [0-9]*\\)sec/\\1/' |
            while read -r nftpolicy_route; do
                case "$nftpolicy_route" in
                    *' via '*) nftpolicy_flag=onlink ;;
                    *) nftpolicy_flag= ;;
                esac
                # shellcheck disable=SC2086 # words
                ip -$nftpolicy_family route replace $nftpolicy_route dev "$1" table "$2" $nftpolicy_flag &&
                    ip -$nftpolicy_family route del ${nftpolicy_route%% expires*} dev "$1" table main
            done
    done
}
""")
WRITE_SERVERS = own_text("""\
nftpolicy_servers() ( # file, family, addresses: write the servers of the uplink's resolver
    [ -n "$1" ] || exit 0
    umask 077
    nftpolicy_file=$1 nftpolicy_part=$1.$2
    shift 2
    mkdir -p "${nftpolicy_file%/*}"
    for nftpolicy_server; do echo "nameserver $nftpolicy_server"; done >"$nftpolicy_part"
    cat "$nftpolicy_file.4" "$nftpolicy_file.6" >"$nftpolicy_file.new" 2>/dev/null
    mv "$nftpolicy_file.new" "$nftpolicy_file"
)
""")
