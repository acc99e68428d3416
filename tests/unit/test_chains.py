"""Evaluation of one packet in the chains of tables, without a kernel."""

import json
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.model.branching import MAX_BRANCHES, Choices, explore_branches
from nftpolicy.model.nft.chains import Ruleset, evaluate_chain
from nftpolicy.model.packet import ICMP, ICMPV6, TCP, CtInfo, Packet, parse_address
from nftpolicy.model.packet_view import PacketView
from nftpolicy.netstate.formats import nft_json_decode, nft_text
from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    AnonymousSet,
    Binary,
    Bitwise,
    Chain,
    Concat,
    Counter,
    Ct,
    CtCount,
    Dnat,
    Dup,
    Fib,
    FlowOffload,
    Hook,
    Limit,
    Log,
    Lookup,
    Mangle,
    Map,
    MapRef,
    Masquerade,
    Match,
    Meta,
    Notrack,
    ObjectRef,
    OpaqueExpression,
    Option,
    Payload,
    Queue,
    Quota,
    RawPayload,
    Redirect,
    Reject,
    Rt,
    Rule,
    Set,
    SetRef,
    SetUpdate,
    Snat,
    Socket,
    Table,
    UnknownExpression,
    UnknownStatement,
    Verdict,
    VerdictMap,
    VerdictMapRef,
)

MARK = Meta("mark")
OUTPUT = Hook("filter", "output", 0)
DESTINATIONS = {4: parse_address("192.0.2.1"), 6: parse_address("2001:db8::1")}


def packet(family=4, **more):
    return Packet(family, DESTINATIONS[family], **{"source": DESTINATIONS[family] + 1, "uid": 1000, "gid": 100, **more})


def view(sent_packet=None, **more):
    sent_packet = packet() if sent_packet is None else sent_packet
    return evolve(PacketView.from_packet(sent_packet, sent_packet.source, oif="eth0"), **more)


def base(*statements, hook=OUTPUT):
    """Return a base chain of rules. A statement by itself becomes a rule that drops if it matches."""
    rules = [one if isinstance(one, Rule) else Rule((one, DROP)) for one in statements]
    return Chain("base", tuple(rules), hook)


def table(*chains, family="inet", **more):
    return Table(family, "t", chains, **more)


def run(own_table, packet_view, choices=None, log=None):
    ruleset = Ruleset((own_table,))
    return evaluate_chain(ruleset, own_table, own_table.chains[0], packet_view, choices or Choices(), log)


def holds(statement, packet_view=None, *, hook=OUTPUT, family="inet", **more):
    """Return True if a rule with this statement runs to its end; None if that is unknown."""
    own_table = table(base(statement, hook=hook), family=family, **more)
    branches = explore_branches(lambda choices: run(own_table, evolve(packet_view or view()), choices))
    verdicts = set(branches.results)
    return None if len(verdicts) > 1 or branches.undetermined else verdicts == {"drop"}


# --- matches ---------------------------------------------------------------------------

