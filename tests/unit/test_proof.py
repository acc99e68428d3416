"""Verdicts of the prover on small states, each of a few rules."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.symbolic.box import points
from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    FULL_MASK,
    AnonymousSet,
    Binary,
    Bitwise,
    Chain,
    Counter,
    Ct,
    Dup,
    FlowOffload,
    Fwd,
    Hook,
    Limit,
    Mangle,
    Map,
    Match,
    Meta,
    Notrack,
    Payload,
    Reject,
    Rule,
    Set,
    SetRef,
    Table,
    UnknownExpression,
    UnknownStatement,
    Verdict,
    VerdictMapRef,
)
from nftpolicy.netstate.routing import IpRule, Route
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.exemption_spec import exemption
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.spec import Spec, UplinkSpec
from nftpolicy.proof.verdict import describe_packet
from tests.finding_invariants import assert_findings_are_sound

MARK, FLOW = Meta("mark"), Ct("mark")
OUT = Match(Meta("oifname"), "wan")
MARKED = Match(Bitwise(MARK, and_mask=1), 1)
UNMARKED = Match(Bitwise(MARK, and_mask=1), 1, "!=")
UPLINK = UplinkSpec("wan", ("wan",), 1, 1)
POST = Hook("filter", "postrouting", 300)
OUTPUT = Hook("route", "output", -150)
EGRESS = Hook("filter", "egress", 0, "drop", "wan")
ROUTES = tuple(
    Route(family, table, prefix, kind, device=device, protocol=2)
    for family, table, prefix, kind, device in (
        (4, 255, "192.0.2.2/32", "local", "wan"),
        (4, 255, "198.51.100.2/32", "local", "lan"),
        (6, 255, "2001:db8:1::2/128", "local", "wan"),
        (4, 254, "default", "unicast", "wan"),
        (6, 254, "default", "unicast", "wan"),
        (4, 254, "198.51.100.0/24", "unicast", "lan"),
    )
)
RULES = tuple(
    IpRule(family, priority, "lookup", table, protocol=2)
    for family in (4, 6)
    for priority, table in ((0, 255), (32766, 254))
)
LINK = Table("netdev", "link", (Chain("egress", (Rule((MARKED, ACCEPT)),), EGRESS),))


def state(*rules, chains=(), sets=(), maps=(), policy="accept", link=LINK, others=()):
    guard = Chain("guard", tuple(rules), evolve(POST, policy=policy))
    return NetState((Table("inet", "t", (guard, *chains), sets, maps=maps), *((link,) if link else ()), *others),
                    RULES, ROUTES)  # fmt: skip


def output(*rules, hook=OUTPUT):
    return Chain("marks", tuple(rules), hook)


def prove_state(sample, uplink=UPLINK):
    spec = Spec((uplink,))
    proof = prove(sample, spec)
    assert_findings_are_sound(proof, spec)
    return proof


def no_leak_finding(proof, subject):
    return next(one for one in proof.findings if one.property == "P1" and one.subject.startswith(subject))


GUARD = (Rule((OUT, UNMARKED, DROP)),)
GUARDS = {
    "a drop of what is unmarked": state(*GUARD),
    "marked accepted, the rest dropped by a rule": state(Rule((OUT, MARKED, ACCEPT)), Rule((OUT, DROP))),
    "the rest dropped by the policy": state(
        Rule((Match(Meta("oifname"), "wan", "!="), ACCEPT)), Rule((MARKED, ACCEPT)), policy="drop"
    ),
    "reject": state(Rule((OUT, UNMARKED, Reject()))),
    "in a chain that is jumped to": state(
        Rule((OUT, Verdict("jump", "wan"))), chains=(Chain("wan", (Rule((UNMARKED, DROP)),)),)
    ),
    "after a return of what is marked": state(
        Rule((OUT, Verdict("goto", "wan"))),
        chains=(Chain("wan", (Rule((MARKED, Verdict("return"))), Rule((Counter(), DROP)))),),
    ),
    "by a named verdict map": state(
        Rule((VerdictMapRef(Meta("oifname"), "by"),)),
        chains=(Chain("wan", (Rule((UNMARKED, DROP)),)),),
        maps=(Map("by", ("ifname",), ("verdict",), frozenset({("wan", Verdict("jump", "wan"))})),),
    ),
    "by a wildcard": state(Rule((Match(Meta("oifname"), "wa*"), UNMARKED, DROP))),
    "by a named set of devices": state(
        Rule((Match(Meta("oifname"), SetRef("out")), UNMARKED, DROP)),
        sets=(Set("out", ("ifname",), frozenset({"wan", "usb*"}), frozenset({"interval"})),),
    ),
    "half by each of two rules": state(
        Rule((OUT, UNMARKED, Match(Payload("ip", "daddr"), "0.0.0.0/1"), DROP)),
        Rule((OUT, UNMARKED, Match(Payload("ip", "daddr"), "128.0.0.0/1"), DROP)),
        Rule((OUT, UNMARKED, Match(Meta("nfproto"), "ipv6"), DROP)),
    ),
    "half by each of two tables": state(
        Rule((OUT, UNMARKED, Match(Meta("nfproto"), "ipv4"), DROP)),
        others=(Table("ip6", "six", (Chain("c", (Rule((OUT, UNMARKED, DROP)),), POST),)),),
    ),
    "an earlier accept in another table takes nothing away": state(
        *GUARD, others=(Table("inet", "first", (Chain("c", (Rule((ACCEPT,)),), evolve(POST, priority=-300)),)),)
    ),
    "a mark that is put on only where it is": state(*GUARD, chains=(output(Rule((MARKED, Mangle(MARK, 1)))),)),
    "another bit of the mark": state(
        *GUARD, chains=(output(Rule((Mangle(MARK, Bitwise(MARK, and_mask=FULL_MASK, or_bits=0x100)),))),)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GUARDS)
def test_sufficient_guard_is_proved(name):
    proof = prove_state(GUARDS[name])
    assert {one.subject: one.verdict for one in proof.findings if one.property == "P1"} == {
        one.subject: "proved" for one in proof.findings if one.property == "P1"
    }


LEAKS = {
    "no rule": state(),
    "the wrong device": state(Rule((Match(Meta("oifname"), "wan1"), UNMARKED, DROP))),
    "IPv4 alone": state(Rule((OUT, UNMARKED, Match(Meta("nfproto"), "ipv4"), DROP))),
    "an address range with a gap": state(
        Rule((OUT, UNMARKED, Match(Payload("ip", "daddr"), "0.0.0.0/1"), DROP)),
        Rule((OUT, UNMARKED, Match(Payload("ip", "daddr"), "128.0.0.1-255.255.255.255"), DROP)),
    ),
    "new flows alone": state(Rule((OUT, UNMARKED, Match(Ct("state"), AnonymousSet(frozenset({"new"})), "in"), DROP))),
    "sockets alone: skuid does not match what has none": state(
        Rule((OUT, UNMARKED, Match(Meta("skuid"), 0, "!="), DROP)), Rule((OUT, UNMARKED, Match(Meta("skuid"), 0), DROP))
    ),
    "everybody but a group": state(Rule((OUT, UNMARKED, Match(Meta("skgid"), 100, "!="), DROP))),
    "an accept before the guard": state(Rule((Match(Payload("udp", "dport"), 53), ACCEPT)), *GUARD),
    "a return before the guard": state(
        Rule((Verdict("jump", "wan"),)), chains=(Chain("wan", (Rule((Match(Meta("l4proto"), "udp"), Verdict("return"))),
                                                              *GUARD)),)
    ),
    "a goto to a chain that ends": state(
        Rule((Match(Meta("l4proto"), "udp"), Verdict("goto", "end"))), *GUARD, chains=(Chain("end"),)
    ),
    "a mark for a user's packets": state(
        *GUARD, chains=(output(Rule((Match(Meta("skuid"), 1000), Mangle(MARK, 1)))),)
    ),
    "a mark that overlaps": state(*GUARD, chains=(output(Rule((Mangle(MARK, 0x51),))),)),
    "a flow's mark that anybody sets": state(
        *GUARD,
        chains=(output(Rule((Match(Payload("udp", "dport"), 9), Mangle(FLOW, 1))), Rule((Mangle(MARK, FLOW),))),),
    ),
    "a flow's mark that what is forwarded sets": state(
        *GUARD,
        chains=(
            Chain("in", (Rule((Mangle(FLOW, 1),)), Rule((Mangle(MARK, FLOW),))), Hook("filter", "prerouting", -150)),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKS)
def test_insufficient_guard_is_refuted_by_counterexample(name):
    # Without the link guard, which would stop them all.
    proof = prove_state(evolve(LEAKS[name], tables=tuple(one for one in LEAKS[name].tables if one is not LINK)))
    assert proof.verdict == "refuted"
    shown = [one for finding in proof.findings for one in finding.examples if finding.property == "P1"]
    shown = [one for one in shown if one.packet.origin != "frame"]
    assert shown
    for one in shown:
        assert (one.trace.outcome, one.trace.device) == ("leaves", "wan")
        assert one.packet.mark & 1 == 0


def test_frames_need_the_egress_guard():
    proof = prove_state(state(*GUARD, link=None))
    assert no_leak_finding(proof, "sockets").verdict == no_leak_finding(proof, "forwarded").verdict == "proved"
    assert no_leak_finding(proof, "AF_PACKET").verdict == "refuted"


def test_egress_guard_alone_is_sufficient():
    assert prove_state(state(link=None)).verdict == "refuted"
    wide = evolve(LINK, chains=(Chain("egress", (Rule((UNMARKED, DROP)),), evolve(EGRESS, policy="accept")),))
    assert no_leak_finding(prove_state(state(link=wide)), "AF_PACKET").verdict == "proved"
    assert no_leak_finding(prove_state(state(link=wide)), "sockets").verdict == "proved"


def test_dormant_table_guards_nothing():
    sample = state(*GUARD, link=None)
    asleep = evolve(sample, tables=(evolve(sample.tables[0], flags=frozenset({"dormant"})),))
    assert no_leak_finding(prove_state(asleep), "sockets").verdict == "refuted"


def test_output_guard_is_refuted_by_rerouting():
    stays = Chain("out", GUARD, Hook("filter", "output", 0))
    sample = NetState((Table("inet", "t", (stays,)),), RULES, ROUTES)
    assert no_leak_finding(prove_state(sample), "sockets").verdict == "proved"
    assert no_leak_finding(prove_state(sample), "forwarded").verdict == "refuted"
    again = output(Rule((Match(Meta("skuid"), 7), Mangle(MARK, 2))))
    moved = evolve(sample, tables=(Table("inet", "t", (stays, again)),))
    assert no_leak_finding(prove_state(moved), "sockets").verdict != "proved"


@pytest.mark.parametrize(
    "rule",
    [
        Rule((OUT, UNMARKED, Match(UnknownExpression('{"new": 1}'), 1), DROP)),
        Rule((OUT, UNMARKED, Limit(10, "second"), DROP)),
        Rule((OUT, UNMARKED, Match(Payload("ip", "daddr"), SetRef("grows")), DROP)),
    ],
    ids=["an unknown expression", "a limit", "a set that packets fill"],
)
def test_unsupported_rule_guards_nothing(rule):
    grows = Set("grows", ("ipv4_addr",), frozenset({"0.0.0.0/1", "128.0.0.0/1"}), frozenset({"dynamic"}))
    proof = prove_state(state(rule, sets=(grows,), link=None))
    assert no_leak_finding(proof, "sockets").verdict != "proved"


@pytest.mark.parametrize(
    "statement",
    [UnknownStatement('{"new": 1}'), Dup("192.0.2.9", "wan"), Match(UnknownExpression("{}"), 1)],
    ids=["a statement", "a copy", "a match"],
)
def test_unsupported_rule_before_the_guard_is_unknown(statement):
    rule = Rule((statement,)) if not isinstance(statement, Match) else Rule((statement, ACCEPT))
    proof = prove_state(state(rule, *GUARD, link=None))
    found = no_leak_finding(proof, "sockets")
    assert found.verdict == "unknown"
    assert found.unsupported


@pytest.mark.parametrize(
    ("statement", "with_link"),
    [(UnknownStatement('{"new": 1}'), "unknown"), (Fwd("wan"), "unknown"), (FlowOffload("fast"), "unknown")],
    ids=["anything", "sent by another device", "a fast path"],
)
def test_statement_that_bypasses_hooks_is_unknown(statement, with_link):
    early = Chain("early", (Rule((Match(Meta("iifname"), "lan"), statement)),), Hook("filter", "prerouting", -300))
    assert no_leak_finding(prove_state(state(*GUARD, chains=(early,))), "forwarded").verdict == with_link
    found = no_leak_finding(prove_state(state(*GUARD, chains=(early,), link=None)), "forwarded")
    assert (found.verdict, bool(found.unsupported)) == ("unknown", True)


def test_unknown_mark_write_is_unknown():
    marks = output(Rule((Mangle(MARK, UnknownExpression('{"new": 1}')),)))
    assert no_leak_finding(prove_state(state(*GUARD, chains=(marks,))), "sockets").verdict == "unknown"


def test_assumptions_name_the_devices_of_the_link_guard():
    proof = prove_state(state(*GUARD), evolve(UPLINK, ports=("port",)))
    expected = "AF_PACKET sockets (CAP_NET_RAW) reach an uplink by wan, port only, not by a renamed or new device"
    assert expected in proof.assumptions
    without_hook = prove(state(*GUARD, link=None), Spec((UPLINK,), frames=False), usability=False)
    assert not any("renamed" in assumption for assumption in without_hook.assumptions)


def test_exemption_covers_only_its_packets():
    dhcp = (Match(Payload("udp", "sport"), 68), Match(Payload("udp", "dport"), 67))
    broadcast = Match(Payload("ip", "daddr"), "255.255.255.255")
    exempt = evolve(UPLINK, exemptions=(exemption("dhcpv4"),))
    only4 = state(Rule((broadcast, *dhcp, ACCEPT)), *GUARD, link=None)
    assert no_leak_finding(prove_state(only4), "sockets").verdict == "refuted"
    assert no_leak_finding(prove_state(only4, exempt), "sockets").verdict == "proved"
    for wider in ((Match(Meta("nfproto"), "ipv4"), *dhcp), dhcp):
        both = state(Rule((*wider, ACCEPT)), *GUARD, link=None)
        assert no_leak_finding(prove_state(both, exempt), "sockets").verdict == "refuted"


@pytest.mark.parametrize(
    ("matches", "verdict"),
    [
        ((Match(Payload("ether", "type"), 0x0806),), "proved"),
        ((Match(Meta("protocol"), "arp"),), "refuted"),
        ((Match(Meta("protocol"), "arp"), Match(Payload("ether", "type"), 0x0806)), "proved"),
        ((Match(Meta("iiftype"), "ether"), Match(Payload("ether", "type"), 0x0806)), "proved"),
        ((Match(Payload("ether", "type"), 0x0800, "!="),), "refuted"),
    ],
)
def test_exemption_of_frames_reads_the_link_header(matches, verdict):
    link = evolve(LINK, chains=(evolve(LINK.chains[0], rules=(Rule((*matches, ACCEPT)), *LINK.chains[0].rules)),))
    proof = prove_state(state(*GUARD, link=link), evolve(UPLINK, exemptions=(exemption("arp"),)))
    found = no_leak_finding(proof, "frames of other")
    assert found.verdict == verdict
    told = [describe_packet(example.packet) for example in found.examples]
    assert all("ethertype 0x0806" not in one for one in told), told


@pytest.mark.parametrize(
    ("value", "is_proved"),
    [
        (Binary("^", MARK, 2), True),
        (Binary("^", MARK, 0xFFFFFFFE), True),
        (Binary("^", Bitwise(MARK, and_mask=0xF0), 0x30), True),
        (Binary("^", MARK, 1), False),
        (Binary("^", MARK, 3), False),
        (Binary("^", Bitwise(MARK, and_mask=0xFFFFFFFE), 1), False),
        (Binary("^", FLOW, 2), False),
    ],
    ids=str,
)
def test_inverted_bits_keep_the_mark_of_the_uplink(value, is_proved):
    proof = prove_state(state(*GUARD, chains=(output(Rule((Mangle(MARK, value),))),)))
    assert (no_leak_finding(proof, "sockets").verdict == "proved") is is_proved


@pytest.mark.parametrize(
    ("value", "is_proved"),
    [
        (Bitwise(MARK, and_mask=FULL_MASK, or_bits=1), True),
        (Bitwise(MARK, and_mask=1), True),
        (Binary("|", Bitwise(MARK, and_mask=1), Bitwise(FLOW, and_mask=4)), True),
        (Bitwise(MARK, and_mask=FULL_MASK ^ 1), False),
        (Binary("^", MARK, 1), False),
    ],
    ids=str,
)
def test_write_of_a_bit_leaves_the_other_bits(value, is_proved):
    """The uplink's mark is 2 of 3, so a write that keeps bit 1, and clears bit 0, gives it to mark 3."""
    unmarked = Match(Bitwise(MARK, and_mask=3), 2, "!=")
    given = state(Rule((OUT, unmarked, DROP)), chains=(output(Rule((Mangle(MARK, value),))),), link=None)
    uplink = UplinkSpec("wan", ("wan",), 2, 3)
    assert (no_leak_finding(prove_state(given, uplink), "sockets").verdict == "proved") is is_proved


