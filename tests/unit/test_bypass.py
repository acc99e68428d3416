"""Verdicts beside rules and programs outside nftables, and the decoding of those that few kernels have."""

import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel import xtables
from nftpolicy.kernel.bpf import packet_programs, syscall
from nftpolicy.kernel.bpf.packet_programs import PacketProgram, is_harmless
from nftpolicy.kernel.bpf.programs import confine_program, mark_program
from nftpolicy.kernel.bypass import look_at_encapsulations
from nftpolicy.kernel.netlink.attributes import attribute
from nftpolicy.kernel.netlink.tc import Qdisc, filter_actors, qdisc_actors
from nftpolicy.kernel.netlink.xfrm import association_actor
from nftpolicy.model.packet import FORWARD, FRAME, SOCKET
from nftpolicy.netstate.bypass import (
    ANY_EFFECT,
    CGROUP_BPF,
    SUBJECTS,
    TC,
    XTABLES,
    Actor,
    Effect,
    HeaderWrite,
    Look,
    MarkWrite,
    Move,
    Stop,
)
from nftpolicy.netstate.nft import (
    FULL_MASK,
    Bitwise,
    Chain,
    Hook,
    Mangle,
    Match,
    Meta,
    Payload,
    Rule,
    Table,
    Verdict,
)
from nftpolicy.netstate.routing import Route, Sysctl
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.bypass import environment_assumptions
from nftpolicy.proof.exemption_spec import exemption
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove, prove_guard
from nftpolicy.proof.spec import Spec, UplinkSpec
from nftpolicy.proof.transition_proof import NamedSpec, prove_states
from nftpolicy.proof.verdict import Proof

ROOT = Path(__file__).parents[2]
MARK = Meta("mark")
UNMARKED = Match(Bitwise(MARK, and_mask=1), 1, "!=")
UPLINK = UplinkSpec("wan", ("wan",), 1, 1)
SPEC = Spec((UPLINK,))
DROP = Verdict("drop")
GUARD = (
    Table(
        "inet",
        "guard",
        chains=(
            Chain(
                "c",
                (
                    Rule((Match(Meta("oifname"), "wan"), UNMARKED, DROP)),
                    Rule((Match(Meta("oifname"), "wan", "!="), Match(Bitwise(MARK, and_mask=1), 1), DROP)),
                ),
                Hook("filter", "postrouting", 300, "accept"),
            ),
        ),
    ),
    Table(
        "netdev",
        "guard",
        chains=(Chain("c", (Rule((UNMARKED, DROP)),), Hook("filter", "egress", 0, "accept", "wan")),),
    ),
)
DEVICES = tuple(Device(name) for name in ("lo", "wan", "lan")) + (Device("ifb0", kind="ifb"),)


def state(*effects: Effect, devices: tuple[Device, ...] = DEVICES, tables: tuple[Table, ...] = GUARD) -> NetState:
    actors = (Actor("the actor", effects),) if effects else ()
    return NetState(tables, devices=devices, looks=(Look(TC, actors),))


def verdicts(proof: Proof) -> tuple[str, str]:
    return proof.verdict, proof.property_verdict("P2")


PROVED, UNKNOWN = ("proved", "proved"), ("unknown", "unknown")
ONLY_P1, ONLY_P2 = ("unknown", "proved"), ("proved", "unknown")
EFFECTS = [
    (MarkWrite(), UNKNOWN),
    (MarkWrite(field="ctmark"), UNKNOWN),
    (MarkWrite(1, 1, 0), UNKNOWN),
    (MarkWrite(0xFE, 0xFE, 0), PROVED),
    (MarkWrite(FULL_MASK, 0, 0), PROVED),
    (Move(), UNKNOWN),
    (Move("lan", "wan"), ONLY_P1),
    (Move("lan", "wan", at_ingress=True), ONLY_P1),
    (Move("lan", "not-there"), ONLY_P1),
    (Move("lan", "ifb0"), PROVED),
    (Move("lan", "lo"), PROVED),
    (Move("wan", "lan"), ONLY_P2),
    (Move("wan", "ifb0"), PROVED),
    (Move("wan", "wan"), ONLY_P1),
    (HeaderWrite(device="wan"), ONLY_P1),
    (HeaderWrite(device="lan"), PROVED),
    (HeaderWrite(4, "postrouting", 100, True), PROVED),
    (HeaderWrite(4, "output", -150), PROVED),
]


