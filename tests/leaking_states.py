"""States of real hosts, each with packets that leave by the uplink without its mark, and the cause.

None of them has a guard: a policy starts from such a state, and a proof has to refute it.
"""

import json
from pathlib import Path

from attrs import frozen

from nftpolicy.model.packet import FORWARD, ICMPV6, TCP, Packet, parse_address
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import ip_json_decode, nft_json_decode
from nftpolicy.netstate.nft import Bitwise, Chain, Hook, Mangle, Match, Meta, Payload, Rule, Table
from nftpolicy.netstate.routing import TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, IpRule, Route
from nftpolicy.netstate.state import NetState

FIXTURES = Path(__file__).parent / "fixtures"
NOBODY = 65534
KERNEL, STATIC = 2, 4  # owners of routes (rtm_protocol)
METRIC = 1024  # what IPv6 gives a route that asks for none
WAN_TABLE = 1


@frozen
class Leak:
    """Packet that leaves by `device`; `reason` names the rule or route that allows it."""

    packet: Packet
    device: str
    reason: str


@frozen
class Known:
    """State with its uplink devices, and the mark that a policy would require."""

    name: str
    state: NetState
    uplinks: tuple[str, ...]
    mark: int
    mask: int
    leaks: tuple[Leak, ...]


def standard_rules(family: int) -> tuple[IpRule, ...]:
    """Return the default ip rules of a kernel."""
    last = (IpRule(4, 32767, table=TABLE_DEFAULT, protocol=KERNEL),) if family == 4 else ()
    return (
        IpRule(family, 0, table=TABLE_LOCAL, protocol=KERNEL),
        IpRule(family, 32766, table=TABLE_MAIN, protocol=KERNEL),
        *last,
    )


def loopback(family: int) -> tuple[Route, ...]:
    """Return the routes of lo in table local."""
    own = ("127.0.0.0/8", "127.0.0.1/32") if family == 4 else ("::1/128",)
    return tuple(Route(family, TABLE_LOCAL, to, "local", device="lo", protocol=KERNEL) for to in own)


def device(family: int, name: str, address: str, network: str, table: int = TABLE_MAIN) -> tuple[Route, ...]:
    """Return the routes that come with an address."""
    width, metric = (32, 0) if family == 4 else (128, METRIC)
    return (
        Route(family, TABLE_LOCAL, f"{address}/{width}", "local", device=name, protocol=KERNEL),
        Route(family, table, network, device=name, metric=metric, protocol=KERNEL),
    )


def default(family: int, name: str, gateway: str, table: int = TABLE_MAIN) -> Route:
    """Return a default route."""
    metric = 0 if family == 4 else METRIC
    return Route(family, table, gateway=gateway, device=name, metric=metric, protocol=STATIC)


def lookup(family: int, priority: int, table: int, **selectors: object) -> IpRule:
    """Return an ip rule as netifd or an administrator adds it."""
    return IpRule(family, priority, table=table, protocol=0, **selectors)  # type: ignore[arg-type]


def udp(destination: str, **more: object) -> Packet:
    """Return a UDP packet of a socket of user nobody."""
    family = 6 if ":" in destination else 4
    return Packet(family, parse_address(destination), **({"uid": NOBODY, "gid": NOBODY} | more))  # type: ignore[arg-type]


# --- what netifd makes of `option ip6table 1` on wan6: Gluon ----------------------------


_WAN6, _MESH6 = "2001:db8:1::2", "fd00:db8::a"
_FAR6, _FAR4 = "2001:db8:f::9", "198.51.100.9"
_NETWORKS6 = (
    *loopback(6),
    *device(6, "br-wan", _WAN6, "2001:db8:1::/64", WAN_TABLE),
    *device(6, "br-client", _MESH6, "fd00:db8::/64"),
    default(6, "br-wan", "2001:db8:1::1", WAN_TABLE),
    Route(6, WAN_TABLE, kind="unreachable", device="lo", metric=65535, protocol=STATIC),
)
_MESH_DEFAULT6 = default(6, "br-client", "fd00:db8::1")
_MARKED6 = lookup(6, 1, WAN_TABLE, mark=1, mask=1)


def from_wan_address() -> Known:
    """netifd's 10000: what has the address of the WAN goes by the WAN."""
    rule = lookup(6, 10000, WAN_TABLE, source=f"{_WAN6}/128")
    state = NetState(rules=(*standard_rules(6), _MARKED6, rule), routes=(*_NETWORKS6, _MESH_DEFAULT6))
    reason = "rule 10000 sends what is bound to the WAN's address to table 1, marked or not"
    leak = Leak(udp(_FAR6, source=parse_address(_WAN6)), "br-wan", reason)
    return Known("gluon-10000", state, ("br-wan",), 1, 1, (leak,))