@pytest.mark.parametrize(("before", "is_proved"), [(1, True), (3, False)])
def test_inverted_bit_leaves_the_bit_beside(before, is_proved):
    of_mark = Bitwise(MARK, and_mask=3)
    inverts = output(Rule((Match(of_mark, before), Mangle(MARK, Binary("^", MARK, 1)))))
    given = state(Rule((OUT, Match(of_mark, 2, "!="), DROP)), chains=(inverts,), link=None)
    found = no_leak_finding(prove_state(given, UplinkSpec("wan", ("wan",), 2, 3)), "sockets")
    assert (found.verdict == "proved") is is_proved


UNTRACKED = Match(Ct("state"), AnonymousSet(frozenset({"new", "established", "related", "invalid"})), "in")


@pytest.mark.parametrize("notrack", [False, True])
def test_packet_is_untracked_by_its_type_or_by_a_rule(notrack):
    raw = Chain("raw", (Rule((Match(Payload("udp", "dport"), 9), Notrack())),), Hook("filter", "output", -300))
    given = state(Rule((OUT, UNMARKED, UNTRACKED, DROP)), chains=(raw,) if notrack else (), link=None)
    found = no_leak_finding(prove_state(given), "sockets")
    assert found.verdict == "refuted"
    solicitation = {("icmpv6", "type"): 135}
    for example in found.examples:
        packet = example.packet
        assert packet.flow.state != "untracked", "a packet that no socket can send"
        assert (packet.family, packet.protocol, packet.fields) == (6, 58, solicitation) or (
            notrack and (packet.protocol, packet.dport) == (17, 9)
        )
    assert notrack or any(example.packet.protocol == 58 for example in found.examples)