@pytest.mark.parametrize(("effect", "expected"), EFFECTS, ids=str)
def test_actor_beside_guard_is_judged_by_its_effect(effect: Effect, expected: tuple[str, str]) -> None:
    proof = prove(state(effect), SPEC)
    assert verdicts(proof) == expected
    reasons = [text for finding in proof.findings for text in finding.unsupported]
    assert ("the actor" in reasons) == (expected != PROVED)
    senders = {finding.verdict for finding in proof.findings if finding.property == "P1" and finding.deciding}
    assert senders == {expected[0]}  # sockets, forwarded packets and frames
    assert verdicts(prove_guard(state(effect), SPEC)) == expected


def test_move_into_bridge_of_uplink_is_P1_unknown() -> None:
    devices = (Device("wan", master="br0"), Device("br0", kind="bridge"), Device("lan"), Device("p", master="br0"))
    for move in (Move("lan", "br0"), Move("lan", "p", at_ingress=True)):
        assert verdicts(prove(state(move, devices=devices), SPEC)) == ONLY_P1
    assert verdicts(prove(state(Move("lan", "p"), devices=devices), SPEC)) == PROVED


# --- headers that change behind a guard ----------------------------------------------------------

HIDDEN = evolve(UPLINK, exemptions=(exemption("dhcpv4", "wan"),))
DHCP = (
    Match(Payload("ip", "protocol"), "udp"),
    Match(Payload("ip", "daddr"), "255.255.255.255"),
    Match(Payload("udp", "sport"), 68),
    Match(Payload("udp", "dport"), 67),
    Verdict("accept"),
)


@pytest.mark.parametrize(
    ("priority", "effects", "verdict"),
    [
        (50, (), "proved"),
        (300, (HeaderWrite(4, "postrouting", 100, True),), "proved"),
        (50, (HeaderWrite(4, "postrouting", 100, True),), "unknown"),
        (-200, (HeaderWrite(4, "postrouting", -150),), "unknown"),
        (-100, (HeaderWrite(4, "postrouting", -150),), "proved"),
        (50, (HeaderWrite(6, "postrouting", 100, True),), "proved"),  # the exemption is of IPv4
    ],
    ids=str,
)
def test_legacy_rewrite_behind_exemption_is_unknown(priority: int, effects: tuple[Effect, ...], verdict: str) -> None:
    rules = (Rule(DHCP), *GUARD[0].chains[0].rules)
    chain = Chain("c", rules, Hook("filter", "postrouting", priority, "accept"))
    tables = (evolve(GUARD[0], chains=(chain,)),)
    proof = prove(state(*effects, tables=tables), Spec((HIDDEN,)))
    (sockets,) = [finding for finding in proof.findings if finding.subject.startswith("sockets: ")]
    assert sockets.verdict == verdict


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ((), "proved"),
        ((HeaderWrite(4, "postrouting", 100, True),), "unknown"),
        ((HeaderWrite(4, "input", 100, True),), "unknown"),  # hooks of local packets are not told apart
        ((HeaderWrite(4, "prerouting", -300),), "proved"),
    ],
    ids=str,
)
def test_legacy_rewrite_between_chains_is_unknown(effects: tuple[Effect, ...], verdict: str) -> None:
    chain = Chain("c", (Rule(DHCP), *GUARD[0].chains[0].rules), Hook("filter", "output", 0, "accept"))
    accepting = Chain("c", (), Hook("filter", "egress", 0, "accept", "wan"))
    tables = (evolve(GUARD[0], chains=(chain,)), evolve(GUARD[1], chains=(accepting,)))
    proof = prove(state(*effects, tables=tables), Spec((HIDDEN,)))
    (sockets,) = [finding for finding in proof.findings if finding.subject.startswith("sockets: ")]
    assert sockets.verdict == verdict


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ((), "proved"),
        ((HeaderWrite(4, "postrouting", -150),), "unknown"),
        ((HeaderWrite(4, "postrouting", 100, True),), "proved"),  # NAT translates no TTL
    ],
    ids=str,
)
def test_legacy_rewrite_between_halves_of_guard_is_unknown(effects: tuple[Effect, ...], verdict: str) -> None:
    family, hop_limit = Meta("nfproto"), Payload("ip", "ttl")
    to_uplink = (Match(Meta("oifname"), "wan"), UNMARKED)
    early = (
        Rule((*to_uplink, Match(family, "ipv6"), DROP)),
        Rule((*to_uplink, Match(family, "ipv4"), Match(hop_limit, 10, ">="), DROP)),
    )
    late = (Rule((*to_uplink, Match(family, "ipv4"), Match(hop_limit, 10, "<"), DROP)),)
    halves = (
        Chain("early", early, Hook("filter", "postrouting", -200, "accept")),
        Chain("late", late, Hook("filter", "postrouting", 300, "accept")),
    )
    proof = prove(state(*effects, tables=(Table("inet", "guard", chains=halves),)), SPEC)
    (sockets,) = [finding for finding in proof.findings if finding.subject.startswith("sockets: ")]
    assert sockets.verdict == verdict