def to_wan_prefix() -> Known:
    """netifd's 20000: the network of the WAN is reached by the WAN."""
    rule = lookup(6, 20000, WAN_TABLE, destination="2001:db8:1::/64")
    state = NetState(rules=(*standard_rules(6), _MARKED6, rule), routes=(*_NETWORKS6, _MESH_DEFAULT6))
    reason = "rule 20000 sends what goes to the WAN's prefix to table 1, marked or not"
    packet = udp("2001:db8:1::77", protocol=TCP, dport=80)
    return Known("gluon-20000", state, ("br-wan",), 1, 1, (Leak(packet, "br-wan", reason),))


def loopback_fallthrough() -> Known:
    """netifd's 90000: what the machine sends itself, and main has no route for, goes by the WAN."""
    rule = lookup(6, 90007, WAN_TABLE, iif="lo")
    state = NetState(rules=(*standard_rules(6), _MARKED6, rule), routes=_NETWORKS6)
    reason = "main has no default route while the mesh is down, so rule 90007 sends it to table 1"
    return Known("gluon-90000", state, ("br-wan",), 1, 1, (Leak(udp(_FAR6), "br-wan", reason),))


def main_default() -> Known:
    """Gluon's IPv4: the WAN is the default route of main, and no rule asks for the mark."""
    routes = (
        *loopback(4),
        *device(4, "br-wan", "192.0.2.2", "192.0.2.0/24"),
        *device(4, "br-client", "10.0.0.2", "10.0.0.0/16"),
        default(4, "br-wan", "192.0.2.1"),
    )
    reason = "the default route of table main is the WAN, for every packet of IPv4"
    leaks = (
        Leak(udp(_FAR4, dport=123), "br-wan", reason),
        Leak(udp("192.0.2.1", protocol=TCP, dport=80), "br-wan", "the WAN's own network is in table main"),
        Leak(udp(_FAR4, bound="br-wan"), "br-wan", "the socket is bound to the WAN"),
    )
    return Known("gluon-ipv4", NetState(rules=standard_rules(4), routes=routes), ("br-wan",), 1, 1, leaks)


# --- pbr: marks put on by rules ------------------------------------------------------------


def pbr() -> Known:
    """pbr: packets that its rules name get a mark in the output or prerouting hook, and a table by it."""
    value, mask, table = 0x10000, 0xFF0000, 256
    mark = Mangle(Meta("mark"), Bitwise(Meta("mark"), and_mask=0xFFFFFFFF & ~mask, or_bits=value))

    def marked(*matches: Match) -> Rule:
        return Rule((*matches, mark, nft.Verdict("return")))

    output = Chain(
        "pbr_output",
        (marked(Match(Meta("l4proto"), "tcp"), Match(Payload("th", "dport"), 443)),),
        Hook("route", "output", -150),
    )
    prerouting = Chain(
        "pbr_prerouting",
        (marked(Match(Meta("iifname"), "br-lan"), Match(Payload("ip", "saddr"), "192.168.1.64/26")),),
        Hook("filter", "prerouting", -150),
    )
    routes = (
        *loopback(4),
        *device(4, "wan0", "192.0.2.2", "192.0.2.0/24"),
        *device(4, "br-lan", "192.168.1.1", "192.168.1.0/24"),
        *device(4, "wg0", "10.9.0.2", "10.9.0.0/24"),
        Route(4, TABLE_MAIN, device="wg0", protocol=STATIC),
        default(4, "wan0", "192.0.2.1", table),
        Route(4, table, "192.168.1.0/24", device="br-lan", protocol=STATIC),
    )
    rules = (*standard_rules(4), lookup(4, 29998, table, mark=value, mask=mask))
    state = NetState((Table("inet", "pbr", (output, prerouting)),), rules, routes)
    leaks = (
        Leak(
            udp(_FAR4, protocol=TCP, dport=443),
            "wan0",
            "a rule of pbr marks port 443 in the output hook, and it is routed again by rule 29998",
        ),
        Leak(
            Packet(4, parse_address(_FAR4), parse_address("192.168.1.70"), origin=FORWARD, iif="br-lan"),
            "wan0",
            "a rule of pbr marks what these hosts send before it is routed, and rule 29998 takes it to the WAN",
        ),
    )
    return Known("pbr", state, ("wan0",), 1, 1, leaks)


# --- wg-quick --------------------------------------------------------------------------------


