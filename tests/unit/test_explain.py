"""Packets and output of `explain`: options, sockets, policy lines, traces, state files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.core
from attrs import evolve

from nftpolicy.cli.common import Failure
from nftpolicy.cli.findings_text import source_locator
from nftpolicy.cli.packet_options import PacketOptions, describe_socket, socket_packet
from nftpolicy.cli.render import trace
from nftpolicy.cli.state_files import state_from_files
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.netlink.conntrack import FlowState
from nftpolicy.kernel.process_sockets import ProcessSocket, ProcessSockets
from nftpolicy.model.packet import FORWARD, FRAME, KERNEL, TCP, CtInfo, Packet, parse_address
from nftpolicy.model.trace import Trace
from nftpolicy.model.trace_step import TraceStep
from nftpolicy.netstate import nft
from nftpolicy.netstate.bypass import Look
from nftpolicy.netstate.routing import IpRule, Route
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.errors import PolicyText
from nftpolicy.policy.load import load
from nftpolicy.runtime import explain
from tests.forked_program import run_program
from tests.lab.limits import limit
from tests.unit.test_policy_errors import GOOD


def run(*arguments, given=b"", env=None):
    return run_program("explain", *arguments, given=given, env=env)


# --- options ------------------------------------------------------------------------------------


def test_packet_without_options_is_udp_of_root():
    packet = PacketOptions("192.0.2.1").packet()
    assert packet == Packet(4, parse_address("192.0.2.1"), fields={("ip", "ttl"): 64})


def test_every_option_sets_a_packet_field():
    packet = PacketOptions(
        "2001:db8::1",
        "2001:db8::2",
        "tcp",
        443,
        1234,
        "5",
        "800",
        "0x10",
        "/a/b/",
        "eth0",
        state="established",
        reply=True,
        ct_mark="3",
        fields=("tcp.flags=0x4", "ip6.hoplimit=2"),
    ).packet()
    assert packet == Packet(
        6,
        parse_address("2001:db8::1"),
        parse_address("2001:db8::2"),
        TCP,
        1234,
        443,
        mark=16,
        uid=5,
        gid=800,
        cgroup="a/b",
        bound="eth0",
        flow=CtInfo("established", "reply", 3),
        fields={("ip6", "hoplimit"): 2, ("tcp", "flags"): 4},
    )


def test_origin_options_set_the_packet_origin():
    assert PacketOptions("192.0.2.1", kernel=True, mark="1").packet().origin == KERNEL
    forwarded = PacketOptions("192.0.2.1", "192.0.2.2", forward="eth1").packet()
    assert (forwarded.origin, forwarded.iif, forwarded.has_socket) == (FORWARD, "eth1", False)
    frame = PacketOptions("2001:db8::1", "::", frame=True, dev="eth0").packet()
    assert (frame.origin, frame.bound, frame.ethertype) == (FRAME, "eth0", 0x86DD)


def test_address_zone_binds_the_packet_to_its_device():
    assert PacketOptions("fe80::1%eth3").packet().bound == "eth3"


@pytest.mark.parametrize(
    ("to", "proto", "fields"),
    [
        ("192.0.2.1", "icmp", {("ip", "ttl"): 64, ("icmp", "type"): 8}),
        ("2001:db8::1", "58", {("ip6", "hoplimit"): 64, ("icmpv6", "type"): 128}),
        ("224.0.0.1", "igmp", {("ip", "ttl"): 1}),
        ("239.255.255.255", "253", {("ip", "ttl"): 1}),
        ("240.0.0.0", "253", {("ip", "ttl"): 64}),
        ("ff02::1", "udp", {("ip6", "hoplimit"): 1}),
        ("192.0.2.1", "tcp", {("ip", "ttl"): 64, ("tcp", "flags"): 2}),
    ],
)
def test_packet_header_has_defaults_of_linux(to, proto, fields):
    assert PacketOptions(to, proto=proto).packet().fields == fields


def test_packet_group_defaults_to_the_group_of_the_user():
    import pwd

    other = next(one for one in pwd.getpwall() if one.pw_gid not in (0, one.pw_uid))
    packet = PacketOptions("192.0.2.1", uid=other.pw_name).packet()
    assert (packet.uid, packet.gid) == (other.pw_uid, other.pw_gid)
    assert PacketOptions("192.0.2.1", uid=other.pw_name, gid="0").packet().gid == 0


BAD = {
    "--to": [("--to", "example.org"), ("--to", "192.0.2.300"), ("--to", "")],
    "--from": [("--from", "::1"), ("--from", "x")],
    "--proto": [
        ("--proto", "gopher"),
        ("--proto", "256"),
        ("--proto", "-1"),
        ("--proto", "ipv6-icmp"),
        ("--proto", "²"),
    ],
    "--uid": [("--uid", "no-such-user"), ("--uid", "99999999999"), ("--kernel", "--uid", "0")],
    "--gid": [("--gid", "no-such-group"), ("--gid", "")],
    "--mark": [("--mark", "0x100000000"), ("--mark", "one"), ("--mark", "-1"), ("--mark", "0x"), ("--mark", "1_0")],
    "--ct-mark": [("--ct-mark", "x")],
    "--cgroup": [("--forward", "eth0", "--from", "192.0.2.2", "--cgroup", "a")],
    "--forward": [
        ("--forward", "eth0"),
        ("--forward", "eth0", "--kernel"),
        ("--forward", "eth0", "--from", "192.0.2.2", "--mark", "1"),
        ("--forward", "eth0", "--from", "192.0.2.2", "--dev", "a"),
    ],
    "--frame": [("--frame", "--from", "192.0.2.2"), ("--frame", "--dev", "eth0")],
    "--kernel": [("--kernel", "--frame")],
    "--state": [("--state", "old")],
    "--reply": [("--reply",)],
    "--field": [("--field", "ttl=1"), ("--field", "ip.ttl"), ("--field", "ip.ttl=9999999999"), ("--field", "ip.ttl=x")],
    "--dev": [("--to", "fe80::1%a", "--dev", "b")],
    "--compiled": [("--compiled",)],
}


@pytest.mark.parametrize(("option", "words"), [(option, words) for option in BAD for words in BAD[option]])
def test_bad_option_value_is_one_line_with_the_option(option, words):
    result = run("--to", "192.0.2.1", *words)
    assert (result.returncode, result.stdout) == (2, b"")
    message = result.stderr.decode()
    assert message.startswith(f"nftpolicy: {option}"), message
    assert message.count("\n") == 1 and "Traceback" not in message


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--pid", "1", "--uid", "0"),
        ("--pid", "1", "--kernel"),
        ("--pid", "1", "--compiled"),
        ("--pid", "1", "--mark", "1"),
    ],
)
def test_conflicting_options_are_status_2(words):
    result = run(*words)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.count(b"\n") == 1 and result.stderr.startswith(b"nftpolicy: --")


def test_bad_policy_is_reported_before_the_packet(tmp_path):
    (tmp_path / "p.toml").write_text("name = 1")
    result = run(tmp_path / "p.toml", "--to", "192.0.2.1")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(f"nftpolicy: {tmp_path}/p.toml".encode())


@pytest.mark.parametrize("words", [["--help"], ["p.toml", "--compiled", "--to", "192.0.2.1"]])
def test_explain_without_kernel_imports_no_slow_module(tmp_path, words):
    (tmp_path / "p.toml").write_text(GOOD)
    code = "import sys, atexit; atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr)); "
    code += f"sys.argv = {['nftpolicy', 'explain', *words]!r}; from nftpolicy.cli.main import main; main()"
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=limit(30),
        check=True,
    )
    imported = {one.partition(".")[0] for one in result.stderr.strip("[]'\n").split("', '")}
    assert "typer" in imported and result.stdout
    slow = {"pyroute2", "nftables"} | ({"rich"} if hasattr(typer.core, "HAS_RICH") else set())  # typer 0.7 imports rich
    assert imported & slow == set()


def test_explain_compiled_needs_no_kernel(tmp_path):
    (tmp_path / "p.toml").write_text(GOOD)
    result = run(
        tmp_path / "p.toml",
        "--compiled",
        "--to",
        "198.51.100.1",
        "--dport",
        "10000",
        "--gid",
        "800",
        "--mark",
        "1",
        "--json",
    )
    assert (result.returncode, result.stderr) == (0, b"")
    found = json.loads(result.stdout)
    assert "table 7 has a default route by eth0" in found["assumed"]
    (expected_texts,) = found["packets"]
    assert (expected_texts["outcome"], expected_texts["device"], expected_texts["mark"]) == ("leaves", "eth0", 1)
    line = GOOD.splitlines().index("[service.vpn]") + 1
    assert f"{tmp_path}/p.toml:{line} service.vpn" in [one["policy"] for one in expected_texts["steps"]]
    unmarked = run(tmp_path / "p.toml", "--compiled", "--to", "198.51.100.1").stdout.decode().splitlines()[-1]
    assert unmarked == "=> leaves by bat0 with mark 0x0"


# --- sockets ------------------------------------------------------------------------------------

UDP = ProcessSocket(3, 4, "dgram", 17, 0x1, 5, 800)
PROGRAM = ProcessSockets(7, "fastd", "system.slice/fastd", (UDP,))
NOT_TOLD = PacketOptions(None)


def packet(one, asked=NOT_TOLD):
    return socket_packet(one, PROGRAM, asked)


def test_connected_socket_sends_to_its_peer():
    one = evolve(UDP, local="192.0.2.2", sport=10, remote="192.0.2.1", dport=20)
    found = packet(one, PacketOptions("198.51.100.1", dport=30))
    assert found == Packet(
        4,
        parse_address("192.0.2.1"),
        parse_address("192.0.2.2"),
        17,
        10,
        20,
        mark=1,
        uid=5,
        gid=800,
        cgroup="system.slice/fastd",
        fields={("ip", "ttl"): 64},
    )


def test_unconnected_socket_sends_to_the_given_destination():
    assert "--to" in packet(UDP)
    found = packet(evolve(UDP, bound="eth0"), PacketOptions("198.51.100.1", dport=30))
    assert (found.destination, found.source, found.dport, found.bound) == (
        parse_address("198.51.100.1"),
        None,
        30,
        "eth0",
    )
    assert packet(evolve(UDP, out="eth7"), PacketOptions("198.51.100.1")).bound == "eth7"


def test_socket_family_limits_the_destination():
    six = evolve(UDP, family=6)
    assert "IPv6 only" in packet(six, PacketOptions("198.51.100.1"))
    assert packet(evolve(six, both=True), PacketOptions("198.51.100.1")).family == 4
    assert packet(six, PacketOptions("2001:db8::1")).family == 6
    assert "IPv4 only" in packet(UDP, PacketOptions("2001:db8::1"))


def test_connected_tcp_socket_is_established():
    one = evolve(UDP, kind="stream", protocol=6, local="192.0.2.2", sport=10, remote="192.0.2.1", dport=20)
    assert packet(one).flow == CtInfo("established")
    assert packet(one).fields["tcp", "flags"] == 16
    assert "listens" in packet(evolve(one, remote=None, listens=True), PacketOptions("192.0.2.1"))


def test_socket_packet_has_its_conntrack_state():
    one = evolve(UDP, local="192.0.2.2", sport=10, remote="192.0.2.1", dport=20)
    ends = (4, 17, "192.0.2.2", 10, "192.0.2.1", 20)

    def known(*asked):
        assert asked == ends
        return FlowState("established", "reply", 5)

    assert socket_packet(one, PROGRAM, NOT_TOLD, known).flow == CtInfo("established", "reply", 5)
    assert packet(one).flow == CtInfo("new")


def test_unusable_socket_gives_a_reason():
    assert "another network namespace" in packet(evolve(UDP, elsewhere=True), PacketOptions("192.0.2.1"))
    every = ProcessSocket(3, 0, "raw", 3, 0, 0, 0, bound="eth0")
    assert "--to" in packet(every)
    assert "no device" in packet(evolve(every, bound=None), PacketOptions("192.0.2.1"))


def test_packet_socket_sends_a_frame():
    arp = packet(ProcessSocket(3, 0, "raw", 0x0806, 7, 0, 0, bound="eth0"))
    assert (arp.origin, arp.ethertype, arp.bound, arp.mark) == (FRAME, 0x0806, "eth0", 7)
    ip = packet(ProcessSocket(3, 0, "raw", 3, 7, 0, 0, bound="eth0"), PacketOptions("2001:db8::1", proto="tcp"))
    assert (ip.origin, ip.ethertype, ip.family, ip.protocol) == (FRAME, 0x86DD, 6, TCP)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (UDP, "descriptor 3: udp over IPv4, mark 0x1, user 5, group 800"),
        (
            evolve(UDP, family=6, both=True, sport=53, bound="lo"),
            "udp over IPv6 and IPv4 *:53, mark 0x1, user 5, group 800, bound to lo",
        ),
        (evolve(UDP, kind="raw", protocol=1), "raw icmp over IPv4"),
        (evolve(UDP, kind="raw", protocol=255), "raw over IPv4"),
        (
            ProcessSocket(4, 0, "raw", 0x806, 0, 0, 0, bound="lo"),
            "AF_PACKET raw, protocol 0x0806, mark 0x0, user 0, group 0, bound to lo",
        ),
        (
            evolve(UDP, family=6, local="fe80::1", sport=1, remote="fe80::2", dport=2),
            "udp over IPv6 [fe80::1]:1 -> [fe80::2]:2,",
        ),
    ],
)
def test_socket_description_has_expected_text(one, words):
    assert words in describe_socket(one)


# --- policy lines -------------------------------------------------------------------------------


def policy():
    return load(GOOD.encode(), "p.toml")


def listed(state):
    """Return the state as a kernel lists it: without origins."""

    def bare(table):
        chains = tuple(
            evolve(one, origin=(), rules=tuple(evolve(rule, origin=()) for rule in one.rules)) for one in table.chains
        )
        return evolve(table, chains=chains, sets=tuple(evolve(one, origin=()) for one in table.sets))

    return NetState(
        tuple(map(bare, state.tables)),
        tuple(evolve(one, origin=()) for one in state.rules),
        tuple(evolve(one, origin=()) for one in state.routes),
    )


def origins(state):
    rules = [
        (chain.name, rule, rule.origin) for table in state.tables for chain in table.chains for rule in chain.rules
    ]
    return rules, [one.origin for one in state.rules], [one.origin for one in state.routes]


def test_listed_state_gets_origins_of_compiled_state():
    desired = compile_policy(policy()[0])
    found = listed(desired)
    assert not any(one[2] for one in origins(found)[0])
    again = explain.with_origins(found, desired)
    assert again == found, "keys take no part in a comparison"
    assert origins(again) == origins(desired)
    assert any(one[2] for one in origins(again)[0])


def test_foreign_objects_have_no_origin():
    desired = compile_policy(policy()[0])
    found = listed(desired)
    foreign = nft.Rule((nft.Counter(), nft.DROP))
    guard = next(chain for chain in found.tables[0].chains if chain.name == "guard")
    inserted = evolve(guard, rules=(foreign, *guard.rules))
    other = nft.Table("inet", "other", (guard,))
    state = NetState(
        (evolve(found.tables[0], chains=(inserted,)), other), (IpRule(4, 5),), (Route(4, 254, device="eth0"),)
    )
    again = explain.with_origins(state, desired)
    wanted = next(chain for chain in desired.tables[0].chains if chain.name == "guard")
    assert [one.origin for one in again.tables[0].chains[0].rules] == [(), *(one.origin for one in wanted.rules)]
    assert {one.origin for one in again.tables[1].chains[0].rules} == {()}
    assert (again.rules[0].origin, again.routes[0].origin) == ((), ())


def test_equal_rules_of_a_chain_keep_their_origins():
    one, two = (nft.Rule((nft.ACCEPT,), origin=(key,)) for key in "ab")
    desired = NetState((nft.Table("inet", "t", (nft.Chain("c", (one, two)),)),))
    found = NetState((nft.Table("inet", "t", (nft.Chain("c", (nft.Rule((nft.ACCEPT,)),) * 3),)),))
    rules = explain.with_origins(found, desired).tables[0].chains[0].rules
    assert [rule.origin for rule in rules] == [("a",), ("b",), ()]


def test_source_locator_names_file_line_and_key():
    _, source = policy()
    place = source_locator(source)
    assert place(()) == ""
    line = GOOD.splitlines().index('mark = "0x1/0xff"') + 1
    assert place(("uplink", "wan", "mark")) == f"p.toml:{line} uplink.wan.mark"


# --- pictures -----------------------------------------------------------------------------------

SENT = Packet(4, parse_address("192.0.2.1"), mark=1, uid=5, gid=800)
DROPS = nft.Rule((nft.CounterRef("wan.dropped"), nft.DROP), origin=("uplink", "wan"))
GUARD = nft.Chain("wan.guard", (DROPS,))
STEPS = (
    TraceStep("source", "a socket of user 5"),
    TraceStep("ip-rule", "priority 900 from all lookup main", IpRule(4, 900), ("inside",), "found in table 254"),
    TraceStep("route", "default dev eth0", Route(4, 254), (), "leaves by eth0"),
    TraceStep("hook", "output to eth0"),
    TraceStep("chain", "table inet nftpolicy, chain restore", nft.Chain("restore")),
    TraceStep("rule", "meta mark set 0x3", nft.Rule(()), (), "mark 0x3"),
    TraceStep("reroute", "routed again"),
    TraceStep("ip-rule", "priority 510", IpRule(4, 510), (), "found in table 1"),
    TraceStep("chain", "policy accept of chain restore", nft.Chain("restore"), (), "accept"),
    TraceStep("hook", "postrouting to eth0"),
    TraceStep("chain", "table inet nftpolicy, chain wan.guard", GUARD, ("uplink", "wan")),
    TraceStep("rule", 'counter name "wan.dropped" drop', DROPS, ("uplink", "wan"), "drop"),
    TraceStep("end", "dropped", effect="dropped"),
)
REFUSES = TraceStep("ip-rule", "priority 515", IpRule(4, 515), (), "unreachable")
NO_ROUTE = TraceStep("route", "no route", None, (), "unreachable")
WALK = Trace(SENT, STEPS, "dropped", None, 1, None, SENT.destination, 9)


def test_shown_steps_are_grouped_by_stage():
    assert [(one.stage, one.depth, one.text) for one in trace.shown_steps(WALK)] == [
        ("routing", 0, "priority 900 from all lookup main"),
        ("routing", 0, "default dev eth0"),
        ("output to eth0", 0, "inet nftpolicy restore"),
        ("output to eth0", 1, "meta mark set 0x3"),
        ("routed again", 0, "routed again"),
        ("routed again", 0, "priority 510"),
        ("output to eth0", 1, "policy accept"),
        ("postrouting to eth0", 0, "inet nftpolicy wan.guard"),
        ("postrouting to eth0", 1, 'counter name "wan.dropped" drop'),
    ]


def test_arriving_packet_is_routed_after_prerouting():
    arrived = (
        TraceStep("source", "arrives by eth1"),
        TraceStep("hook", "prerouting from eth1"),
        TraceStep("chain", "table inet t, chain c", nft.Chain("c")),
        TraceStep("ip-rule", "priority 900", IpRule(4, 900)),
        TraceStep("hook", "forward from eth1 to eth0"),
        TraceStep("chain", "table inet t, chain d", nft.Chain("d")),
    )
    stages = [one.stage for one in trace.shown_steps(evolve(WALK, steps=arrived))]
    assert stages == ["prerouting from eth1", "routing", "forward from eth1 to eth0"]


def test_repeated_step_without_route_is_shown_once():
    routes = (
        TraceStep("route", "bound to eth0: leaves there although there is no route", None, (), "leaves by eth0"),
        TraceStep("route", "no route", None, (), "leaves by eth0"),
    )
    assert [one.text for one in trace.shown_steps(evolve(WALK, steps=routes))] == [routes[0].text]


def test_trace_lines_have_title_steps_and_outcome():
    place = source_locator(PolicyText("p.toml", "\n" * 11 + "[uplink.wan]\n"))
    shown = trace.trace_lines(WALK, trace.shown_steps(WALK, place), ["above"], ["a note"])
    assert shown[:3] == [
        "above",
        "udp (any):40000 -> 192.0.2.1:9",
        "socket of user 5, group 800; mark 0x1",
    ]
    assert shown[-2:] == ["a note", "=> dropped by inet nftpolicy wan.guard: counter wan.dropped"]
    (drop,) = [line for line in shown if line.startswith("    counter name")]
    assert drop.split()[-4:] == ["drop", "drop", "p.toml:12", "uplink.wan"]
    assert not any("continue" in line for line in shown)
    assert "\n".join(shown).isascii()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcome": "leaves", "device": "br-wan"}, "leaves by br-wan with mark 0x1"),
        (
            {"outcome": "delivered", "destination": parse_address("127.0.0.1"), "dport": 54},
            "delivered locally with mark 0x1, to 127.0.0.1:54",
        ),
        ({"outcome": "dropped"}, "dropped by inet nftpolicy wan.guard: counter wan.dropped"),
        ({"outcome": "unroutable", "steps": STEPS[:2]}, "unroutable: no route"),
        (
            {"outcome": "unroutable", "steps": (*STEPS[:1], REFUSES, NO_ROUTE)},
            "unroutable: rule priority 515: unreachable",
        ),
        (
            {"outcome": "unknown", "device": "eth0", "unsupported": ("a socket match",)},
            "may leave by eth0: unsupported: a socket match",
        ),
        ({"outcome": "unknown"}, "may leave: unsupported: too many branches to follow all"),
    ],
)
def test_outcome_text_has_expected_words(changes, words):
    assert trace.outcome_text(evolve(WALK, **changes)) == words


def test_outcome_of_chain_policy_names_the_chain():
    chain = nft.Chain("c", (), nft.Hook("filter", "output", 0, "drop"))
    steps = (
        TraceStep("chain", "table inet t, chain c", chain),
        TraceStep("chain", "policy drop of chain c", chain, (), "drop"),
    )
    assert trace.outcome_text(evolve(WALK, steps=steps)) == "dropped by inet t c: policy drop"


@pytest.mark.parametrize(
    ("packet", "title", "sender"),
    [
        (
            Packet(6, parse_address("2001:db8::1"), parse_address("::1"), origin=FORWARD, iif="eth1"),
            "udp [::1]:40000 -> [2001:db8::1]:9",
            "from another host, arrives by eth1",
        ),
        (
            Packet(4, 1, protocol=1, origin=KERNEL, mark=2, fields={("icmp", "type"): 0}),
            "icmp (any) -> 0.0.0.1, icmp type 0",
            "sent by the kernel, without a socket; mark 0x2",
        ),
        (
            Packet(4, 0, 0, origin=FRAME, bound="eth0", ethertype=0x806),
            "frame of ethertype 0x0806",
            "AF_PACKET socket of user 0, group 0; mark 0x0; bound to eth0; not routed, passes only the egress hook",
        ),
        (
            Packet(4, 1, 2, 253, flow=CtInfo("established", "reply", 5), cgroup="a/b"),
            "protocol 253 0.0.0.2 -> 0.0.0.1",
            "socket of user 0, group 0; mark 0x0; cgroup a/b; connection established, reply direction, mark 0x5",
        ),
    ],
)
def test_packet_title_and_sender_have_expected_text(packet, title, sender):
    assert (trace.packet_title(packet), trace.packet_sender(packet)) == (title, sender)


def test_control_characters_are_escaped():
    shown = trace.trace_lines(
        WALK, trace.shown_steps(evolve(WALK, steps=(*STEPS[:1], TraceStep("route", "a\x1b[31mb\r"))))
    )
    assert r"  route a\x1b[31mb\r" in shown
    assert r"cgroup a\nb" in trace.packet_sender(evolve(SENT, cgroup="a\nb"))


def test_unsupported_parts_are_shown_without_effect_too(capsys):
    trace.print_trace(evolve(WALK, unsupported=("a socket match",)))
    assert "unsupported, but does not change the outcome: a socket match" in capsys.readouterr().out
    trace.print_trace(evolve(WALK, outcome="unknown", unsupported=("a socket match",)))
    assert capsys.readouterr().out.count("unsupported") == 1


def test_trace_json_has_the_steps_of_the_text():
    found = json.loads(json.dumps(trace.trace_json(WALK, lambda key: "x" if key else "")))
    assert found["words"] == trace.outcome_text(WALK)
    assert [one["text"] for one in found["steps"]] == [one.text for one in trace.shown_steps(WALK)]
    assert found["steps"][-1] == {
        "stage": "postrouting to eth0",
        "kind": "rule",
        "text": 'counter name "wan.dropped" drop',
        "effect": "drop",
        "key": ["uplink", "wan"],
        "policy": "x",
    }
    assert (found["outcome"], found["mark"], found["source"], found["destination"]) == ("dropped", 1, None, "192.0.2.1")


def test_trace_colours_need_a_capable_terminal(monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not trace.use_colour()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert trace.use_colour()
    trace.print_trace(WALK, lambda key: "p.toml:1 [x]" if key else "", "above", ["note [y]"])
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "above",
        "192.0.2.1:9",
        "postrouting to eth0",
        "p.toml:1 [x]",
        "note [y]",
        "=> dropped by inet nftpolicy",
    ):
        assert words in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert not trace.use_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not trace.use_colour()


# --- files --------------------------------------------------------------------------------------

RULESET = {"nftables": [{"table": {"family": "inet", "name": "t"}}]}
RULES = [{"priority": 0, "src": "all", "table": "local"}, {"priority": 9, "src": "192.0.2.1", "table": "7"}]
ROUTES = [{"dst": "2001:db8::/32", "dev": "eth0", "table": "254", "protocol": "static", "metric": 9}]


@pytest.fixture
def write(tmp_path):
    def writer(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return writer


def test_state_from_files_has_tables_rules_and_routes(write):
    rules, routes = write("rules", RULES), write("routes", ROUTES)
    found = state_from_files(write("ruleset", RULESET), [str(rules)], [str(routes)])
    assert [one.name for one in found.tables] == ["t"]
    assert [(one.family, one.priority, one.table) for one in found.rules] == [(4, 0, 255), (4, 9, 7)]
    assert [(one.family, one.destination, one.device) for one in found.routes] == [(6, "2001:db8::/32", "eth0")]
    assert state_from_files(None, [], []) == NetState()


def test_file_prefix_sets_the_family_of_its_rules(write):
    standard = write("rules", RULES[:1])
    with pytest.raises(Failure, match="write 4:FILE or 6:FILE"):
        state_from_files(None, [str(standard)], [])
    found = state_from_files(None, [f"4:{standard}", f"6:{standard}"], [])
    assert [one.family for one in found.rules] == [4, 6]


@pytest.mark.parametrize("option", ["--ruleset", "--rules", "--routes"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"nftables": [{"rule": 5}, {"chain": {}}]}', b"[5]", b'"x"', b'[{"dst": []}]', b'[{"a": "\\n"}]'],
)  # fmt: skip
def test_invalid_state_file_is_status_2(write, option, content):
    path = write("file", content)
    result = run("--to", "192.0.2.1", option, path)
    assert (result.returncode, result.stdout) == (2, b"")
    message = result.stderr.decode()
    assert message.startswith(f"nftpolicy: {path}: ")
    assert message.count("\n") == 1 and "Traceback" not in message and len(message) < 700


def test_compiled_policy_is_merged_with_rules_of_the_files(write):
    """Combine a default route and an earlier rule of the host with the compiled policy."""
    policy_file = write("p.toml", GOOD.encode())
    routes = [{"dst": "default", "dev": "eth0", "gateway": "192.0.2.1", "table": "7", "protocol": "static"}]
    routes += [{"dst": "default", "dev": "bat0", "gateway": "10.0.0.1", "table": "254", "protocol": "static"}]
    standard = [{"priority": 0, "src": "all", "table": "255"}, {"priority": 32766, "src": "all", "table": "254"}]
    early = [*standard[:1], {"priority": 5, "src": "all", "fwmark": "0x1", "table": "254"}, *standard[1:]]
    words = ("--to", "198.51.100.1", "--dport", "10000", "--gid", "800", "--mark", "1")

    def last(rules):
        files = ("--rules", f"4:{write('rules', rules)}", "--routes", write("routes", routes))
        return run(policy_file, "--compiled", *files, *words).stdout.decode().splitlines()[-1]

    assert last(standard) == "=> leaves by eth0 with mark 0x1"
    assert last(early) == "=> dropped by inet nftpolicy wan.stray: counter wan.stray"


def test_merge_replaces_an_earlier_policy():
    desired = compile_policy(policy()[0])
    old = nft.Table("inet", "nftpolicy", (nft.Chain("old"),))
    other = nft.Table("inet", "fw4")
    rules, routes = (IpRule(4, 1), IpRule(4, 0, protocol=2)), (Route(4, 7), Route(4, 254, protocol=4))
    others = NetState((old, other), rules, routes, looks=(Look("tc"),))
    found = explain.merge_states(desired, others)
    assert found.looks == others.looks
    assert found.tables == (*desired.tables, other)
    assert [one for one in found.rules if one not in desired.rules] == [IpRule(4, 0, protocol=2)]
    assert [one.priority for one in found.rules if one.family == 4] == sorted(
        [0, *(one.priority for one in desired.rules if one.family == 4)]
    )
    assert [one for one in found.routes if one not in desired.routes] == [Route(4, 254, protocol=4)]


def test_absent_state_file_is_status_2(tmp_path):
    result = run("--to", "192.0.2.1", "--rules", tmp_path / "absent")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr == f"nftpolicy: {tmp_path}/absent: cannot be read: No such file or directory\n".encode()


@pytest.mark.parametrize(
    ("change", "count"),
    [({}, 1), ({"source": parse_address("192.0.2.2")}, 0), ({"sport": 5001}, 0), ({"protocol": TCP}, 0),
     ({"destination": parse_address("192.0.2.18")}, 0)],
)  # fmt: skip
def test_wildcard_udp_reply_has_a_note(change, count):
    """By table main the reply leaves from an address of the mesh; to the uplink's network from the right one."""
    routes = (
        Route(4, 255, "192.0.2.2/32", "local", device="eth0"),
        Route(4, 255, "10.0.0.2/32", "local", device="bat0"),
        Route(4, 254, "192.0.2.0/24", device="eth0", prefsrc="192.0.2.2"),
        Route(4, 254, "default", device="bat0", prefsrc="10.0.0.2"),
    )
    policy = load(GOOD.replace('"ssh"', '"ssh", "udp/5000"').encode())[0]
    found = explain.Explainer(NetState(routes=routes), policy).explain(
        Packet(4, **{"destination": parse_address("198.51.100.9"), "sport": 5000} | change)
    )
    assert [note.partition(" needs")[0] for note in found.notes] == ["a reply to a request by uplink wan"] * count
