"""Foreign reverse path filters in nft: the model drops what the kernel drops."""

from itertools import product

import pytest

from nftpolicy.model.packet import FORWARD, Packet, parse_address
from nftpolicy.netstate.nft import DROP, Chain, Fib, Hook, Mangle, Match, Meta, Rule, Table
from nftpolicy.netstate.routing import IpRule, Route
from nftpolicy.netstate.state import NetState

from .packet_machine import DEVICES, FAMILIES, PacketMachine, own
from .trace_differential import disagreements, send, traces

pytestmark = pytest.mark.kernel

KEYS = [
    ("saddr", "iif"),
    ("saddr", "mark", "iif"),
    ("saddr",),
    ("saddr", "mark"),
]
# On the link of each device, by a default route, by a route of one table, without a route, of this machine.
SOURCES = {
    4: ("192.0.2.9", "198.51.100.9", "203.0.113.9", "8.8.8.8", "198.18.0.9", "198.19.0.9", "203.0.113.2", "0.0.0.0"),
    6: ("2001:db8:1::9", "2001:db8:2::9", "2001:db8:3::9", "2001:db8:f::9", "2001:db8:18::9", "2001:db8:19::9",
        "2001:db8:3::2", "fe80::99"),
}  # fmt: skip
ONLY_IN_TABLE = {4: "198.18.0.0/16", 6: "2001:db8:18::/48"}
REFUSED = {4: "198.19.0.0/16", 6: "2001:db8:19::/48"}
MARK_OF_WAN = Rule((Match(Meta("iifname"), "wan"), Mangle(Meta("mark"), 1)))


def state(has_no_way: Match, has_default: bool) -> NetState:
    """Return a state that marks what arrives by the WAN, and drops what has no way back."""
    drop = Rule((has_no_way, DROP))
    chain = Chain("c", (MARK_OF_WAN, drop), Hook("filter", "prerouting", -140))
    rules, routes = [], []
    for family in FAMILIES:
        rules.append(IpRule(family, 510, table=100, mark=1, mask=1))
        rules.append(IpRule(family, 520, table=101, iif="wan"))  # not for a lookup of this machine
        routes += [
            Route(family, 100, device="wan"),
            Route(family, 100, ONLY_IN_TABLE[family], device="lan"),
            Route(family, 101, device="wan"),
            Route(family, 254, REFUSED[family], "unreachable", device="lo" if family == 6 else None),
        ]
        if has_default:
            routes.append(Route(family, 254, device="mesh", metric=1024))
    return NetState((Table("inet", "rp", (chain,)),), tuple(rules), tuple(routes))


def packets() -> list[Packet]:
    return [
        Packet(family, own(family, device), parse_address(source), dport=9, origin=FORWARD, iif=device)
        for family, device in product(FAMILIES, DEVICES)
        for source in SOURCES[family]
    ]


def test_reverse_path_filter_drops_the_same_in_model(egress: None) -> None:
    machine, decided = PacketMachine(), set()
    try:
        for index, (keys, has_default) in enumerate(product(KEYS, (True, False))):
            has_no_way = Match(Fib("oif", keys), "missing")
            if "iif" not in keys and not has_default:
                has_no_way = Match(Fib("oifname", keys), "wan", "!=")
            sample = send(machine, index, state(has_no_way, has_default), packets())
            wrong = disagreements(sample)
            assert not wrong, "\n\n".join(map(str, wrong[:5]))
            open_traces = [one for one in traces(sample.state, sample.packets) if one.unsupported]
            assert {one.packet.source for one in open_traces} <= {0}
            decided |= {(keys, bool(arrivals)) for arrivals in sample.seen.values()}
            assert len(sample.seen) < len(packets()), "inconclusive: nothing is dropped"
    finally:
        machine.close()
    assert len(decided) == len(KEYS), "inconclusive: nothing passes"