# --- other families of nft -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "statement", "flags", "expected"),
    [
        ("bridge", Mangle(MARK, 1), (), UNKNOWN),
        ("arp", Mangle(MARK, 1), (), UNKNOWN),
        ("bridge", Mangle(Meta("priority"), 1), (), PROVED),
        ("bridge", Mangle(MARK, 2), (), PROVED),
        ("bridge", Mangle(MARK, Bitwise(MARK, and_mask=0xFF)), (), PROVED),
        ("bridge", Mangle(MARK, Bitwise(MARK, and_mask=FULL_MASK, or_bits=1)), (), UNKNOWN),
        ("bridge", Mangle(MARK, 1), ("dormant",), PROVED),
    ],
    ids=str,
)
def test_table_of_other_family_is_judged_by_its_marks(
    family: str, statement: Mangle, flags: tuple[str, ...], expected: tuple[str, str]
) -> None:
    foreign = Table(
        family, "t", chains=(Chain("c", (Rule((statement,)),), Hook("filter", "prerouting", 0, "accept")),), flags=flags
    )
    assert verdicts(prove(state(tables=(*GUARD, foreign)), SPEC)) == expected


# --- devices -------------------------------------------------------------------------------------

LOOP = (
    Device("wan", master="br0"),
    Device("br0", kind="bridge"),
    Device("v0", kind="veth", link="v1"),
    Device("v1", master="br0", kind="veth", link="v0"),
)
OWN = Match(Meta("pkttype"), "host")
BY_PACKET_TYPE = (
    GUARD[0],
    Table(
        "netdev",
        "guard",
        chains=(Chain("c", (Rule((UNMARKED, OWN, DROP)),), Hook("filter", "egress", 0, "accept", "wan")),),
    ),
)


def test_veth_into_bridge_is_unknown_by_packet_type_only() -> None:
    assert verdicts(prove(state(devices=LOOP[:2], tables=BY_PACKET_TYPE), SPEC)) == PROVED
    proof = prove(state(devices=LOOP, tables=BY_PACKET_TYPE), SPEC)
    assert proof.verdict == "unknown"
    assert any("frames of v0 arrive at this machine again" in finding.detail for finding in proof.findings)
    assert prove(state(devices=LOOP), SPEC).verdict == "proved"


def test_bridge_over_uplink_without_egress_hook_is_unknown() -> None:
    spec = evolve(SPEC, frames=False)
    assert prove(state(), spec).verdict == "proved"
    proof = prove(state(devices=LOOP[:2]), spec)
    assert proof.verdict == "unknown"
    assert any("frames of br0 leave by wan" in finding.detail for finding in proof.findings)


# --- assumptions ---------------------------------------------------------------------------------


def lines(*looks: Look, devices: tuple[Device, ...] = DEVICES) -> str:
    return "\n".join(prove(NetState(GUARD, devices=devices, looks=looks), SPEC).assumptions)


def test_assumption_names_all_subjects_not_looked_at() -> None:
    (line,) = [line for line in lines().splitlines() if line.startswith("none of these")]
    assert line == f"none of these marks, rewrites or moves packets (not looked at): {'; '.join(SUBJECTS)}"