FRAGMENT = {("ip", "frag-off"): 5}
FRAG_OFF = Payload("ip", "frag-off")
MATCHES = [
    (Match(MARK, 5), view(mark=5), True),
    (Match(MARK, "4-6"), view(mark=5), True),
    (Match(MARK, "4-6", "!="), view(mark=5), False),
    (Match(MARK, 5, "<"), view(mark=5), False),
    (Match(MARK, 5, "<="), view(mark=5), True),
    (Match(MARK, 4, ">"), view(mark=5), True),
    (Match(MARK, 6, ">="), view(mark=5), False),
    (Match(Bitwise(MARK, and_mask=0xF0), 0x10), view(mark=0x15), True),
    (Match(Bitwise(MARK, and_mask=0xF0, or_bits=1), AnonymousSet(frozenset({1, 0x11}))), view(mark=0x15), True),
    (Match(Binary("^", MARK, 1), 4), view(mark=5), True),
    (Match(Binary("<<", MARK, 4), 0x50), view(mark=5), True),
    (Match(Binary(">>", MARK, 1), 2), view(mark=5), True),
    (Match(Binary("&", MARK, Ct("mark")), 4), view(mark=5, ct_mark=6), True),
    (Match(Binary("|", MARK, Ct("mark")), 7), view(mark=5, ct_mark=6), True),
    (Match(Meta("oifname"), "eth0"), view(), True),
    (Match(Meta("oifname"), "eth*"), view(), True),
    (Match(Meta("oifname"), "eth\\*"), view(), False),
    (Match(Meta("oifname"), "eth\\*"), view(oif="eth*"), True),
    (Match(Meta("oif"), "77"), view(), False),
    (Match(Meta("iifname"), "eth0", "!="), view(), True),
    (Match(Meta("oifname"), AnonymousSet(frozenset({"wg*", "eth0"}))), view(), True),
    (Match(Meta("oifname"), AnonymousSet(frozenset({"wg*", "eth0"})), "!="), view(oif="wg7"), False),
    (Match(Meta("skuid"), 1000), view(), True),
    (Match(Meta("skuid"), 0, "!="), view(uid=None), False),
    (Match(Meta("skgid"), "5-200"), view(), True),
    (Match(Meta("skgid"), AnonymousSet(frozenset({5})), "!="), view(gid=None), False),
    (Match(Meta("l4proto"), "udp"), view(), True),
    (Match(Meta("l4proto"), AnonymousSet(frozenset({"tcp", "icmpv6", 200}))), view(protocol=200), True),
    (Match(Meta("l4proto"), "tcp", "!="), view(ethertype=0x0806), False),
    (Match(Meta("nfproto"), "ipv4"), view(), True),
    (Match(Meta("nfproto"), "ipv6", "!="), view(), True),
    (Match(Meta("protocol"), "arp"), view(ethertype=0x0806), True),
    (Match(Meta("pkttype"), "multicast"), view(), False),
    (Match(Meta("nftrace"), 0), view(), True),
    (Match(Meta("length"), 100, ">"), view(fields={("meta", "length"): 200}), True),
    (Match(Payload("ip", "daddr"), "192.0.2.0/24"), view(), True),
    (Match(Payload("ip", "daddr"), "192.0.2.0-192.0.2.9", "!="), view(), False),
    (Match(Payload("ip", "daddr"), "10.0.0.0/8", "!="), view(packet(6)), False),
    (Match(Payload("ip6", "daddr"), "2001:db8::/32"), view(packet(6)), True),
    (Match(Bitwise(Payload("ip", "daddr"), and_mask="0.0.0.255"), "0.0.0.1"), view(), True),
    (Match(Bitwise(Payload("ip6", "daddr"), and_mask="::ffff"), "::1"), view(packet(6)), True),
    (Match(Payload("ip", "version"), 4), view(), True),
    (Match(Payload("ip", "protocol"), "udp"), view(), True),
    (Match(Payload("ip6", "nexthdr"), "udp"), view(packet(6)), True),
    (Match(Payload("ip", "ttl"), 64), view(), True),
    (Match(Payload("ip", "ttl"), 63), view(iif="eth1"), True),
    (Match(Payload("ip6", "hoplimit"), 4), view(packet(6), iif="eth1", fields={("ip6", "hoplimit"): 5}), True),
    (Match(Payload("ip", "dscp"), "cs1"), view(fields={("ip", "dscp"): 8}), True),
    (Match(Payload("udp", "dport"), 9), view(), True),
    (Match(Payload("udp", "sport"), 40000), view(), True),
    (Match(Payload("tcp", "dport"), 22, "!="), view(), False),
    (Match(Payload("tcp", "dport"), 9), view(protocol=TCP), True),
    (Match(Payload("th", "dport"), 9), view(protocol=132), True),
    (Match(Payload("th", "dport"), 9), view(fields=FRAGMENT), False),
    (Match(FRAG_OFF, 5), view(fields=FRAGMENT), True),
    (Match(Bitwise(FRAG_OFF, and_mask=0x1FFF), 5), view(fields=FRAGMENT), True),
    (Match(Bitwise(FRAG_OFF, and_mask=0x3FFF), 0), view(), True),
    (Match(Bitwise(FRAG_OFF, and_mask=0x1FFF), 0), view(packet(6)), False),
    (Match(Payload("th", "dport"), 9, "!="), view(fields=FRAGMENT), False),
    (Match(Payload("icmp", "type"), "echo-request"), view(protocol=ICMP), True),
    (Match(Payload("icmp", "type"), "echo-reply"), view(protocol=ICMP, ct_direction="reply"), True),
    (Match(Payload("icmp", "type"), "echo-request", "!="), view(), False),
    (Match(Payload("icmp", "code"), 0), view(protocol=ICMP), True),
    (Match(Payload("icmpv6", "type"), "echo-request"), view(packet(6, protocol=ICMPV6)), True),
    (Match(Payload("icmpv6", "type"), "destination-unreachable"), view(packet(6, protocol=ICMPV6), ct_state="related"), True),
    (Match(Payload("icmpv6", "type"), 200), view(packet(6, protocol=ICMPV6), fields={("icmpv6", "type"): 200}), True),
    (Match(Payload("tcp", "flags"), "syn", "in"), view(protocol=TCP), True),
    (Match(Payload("tcp", "flags"), "ack,syn", "in"), view(protocol=TCP, ct_state="established"), True),
    (Match(Payload("tcp", "flags"), "rst", "&"), view(protocol=TCP), False),
    (Match(Payload("tcp", "flags"), "ack,syn", "!"), view(protocol=TCP), False),
    (Match(Bitwise(Payload("tcp", "flags"), and_mask="ack,fin,rst,syn"), "syn"), view(protocol=TCP), True),
    (Match(Payload("tcp", "flags"), AnonymousSet(frozenset({"ack,syn", "syn"}))), view(protocol=TCP), True),
    (Match(Payload("arp", "operation"), "request"), view(), False),
    (Match(Payload("ether", "type"), "ip", "!="), view(), False),
    (Match(Ct("state"), "established,related", "in"), view(ct_state="related"), True),
    (Match(Ct("state"), "established,related", "=="), view(ct_state="related"), False),
    (Match(Ct("state"), "established,related", "!="), view(ct_state="related"), True),
    (Match(Ct("state"), "new", "=="), view(), True),
    (Match(Ct("state"), "new", "!"), view(), False),
    (Match(Ct("state"), AnonymousSet(frozenset({"new", "invalid"}))), view(), True),
    (Match(Ct("state"), "untracked", "in"), view(notrack=True), True),
    (Match(Ct("state"), "invalid", "in"), view(origin="frame"), True),
    (Match(Ct("direction"), "original"), view(), True),
    (Match(Ct("direction"), "reply", "!="), view(ct_state="untracked"), False),
    (Match(Ct("mark"), 5, "!="), view(ct_state="invalid"), False),
    (Match(Ct("mark"), 5), view(ct_mark=5), True),
    (Match(Ct("status"), "dnat", "in"), view(status=frozenset({"dnat"})), True),
    (Match(Ct("status"), "dnat", "!"), view(), True),
    (Match(Ct("status"), "confirmed", "!"), view(is_confirmed=False), True),
    (Match(Ct("status"), "confirmed", "in"), view(is_confirmed=False), False),
    (Match(Ct("status"), "confirmed", "!"), view(is_confirmed=True), False),
    (Match(Ct("status"), "confirmed", "in"), view(is_confirmed=True, iif="lo"), True),
    (Match(Ct("l3proto"), "ipv4"), view(), True),
    (Match(Ct("protocol"), "udp"), view(), True),
    (Match(Ct("ip daddr", "original"), "192.0.2.1"), view(), True),
    (Match(Ct("ip6 daddr", "original"), "::1", "!="), view(), False),
    (Match(Ct("proto-dst", "original"), 9), view(), True),
    (Match(Socket("cgroupv2"), "system.slice/a"), view(cgroup="/system.slice/a/b"), True),
    (Match(Socket("cgroupv2"), "system.slice/a", "!="), view(cgroup="/system.slice/ab"), True),
    (Match(Option("tcp option", "maxseg", "size"), 5, "!="), view(), False),
    (Match(Option("tcp option", "maxseg"), "missing"), view(), True),
    (Match(Option("tcp option", "maxseg"), "exists"), view(), False),
    (Match(Option("tcp option", "maxseg"), "missing"), view(protocol=TCP, fields=FRAGMENT), True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("match", "packet_view", "expected"), MATCHES, ids=[nft_text.statement_text(match) for match, _, _ in MATCHES]
)
def test_match_has_expected_result(match, packet_view, expected):
    assert holds(match, packet_view) is expected


@pytest.mark.parametrize(
    ("match", "packet_view"),
    [
        (Match(UnknownExpression("{}"), 1), view()),
        (Match(MARK, UnknownExpression("{}")), view()),
        (Match(MARK, "a-name-of-the-machine"), view()),
        (Match(MARK, SetRef("missing")), view()),
        (Match(Meta("cpu"), 0), view()),
        (Match(Meta("length"), 100), view()),
        (Match(Meta("pkttype"), "host"), view(iif="eth0")),
        (Match(Meta("skuid"), UnknownExpression("{}")), view()),
        (Match(Payload("th", "dport"), 9), view(protocol=47)),
        (Match(Payload("esp", "spi"), 9), view(protocol=50)),
        (Match(FRAG_OFF, 0), view()),  # with the bit "don't fragment", which the sender decides
        (Match(Bitwise(FRAG_OFF, and_mask=0x4000), 0), view()),
        (Match(RawPayload("th", 0, 16), 9), view()),
        (Match(RawPayload("nh", 0, 16), 9), view()),
        (Match(Rt("mtu"), 9), view()),
        (Match(Option("tcp option", "maxseg"), "exists"), view(protocol=TCP)),
        (Match(Option("exthdr", "frag"), "missing"), view(packet(6))),
        (Match(Ct("status"), "assured", "in"), view()),
        (Match(Ct("status"), "confirmed", "!"), view(is_confirmed=None)),
        (Match(Ct("status"), "confirmed", "!"), view(is_confirmed=False, iif="lo")),
        (Match(Ct("zone"), 5), view()),
        (Match(Ct("ip daddr", "original"), "192.0.2.1"), view(dnat=True)),
        (Match(Ct("ip daddr", "reply"), "192.0.2.1"), view()),
        (Match(Fib("type", ("daddr",)), "local"), view()),
        (Match(Socket("transparent"), 1), view()),
        (Match(Socket("cgroupv2"), "a"), view()),
        (Match(Socket("cgroupv2"), "117"), view(cgroup="a")),
        (Match(Bitwise(MARK, and_mask="odd"), 1), view()),
        (Match(Binary("<<", Payload("ip", "dscp"), 26), 0), view(fields={("ip", "dscp"): 1})),
        (Match(OpaqueExpression("numgen inc mod 2"), 1), view()),
        (Match(Concat((MARK, Meta("cpu"))), AnonymousSet(frozenset({(0, 2)}))), view()),
        (Match(Payload("ip", "saddr"), "192.0.2.9"), view(snat=True)),
        (Match(Payload("ip", "daddr"), "192.0.2.9"), view(is_redirected=True)),
        (Limit(5, "second"), view()),
        (Quota(5), view()),
        (CtCount(5), view()),
        (ObjectRef("limit", "l"), view()),
        (SetUpdate("add", "s", Payload("ip", "saddr")), view()),
    ],
)
def test_match_of_unknown_field_branches(match, packet_view):
    assert holds(match, packet_view) is None


@pytest.mark.parametrize(
    "match",
    [
        Match(Payload("ip6", "saddr"), UnknownExpression("{}")),
        Match(Meta("skuid"), UnknownExpression("{}")),
        Match(Payload("th", "dport"), SetRef("missing")),
        Match(RawPayload("th", 0, 16), 9),
        SetUpdate("add", "s", Payload("tcp", "dport")),
        SetUpdate("add", "s", MARK, data=Payload("tcp", "dport")),
    ],
)
def test_match_of_absent_field_is_false(match):
    assert holds(match, view(uid=None, fields=FRAGMENT)) is False


def test_fib_match_uses_the_lookup_of_the_view():
    def fib(result, keys, packet_view):
        assert (result, keys) == ("type", ("daddr",)) and packet_view.oif == "eth0"
        return "local"

    for word, expected in (("local", True), ("unicast", False)):
        assert holds(Match(Fib("type", ("daddr",)), word), view(fib=fib)) is expected
    assert holds(Match(Fib("oif", ("saddr",)), "missing"), view(fib=lambda *_: "")) is True
    assert holds(Match(Fib("oif", ("saddr",)), "exists"), view(fib=lambda *_: "lo")) is True


# --- where a chain stands --------------------------------------------------------------

EARLY = Hook("filter", "output", -300)
EGRESS, INGRESS = (Hook("filter", hook, 0, device="eth0") for hook in ("egress", "ingress"))


# Frames of an AF_PACKET socket: an IPv4 packet that it calls ARP, and one with PACKET_QDISC_BYPASS.
SAYS_ARP = view(ethertype=0x0806, fields={("ether", "type"): 0x0800})
UNREADABLE = view(fields={("ether", "readable"): 0})


@pytest.mark.parametrize(
    ("match", "hook", "family", "packet_view", "expected"),
    [
        (Match(Ct("state"), "invalid", "in"), EARLY, "inet", view(), True),
        (Match(Ct("mark"), 0), EARLY, "inet", view(), False),
        (Match(Ct("state"), "new", "in"), Hook("filter", "prerouting", -300), "inet", view(iif="lo"), True),
        (Match(Ct("state"), "new", "in"), Hook("filter", "prerouting", -300), "inet", view(iif="eth0"), False),
        (Match(Meta("oifname"), "eth0"), EGRESS, "netdev", view(), True),
        (Match(Meta("iifname"), ""), EGRESS, "netdev", view(iif="eth1"), True),
        (Match(Meta("iifname"), "eth0"), INGRESS, "netdev", view(oif=None, iif="eth0"), True),
        (Match(Meta("oifname"), ""), INGRESS, "netdev", view(), True),
        (Match(Meta("nfproto"), 5), EGRESS, "netdev", view(), True),
        (Match(Payload("ether", "type"), 0x0800), EGRESS, "netdev", view(), True),
        (Match(Payload("ether", "type"), 0x0800, "!="), EGRESS, "netdev", view(), False),
        (Match(Payload("ether", "type"), 0x0806), EGRESS, "netdev", SAYS_ARP, False),
        (Match(Payload("ether", "type"), 0x0800), EGRESS, "netdev", SAYS_ARP, True),
        (Match(Meta("protocol"), 0x0806), EGRESS, "netdev", SAYS_ARP, True),
        (Match(Payload("ether", "type"), 0x0800), EGRESS, "netdev", UNREADABLE, False),
        (Match(Payload("ether", "type"), 0x0800, "!="), EGRESS, "netdev", UNREADABLE, False),
        (Match(Payload("ether", "type"), 0x0800), EGRESS, "netdev", view(fields={("meta", "oiftype"): 512}), False),
        (Match(Meta("oiftype"), "ppp"), EGRESS, "netdev", view(fields={("meta", "oiftype"): 512}), True),
        (Match(Meta("oiftype"), "ether"), EGRESS, "netdev", view(), True),
        (Match(Meta("oiftype"), "ether"), Hook("filter", "postrouting", 0), "inet", view(), None),
        (Match(Payload("ether", "type"), 0x0800), INGRESS, "netdev", view(oif=None, iif="eth0"), None),
        (Match(Payload("arp", "operation"), "request"), EGRESS, "netdev", view(ethertype=0x0806), None),
        (Match(Meta("length"), 42), EGRESS, "netdev", view(ethertype=0x0806), True),
        (Match(Meta("length"), 60), EGRESS, "netdev", view(ethertype=0x0806), False),
        (Match(Meta("length"), 42), EGRESS, "netdev", view(), None),
        (Match(Meta("length"), 42), EGRESS, "netdev", view(ethertype=0x0806, fields={("arp", "htype"): 6}), None),
        (Match(RawPayload("nh", 0, 48), 0x108000604), EGRESS, "netdev", view(ethertype=0x0806), True),
        (Match(RawPayload("nh", 16, 16), 0x86DD), EGRESS, "netdev", view(ethertype=0x0806), False),
        (Match(RawPayload("nh", 40, 16), 0x401), EGRESS, "netdev", view(ethertype=0x0806), None),
        (Match(RawPayload("nh", 0, 48), 0x108000604), EGRESS, "netdev", view(), None),
    ],
)
def test_match_result_depends_on_hook_and_family(match, hook, family, packet_view, expected):
    assert holds(match, packet_view, hook=hook, family=family) is expected


def names(tables, *arguments):
    return [f"{owner.name}/{chain.name}" for owner, chain in Ruleset(tables).base_chains(*arguments)]


def test_base_chains_are_sorted_by_family_hook_and_priority():
    def chain(name, hook, priority, device=None, **more):
        return Chain(name, (), Hook("filter", hook, priority, device=device, **more))

    tables = (
        Table("inet", "both", (chain("a", "output", 5), chain("b", "output", -5), Chain("plain"))),
        Table("ip", "four", (chain("c", "output", 0), chain("d", "input", 0))),
        Table("ip6", "six", (chain("e", "output", 0),)),
        Table("inet", "asleep", (chain("f", "output", 0),), flags=frozenset({"dormant"})),
        Table("netdev", "link", (chain("g", "egress", 1, "eth0"), chain("h", "egress", 0, "eth1"))),
        Table("netdev", "more", (chain("i", "egress", 0, devices=frozenset({"eth0", "wg*"})), chain("j", "egress", 2))),
        Table("bridge", "other", (chain("k", "output", 0),)),
    )
    assert names(tables, 4, "output") == ["both/b", "four/c", "both/a"]
    assert names(tables, 6, "output") == ["both/b", "six/e", "both/a"]
    assert names(tables, 0, "output") == []
    assert names(tables, 4, "egress", "eth0") == ["more/i", "link/g", "more/j"]
    assert names(tables, 0, "egress", "wg3") == ["more/i", "more/j"]
    assert names(tables, 6, "egress") == []
    assert names(tables, 4, "output", "eth0") == []


@pytest.mark.parametrize("family", ["ip", "ip6", "bridge", "arp"])
@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_base_chain_of_other_family_is_on_no_device(family, hook):
    chains = (Chain("c", (), Hook("filter", hook, 0, device="eth0")),)
    for packet_family in (4, 6, 0):
        assert names((Table(family, "t", chains),), packet_family, hook, "eth0") == []
        assert names((Table("netdev", "t", chains),), packet_family, hook, "eth0") == ["t/c"]


def test_base_chains_of_equal_priority_begin_with_the_newest():
    tables = tuple(Table(family, name, (base(),)) for family, name in (("inet", "old"), ("ip", "young")))
    assert names(tables, 4, "output") == ["young/base", "old/base"]


def test_table_with_unnamed_flag_branches():
    own_table = table(base(Rule((DROP,))), flags=frozenset({"unnamed"}))
    assert set(explore_branches(lambda choices: run(own_table, view(), choices)).results) == {"accept", "drop"}


def test_egress_chain_without_listed_device_branches():
    own_table = table(base(Rule((DROP,)), hook=Hook("filter", "egress", 0)), family="netdev")
    assert set(explore_branches(lambda choices: run(own_table, view(), choices)).results) == {"accept", "drop"}


def test_evaluation_of_regular_chain_raises():
    own_table = table(Chain("plain"))
    with pytest.raises(ValueError, match="not a base chain"):
        run(own_table, view())


# --- verdicts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], "policy"),
        ([ACCEPT, DROP], "accept"),
        ([Verdict("return"), DROP], "policy"),
        ([Verdict("continue"), DROP], "drop"),
        ([Verdict("jump", "returns"), DROP], "drop"),
        ([Verdict("goto", "returns"), DROP], "policy"),
        ([Verdict("jump", "ends"), DROP], "drop"),
        ([Verdict("goto", "ends"), DROP], "policy"),
        ([Verdict("jump", "accepts"), DROP], "accept"),
        ([Verdict("jump", "goes"), DROP], "drop"),
        ([VerdictMap(MARK, frozenset({(0, Verdict("jump", "accepts"))})), DROP], "accept"),
        ([VerdictMap(MARK, frozenset({(1, ACCEPT)})), DROP], "drop"),
        ([VerdictMap(MARK, frozenset({(1, ACCEPT), ("*", DROP)})), ACCEPT], "drop"),
        ([VerdictMapRef(Meta("oifname"), "ways"), DROP], "accept"),
        ([Reject(), ACCEPT], "drop"),
        ([Reject("icmpv6", "no-route"), ACCEPT], "accept"),
        ([Counter(), Log(), ObjectRef("ct helper", "ftp"), DROP], "drop"),
        ([Mangle(Meta("priority"), "1:2"), Mangle(Ct("helper"), "x"), DROP], "drop"),
    ],
)
@pytest.mark.parametrize("policy", ["accept", "drop"])
def test_verdicts_jump_goto_and_return_as_linux_does(rules, expected, policy):
    own_table = table(
        base(*(Rule((one,)) for one in rules), hook=evolve(OUTPUT, policy=policy)),
        Chain("returns", (Rule((Verdict("return"),)), Rule((ACCEPT,)))),
        Chain("ends"),
        Chain("accepts", (Rule((ACCEPT,)),)),
        Chain("goes", (Rule((Verdict("goto", "ends"),)), Rule((ACCEPT,)))),
        maps=(Map("ways", ("ifname",), ("verdict",), frozenset({("eth*", ACCEPT)}), frozenset({"interval"})),),
    )
    assert run(own_table, view()) == (policy if expected == "policy" else expected)


