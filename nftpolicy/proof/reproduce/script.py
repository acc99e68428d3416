# SPDX-License-Identifier: BSD-2-Clause
"""Counterexample as a shell script that anyone can run: the state, the packet, and the result.

The script creates two network namespaces. The first gets the state, with a veth device for every
device that the state names; the second has the other ends, where the script watches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import evolve

from nftpolicy.model.packet import FORWARD, Packet, address_range
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import ip_text, nft_text
from nftpolicy.netstate.routing import TABLE_LOCAL, IpRule, Route
from nftpolicy.netstate.state import Device, NetState

from ..verdict import describe_packet
from .program import PACKET_NOT_SEEN, PACKET_SEEN, sender_program, unreproduced_parts
from .topology import NotReproducible, Topology, build_topology

EXIT_LEFT, EXIT_NOT_LEFT, EXIT_INCONCLUSIVE = 0, 1, 3  # a script's exit statuses

_SYSCTL = re.compile(r"net(/[A-Za-z0-9_.:@+-]+)+")  # below /proc/sys
_OTHER_FAMILY = {4: ("ip6", "arp", "bridge"), 6: ("ip", "arp", "bridge")}

_HEAD = """\
#!/bin/sh
# {title}
#
# Shows, in network namespaces of its own, whether this packet leaves by {device}:
#     {packet}
# Needs root, ip, nft, unshare and python3. Exit status: 0 it left, 1 it did not leave, 3 inconclusive.
{cautions}"""

# The names of the network namespaces end with the last process of the mount namespace.
_OWN_MOUNTS = """\
# In a mount namespace of its own, the network namespaces end with this script, however it ends.
unshare --mount true || exit {inconclusive}
exec unshare --mount --propagation private sh -s <<'{end}'
{body}{end}
"""
_END_OF_SCRIPT = "SCRIPT"

_SETUP = """\
set -eu
mkdir -p /var/run/netns
mount -t tmpfs none /var/run/netns
here=here there=there verdict=3

finish() {{
    [ "$verdict" -ne 3 ] || echo "inconclusive"
    exit "$verdict"
}}
trap finish EXIT
trap 'exit' INT TERM
ip netns add "$here"
ip netns add "$there"

# The namespace does not inherit the sysctls of the machine; rp_filter is off.
set_here() {{ ip netns exec "$here" sh -c 'echo "$2" > "/proc/sys/$1"' sh "$@"; }}
{baseline}

# The devices and their other ends. Without neighbour resolution, frames leave at once.
ip -n "$here" -batch - <<END
link set lo up
{links}
END
for device in {peers}; do
    ip -n "$there" link set "$device" up
done
ip -n "$here" -{family} -batch - <<'END'
{addresses}
END
"""

_ROUTING = """
# Routes and rules of the state replace those of the kernel.
for table in {tables}; do
    ip -n "$here" -{family} route flush table "$table" 2>/dev/null || :  # the table may not exist yet
done
{no_rules}ip -n "$here" -{family} -batch - <<'END'
{lines}
END
"""

_NO_RULES = """\
ip -n "$here" -{family} rule flush
ip -n "$here" -{family} rule del priority 0 2>/dev/null || :
"""

_RUN = """
program=$(cat <<'END'
{program}END
)