def test_assumption_names_reason_and_contents_of_look() -> None:
    text = lines(Look(TC, missing="Operation not permitted"), Look(XTABLES, contents="2 tables with 9 rules"))
    assert f"{TC} do not mark, rewrite or move packets (not looked at: Operation not permitted)" in text
    assert f"(looked at: none now): {XTABLES} (2 tables with 9 rules)" in text
    harmless = Actor("rule 7", (MarkWrite(2, 2, 0),))
    text = lines(*(Look(subject) for subject in SUBJECTS if subject != TC), Look(TC, (harmless,) * 6, narrowed=("so",)))
    assert f"{TC} stay as they are (looked at: rule 7, rule 7, rule 7, rule 7 and 2 more)" in text
    assert "\nso" in text
    assert "none of these" not in text


def test_assumption_names_devices_that_are_not_read() -> None:
    assert "no other device of this machine sends frames that leave by wan (not looked at)" in lines(devices=())
    vlan = (Device("eth0"), Device("wan", kind="vlan", link="eth0"))
    assert "AF_PACKET sockets (CAP_NET_RAW) on eth0, the device below wan, send no frames of wan" in lines(devices=vlan)


def test_assumption_names_Open_vSwitch() -> None:
    """Its flows can set the mark of a packet (OVS_KEY_ATTR_SKB_MARK)."""
    switch = (Device("wan", master="ovs-system"), Device("ovs-system", kind="openvswitch"))
    assert "flows of Open vSwitch mark no packet (ovs-system; not looked at)" in lines(devices=switch)
    assert "Open vSwitch" not in lines(devices=(Device("wan"),))


def test_assumption_names_PPP_devices_without_link_guard() -> None:
    devices = (Device("wan"), Device("ppp0", link_type=512))
    line = "ppp0 does not send PPPoE frames by wan (not looked at)"
    state = NetState(devices=devices)
    assert line in environment_assumptions(state, evolve(SPEC, frames=False))
    assert line not in environment_assumptions(state, SPEC)  # the link guard asks the frame


def test_assumption_does_not_name_rules_that_only_stop() -> None:
    stop = Actor("rule 7", (Stop(4, "input"),))
    text = lines(Look(XTABLES, (stop,), contents="2 tables with 9 rules"))
    assert f"(looked at: none now): {XTABLES} (2 tables with 9 rules)" in text
    assert "rule 7" not in text


NAMED = ("all", "wan", "lan")
LEAKS = {(family, origin) for family in (4, 6) for origin in (SOCKET, FORWARD, FRAME)}


def leaks_beside(subject: str, *effects: Effect) -> tuple[str, set[tuple[int, str]]]:
    """Return the verdict of an open state beside a rule, and family and origin of the packets of its refutation."""
    devices = (Device("wan", ("192.0.2.2/24", "2001:db8:1::2/64")), Device("lan"))
    nets = ((4, "203.0.113.0/24", "lan"), (6, "2001:db8:3::/64", "lan"), (4, "default", "wan"), (6, "default", "wan"))
    routes = tuple(Route(family, 254, net, device=device) for family, net, device in nets)
    paths = ("net/ipv4/ip_forward", *(f"net/ipv{family}/conf/{name}/forwarding" for family in (4, 6) for name in NAMED))
    sysctls = tuple(Sysctl(path, "1") for path in paths)
    open_state = NetState((), (), routes, sysctls, devices, (Look(subject, (Actor("rule 7", effects),)),))
    proof = prove_guard(open_state, SPEC)
    findings = [finding for finding in proof.findings if finding.property == "P1"]
    if not any(finding.examples for finding in findings):
        assert all("rule 7" in finding.unsupported for finding in findings if finding.verdict == "unknown")
    packets = [example.packet for finding in findings for example in finding.examples if example.packet.family]
    return proof.property_verdict("P1"), {(packet.family, packet.origin) for packet in packets}


