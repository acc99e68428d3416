# SPDX-License-Identifier: BSD-2-Clause
"""A counterexample as a shell script that anybody can run: the state, the packet, and what comes of it.

The script makes two network namespaces of its own. The first gets the state, with a veth device for every device
that the state names; the second has their other ends, where it watches.
"""

from __future__ import annotations

from attrs import evolve

from nftpolicy.model.packet import FORWARD, KERNEL, Packet, interval, shown
from nftpolicy.netstate import iproute, nft, text
from nftpolicy.netstate.routing import TABLE_LOCAL, IpRule, Route
from nftpolicy.netstate.state import Device, NetState

from .scene import Scene, Unsendable, scene
from .sender import NOT_SEEN, SEEN, cautions, program

SHOWN, REFUTED, INCONCLUSIVE = 0, 1, 3  # a script's exit statuses

_PROTOCOLS = nft.PROTOCOLS
_OTHER_FAMILY = {4: ("ip6", "arp", "bridge"), 6: ("ip", "arp", "bridge")}

_HEAD = """\
#!/bin/sh
# {title}
#
# Shows, in network namespaces of its own, whether this packet leaves by {device}:
#     {packet}
# Needs root, ip, nft and python3. Exit status: 0 it left, 1 it did not, 3 nothing can be said.
{cautions}"""

_SETUP = """\
set -eu
here=nftpolicy-$$-here there=nftpolicy-$$-there
verdict=3

finish() {{
    ip netns del "$here" 2>/dev/null || :
    ip netns del "$there" 2>/dev/null || :
    [ "$verdict" -ne 3 ] || echo "inconclusive"
    exit "$verdict"
}}
[ ! -e "/var/run/netns/$here" ] || exit "$verdict"  # somebody else's
trap finish EXIT
trap 'exit' INT TERM
ip netns add "$here"
ip netns add "$there"

# The namespace does not take over what the machine has set; nothing is filtered by source.
set_here() {{ ip netns exec "$here" sh -c 'echo "$2" > "/proc/sys/$1"' sh "$@"; }}
{baseline}

# The devices, and their other ends. Without neighbour resolution, frames leave at once.
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
# Routes and rules: those of the state, in place of the kernel's own.
for table in {tables}; do
    ip -n "$here" -{family} route flush table "$table" 2>/dev/null || :  # it may not be there yet
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

_CANT = """\
echo {reason}
exit 3
"""


def script(state: NetState, packet: Packet, device: str, title: str) -> str:
    """A script for sh that shows whether `packet` leaves by `device` under `state`.

    Its exit status: SHOWN, REFUTED, or INCONCLUSIVE when the packet or the whole state can't be made to happen
    there; what is missing is said, and so is what was seen without it.

    Raises:
        ValueError: the state has names that can't be written in a script.
    """
    stage = scene(state, packet, device)
    left_out: list[str] = []
    tables, routing = _tables(state, packet, left_out), _routing(stage, left_out)
    missing = [_line(one) for one in (*left_out, *cautions(packet))]
    remarks = [_plain(one) for one in state.devices if one.name in stage.devices and one.kind in ("bridge", "vrf")]
    head = _HEAD.format(
        title=_line(title),
        device=device,
        packet=describe(packet),
        cautions="".join(f"# Caution: {one}.\n" for one in (*missing, *remarks)),
    )
    try:
        inner = program(packet, device, stage)
    except Unsendable as error:
        return head + _CANT.format(reason=_quoted(f"this packet can't be made to happen: {error}"))
    parts = [head, _setup(stage, packet), routing, _sysctls(state, packet.family)]
    parts.append(_RUN.format(program=inner, tables=tables))
    parts += [f"echo {_quoted('caution: ' + one)}\n" for one in (*missing, *remarks)]
    # Where something is missing, neither outcome says what the whole state would do.
    parts += [] if missing else [_VERDICT.format(seen=SEEN, not_seen=NOT_SEEN)]
    return "".join(parts)


def describe(packet: Packet) -> str:
    """The packet in one line for a person."""
    protocol = _PROTOCOLS.get(packet.protocol, f"protocol {packet.protocol}")
    ports = packet.protocol in (6, 17)
    source = shown(packet.family, packet.source) if packet.source is not None else "the address that the kernel takes"
    parts = [f"{protocol} from {source}" + (f" port {packet.sport}" if ports else "")]
    parts += [f"to {shown(packet.family, packet.destination)}" + (f" port {packet.dport}" if ports else "")]
    if packet.origin == FORWARD:
        parts.append(f"arriving by {packet.iif}")
    elif packet.origin == KERNEL:
        parts.append("by the kernel itself")
    else:
        parts.append(f"by a {'socket' if packet.origin == 'socket' else 'packet socket'} of user {packet.uid}")
        parts.append(f"group {packet.gid}")
        parts += [f"bound to {packet.bound}"] if packet.bound else []
    parts += [f"{' '.join(name)} {value}" for name, value in packet.fields.items()]
    return ", ".join([" ".join(parts[:2]), *parts[2:], f"mark {packet.mark:#x}", f"flow {packet.flow.state}"])


def _line(words: str) -> str:
    """On one line, so that nothing of it becomes a command."""
    return " ".join(words.split())


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "'\\''") + "'"


def _setup(stage: Scene, packet: Packet) -> str:
    baseline = [("net/ipv4/conf/all/rp_filter", 0), ("net/ipv4/conf/default/rp_filter", 0)]
    if packet.family == 6:
        baseline += [(f"net/ipv6/conf/{which}/disable_ipv6", 0) for which in ("all", "default")]
    if packet.origin == FORWARD:
        baseline.append(("net/ipv4/ip_forward" if packet.family == 4 else "net/ipv6/conf/all/forwarding", 1))
    links = []
    for one in stage.devices.values():
        links.append(f"link add {one.name} address {one.mac} type veth peer name {one.name} netns $there")
        group = f" group {one.group}" if one.group else ""
        links.append(f"link set {one.name} arp off addrgenmode none{group} {'up' if one.up else 'down'}")
    nodad = " nodad" if packet.family == 6 else ""
    addresses = [
        f"addr add {address}/{length} dev {device} noprefixroute{nodad}" for address, length, device in stage.addresses
    ]
    return _SETUP.format(
        baseline="\n".join(f"set_here {path} {value}" for path, value in baseline),
        links="\n".join(links),
        peers=" ".join(stage.devices),
        family=packet.family,
        addresses="\n".join(addresses),
    )


def _routing(stage: Scene, left_out: list[str]) -> str:
    lines = []
    for one in (*sorted(stage.routes, key=_place), *stage.rules):
        try:
            lines.append(_added(one))
        except ValueError as error:
            left_out.append(f"{type(one).__name__} {one} is left out: {error}")
    tables = "local main default" if stage.exact else "main default"
    no_rules = _NO_RULES.format(family=stage.family) if stage.rules else ""
    return _ROUTING.format(tables=tables, family=stage.family, no_rules=no_rules, lines="\n".join(lines))


def _place(one: Route) -> tuple[bool, bool, int]:
    """The machine's own addresses first, and those before their networks: a route may prefer one as source."""
    low, high = interval(one.destination, one.family)
    return one.table != TABLE_LOCAL, one.kind != "local", high - low if one.table == TABLE_LOCAL else 0