def test_continue_verdict_runs_the_rest_of_the_rule():
    rule = Rule((VerdictMap(MARK, frozenset({(0, Verdict("continue"))})), Mangle(MARK, 5), DROP))
    packet_view = view()
    assert (run(table(base(rule)), packet_view), packet_view.mark) == ("drop", 5)


def test_jump_to_unlisted_chain_is_undetermined():
    choices = Choices()
    assert run(table(base(Rule((Verdict("jump", "gone"),)))), view(), choices) == "accept"
    assert "gone" in choices.undetermined[0]


def test_endless_jump_loop_drops():
    loop = Chain("loop", (Rule((Verdict("jump", "loop"),)),))
    assert run(table(base(Rule((Verdict("jump", "loop"),))), loop), view()) == "drop"


# --- writes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (Ct("mark"), 0x30),
        (Bitwise(MARK, and_mask=0xF0, or_bits=2), 0x12),
        (Bitwise(MARK, or_bits=2), 0x17),
        (Binary("<<", MARK, 28), 0x50000000),
        (Binary("^", MARK, 1), 0x14),
        (Lookup(Meta("skuid"), frozenset({("500-1000", 9)})), 9),
        (Lookup(Meta("skuid"), frozenset({(1, 9)})), 0x15),
        (Lookup(Meta("skuid"), MapRef("marks")), 8),
        (Meta("skgid"), 100),
    ],
)
def test_mark_write_sets_expected_value(value, expected):
    own_table = table(
        base(Rule((Mangle(MARK, value),))), maps=(Map("marks", ("uid",), ("mark",), frozenset({(1000, 8)})),)
    )
    packet_view = view(mark=0x15, ct_mark=0x30)
    assert (run(own_table, packet_view), packet_view.mark) == ("accept", expected)


