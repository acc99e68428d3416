"""Ports that rules of other programs forward, from listings as these programs write them."""

import pytest

from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import (
    AnonymousSet,
    Chain,
    Concat,
    Dnat,
    Hook,
    Lookup,
    Map,
    MapRef,
    Match,
    Meta,
    Payload,
    Rule,
    Set,
    SetRef,
    Table,
    Verdict,
    VerdictMap,
    VerdictMapRef,
)
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Port
from nftpolicy.runtime.published_ports import published_ports, unpublished_ports

TCP_PORT, UDP_PORT, TH_PORT = Payload("tcp", "dport"), Payload("udp", "dport"), Payload("th", "dport")
TO = Dnat("ip", "172.17.0.2", 80)
PREROUTING = Hook("nat", "prerouting", -100)
LOCAL = Match(nft.Fib("type", ("daddr",)), "local")
TCP = Match(Meta("l4proto"), "tcp")


def table(*rules, chains=(), sets=(), maps=(), hook=PREROUTING, name="other"):
    base = Chain("base", tuple(Rule(rule) for rule in rules), hook)
    return Table("ip", name, (base, *chains), tuple(sets), maps=tuple(maps))


def ports_of(*rules, **parts):
    return sorted(str(found.port) for found in published_ports([table(*rules, **parts)]))


@pytest.mark.parametrize(
    ("rule", "ports"),
    [
        ((Match(TCP_PORT, 8080), TO), ["tcp/8080"]),
        ((Match(UDP_PORT, "6000-6009"), TO), ["udp/6000-6009"]),
        ((TCP, Match(TH_PORT, 8080), TO), ["tcp/8080"]),
        ((Match(TCP_PORT, AnonymousSet(frozenset({80, 443}))), TO), ["tcp/443", "tcp/80"]),
        ((Match(TCP_PORT, SetRef("web")), TO), ["tcp/8443"]),
        ((TCP, Dnat("ip", Lookup(TH_PORT, MapRef("hosts")))), ["tcp/81", "tcp/82"]),
        ((Dnat("ip", Lookup(UDP_PORT, frozenset({(53, "172.17.0.3")}))),), ["udp/53"]),
        ((LOCAL, Match(TCP_PORT, 8080), Verdict("accept")), []),
        ((Match(TCP_PORT, 8080, "!="), TO), []),
        ((LOCAL, TO), []),
        ((Match(TH_PORT, 8080), TO), []),
    ],
)
def test_port_of_rule(rule, ports):
    sets = [Set("web", ("inet_service",), frozenset({8443}))]
    maps = [Map("hosts", ("inet_service",), ("ipv4_addr",), frozenset({(81, "172.17.0.4"), (82, "172.17.0.5")}))]
    assert ports_of(rule, sets=sets, maps=maps) == ports


def test_ports_of_chains_that_rules_jump_to():
    container = Chain("container", (Rule((TO,)),))
    docker = Chain("docker", (Rule((Match(TCP_PORT, 8080), TO)),))
    by_key = VerdictMap(TCP_PORT, frozenset({(81, Verdict("jump", "container"))}))
    by_map = VerdictMapRef(Concat((Meta("l4proto"), TH_PORT)), "ports")
    maps = [
        Map(
            "ports",
            ("inet_proto", "inet_service"),
            ("verdict",),
            frozenset({(("udp", 82), Verdict("goto", "container"))}),
        )
    ]
    found = ports_of((LOCAL, Verdict("jump", "docker")), (by_key,), (by_map,), chains=(container, docker), maps=maps)
    assert found == ["tcp/8080", "tcp/81", "udp/82"]


def test_chains_that_jump_in_a_circle_end():
    circle = Chain("circle", (Rule((Match(TCP_PORT, 1), Verdict("jump", "circle"))),))
    assert ports_of((Verdict("jump", "circle"),), chains=(circle,)) == []


def test_other_hooks_and_own_tables_publish_nothing():
    rule = (Match(TCP_PORT, 8080), TO)
    assert ports_of(rule, hook=Hook("nat", "output", -100)) == []
    assert ports_of(rule, hook=None) == []
    assert ports_of(rule, name="nftpolicy") == []
    assert ports_of(rule) == ["tcp/8080"]


POLICY = """
name = "p"
inside = ["docker0"]
[uplink.wan]
devices = ["eth0"]
mark = "0x1/0x1"
table = 51
[publish.web]
uplink = "wan"
port = "tcp/8000-8080"
to = "docker0"
"""


def test_ports_that_the_policy_publishes_are_left_out():
    policy, _ = load(POLICY.encode())
    rules = (
        (Match(TCP_PORT, 8080), TO),
        (Match(TCP_PORT, 8081), TO),
        (Match(UDP_PORT, 8080), TO),
        (Match(TCP_PORT, 8081), TO),
    )
    found = unpublished_ports([table(*rules)], policy)
    assert [(each.port, each.table) for each in found] == [
        (Port("tcp", 8081, 8081), "ip other"),
        (Port("udp", 8080, 8080), "ip other"),
    ]
