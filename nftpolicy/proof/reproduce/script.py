# SPDX-License-Identifier: BSD-2-Clause
"""Counterexample as a shell script that anyone can run: the state, the packet, and the result.

The script creates two network namespaces. The first gets the state, with a veth device for every
device that the state names; the second has the other ends, where the script watches.
"""

from __future__ import annotations

from attrs import evolve

from nftpolicy.generated_text import (
    CheckedText,
    comment,
    device_name,
    document_line,
    fill,
    join,
    own_text,
    quoted,
    sysctl_path,
    word,
)
from nftpolicy.model.packet import FORWARD, Packet, address_range
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import ip_text, nft_text
from nftpolicy.netstate.routing import TABLE_LOCAL, IpRule, Route
from nftpolicy.netstate.state import Device, NetState

from ..verdict import describe_packet
from .program import PACKET_NOT_SEEN, PACKET_SEEN, sender_program, unreproduced_parts
from .topology import NotReproducible, Topology, build_topology

EXIT_LEFT, EXIT_NOT_LEFT, EXIT_INCONCLUSIVE = 0, 1, 3  # a script's exit statuses

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


def reproduction_script(state: NetState, packet: Packet, device: str, title: str) -> CheckedText:
    """Return an sh script that shows whether `packet` leaves by `device` under `state`.

    Its exit status is SHOWN, REFUTED, or INCONCLUSIVE if the packet or the whole state cannot be
    reproduced; the script then prints what is missing, and the result without it.

    Raises:
        ValueError: the state has names that cannot be written in a script.
    """
    topology = build_topology(state, packet, device)
    left_out: list[str] = []
    tables, routing = _tables(state, packet, left_out), _routing(topology, left_out)
    missing = [comment(item) for item in (*left_out, *unreproduced_parts(packet))]
    remarks = [
        _without_ports(item)
        for item in state.devices
        if item.name in topology.devices and item.kind in ("bridge", "vrf")
    ]
    head = fill(
        _HEAD,
        title=comment(title),
        device=device_name(device),
        packet=comment(describe_packet(packet, with_details=True)),
        cautions=join("", (fill("# Caution: {remark}.\n", remark=item) for item in (*missing, *remarks))),
    )
    try:
        sender = sender_program(packet, device, topology)
    except NotReproducible as error:
        reason = quoted(f"no script can produce this packet: {error}")
        return join("", (head, fill(_NOT_REPRODUCIBLE, reason=reason)))
    parts = [_setup(topology, packet), routing, _sysctls(state, packet.family)]
    parts.append(fill(_RUN, program=_document(sender), tables=_document(tables)))
    parts += [fill("echo {caution}\n", caution=quoted(f"caution: {item}")) for item in (*missing, *remarks)]
    # With parts missing, neither outcome shows the behaviour of the whole state.
    if not missing:
        parts.append(fill(_VERDICT, seen=PACKET_SEEN, not_seen=PACKET_NOT_SEEN))
    body = _document(join("", parts), _END_OF_SCRIPT)
    own_mounts = fill(_OWN_MOUNTS, inconclusive=EXIT_INCONCLUSIVE, end=own_text(_END_OF_SCRIPT), body=body)
    return join("", (head, own_mounts))


def _document(text: str, end: str = "END") -> CheckedText:
    """Return lines for a here-document. Raises ValueError for a line that is `end`, or has controls."""
    return join("", (fill("{line}\n", line=document_line(line, end)) for line in text.split("\n")[:-1]))