@pytest.mark.parametrize("value", [UnknownExpression("{}"), Meta("cpu"), "odd", Lookup(MARK, MapRef("missing"))])
def test_mark_write_of_unknown_value_is_undetermined(value):
    choices = Choices()
    assert run(table(base(Rule((Mangle(MARK, value),)))), view(), choices) == "accept"
    assert choices.undetermined and not choices.questions


def test_mark_write_of_absent_field_ends_the_rule():
    packet_view = view(uid=None)
    assert run(table(base(Rule((Mangle(MARK, Meta("skuid")), DROP)))), packet_view) == "accept"
    assert packet_view.mark == 0


@pytest.mark.parametrize(
    ("state", "hook", "expected"), [("new", OUTPUT, 5), ("untracked", OUTPUT, 0), ("new", EARLY, 0)]
)
def test_ct_mark_write_needs_a_tracked_flow(state, hook, expected):
    packet_view = view(ct_state=state)
    assert run(table(base(Rule((Mangle(Ct("mark"), 5), DROP)), hook=hook)), packet_view) == "drop"
    assert packet_view.ct_mark == expected


def test_header_writes_change_packet_fields():
    rules = [
        Mangle(Payload("ip", "daddr"), "192.0.2.9"),
        Mangle(Payload("ip", "saddr"), "192.0.2.8"),
        Mangle(Payload("udp", "dport"), 53),
        Mangle(Payload("udp", "sport"), 54),
        Mangle(Payload("ip", "dscp"), "cs1"),
        Mangle(Payload("ip6", "saddr"), "::1"),
        Mangle(Payload("tcp", "dport"), 1),
        Mangle(Option("tcp option", "maxseg", "size"), Rt("mtu")),
    ]
    packet_view = view()
    assert run(table(base(*(Rule((one,)) for one in rules))), packet_view) == "accept"
    assert (packet_view.destination, packet_view.source) == (parse_address("192.0.2.9"), parse_address("192.0.2.8"))
    assert (packet_view.sport, packet_view.dport, packet_view.header_field("ip", "dscp")) == (54, 53, 8)