@pytest.mark.parametrize(
    ("subject", "effect", "stopped"),
    [
        (XTABLES, Stop(4, "output"), {(4, SOCKET)}),
        (XTABLES, Stop(6, "forward"), {(6, FORWARD)}),
        (XTABLES, Stop(6, "prerouting"), {(6, FORWARD)}),
        (XTABLES, Stop(4, "postrouting"), {(4, SOCKET), (4, FORWARD)}),
        (XTABLES, Stop(4, "input"), set()),
        (XTABLES, HeaderWrite(4, "output", -100, True), {(4, SOCKET)}),
        (XTABLES, HeaderWrite(4, "input", 100, True), set()),
        (XTABLES, MarkWrite(2, 2), LEAKS - {(4, FRAME), (6, FRAME)}),
        (XTABLES, Move(), LEAKS),
        (TC, Stop(device="wan"), LEAKS),
        (TC, Stop(device="lan"), set()),
        (TC, Stop(device="lan", at_ingress=True), {(4, FORWARD), (6, FORWARD)}),
        (TC, Stop(device="wan", at_ingress=True), set()),
        (TC, Move("wan", "lan"), LEAKS),
        (TC, Move("other", "lan"), set()),
        (TC, MarkWrite(2, 2), {(4, FORWARD), (6, FORWARD)}),
        (CGROUP_BPF, MarkWrite(2, 2), set()),
    ],
    ids=lambda value: "" if isinstance(value, set) else str(value),
)
def test_refutation_has_no_packet_that_a_rule_may_stop(
    subject: str, effect: Effect, stopped: set[tuple[int, str]]
) -> None:
    verdict, found = leaks_beside(subject, effect)
    assert found == LEAKS - stopped
    assert verdict == ("refuted" if found else "unknown")


def test_transition_is_proved_again_for_other_looks() -> None:
    named = NamedSpec("policy", SPEC)
    results = prove_states((state(), state(MarkWrite())), (named, named))
    assert [result.verdict for result in results] == ["proved", "unknown"]


def test_legacy_nat_makes_P5_unknown() -> None:
    policy, _ = load((ROOT / "rulesets/gluon-fastd.toml").read_bytes())
    compiled, spec = compile_policy(policy), build_spec(policy)
    assert prove(compiled, spec).property_verdict("P5") == "proved"
    harmless = (MarkWrite(2, 2, 0), HeaderWrite(4, "output", -150), HeaderWrite(4, "postrouting", 100, True))
    unknown = (HeaderWrite(4, "output", -100, True), Move())
    for effect, verdict in (*((each, "proved") for each in harmless), *((each, "unknown") for each in unknown)):
        beside = evolve(compiled, looks=(Look(XTABLES, (Actor("a rule", (effect,)),)),))
        assert prove(beside, spec).property_verdict("P5") == verdict


# --- tc ------------------------------------------------------------------------------------------

NAMES = {3: "wan", 4: "lan"}
_KIND, _OPTIONS = 1, 2


def action(kind: str, *options: bytes) -> bytes:
    """Return an action of a filter (TCA_ACT_KIND, TCA_ACT_OPTIONS)."""
    return attribute(1, attribute(1, kind.encode() + b"\0") + attribute(2, b"".join(options)))


