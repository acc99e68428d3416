"""Parts of a state that other programs than nft load: iptables, ip rules and routes, devices, tc, and earlier flows."""

import re
import subprocess
from collections.abc import Callable, Iterable, Sequence

from attrs import frozen

from .adversary_draw import EARLIER_FLOW, Draw, Part
from .storm_packets import FAR, GATEWAYS, MESH, NEAR, NOBODY, OWN, WAN

_ERROR_LINE = re.compile(r"(?:line:? |-:)(\d+)")
_REFUSALS = 4  # rules that a restore may refuse before its rules are left out
_PROTOCOL = "proto 99"  # of all routes of a state


@frozen
class Program:
    """Program that loads parts from its input, and the input with which it removes all parts of every state.

    `tables`: its input are the rules of tables, a transaction. Otherwise it goes on after a line that it refuses.
    """

    argv: tuple[str, ...]
    reset: str
    begin: str = ""
    tables: bool = False


def _reset_tables(*names: str) -> str:
    return "".join(f"*{name}\nCOMMIT\n" for name in names)


def _reset_routing(family: int) -> str:
    default = "rule add pref 32767 table default\n" if family == 4 else ""
    return f"rule flush\nrule add pref 32766 table main\n{default}route flush table all {_PROTOCOL}\n"


_IP = ("ip", "-force", "-batch", "-")
_LEGACY_TABLES = _reset_tables("raw", "mangle", "nat", "filter")
_DEVICES = ("macv", "br0", "pair0", "vx", "ifb9")
_RESET_LINKS = "".join(f"link del {device}\n" for device in _DEVICES) + "xfrm state flush\nxfrm policy flush\n"
# In the order in which they are run. The tables of nft are loaded after the first one.
PROGRAMS = {
    "link": Program(_IP, _RESET_LINKS),
    "iptables": Program(("iptables-nft-restore",), "", tables=True),
    "ip6tables": Program(("ip6tables-nft-restore",), "", tables=True),
    "iptables-legacy": Program(("iptables-legacy-restore",), _LEGACY_TABLES, tables=True),
    "ip6tables-legacy": Program(("ip6tables-legacy-restore",), _LEGACY_TABLES, tables=True),
    "route4": Program(("ip", "-4", *_IP[1:]), _reset_routing(4)),
    "route6": Program(("ip", "-6", *_IP[1:]), _reset_routing(6)),
    "tc": Program(
        ("tc", *_IP[1:]),
        f"qdisc del dev {WAN} clsact\nqdisc del dev {MESH} clsact\nqdisc del dev {WAN} root\n",
        f"qdisc add dev {WAN} clsact\nqdisc add dev {MESH} clsact\n",
    ),
}  # fmt: skip


def load_program(name: str, parts: Sequence[Part]) -> tuple[Part, ...]:
    """Load the parts of one program in this network namespace; return those that it did not refuse."""
    program = PROGRAMS[name]
    for _ in range(_REFUSALS):
        lines = list(_input_lines(program, parts))
        result = _run(program, lines)
        refused = [lines[int(number) - 1][1] for number in _ERROR_LINE.findall(result) if int(number) <= len(lines)]
        if not result or not program.tables:
            return tuple(part for part in parts if part not in refused)
        if not any(refused):
            break
        parts = [part for part in parts if part not in refused]
    return ()


def reset_program(name: str) -> None:
    """Remove what any state has loaded by this program."""
    program = PROGRAMS[name]
    if program.reset:
        _run(program, [(line, None) for line in program.reset.splitlines()])


def _input_lines(program: Program, parts: Sequence[Part]) -> Iterable[tuple[str, Part | None]]:
    """Yield the lines of a program's input, each with its part."""
    yield from ((line, None) for line in program.begin.splitlines())
    if not program.tables:
        yield from ((line, part) for part in parts for line in part.text.splitlines())
        return
    for table in dict.fromkeys(part.place.split()[1] for part in parts):
        yield f"*{table}", None
        yield from ((part.text, part) for part in parts if part.place.split()[1] == table)
        yield "COMMIT", None