def test_header_write_of_unknown_value_removes_the_field():
    packet_view = view(fields={("ip", "dscp"): 8})
    run(table(base(Rule((Mangle(Payload("ip", "dscp"), Meta("cpu")),)))), packet_view)
    assert ("ip", "dscp") not in packet_view.fields


def test_notrack_applies_before_tracking_or_to_invalid_flow():
    for hook, state, expected in ((EARLY, "new", True), (OUTPUT, "new", False), (OUTPUT, "invalid", True)):
        packet_view = view(ct_state=state)
        run(table(base(Rule((Notrack(),)), hook=hook)), packet_view)
        assert packet_view.notrack is expected


# --- address translation ---------------------------------------------------------------

NAT = Hook("nat", "output", -100)
SOURCE_NAT = Hook("nat", "postrouting", 100)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (Dnat("ip", "192.0.2.9"), ("192.0.2.9", 9)),
        (Dnat("ip", "192.0.2.9", 53), ("192.0.2.9", 53)),
        (Dnat(None, None, 53), ("192.0.2.1", 53)),
        (Dnat("ip", Lookup(Meta("skuid"), frozenset({(1000, "192.0.2.7")}))), ("192.0.2.7", 9)),
        (Dnat("ip", Lookup(Meta("skuid"), frozenset({(1000, ("192.0.2.7", 5))}))), ("192.0.2.7", 5)),
        (Redirect(53), ("127.0.0.1", 53)),
        (Redirect(Lookup(Payload("udp", "dport"), frozenset({(9, 10)}))), ("127.0.0.1", 10)),
    ],
)
def test_dnat_changes_destination_and_port(statement, expected):
    packet_view = view()
    assert run(table(base(Rule((statement,)), Rule((DROP,)), hook=NAT)), packet_view) == "accept"
    assert (packet_view.destination, packet_view.dport, packet_view.dnat) == (
        parse_address(expected[0]),
        expected[1],
        True,
    )
    assert holds(Match(Ct("status"), "dnat", "in"), packet_view) is True