def word(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def mirred(code: int, index: int, *more: bytes) -> bytes:
    return action("mirred", attribute(2, struct.pack("=IIiiiiI", 1, 0, 4, 1, 1, code, index)), *more)


def effects_of(kind: str, options: bytes, direction: str = "egress") -> list[tuple[Effect, ...]]:
    values = {_KIND: kind.encode() + b"\0", _OPTIONS: options}
    return [actor.effects for actor in filter_actors(values, "lan", direction, NAMES)]


def gact(verdict: int, some: int | None = None) -> bytes:
    """`some`: verdict for some packets (tc-actions(8), random)."""
    random = b"" if some is None else attribute(3, struct.pack("=HHi", 1, 2, some))
    return action("gact", attribute(2, struct.pack("=IIiii", 1, 0, verdict, 1, 1)) + random)


ACTIONS = [
    *((gact(verdict), []) for verdict in (-1, 0, 3)),  # go on
    *((gact(verdict), [(Stop(device="lan"),)]) for verdict in (2, 4, 7)),  # drop, steal, redirect
    (gact(0, some=3), []),
    (gact(0, some=2), [(Stop(device="lan"),)]),
    *((action(kind), [(Stop(device="lan"),)]) for kind in ("gact", "police", "gate")),
    (action("csum"), []),
    (mirred(1, 3), [(Move("lan", "wan"),)]),
    (mirred(2, 3), [(Move("lan", "wan"),)]),
    (mirred(3, 3), [(Move("lan", "wan", True),)]),
    (mirred(4, 9), [(Move("lan", "9", True),)]),
    (mirred(1, 3, word(4, 7)), [(Move("lan"),)]),  # to all devices of a block
    (action("mirred"), [(Move("lan"),)]),
    (action("skbedit", word(5, 1)), [(MarkWrite(FULL_MASK, 1, 0),)]),
    (action("skbedit", word(5, 0xFF), word(10, 0xF0)), [(MarkWrite(0xF0, 0xF0, 0),)]),
    (action("skbedit", word(3, 7)), []),  # priority
    (action("skbedit", attribute(8, b"\0\0")), [(Move("lan"),)]),  # packet type
    (action("connmark"), [(MarkWrite(),)]),
    (action("ctinfo"), [(MarkWrite(),)]),
    *((action(kind), [(HeaderWrite(device="lan"),)]) for kind in ("pedit", "nat", "vlan", "skbmod", "mpls")),
    *((action(kind), [ANY_EFFECT]) for kind in ("bpf", "ct", "ife", "tunnel_key", "unheard")),
]


@pytest.mark.parametrize(("nested", "expected"), ACTIONS, ids=str)
def test_tc_action_effects_depend_on_kind(nested: bytes, expected: list[tuple[Effect, ...]]) -> None:
    for kind, number in {"u32": 7, "flower": 3, "matchall": 2, "fw": 4, "basic": 3, "cgroup": 1, "flow": 9}.items():
        assert effects_of(kind, attribute(number, nested)) == expected


def test_tc_filter_effects_depend_on_kind() -> None:
    assert effects_of("u32", b"") == []
    assert effects_of("unheard", b"") == [ANY_EFFECT]
    assert effects_of("u32", attribute(7, action("pedit")), "ingress") == []
    assert effects_of("u32", attribute(7, action("ife")), "ingress") == [ANY_EFFECT]  # metadata of the frame: its mark
    assert effects_of("u32", attribute(7, gact(2)), "ingress") == [(Stop(device="lan", at_ingress=True),)]
    direct = attribute(7, b"prog\0") + word(8, 1) + word(11, 5)
    assert effects_of("bpf", direct) == [ANY_EFFECT]
    assert effects_of("bpf", word(11, 5)) == [ANY_EFFECT]  # an eBPF classifier may write the mark
    assert effects_of("bpf", attribute(5, bytes(8))) == []  # classic BPF can only classify
    assert effects_of("bpf", attribute(5, bytes(8)) + attribute(1, action("connmark"))) == [(MarkWrite(),)]


@pytest.mark.parametrize(("operation", "verdict", "stops"), [(6, 0, True), (6, 2, True), (6, 0xFFFFFFFF, True),
                                                            (6, 7, False), (6, 4, False), (0x16, 0, False)])  # fmt: skip
def test_tc_classic_bpf_that_only_drops_is_a_stop(operation: int, verdict: int, stops: bool) -> None:
    """It may redirect, too (TC_ACT_REDIRECT), or return a value of the packet."""
    program = struct.pack("=HBBIHBBI", 0x20, 0, 0, 7, operation, 0, 0, verdict)
    expected = (Stop(device="lan"),) if stops else ANY_EFFECT
    assert effects_of("bpf", attribute(5, program) + word(8, 1)) == [expected]


@pytest.mark.parametrize(
    ("kind", "options", "number"), [("red", {5: 7}, 1), ("red", {6: 7}, 1), ("red", {5: 0}, 0), ("fq_codel", {5: 7}, 0)]
)
def test_qdisc_with_qevent_may_have_any_effect(kind: str, options: dict[int, int], number: int) -> None:
    qdisc = Qdisc(4, 0, 0, kind, {key: struct.pack("=I", value) for key, value in options.items()})
    assert len(list(qdisc_actors(qdisc, "lan"))) == number


def test_qdisc_teql_moves_packets_of_its_device() -> None:
    (actor,) = qdisc_actors(Qdisc(4, 0, 0, "teql0", {}), "wan")
    assert actor.effects == (Move("teql0", "wan"),)


# --- xfrm, routes, BPF ---------------------------------------------------------------------------


def association(*attributes: bytes) -> Actor | None:
    fixed = bytearray(224)
    struct.pack_into("=H", fixed, 212, 2)
    fixed[56:60] = bytes((192, 0, 2, 9))
    raw = bytes(fixed) + b"".join(attributes)
    return association_actor(raw, 0, len(raw))


def test_xfrm_output_mark_is_a_write() -> None:
    assert association() is None
    whole, masked = association(word(29, 5)), association(word(29, 5), word(30, 1))
    assert whole is not None and whole.effects == (MarkWrite(FULL_MASK, 5, 0),)
    assert masked is not None and masked.effects == (MarkWrite(1, 1, 0),)
    assert "192.0.2.9" in masked.location


@pytest.mark.parametrize(("number", "harmless"), [(1, True), (2, True), (4, True), (5, False), (6, False), (99, False)])
def test_route_encapsulation_is_judged_by_its_type(number: int, harmless: bool) -> None:
    route = Route(4, 254, "10.0.0.0/8", device="wan", unknown=(f"encap type {number}", "encap 5"))
    assert (look_at_encapsulations((route,)).actors == ()) is harmless


@pytest.mark.parametrize(("labels", "number"), [("0", 0), ("100", 1)])
def test_MPLS_routing_may_move_packets(labels: str, number: int, tmp_path: Path) -> None:
    file = tmp_path / "platform_labels"
    assert look_at_encapsulations((), file).actors == ()
    file.write_text(f"{labels}\n")
    assert len(look_at_encapsulations((), file).actors) == number


MOVE, EXIT = b"\xb7\0\0\0\1\0\0\0", b"\x95\0\0\0\0\0\0\0"
STORE_CONTEXT, STORE_STACK = b"\x63\x21\x08\0\0\0\0\0", b"\x63\x2a\xfc\xff\0\0\0\0"
COPY_STACK, COPY_CONTEXT = b"\xbf\xa2\0\0\0\0\0\0", b"\xbf\x62\0\0\0\0\0\0"
STORE_COPY, BACK, SKIP = b"\x62\x02\0\0\x80\0\0\0", b"\x55\x01\xfe\xff\0\0\0\0", b"\x05\0\x01\0\0\0\0\0"
# Of systemd 252, for IPAddressDeny=any and IPAddressAllow=fe80::/10, as Linux 6.18 shows it.
SD_FW_EGRESS = bytes.fromhex(
    "bf160000000000006967b00000000000b40800000000000055070e0086dd0000bf61000000000000b402000018000000bfa3000000000000"
    "07030000f0ffffffb40400001000000085000000009f9c0018110000390100000000000000000000bfa200000000000007020000ecffffff"
    "620200008000000085000000a09a0500150001000000000044080000010000004408000002000000b7000000010000005508010002000000"
    "b7000000000000009500000000000000"
)
ATOMIC_ADD, CALL, CALL_OWN = b"\xdb\x10\0\0\0\0\0\0", b"\x85\0\0\0\x31\0\0\0", b"\x85\x10\0\0\x01\0\0\0"


@pytest.mark.parametrize(
    ("number", "code", "harmless"),
    [
        (8, MOVE + EXIT, True),
        (8, STORE_STACK + MOVE + EXIT, True),
        (8, ATOMIC_ADD + CALL + MOVE + EXIT, True),  # counts in a map, as systemd does
        (8, STORE_CONTEXT + MOVE + EXIT, False),
        (9, STORE_CONTEXT + MOVE + EXIT, False),
        (9, CALL + MOVE + EXIT, True),
        (13, MOVE + EXIT, True),
        (13, CALL + MOVE + EXIT, False),  # perhaps bpf_setsockopt
        (18, CALL + MOVE + EXIT, False),
        (18, CALL_OWN + MOVE + EXIT, True),
        (25, CALL + MOVE + EXIT, False),
        (8, SD_FW_EGRESS, True),
        (8, SD_FW_EGRESS.replace(COPY_STACK, COPY_CONTEXT), False),
        (8, COPY_STACK + STORE_COPY + EXIT, True),
        (8, COPY_STACK + CALL + STORE_COPY + EXIT, False),
        (8, COPY_STACK + COPY_CONTEXT + STORE_COPY + EXIT, False),
        (8, COPY_STACK + b"\x79\x12\0\0\0\0\0\0" + STORE_COPY + EXIT, False),  # another value is loaded
        (8, COPY_STACK + b"\xdb\x21\0\0\1\0\0\0" + STORE_COPY + EXIT, False),  # fetched by an atomic operation
        (8, COPY_STACK + STORE_COPY + BACK + EXIT, False),  # a jump leads to the store
        (8, COPY_STACK + SKIP + EXIT + STORE_COPY + EXIT, False),
        (8, b"", False),
        (8, b"\x85\x20" + CALL[2:] + MOVE + EXIT, False),  # a kfunc
        (9, b"\x85\0\0\0\x0c\0\0\0" + EXIT, False),  # a tail call
    ],
)
def test_BPF_program_is_judged_by_stores_and_calls(number: int, code: bytes, harmless: bool) -> None:
    assert is_harmless(PacketProgram(7, number, "foreign", code)) is harmless


@pytest.mark.parametrize(("number", "reason"), [(errno.EPERM, "Operation not permitted"), (errno.ENOSYS, "")])
def test_BPF_look_without_right_has_a_reason(number: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscall, "bpf", refuse)
    for look in (
        packet_programs.look_at_cgroup_programs(),
        packet_programs.look_at_device_programs({1: "lo"}, {1: ""}),
    ):
        assert (look.actors, look.missing) == ((), reason)


def test_xtables_look_at_unreadable_table_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtables, "_PROC_NET", tmp_path)
    assert xtables.look_at_xtables() == Look(XTABLES)
    (tmp_path / "ip_tables_names").write_text("nosuchtable\n")
    assert "table nosuchtable of iptables: " in xtables.look_at_xtables().missing
    monkeypatch.setattr(xtables, "_PROC_NET", tmp_path / "absent")
    assert "arptables: " in xtables.look_at_xtables().missing