def test_unsupported_test_of_mark_is_named_in_nft_syntax():
    marks = Match(Bitwise(MARK, and_mask=2), AnonymousSet(frozenset({"0-1", "2"})))
    found = no_leak_finding(prove_state(state(Rule((OUT, marks, DROP)), link=None)), "sockets")
    assert found.verdict == "unknown"
    assert "a test of the mark: meta mark & 0x2 == { 0-1, 2 }" in found.unsupported


@pytest.mark.parametrize(
    ("link_type", "verdict"), [(1, "proved"), (65534, "refuted"), (None, "refuted")], ids=["ether", "tun", "unknown"]
)
def test_frame_has_the_hardware_type_of_its_device(link_type, verdict):
    rules = (Rule((Match(Meta("oiftype"), "ether"), UNMARKED, DROP)),)
    link = evolve(LINK, chains=(evolve(LINK.chains[0], rules=rules, hook=evolve(EGRESS, policy="accept")),))
    given = evolve(state(*GUARD, link=link), devices=(Device("wan", link_type=link_type), Device("lan")))
    found = no_leak_finding(prove_state(given), "AF_PACKET")
    assert found.verdict == verdict
    told = {example.packet.fields.get(("meta", "oiftype"), link_type) for example in found.examples}
    assert link_type is None or told <= {link_type}, "a packet by a device that it cannot leave by"