def wg_quick() -> Known:
    """wg-quick up with AllowedIPs 0.0.0.0/0: all goes by the tunnel unless it has the tunnel's own mark."""
    table = 51820
    rules = (
        *standard_rules(4),
        lookup(4, 32764, TABLE_MAIN, suppress_prefix=0),
        lookup(4, 32765, table, mark=table, mask=0xFFFFFFFF, invert=True),
    )
    routes = (
        *loopback(4),
        *device(4, "eth0", "192.0.2.2", "192.0.2.0/24"),
        *device(4, "wg0", "10.9.0.2", "10.9.0.0/24"),
        default(4, "eth0", "192.0.2.1"),
        Route(4, table, device="wg0", protocol=STATIC),
    )
    raw = Chain(
        "preraw",
        (
            Rule(
                (
                    Match(Meta("iifname"), "wg0", "!="),
                    Match(Payload("ip", "daddr"), "10.9.0.2"),
                    Match(nft.Fib("type", ("saddr",)), "local", "!="),
                    nft.DROP,
                )
            ),
        ),
        Hook("filter", "prerouting", -300),
    )
    put = Mangle(Meta("mark"), nft.Ct("mark"))
    keep = Mangle(nft.Ct("mark"), Meta("mark"))
    udp_only = Match(Meta("l4proto"), "udp")
    premangle = Chain("premangle", (Rule((udp_only, put)),), Hook("filter", "prerouting", -150))
    postmangle = Chain(
        "postmangle", (Rule((udp_only, Match(Meta("mark"), table), keep)),), Hook("filter", "postrouting", -150)
    )
    state = NetState((Table("ip", "wg-quick-wg0", (raw, premangle, postmangle)),), rules, routes)
    leaks = (
        Leak(udp(_FAR4, bound="eth0"), "eth0", "a socket bound to a device leaves by it, whatever the rules say"),
        Leak(udp("192.0.2.77"), "eth0", "rule 32764 lets the routes of main but its default through: the hotel's net"),
    )
    return Known("wg-quick", state, ("eth0",), table, 0xFFFFFFFF, leaks)


def wg_quick_down() -> Known:
    """Return the host of `wg_quick` without the tunnel."""
    up = wg_quick().state
    routes = tuple(route for route in up.routes if route.device != "wg0")
    state = NetState(rules=standard_rules(4), routes=routes)
    leak = Leak(udp(_FAR4), "eth0", "without the rules of wg-quick, the default route of main is the uplink")
    return Known("wg-quick-down", state, ("eth0",), 51820, 0xFFFFFFFF, (leak,))


# --- OpenWrt's firewall ------------------------------------------------------------------------


def _listed(name: str) -> NetState:
    """Return the state in the fixtures of a real host: `nft -j list ruleset`, `ip -j rule`, `ip -j route`."""

    def read(file: str) -> list:
        return json.loads((FIXTURES / name / f"{file}.json").read_text())

    return NetState(
        nft_json_decode.decode_ruleset(read("kernel")) if (FIXTURES / name / "kernel.json").exists() else (),
        tuple(one for family in (4, 6) for one in ip_json_decode.decode_rules(read(f"ip{family}-rule"), family)),
        tuple(one for family in (4, 6) for one in ip_json_decode.decode_routes(read(f"ip{family}-route"), family)),
    )


def default_router() -> Known:
    """OpenWrt as it is delivered: fw4, and the WAN as default route of main in both families."""
    local = "fw4's output hook accepts, and the default route of main is the WAN"
    leaks = (
        Leak(udp(_FAR4, dport=123), "wan0", local),
        Leak(udp(_FAR6, protocol=ICMPV6), "wan0", local),
        Leak(
            Packet(4, parse_address(_FAR4), parse_address("192.168.1.70"), origin=FORWARD, iif="br-lan", dport=443),
            "wan0",
            "fw4 forwards from lan to wan and masquerades",
        ),
    )
    return Known("default-router", _listed("default-router"), ("wan0",), 1, 1, leaks)


def ip4table() -> Known:
    """netifd with `option ip4table 1` and `ip6table 1` on the WAN, and no mesh: its rules in both families."""
    leaks = (
        Leak(udp(_FAR4), "wan0", "main has no default route, so rule 90002 sends it to table 1"),
        Leak(
            udp(_FAR4, source=parse_address("192.0.2.2")),
            "wan0",
            "rule 10000 sends what has the WAN's address to table 1",
        ),
        Leak(udp("192.0.2.9", protocol=TCP), "wan0", "rule 20000 sends what goes to the WAN's network to table 1"),
        Leak(udp(_FAR6, source=parse_address(_WAN6)), "wan0", "rule 10000 sends what has the WAN's address to table 1"),
    )
    return Known("ip4table", _listed("ip4table"), ("wan0",), 1, 1, leaks)


def gluon_node() -> Known:
    """Return a Gluon node: its firewall, IPv6 by mark and table 1, IPv4 by main."""
    leaks = (*from_wan_address().leaks, *to_wan_prefix().leaks, *main_default().leaks)
    return Known("gluon-node", _listed("gluon-node"), ("br-wan",), 1, 1, leaks)


def all_known() -> tuple[Known, ...]:
    """Return every state of this file."""
    return (
        from_wan_address(),
        to_wan_prefix(),
        loopback_fallthrough(),
        main_default(),
        pbr(),
        wg_quick(),
        wg_quick_down(),
        default_router(),
        ip4table(),
        gluon_node(),
    )