@pytest.mark.parametrize(
    "statement",
    [Dnat("ip6", "::1"), Dnat("ip", Lookup(Meta("skuid"), frozenset({(1, "192.0.2.7")}))), Snat("ip6", "::1")],
)
def test_nat_of_wrong_family_or_protocol_ends_the_rule(statement):
    packet_view = view()
    assert run(table(base(Rule((statement,)), Rule((DROP,)), hook=NAT)), packet_view) == "drop"
    assert not packet_view.dnat and not packet_view.snat


@pytest.mark.parametrize(
    ("statement", "source", "known"),
    [(Snat("ip", "192.0.2.9"), "192.0.2.9", "192.0.2.9"), (Masquerade(), "192.0.2.2", None)],
)
def test_snat_changes_source(statement, source, known):
    packet_view = view()
    assert run(table(base(Rule((statement,)), hook=SOURCE_NAT)), packet_view) == "accept"
    assert (packet_view.source, packet_view.snat) == (parse_address(source), True)
    assert packet_view.new_source == (None if known is None else parse_address(known))


@pytest.mark.parametrize(
    ("statement", "known"),
    [
        (Masquerade("1024-65535"), True),
        (Masquerade("1024-65535", frozenset({"random"})), False),
        (Masquerade("1024-39999"), False),
        (Snat("ip", "192.0.2.9", "1024-65535"), True),
        (Dnat("ip", "192.0.2.9", "1-65535"), False),
    ],
)
def test_source_port_in_the_range_is_kept(statement, known):
    """As libvirt masquerades; the kernel takes another port if the port is outside, or at random."""
    packet_view, choices = view(sport=40000), Choices()
    assert run(table(base(Rule((statement,)), hook=SOURCE_NAT)), packet_view, choices) == "accept"
    assert (packet_view.sport, not choices.undetermined) == (40000, known)