@pytest.mark.parametrize("own_type", [True, False])
def test_exempt_ip_packet_is_one_in_its_frame_too(own_type):
    packet = (Match(Payload("ip", "daddr"), "255.255.255.255"), Match(Payload("udp", "sport"), 68))
    packet = (*packet, Match(Payload("udp", "dport"), 67))
    frame = (Match(Payload("ether", "type"), 0x0800),) if own_type else ()
    rules = (Rule((*frame, *packet, ACCEPT)), *LINK.chains[0].rules)
    link = evolve(LINK, chains=(evolve(LINK.chains[0], rules=rules),))
    proof = prove_state(state(*GUARD, link=link), evolve(UPLINK, exemptions=(exemption("dhcpv4"),)))
    assert no_leak_finding(proof, "AF_PACKET").verdict == ("proved" if own_type else "refuted")


def test_drop_by_unreadable_frame_type_guards_nothing():
    drop_ip = Rule((Match(Payload("ether", "type"), "0-65535"), DROP))
    open_chain = evolve(LINK.chains[0], rules=(drop_ip,), hook=evolve(EGRESS, policy="accept"))
    link = evolve(LINK, chains=(open_chain,))
    found = no_leak_finding(prove_state(state(*GUARD, link=link)), "AF_PACKET")
    assert found.verdict == "refuted"
    assert all(example.packet.fields[("ether", "readable")] == 0 for example in found.examples)