def _added(one: Route | IpRule) -> str:
    if isinstance(one, IpRule):
        return f"rule add {iproute.rule(one)}"
    # A gateway may be known only by a route or rule that comes later, so it is taken as it is.
    alive = tuple(evolve(way, onlink=bool(way.gateway and way.device)) for way in one.ways if not way.dead)
    sure = evolve(one, nexthops=alive) if one.nexthops else evolve(one, onlink=alive[0].onlink)
    # Several routes of one destination are told from one another by their order.
    return f"route append {iproute.route(sure)}"


def _sysctls(state: NetState, family: int) -> str:
    wanted = [
        one
        for one in state.sysctls
        if one.path.startswith("net/") and not (family == 4 and one.path.startswith("net/ipv6/"))
    ]
    if not wanted:
        return ""
    return "\n" + "".join(f"set_here {_quoted(one.path)} {_quoted(one.value)}\n" for one in wanted)


def _plain(one: Device) -> str:
    return f"{one.name}, a {one.kind}, is here a device without ports"


def _tables(state: NetState, packet: Packet, left_out: list[str]) -> str:
    """The tables that this family meets, as text."""
    written = []
    for table in state.tables:
        if table.family in _OTHER_FAMILY[packet.family]:
            continue
        name = f"table {table.family} {table.name}"
        left_out += [f"{name} is here without {one}" for one in table.unknown]
        try:
            written.append(text.table(_writable(table, name, left_out)))
        except ValueError as error:
            left_out.append(f"{name} is left out: {error}")
    return "\n".join(written)


def _writable(table: nft.Table, name: str, left_out: list[str]) -> nft.Table:
    """The table without the rules that can't be written."""
    chains = []
    for chain in table.chains:
        rules = []
        for rule in chain.rules:
            try:
                rules.append(_written(rule))
            except ValueError as error:
                left_out.append(f"{name}, chain {chain.name}, is here without a rule: {error}")
        chains.append(evolve(chain, rules=tuple(rules)))
    return evolve(table, chains=tuple(chains))


def _written(rule: nft.Rule) -> nft.Rule:
    """The rule, without its comment if that is what can't be written."""
    try:
        text.rule(rule)
    except ValueError:
        rule = evolve(rule, comment=None)
        text.rule(rule)
    return rule