def test_redirect_at_prerouting_is_left_to_the_trace():
    packet_view = view(iif="eth0")
    run(table(base(Rule((Redirect(80),)), hook=Hook("nat", "prerouting", -100))), packet_view)
    assert packet_view.is_redirected and (packet_view.destination, packet_view.dport) == (DESTINATIONS[4], 80)


@pytest.mark.parametrize(
    "statement",
    [
        Dnat("ip", "192.0.2.1-192.0.2.9"),
        Dnat("ip", Lookup(MARK, MapRef("missing"))),
        Dnat("ip", Lookup(MARK, frozenset({(0, "10.0.0.0/16")})), flags=frozenset({"netmap"})),
        Masquerade("5-9"),
    ],
)
def test_nat_to_address_range_is_undetermined(statement):
    choices = Choices()
    assert run(table(base(Rule((statement,)), hook=SOURCE_NAT)), view(), choices) == "accept"
    assert choices.undetermined


@pytest.mark.parametrize(
    "statement", [UnknownStatement("{}"), Dup("192.0.2.9"), Queue(5), Mangle(Meta("pkttype"), "host")]
)
def test_statement_with_unknown_effect_is_undetermined(statement):
    choices = Choices()
    assert run(table(base(Rule((statement,)))), view(), choices) == "accept"
    assert len(choices.undetermined) == 1


def test_flow_offload_is_undetermined_at_forward_only():
    for hook, noted in (("forward", 1), ("output", 0)):
        choices = Choices()
        run(table(base(Rule((FlowOffload("f"),)), hook=Hook("filter", hook, 0))), view(), choices)
        assert len(choices.undetermined) == noted


# --- sets ------------------------------------------------------------------------------


def named_set(*elements, types=("mark",), flags=("interval",), **more):
    return Set("s", types, frozenset(elements), frozenset(flags), **more)


@pytest.mark.parametrize(
    ("elements", "key", "packet_view", "expected"),
    [
        ([1, "5-9"], MARK, view(mark=7), True),
        ([1, "5-9"], MARK, view(mark=4), False),
        (["192.0.2.0/28", "10.0.0.0-10.0.0.6"], Payload("ip", "daddr"), view(), True),
        (["192.0.2.2-192.0.2.6"], Payload("ip", "daddr"), view(), False),
        ([(5, 9), (0, "8-10")], Concat((MARK, Payload("udp", "dport"))), view(), True),
        ([(0, "10-11"), (1, "8-10")], Concat((MARK, Payload("udp", "dport"))), view(), False),
        ([("192.0.2.0/24", "8-10")], Concat((Payload("ip", "daddr"), Payload("udp", "dport"))), view(), True),
        ([("1-2", "8-10"), ("0-1", "7-10")], Concat((MARK, Payload("udp", "dport"))), view(), True),
        ([("eth0", "udp")], Concat((Meta("oifname"), Meta("l4proto"))), view(), True),
        (["eth*"], Meta("oifname"), view(), True),
        ([], MARK, view(), False),
    ],
)
def test_named_set_lookup_has_expected_result(elements, key, packet_view, expected):
    named = named_set(*elements)
    assert holds(Match(key, SetRef("s")), packet_view, sets=(named,)) is expected
    assert holds(Match(key, SetRef("s"), "!="), packet_view, sets=(named,)) is not expected


@pytest.mark.parametrize(
    ("dynamic_set", "mark", "expected"),
    [
        (named_set(5, flags=["dynamic"]), 5, None),
        (named_set(5, flags=["dynamic"]), 6, None),
        (named_set(5, flags=["timeout"]), 5, None),
        (named_set(5, flags=["timeout"]), 6, False),
        (named_set(5, flags=[], timeout=60), 5, None),
        (named_set(5, "odd"), 5, True),
        (named_set(5, "odd"), 6, None),
    ],
)
def test_lookup_in_dynamic_set_has_expected_result(dynamic_set, mark, expected):
    assert holds(Match(MARK, SetRef("s")), view(mark=mark), sets=(dynamic_set,)) is expected


def test_set_updated_by_a_rule_branches_without_dynamic_flag():
    adds = Rule((SetUpdate("add", "s", MARK),))
    own_table = table(base(Match(MARK, SetRef("s"))), Chain("other", (adds,)), sets=(named_set(5, flags=[]),))
    assert set(explore_branches(lambda choices: run(own_table, view(mark=6), choices)).results) == {"accept", "drop"}