def _run(program: Program, lines: Sequence[tuple[str, Part | None]]) -> str:
    """Run a program with these lines as its input; return its error messages, or "" if it succeeded."""
    text = "".join(f"{line}\n" for line, _ in lines)
    done = subprocess.run(program.argv, input=text, capture_output=True, text=True, check=False)
    return (done.stderr or "refused") if done.returncode else ""


# --- devices ---------------------------------------------------------------------------------

_BRIDGE = f"link add br0 type bridge forward_delay 0\nlink set {WAN} master br0\nlink set br0 up arp off"
_PAIR = "link add pair0 type veth peer name pair1\nlink set pair0 up arp off\nlink set pair1 up arp off"
DEVICES = (
    f"link add macv link {WAN} type macvlan mode bridge\nlink set macv up arp off",
    f"link add macv link {WAN} type macvlan mode private\nlink set macv up arp off",
    _BRIDGE,
    f"{_BRIDGE}\n{_PAIR}\nlink set pair1 master br0",
    _PAIR,
    f"link add vx type vxlan id 5 remote {FAR[4]} local {OWN[4][WAN]} dstport 4789\nlink set vx up arp off",
    f"link add vx type vxlan id 5 remote {FAR[6]} local {OWN[6][WAN]} dstport 4789\nlink set vx up arp off",
    "link add ifb9 type ifb\nlink set ifb9 up",
)
_TRANSFORM = (
    f"xfrm state add src {OWN[4][WAN]} dst {FAR[4]} proto esp spi 5 mode transport enc cipher_null '' %s\n"
    f"xfrm policy add src {OWN[4][WAN]} dst {FAR[4]} proto udp dir out tmpl proto esp mode transport"
)


def draw_device(draw: Draw) -> Part:
    """Return a device beside the uplink, or a transformation (xfrm)."""
    if draw.random() < 0.15:
        return Part("link", _TRANSFORM % draw.choice(("", "output-mark 2", "output-mark 1", "output-mark 2 mask 2")))
    return Part("link", draw.choice(DEVICES))


# --- routing ---------------------------------------------------------------------------------


def draw_routing(draw: Draw) -> list[Part]:
    """Return an ip rule with the route of its table, or a route of the main table."""
    family = draw.choice((4, 6))
    place = f"route{family}"
    far, near = FAR[family], NEAR[family]
    to_uplink, to_mesh = (f"via {GATEWAYS[family][device]} dev {device} onlink" for device in (WAN, MESH))
    if draw.random() < 0.3:
        host = 32 if family == 4 else 128
        route = draw.choice(
            (f"{far}/{host} {to_mesh}", f"blackhole {far}/{host}", f"unreachable {near}/{host}",
             f"default {to_mesh} metric 5", f"default {to_mesh} metric 2000000", f"prohibit {far}/{host} metric 5",
             f"{far}/{host} {to_uplink} mtu 1280", f"throw {far}/{host} table main",
             f"default nexthop {to_uplink} nexthop {to_mesh} metric 5", f"local {near}/{host} dev lo table local")
        )  # fmt: skip
        return [Part(place, f"route add {route} {_PROTOCOL}")]
    number, route = draw.choice(
        ((100, f"default {to_uplink}"), (101, "unreachable default"), (102, f"default {to_mesh}"),
         (103, "blackhole default"), (104, "throw default"), (105, ""),
         (106, f"default {to_uplink} src {OWN[family][MESH]}"))
    )  # fmt: skip
    absent = "198.18.0.0/15" if family == 4 else "2001:db8:99::/48"
    selector = draw.choice(
        ("fwmark 2", "fwmark 0x10/0x10", "fwmark 1/1", "fwmark 0/1", "not fwmark 1/1", f"uidrange {NOBODY}-{NOBODY}",
         "uidrange 1000-1000", "uidrange 0-0", f"iif {MESH}", "iif lo", f"to {far}", f"to {near}", f"not to {absent}",
         f"from {OWN[family][MESH]}", "ipproto udp dport 53", "ipproto tcp", "ipproto udp sport 20000-20100",
         "tos 0x10", f"oif {WAN}", f"oif {MESH}", "not iif lo", "")
    )  # fmt: skip
    pref = draw.choice((10, 100, 1000, 32000, 32767 if family == 6 else 40000))
    others = ("unreachable", "blackhole", "prohibit", "table main suppress_prefixlength 0", f"goto {pref + 1}", "nop")
    action = draw.choice((f"table {number}",) * 6 + others)
    parts = [Part(place, f"rule add pref {pref} {selector} {action}")]
    if action == f"table {number}" and route:
        parts.append(Part(place, f"route add {route} table {number} {_PROTOCOL}"))
    return parts