def test_wide_mask_is_compared_completely():
    wide = evolve(UPLINK, value=0x5100, mask=0xFF00)
    link = evolve(LINK, chains=(
        Chain("egress", (Rule((Match(Bitwise(MARK, and_mask=0xFF00), 0x5100), ACCEPT)),), EGRESS),))  # fmt: skip
    guard = Rule((OUT, Match(Bitwise(MARK, and_mask=0xFF00), 0x5100, "!="), DROP))
    assert prove_state(state(guard, link=link), wide).property_verdict("P1") == "proved"
    half = Rule((OUT, Match(Bitwise(MARK, and_mask=0xF000), 0x5000, "!="), DROP))
    assert no_leak_finding(prove_state(state(half, link=None), wide), "sockets").verdict == "refuted"
    # One write puts on one half of the mark, another the rest.
    halves = output(
        Rule((Match(Meta("skuid"), 7), Mangle(MARK, Bitwise(MARK, and_mask=FULL_MASK ^ 0xF000, or_bits=0x5000)))),
        Rule((Match(Meta("skgid"), 7), Mangle(MARK, Bitwise(MARK, and_mask=FULL_MASK ^ 0x0F00, or_bits=0x0100)))),
    )
    found = no_leak_finding(prove_state(state(guard, link=link, chains=(halves,)), wide), "sockets")
    assert found.verdict == "refuted"
    one = found.examples[0].packet
    assert one.mark & 0xFF00 != 0x5100