# The program loads these tables, sends the packet, and watches.
status=0
python3 -I -c "$program" "$here" "$there" <<'END' || status=$?
{tables}END
"""

_VERDICT = """\
case $status in
{seen}) verdict=0 ;;
{not_seen}) verdict=1 ;;
esac
"""

_NOT_REPRODUCIBLE = """\
echo {reason}
exit 3
"""


def reproduction_script(state: NetState, packet: Packet, device: str, title: str) -> str:
    """Return an sh script that shows whether `packet` leaves by `device` under `state`.

    Its exit status is SHOWN, REFUTED, or INCONCLUSIVE if the packet or the whole state cannot be
    reproduced; the script then prints what is missing, and the result without it.

    Raises:
        ValueError: the state has names that cannot be written in a script.
    """
    topology = build_topology(state, packet, device)
    left_out: list[str] = []
    tables, routing = _tables(state, packet, left_out), _routing(topology, left_out)
    missing = [_line(item) for item in (*left_out, *unreproduced_parts(packet))]
    remarks = [
        _without_ports(item)
        for item in state.devices
        if item.name in topology.devices and item.kind in ("bridge", "vrf")
    ]
    head = _HEAD.format(
        title=_line(title),
        device=device,
        packet=_line(describe_packet(packet, with_details=True)),
        cautions="".join(f"# Caution: {item}.\n" for item in (*missing, *remarks)),
    )
    try:
        sender = sender_program(packet, device, topology)
    except NotReproducible as error:
        return head + _NOT_REPRODUCIBLE.format(reason=_quoted(f"no script can produce this packet: {error}"))
    parts = [_setup(topology, packet), routing, _sysctls(state, packet.family)]
    parts.append(_RUN.format(program=sender, tables=_tables_document(tables)))
    parts += [f"echo {_quoted('caution: ' + item)}\n" for item in (*missing, *remarks)]
    # With parts missing, neither outcome shows the behaviour of the whole state.
    if not missing:
        parts.append(_VERDICT.format(seen=PACKET_SEEN, not_seen=PACKET_NOT_SEEN))
    body = "".join(parts)
    _refuse_line(_END_OF_SCRIPT, body.splitlines())
    return head + _OWN_MOUNTS.format(inconclusive=EXIT_INCONCLUSIVE, end=_END_OF_SCRIPT, body=body)


def _refuse_line(end: str, lines: Iterable[str]) -> None:
    """Raise ValueError if a line would end a here-document."""
    if end in lines:
        raise ValueError(f"{end!r} cannot be written in a script")


def _line(message: str) -> str:
    """Return the text on one line, so that no part of it becomes a command."""
    return " ".join("".join(char if char.isprintable() else " " for char in message).split())


def _here_document(lines: Iterable[str]) -> str:
    """Return the lines of a here-document that ends with END.

    Raises:
        ValueError: a line would end it, or has another line in it.
    """
    lines = list(lines)
    for line in lines:
        if line == "END" or not line.isprintable():
            raise ValueError(f"{line!r} cannot be written in a script")
    return "\n".join(lines)


def _tables_document(text: str) -> str:
    """Return text of nft for a here-document. Raises ValueError as `_here_document`."""
    _here_document(line.replace("\t", " ") for line in text.splitlines())
    return text


def _quoted(argument: str) -> str:
    return "'" + argument.replace("'", "'\\''") + "'"


def _setup(topology: Topology, packet: Packet) -> str:
    baseline = [("net/ipv4/conf/all/rp_filter", 0), ("net/ipv4/conf/default/rp_filter", 0)]
    if packet.family == 6:
        baseline += [(f"net/ipv6/conf/{scope}/disable_ipv6", 0) for scope in ("all", "default")]
    if packet.origin == FORWARD:
        baseline.append(("net/ipv4/ip_forward" if packet.family == 4 else "net/ipv6/conf/all/forwarding", 1))
    links = []
    for veth in topology.devices.values():
        links.append(f"link add {veth.name} address {veth.mac} type veth peer name {veth.name} netns $there")
        group = f" group {veth.group}" if veth.group else ""
        links.append(f"link set {veth.name} arp off addrgenmode none{group} {'up' if veth.up else 'down'}")
    nodad = " nodad" if packet.family == 6 else ""
    addresses = [
        f"addr add {address}/{length} dev {device} noprefixroute{nodad}"
        for address, length, device in topology.addresses
    ]
    return _SETUP.format(
        baseline="\n".join(f"set_here {path} {value}" for path, value in baseline),
        links="\n".join(links),
        peers=" ".join(topology.devices),
        family=packet.family,
        addresses=_here_document(addresses),
    )


def _routing(topology: Topology, left_out: list[str]) -> str:
    lines = []
    items: tuple[Route | IpRule, ...] = (*sorted(topology.routes, key=_route_order), *topology.rules)
    for item in items:
        try:
            lines.append(_add_command(item))
        except ValueError as error:
            left_out.append(f"{type(item).__name__} {item} is left out: {error}")
    tables = "local main default" if topology.lists_own_routes else "main default"
    no_rules = _NO_RULES.format(family=topology.family) if topology.rules else ""
    return _ROUTING.format(tables=tables, family=topology.family, no_rules=no_rules, lines=_here_document(lines))


def _route_order(route: Route) -> tuple[bool, bool, int]:
    """Return a sort key: own addresses first, then their networks.

    A route may prefer an own address as source, so the address must exist before.
    """
    low, high = address_range(route.destination, route.family)
    return route.table != TABLE_LOCAL, route.kind != "local", high - low if route.table == TABLE_LOCAL else 0


def _add_command(item: Route | IpRule) -> str:
    if isinstance(item, IpRule):
        return f"rule add {ip_text.rule_text(item)}"
    # The route to a gateway may be added only later, so gateways are added with onlink.
    nexthops = tuple(
        evolve(nexthop, onlink=bool(nexthop.gateway and nexthop.device))
        for nexthop in item.all_nexthops
        if not nexthop.dead
    )
    with_onlink = evolve(item, nexthops=nexthops) if item.nexthops else evolve(item, onlink=nexthops[0].onlink)
    # The order distinguishes several routes to one destination.
    return f"route append {ip_text.route_text(with_onlink)}"


def _sysctls(state: NetState, family: int) -> str:
    sysctls = [
        sysctl
        for sysctl in state.sysctls
        if sysctl.path.startswith("net/") and not (family == 4 and sysctl.path.startswith("net/ipv6/"))
    ]
    for sysctl in sysctls:
        if not _SYSCTL.fullmatch(sysctl.path) or ".." in sysctl.path.split("/"):
            raise ValueError(f"{sysctl.path!r} is not the path of a sysctl")
        if not sysctl.value.replace("\t", " ").isprintable():
            raise ValueError(f"{sysctl.value!r} is not the value of a sysctl")
    if not sysctls:
        return ""
    return "\n" + "".join(f"set_here {_quoted(sysctl.path)} {_quoted(sysctl.value)}\n" for sysctl in sysctls)


def _without_ports(device: Device) -> str:
    return f"{device.name}, a {device.kind}, is here a device without ports"


def _tables(state: NetState, packet: Packet, left_out: list[str]) -> str:
    """Return the tables of this family as text; adds parts that cannot be written to `left_out`."""
    written = []
    for table in state.tables:
        if table.family in _OTHER_FAMILY[packet.family]:
            continue
        name = f"table {table.family} {table.name}"
        left_out += [f"{name} is here without {construct}" for construct in table.unknown]
        try:
            written.append(nft_text.table_text(_writable_table(table, name, left_out)))
        except ValueError as error:
            left_out.append(f"{name} is left out: {error}")
    return "\n".join(written)


def _writable_table(table: nft.Table, name: str, left_out: list[str]) -> nft.Table:
    """Return the table without the rules that cannot be written."""
    chains = []
    for chain in table.chains:
        rules = []
        for rule in chain.rules:
            try:
                rules.append(_writable_rule(rule))
            except ValueError as error:
                left_out.append(f"{name}, chain {chain.name}, is here without a rule: {error}")
        chains.append(evolve(chain, rules=tuple(rules)))
    return evolve(table, chains=tuple(chains))


def _writable_rule(rule: nft.Rule) -> nft.Rule:
    """Return the rule, without its comment if the comment cannot be written."""
    try:
        nft_text.rule_text(rule)
    except ValueError:
        rule = evolve(rule, comment=None)
        nft_text.rule_text(rule)
    return rule