# --- traffic control -------------------------------------------------------------------------


def draw_filter(draw: Draw) -> Part:
    """Return a filter at an end of a device, or a queueing discipline."""
    if draw.random() < 0.1:
        return Part("tc", f"qdisc add dev {WAN} root htb")
    device, other = draw.choice(((WAN, MESH), (MESH, WAN), (MESH, WAN), (WAN, "lo"), (MESH, "lo"), (MESH, MESH)))
    side = draw.choice(("ingress", "egress"))
    match = draw.choice(
        ("protocol all u32 match u32 0 0", "protocol ip u32 match ip protocol 17 0xff",
         "protocol ipv6 u32 match ip6 protocol 17 0xff", "protocol arp u32 match u32 0 0")
    )  # fmt: skip
    action = draw.choice(
        (f"action mirred egress redirect dev {other}", f"action mirred egress mirror dev {other}",
         f"action mirred ingress redirect dev {other}", "classid 1:1")
    )  # fmt: skip
    if draw.random() < 0.2:
        result = draw.choice((0, 2, 4294967295))  # TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC
        return Part("tc", f'filter add dev {device} {side} bpf da bytecode "1,6 0 0 {result},"')
    return Part("tc", f"filter add dev {device} {side} {match} {action}")


# --- earlier flows ---------------------------------------------------------------------------

_EARLIER_SENDERS = (
    "udp{} to port 9", "udp{} to port 53", "tcp{} SYN", "udp{} of root", "echo request {}",
    "forwarded IPv{} of protocol 17", "udp{} bound to the uplink", "udp{} in a flow of another user",
)  # fmt: skip


def draw_earlier_flow(draw: Draw) -> Part:
    """Return a flow that carries a mark before the state is loaded: the sender of its packet, and the mark."""
    sender = draw.choice(_EARLIER_SENDERS).format(draw.choice((4, 6)))
    return Part(EARLIER_FLOW, f"{draw.choice((1, 1, 1, 2, 3))} {sender}")


def draw_extra(draw: Draw, xtables_rule: Callable[[Draw, str], Part]) -> list[Part]:
    """Return the parts of a state that nft does not load. Most states have none, since each program takes time."""
    parts: list[Part] = []
    if draw.random() < 0.06:
        parts.append(draw_device(draw))
    for kind, share in (("nft", 0.14), ("legacy", 0.06)):
        if draw.random() < share:
            parts += [xtables_rule(draw, kind) for _ in range(draw.choice((1, 1, 2, 3)))]
    if draw.random() < 0.12:
        parts += [part for _ in range(draw.choice((1, 1, 2))) for part in draw_routing(draw)]
    if draw.random() < 0.04:
        parts.append(draw_filter(draw))
    if draw.random() < 0.06:
        parts += [draw_earlier_flow(draw) for _ in range(draw.choice((1, 2)))]
    return parts