def test_dynamic_verdict_map_branches_to_each_verdict():
    ways = Map("ways", ("mark",), ("verdict",), frozenset({(1, DROP), (2, ACCEPT)}), frozenset({"dynamic"}))
    own_table = table(base(Rule((VerdictMapRef(MARK, "ways"),)), Rule((Mangle(MARK, 7),))), maps=(ways,))

    def outcome(choices):
        packet_view = view()
        return run(own_table, packet_view, choices), packet_view.mark

    assert set(explore_branches(outcome).results) == {("drop", 0), ("accept", 0), ("accept", 7)}


def test_large_set_lookup_scans_few_elements():
    elements = [(f"10.{high}.{low}.0/24", f"{low}-{low + 3}") for high in range(40) for low in range(250)]
    key = Concat((Payload("ip", "daddr"), Payload("udp", "dport")))
    own_table = table(base(Match(key, SetRef("s"))), sets=(named_set(*elements, types=("ipv4_addr", "inet_service")),))
    ruleset = Ruleset((own_table,))
    hits = 0
    for low in range(250):
        for port, hit in ((low, True), (low + 4, False)):
            packet_view = view(destination=parse_address(f"10.39.{low}.7"), dport=port)
            hits += evaluate_chain(ruleset, own_table, own_table.chains[0], packet_view, Choices()) == "drop"
            assert hits == low + 1, (low, port, hit)
    (index,) = (found for prepared in ruleset._prepared.values() for found in prepared.sets._indices.values())
    assert all(
        len(ranges._boxes) == 1
        for shapes in index._tables.values()
        for ranges in shapes.values()
        if hasattr(ranges, "_boxes")
    )


# --- doubts ----------------------------------------------------------------------------


def test_branches_are_explored_depth_first():
    branches = explore_branches(lambda choices: "".join("ny"[choices.branch_on(name)] for name in "ab"))
    assert branches.results == ("yy", "yn", "ny", "nn")
    assert branches.is_complete and branches.unsupported == ("a", "b") and branches.undetermined == ()


def test_branches_may_have_different_questions():
    branches = explore_branches(
        lambda choices: choices.branch_on("a") or (choices.branch_on("b"), choices.mark_unsupported("c"))
    )
    assert len(branches.results) == 3 and branches.unsupported == ("a", "b", "c") and branches.undetermined == ("c",)


def test_branches_over_the_limit_are_incomplete():
    branches = explore_branches(lambda choices: [choices.branch_on(str(number)) for number in range(10)])
    assert len(branches.results) == MAX_BRANCHES and not branches.is_complete


# --- the log, and real rulesets --------------------------------------------------------


def test_evaluation_log_has_matched_rules():
    rule = Rule((Match(MARK, 0), Mangle(MARK, 5), Verdict("goto", "on")), origin=("uplink", "wan"))
    own_table = table(base(Rule((Match(MARK, 9), DROP)), rule), Chain("on", (Rule((Limit(5, "hour"), DROP)),)))
    log = []
    assert run(own_table, view(), Choices((False,)), log) == "accept"
    assert [(one.kind, one.effect) for one in log] == [
        ("chain", "continue"),
        ("rule", "mark 0x5, goto on"),
        ("chain", "continue"),
        ("chain", "accept"),
    ]
    assert log[1].text == "meta mark 0 meta mark set 0x5 goto on"
    assert (log[1].subject, log[1].origin) == (rule, ("uplink", "wan"))
    assert log[-1].text == "policy accept of chain base"


def test_unsupported_statement_is_logged_as_json():
    log = []
    run(table(base(Rule((UnknownStatement('{"weird":1}'), DROP)))), view(), None, log)
    assert (log[1].text, log[1].effect) == ('<{"weird":1}> drop', "unsupported, drop")


FIXTURE = Path(__file__).parents[1] / "fixtures/gluon-node/kernel.json"


@pytest.mark.parametrize(
    ("hook", "sent", "more", "expected"),
    [
        ("input", packet(dport=22, protocol=TCP), {"iif": "br-wan", "uid": None}, {"drop", "accept"}),
        ("input", packet(dport=53), {"iif": "br-wan"}, {"drop"}),
        ("input", packet(dport=53), {"iif": "lan0"}, {"accept"}),
        ("input", packet(flow=CtInfo("established")), {"iif": "br-wan"}, {"accept"}),
        ("forward", packet(), {"iif": "br-client", "oif": "br-wan"}, {"drop"}),
        ("output", packet(), {"oif": "br-wan"}, {"accept"}),
    ],
)
def test_gluon_node_ruleset_gives_expected_verdicts(hook, sent, more, expected):
    (own_table,) = nft_json_decode.decode_ruleset(json.loads(FIXTURE.read_text()))
    ruleset = Ruleset((own_table,))
    (chain,) = (chain for _, chain in ruleset.base_chains(4, hook) if chain.name == hook)
    packet_view = view(sent, **more)
    branches = explore_branches(lambda choices: evaluate_chain(ruleset, own_table, chain, evolve(packet_view), choices))
    assert set(branches.results) == expected and not branches.undetermined


def test_concat_with_one_known_mismatch_is_false():
    one = Match(Concat((MARK, Meta("cpu"))), AnonymousSet(frozenset({(1, 2)})))
    assert holds(one, view()) is False
    assert holds(evolve(one, op="!="), view()) is True