def test_p2_is_refuted_by_marked_packets_at_other_devices():
    stray = Rule((Match(Meta("oifname"), AnonymousSet(frozenset({"wan", "lo"})), "!="), MARKED, DROP))
    assert prove_state(state(*GUARD)).property_verdict("P2") == "refuted"
    assert prove_state(state(*GUARD, stray)).property_verdict("P2") == "proved"
    assert not any(one.deciding for one in prove_state(state(*GUARD)).findings if one.property == "P2")


@pytest.mark.parametrize(("key", "kind"), [("oifname", "ifname"), ("oif", "iface_index")])
def test_drop_at_one_device_of_a_set_is_at_no_other(key, kind):
    at_usb = Rule((Match(Meta(key), SetRef("some")), MARKED, DROP))
    elsewhere = Rule((Match(Meta("oifname"), "wan", "!="), MARKED, DROP))
    some = (Set("some", (kind,), frozenset({"usb0"})),)
    assert prove_state(state(*GUARD, at_usb, sets=some)).property_verdict("P2") == "refuted"
    assert prove_state(state(*GUARD, at_usb, elsewhere, sets=some)).property_verdict("P2") == "proved"


def test_packet_by_a_rule_for_arrivals_is_of_another_host():
    """Name no forwarded packet where sockets are at fault; prove_state compares senders."""
    arriving = tuple(IpRule(family, 5, "lookup", 100, iif="lan", protocol=2) for family in (4, 6))
    routes = tuple(Route(family, 100, "default", "unicast", device="wan", protocol=2) for family in (4, 6))
    proof = prove_state(evolve(state(link=None), rules=(*arriving, *RULES), routes=(*ROUTES, *routes)))
    for sender in ("sockets", "forwarded"):
        assert no_leak_finding(proof, sender).verdict == "refuted"


def test_points_merges_adjacent_values():
    assert points(3, 1, 2) == ((1, 3),)


@pytest.mark.parametrize("inside", ['"lo"', '"lo", "tun0"', '"l*"'])
def test_loopback_may_be_named_inside(inside):
    """Prove a policy that names lo, which is always inside."""
    text = f'name = "p"\ninside = [{inside}]\n[uplink.wan]\ndevices = ["eth0"]\nmark = "1/1"\ntable = 7\nexempt = ["mld", "igmp"]\n'
    policy, _ = load((text + '[service.vpn]\nuplink = "wan"\ngroup = 800\n').encode())
    devices = (Device("lo", ("127.0.0.1/8", "::1/128")), Device("eth0"), Device("tun0"))
    for state in (compile_policy(policy), evolve(compile_policy(policy), devices=devices)):
        unproved = [finding for finding in prove(state, build_spec(policy)).findings if finding.verdict == "refuted"]
        assert unproved == []