def _setup(topology: Topology, packet: Packet) -> CheckedText:
    baseline = [("net/ipv4/conf/all/rp_filter", 0), ("net/ipv4/conf/default/rp_filter", 0)]
    if packet.family == 6:
        baseline += [("net/ipv6/conf/all/disable_ipv6", 0), ("net/ipv6/conf/default/disable_ipv6", 0)]
    if packet.origin == FORWARD:
        baseline.append(("net/ipv4/ip_forward" if packet.family == 4 else "net/ipv6/conf/all/forwarding", 1))
    links = []
    for veth in topology.devices.values():
        links.append(
            fill(
                "link add {name} address {mac} type veth peer name {name} netns $there",
                name=device_name(veth.name),
                mac=word(veth.mac),
            )
        )
        group = fill(" group {group}", group=veth.group) if veth.group else own_text("")
        links.append(
            fill(
                "link set {name} arp off addrgenmode none{group} {state}",
                name=device_name(veth.name),
                group=group,
                state=own_text("up") if veth.up else own_text("down"),
            )
        )
    nodad = own_text(" nodad") if packet.family == 6 else own_text("")
    addresses = [
        fill(
            "addr add {address}/{length} dev {device} noprefixroute{nodad}",
            address=word(address),
            length=length,
            device=device_name(device),
            nodad=nodad,
        )
        for address, length, device in topology.addresses
    ]
    return fill(
        _SETUP,
        baseline=join(
            "\n", (fill("set_here {path} {value}", path=word(path), value=value) for path, value in baseline)
        ),
        links=join("\n", links),
        peers=join(" ", map(device_name, topology.devices)),
        family=packet.family,
        addresses=join("\n", addresses),
    )


def _routing(topology: Topology, left_out: list[str]) -> CheckedText:
    lines = []
    items: tuple[Route | IpRule, ...] = (*sorted(topology.routes, key=_route_order), *topology.rules)
    for item in items:
        try:
            lines.append(_add_command(item))
        except ValueError as error:
            left_out.append(f"{type(item).__name__} {item} is left out: {error}")
    tables = own_text("local main default") if topology.lists_own_routes else own_text("main default")
    no_rules = fill(_NO_RULES, family=topology.family) if topology.rules else own_text("")
    return fill(_ROUTING, tables=tables, family=topology.family, no_rules=no_rules, lines=join("\n", lines))


def _route_order(route: Route) -> tuple[bool, bool, int]:
    """Return a sort key: own addresses first, then their networks.

    A route may prefer an own address as source, so the address must exist before.
    """
    low, high = address_range(route.destination, route.family)
    return route.table != TABLE_LOCAL, route.kind != "local", high - low if route.table == TABLE_LOCAL else 0


def _add_command(item: Route | IpRule) -> CheckedText:
    if isinstance(item, IpRule):
        return fill("rule add {rule}", rule=ip_text.rule_text(item))
    # The route to a gateway may be added only later, so gateways are added with onlink.
    nexthops = tuple(
        evolve(nexthop, onlink=bool(nexthop.gateway and nexthop.device))
        for nexthop in item.all_nexthops
        if not nexthop.dead
    )
    with_onlink = evolve(item, nexthops=nexthops) if item.nexthops else evolve(item, onlink=nexthops[0].onlink)
    # The order distinguishes several routes to one destination.
    return fill("route append {route}", route=ip_text.route_text(with_onlink))


def _sysctls(state: NetState, family: int) -> CheckedText:
    sysctls = [
        sysctl
        for sysctl in state.sysctls
        if sysctl.path.startswith("net/")
        and not (family == 4 and sysctl.path.startswith("net/ipv6/"))
        and not sysctl.path.endswith("/mc_forwarding")  # of the kernel's multicast router: it cannot be written
    ]
    lines = (
        fill("set_here {path} {value}\n", path=sysctl_path(sysctl.path), value=quoted(sysctl.value.replace("\t", " ")))
        for sysctl in sysctls
    )
    return join("", (own_text("\n"), *lines)) if sysctls else own_text("")


def _without_ports(device: Device) -> CheckedText:
    return comment(f"{device.name}, a {device.kind}, is here a device without ports")


def _tables(state: NetState, packet: Packet, left_out: list[str]) -> CheckedText:
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
    return join("\n", written)


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