def test_own_BPF_programs_are_known_by_name_and_type() -> None:
    programs = {9: mark_program(1, 1, 5), 25: confine_program(1, 1, ("wan",), 5)}
    for number, code in programs.items():
        assert is_harmless(PacketProgram(7, number, "nftp.5", code))
        assert not is_harmless(PacketProgram(7, number, "other", code))
    assert not is_harmless(PacketProgram(7, 8, "nftp.5", STORE_CONTEXT + EXIT))


def _look_at(monkeypatch: pytest.MonkeyPatch, programs: Sequence[PacketProgram], traced: Sequence[int] = ()) -> Look:
    """Return the look at a kernel with these programs, of which none is at a cgroup."""
    monkeypatch.setattr(packet_programs, "_loaded_programs", lambda: iter(programs))
    monkeypatch.setattr(packet_programs, "_attachments", lambda _: iter(()))
    monkeypatch.setattr(syscall, "linked_programs", lambda _: iter(traced))
    return packet_programs.look_at_cgroup_programs()


def test_struct_ops_programs_that_call_helpers_are_an_assumption(monkeypatch: pytest.MonkeyPatch) -> None:
    code = CALL + MOVE + EXIT  # perhaps bpf_setsockopt, as a congestion control may call it
    look = _look_at(monkeypatch, [PacketProgram(number, 27, f"cong_{number}", code) for number in range(6)])
    wanted = "BPF programs of struct_ops, such as a congestion control, mark no socket: cong_0, cong_1, cong_2, cong_3"
    assert look == Look(CGROUP_BPF, narrowed=(f"{wanted} and 2 more",))
    assert _look_at(monkeypatch, [PacketProgram(1, 27, "plain", MOVE + EXIT)]) == Look(CGROUP_BPF)


def test_LSM_program_without_tracing_link_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = [PacketProgram(7, 29, "lsm", CALL + MOVE + EXIT)]
    assert _look_at(monkeypatch, programs, traced=[7]) == Look(CGROUP_BPF)
    assert _look_at(monkeypatch, programs, traced=[8]).narrowed == (
        "BPF program lsm (lsm_cgroup) is at no cgroup that this process can see",
    )
