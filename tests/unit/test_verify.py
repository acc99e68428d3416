"""`verify` and the proof in `check`: verdict, report and exit status."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.cli import check, verify
from nftpolicy.cli.common import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_REFUTED, EXIT_UNAVAILABLE, EXIT_UNKNOWN, Failure
from nftpolicy.cli.packet_options import PacketOptions
from nftpolicy.cli.render import proof_report
from nftpolicy.cli.uplink_options import uplinks_from_options
from nftpolicy.compiler import compile as compiler
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.packet import ICMP, TCP, CtInfo, Packet, parse_address
from nftpolicy.netstate import nft
from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.load import load
from nftpolicy.policy.mark import Mark
from nftpolicy.proof.verdict import PROPERTIES, PROVED, REFUTED
from nftpolicy.proof.verdict import UNKNOWN as NOT_KNOWN
from nftpolicy.runtime import verify as runtime
from nftpolicy.runtime.snapshot import Snapshot
from tests.forked_program import run_program
from tests.lab.limits import limit
from tests.unit.test_policy_errors import GOOD, GOOD_ELSEWHERE

ROOT = Path(__file__).parents[2]
RULESETS = sorted((ROOT / "rulesets").glob("*.toml"))
GOLDEN = sorted((ROOT / "tests/golden").glob("*/policy.toml"))
FIXTURES = ROOT / "tests/fixtures"
WAN = runtime.GivenUplink("wan", ("wan0",), Mark(1, 1))


def run(*arguments, given=b"", command="verify"):
    return run_program(command, *arguments, given=given, cwd=ROOT)


def fixture_options(name="default-router", families=(4, 6)):
    """Return the options that name the files of a fixture."""
    folder = FIXTURES / name
    words = ["--ruleset", folder / "kernel.json"]
    for family in families:
        words += ["--rules", f"{family}:{folder}/ip{family}-rule.json"]
        words += ["--routes", f"{family}:{folder}/ip{family}-route.json"]
    return words


UPLINK_OPTIONS = ["--uplink", "wan=wan0", "--mark", "1/1"]

# A table that drops all that leaves wan0 without the mark, at both layers.
CLOSED = """
{"nftables": [
 {"table": {"family": "inet", "name": "t"}},
 {"chain": {"family": "inet", "table": "t", "name": "c", "type": "filter", "hook": "postrouting", "prio": 0,
            "policy": "accept"}},
 {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": [
   {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "wan0"}},
   {"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 1]}, "right": 0}}, %s{"drop": null}]}},
 {"table": {"family": "netdev", "name": "t"}},
 {"chain": {"family": "netdev", "table": "t", "name": "c", "type": "filter", "hook": "egress", "dev": "wan0",
            "prio": 0, "policy": "accept"}},
 {"rule": {"family": "netdev", "table": "t", "chain": "c", "expr": [
   {"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 1]}, "right": 0}}, %s{"drop": null}]}}
]}
"""
DHCP = {"sport": 68, "dport": 67}
UNREAD = '{"match": {"op": "==", "left": {"frobnicate": {"key": 7}}, "right": 3}}, '


@pytest.fixture
def tables(tmp_path):
    """Options of a desk with such tables and the routes of a fixture."""

    def write(inner=""):
        (tmp_path / "tables.json").write_text(CLOSED % (inner, inner))
        return ["--ruleset", tmp_path / "tables.json", *fixture_options()[2:]]

    return write


# --- verdicts and exit statuses -------------------------------------------------------------------


@pytest.mark.parametrize("file", [*RULESETS, *GOLDEN], ids=lambda file: file.parent.name + "/" + file.stem)
def test_shipped_policy_is_proved(file):
    policy, _ = load(file.read_bytes())
    judged = runtime.verify_policy(policy)
    assert [one for one in judged.proof.findings if one.verdict != PROVED] == []
    assert judged.proof.verdict == PROVED
    assert judged.has_own_table


def test_proved_has_status_0():
    result = run("rulesets/gluon-fastd.toml")
    lines = result.stdout.decode().splitlines()
    assert (result.returncode, result.stderr) == (0, b"")
    assert lines[0] == "proved: gluon-fastd: what it compiles to: P1 to P5 hold for all packets, IPv4 and IPv6"
    assert [line.split()[:2] for line in lines[1:6]] == [["yes", name] for name in PROPERTIES]
    assert "  wan: dhcpv4" in lines
    assert "assumptions:" in lines


def test_refuted_has_status_1():
    result = run(*fixture_options(), *UPLINK_OPTIONS)
    output = result.stdout.decode()
    assert (result.returncode, result.stderr) == (EXIT_REFUTED, b"")
    assert output.startswith("REFUTED: the files: ")
    assert "  NO   P1  no leak           refuted\n" in output
    assert "P1 refuted: uplink wan: sockets: packets without the mark that leave by wan0" in output
    assert "=> leaves by wan0 with mark 0x0" in output
    assert "  next    no policy is in force here: " in output
    assert "\x1b" not in output


def test_state_with_dropping_tables_is_proved(tables):
    result = run(*tables(), *UPLINK_OPTIONS)
    assert result.stdout.decode().splitlines()[0] == "proved: the files: P1 holds for all packets, IPv4 and IPv6"
    assert result.returncode == 0


def test_unknown_has_status_3_and_names_unsupported_parts(tables):
    result = run(*tables(UNREAD), *UPLINK_OPTIONS)
    output = result.stdout.decode()
    assert result.returncode == EXIT_UNKNOWN, output
    assert output.startswith("unknown: the files: no counterexample found, but not provable; see 'unsupported' below\n")
    assert "P1 unknown: uplink wan: sockets: packets without the mark that leave by wan0" in output
    assert "  unsupported" in output and "frobnicate" in output


def test_unsupported_rule_after_the_drop_is_proved(tables):
    options = tables()
    document = json.loads(Path(options[1]).read_text())
    accepting = {"family": "inet", "table": "t", "chain": "c", "expr": [json.loads(UNREAD[:-2]), {"accept": None}]}
    document["nftables"].append({"rule": accepting})  # behind the one that drops
    Path(options[1]).write_text(json.dumps(document))
    assert run(*options, *UPLINK_OPTIONS).returncode == 0


def test_exemption_option_tolerates_its_packets(tables):
    options = tables()
    document = json.loads(Path(options[1]).read_text())
    found = []
    for one in document["nftables"]:
        if "rule" in one:  # what drops; before it, DHCP is accepted
            rule = one["rule"]
            asked = [({"payload": {"protocol": "ip", "field": "daddr"}}, "255.255.255.255")]
            if rule["family"] == "netdev":
                asked.insert(0, ({"payload": {"base": "ll", "offset": 96, "len": 16}}, 0x0800))
            asked += [({"payload": {"protocol": "udp", "field": of}}, port) for of, port in DHCP.items()]
            asks = [{"match": {"op": "==", "left": left, "right": right}} for left, right in asked]
            found.append({"rule": {**rule, "expr": [*asks, {"accept": None}]}})
        found.append(one)
    Path(options[1]).write_text(json.dumps({"nftables": found}))
    assert run(*options, *UPLINK_OPTIONS).returncode == EXIT_REFUTED
    result = run(*options, *UPLINK_OPTIONS, "--exempt", "dhcpv4")
    assert result.returncode == 0, result.stdout.decode()
    assert "  wan: dhcpv4\n" in result.stdout.decode()


def test_uplink_options_are_merged_by_name():
    found = uplinks_from_options(None, ["wan=a,b", "lte=c", "wan=d"], ["1/3", "2/3"], ["arp"])
    assert found == [
        runtime.GivenUplink("wan", ("a", "b", "d"), Mark(1, 3)),
        runtime.GivenUplink("lte", ("c",), Mark(2, 3)),
    ]
    one_mark = uplinks_from_options(None, ["wan=a", "lte=b"], ["0x10"], [])
    assert [one.mark for one in one_mark] == [Mark(16, 0xFFFFFFFF)] * 2
    claim = runtime.spec_of_uplinks(found, ["arp"], {"b": ["port1"]})
    assert [(one.devices, one.ports) for one in claim.uplinks] == [(("a", "b", "d"), ("port1",)), (("c",), ())]
    frames = [region.fields for one in claim.uplinks for hole in one.exemptions for region in hole.frames]
    assert [fields["ether.type"] for fields in frames] == [((0x0806, 0x0806),)] * 2
    assert not claim.has_policy


def test_alternative_name_of_uplink_is_refused():
    devices = (Device("wan0", other_names=("enp0s1", "uplink")), Device("lo"))
    snapshot = Snapshot(NetState(devices=devices), {}, frozenset({"wan0", "lo"}), True, (4, 6))

    def judge(name):
        return runtime.verify_snapshot("this kernel", snapshot, [evolve(WAN, devices=(name,))], (), print)

    with pytest.raises(runtime.AlternativeNameError, match=r"'uplink' is an alternative name of 'wan0'.*use 'wan0'"):
        judge("uplink")
    assert judge("wan0").proof.verdict == REFUTED, "the control: the name itself"
    assert judge("absent0").not_verified == ("ports of absent0: it is not on this machine now",)


@pytest.mark.parametrize("link_type", [1, 519, None], ids=["ether", "raw IP", "unknown"])
def test_exempt_frames_are_tried_on_ethernet_only(link_type):
    policy = load(GOOD.replace('exempt = ["arp"]', 'exempt = ["arp", "eapol"]').encode(), "good.toml")[0]
    spec = runtime.build_spec(policy)
    (device,) = spec.uplinks[0].devices[:1]
    state = evolve(compile_policy(policy), devices=(Device(device, link_type=link_type), Device("bat0")))
    proof = runtime.prove(state, spec)
    tried = {each.subject for each in proof.findings if each.property == "P3" and "exemption" in each.subject}
    assert bool(tried) is (link_type != 519), tried
    assert all(each.verdict != REFUTED for each in proof.findings if "exemption" in each.subject)


def test_files_are_compared_with_a_policy():
    result = run("rulesets/gluon-fastd.toml", *fixture_options("gluon-node"))
    output = result.stdout.decode()
    assert result.returncode == EXIT_REFUTED
    assert output.startswith("REFUTED: gluon-fastd: the files: ")
    assert "  policy  rulesets/gluon-fastd.toml:8 uplink.wan" in output
    assert "  next    the policy is not in force here: nftpolicy apply rulesets/gluon-fastd.toml" in output


@pytest.mark.parametrize("families", [(4,), (6,), ()])
def test_absent_family_is_unjudged(families):
    result = run(*fixture_options(families=families), *UPLINK_OPTIONS, "--json")
    expected_message = json.loads(result.stdout)["unjudged"]
    for family in (4, 6):
        assert (f"routing of IPv{family}: no ip rules and no routes of IPv{family} were given" in expected_message) == (
            family not in families
        )


def test_reported_finding_does_not_decide(tables):
    # Frames of other ethertypes get through, IP packets don't.
    options = tables()
    document = json.loads(Path(options[1]).read_text())
    at = next(at for at, one in enumerate(document["nftables"]) if one.get("rule", {}).get("family") == "netdev")
    said, own = {"meta": {"key": "protocol"}}, {"payload": {"base": "ll", "offset": 96, "len": 16}}
    tests = [{"match": {"op": "==", "left": left, "right": 0x88B5}} for left in (said, own)]
    rule = {**document["nftables"][at]["rule"], "expr": [*tests, {"accept": None}]}
    document["nftables"].insert(at, {"rule": rule})
    Path(options[1]).write_text(json.dumps(document))
    result = run(*options, *UPLINK_OPTIONS, "--json")
    found = json.loads(result.stdout)
    assert (result.returncode, found["verdict"]) == (0, PROVED)
    aside = [one for one in found["findings"] if not one["decides"] and one["property"] == "P1"]
    assert [one["verdict"] for one in aside] == [REFUTED]
    assert found["properties"]["P2"]["decides"] is False


# --- bad input ------------------------------------------------------------------------------------

BAD = {
    "nothing": ([], "name a policy, or with --live or --ruleset"),
    "a policy that is not there": (["no-such-file.toml"], "no-such-file.toml: cannot be read"),
    "uplinks beside a policy": (
        ["rulesets/gluon-fastd.toml", *UPLINK_OPTIONS],
        "--uplink: cannot be used with a policy",
    ),
    "a mark alone": (["--live", "--mark", "1"], "--mark: is for an uplink that no policy describes"),
    "an exemption of a policy": (["rulesets/gluon-fastd.toml", "--exempt", "arp"], "--exempt: is for an uplink"),
    "no mark": (["--live", "--uplink", "wan=eth0"], "--mark: missing"),
    "too many marks": (["--live", "--uplink", "wan=eth0", "--mark", "1", "--mark", "2"], "--mark: 2 for 1 uplinks"),
    "no mark at all": (
        ["--live", "--uplink", "wan=eth0", "--mark", "0"],
        "--mark: 0 matches unmarked packets; set at least one bit",
    ),
    "a mark in words": (["--live", "--uplink", "wan=eth0", "--mark", "red"], "--mark: expected a mark such as"),
    "no device": (["--live", "--uplink", "wan", "--mark", "1"], "--uplink: expected NAME=DEVICE"),
    "an empty device": (["--live", "--uplink", "wan=a,", "--mark", "1"], "--uplink: '' is not a valid device name"),
    "a pattern": (["--live", "--uplink", "wan=tun*", "--mark", "1"], "--uplink: 'tun*' is a pattern"),
    "no name": (["--live", "--uplink", "=eth0", "--mark", "1"], "--uplink: '' is not a valid name"),
    "one device twice": (["--live", "--uplink", "a=b", "--uplink", "c=b", "--mark", "1"], "b is already a device of a"),
    "lo": (["--live", "--uplink", "wan=lo", "--mark", "1"], "packets to 'lo' never leave this machine"),
    "an exemption": (
        [*fixture_options(), *UPLINK_OPTIONS, "--exempt", "arpp"],
        "'arpp' is not an exemption; known are arp, ",
    ),
    "two states": (["--live", *fixture_options()], "--live is this kernel: it excludes --ruleset"),
    "no tables": ([*fixture_options()[2:], *UPLINK_OPTIONS], "--ruleset is missing"),
    "no uplink": (fixture_options(), "name a policy, or with --live or --ruleset"),
    "tables that are not there": (["--ruleset", "no-such-file", *UPLINK_OPTIONS], "no-such-file: cannot be read"),
    "tables that are routes": (
        ["--ruleset", FIXTURES / "default-router/ip4-route.json", *UPLINK_OPTIONS],
        "not what 'nft -j list ruleset' prints",
    ),
    "rules without a family": (
        [*fixture_options()[:2], "--rules", FIXTURES / "default-router/ip4-rule.json", *UPLINK_OPTIONS],
        "write 4:FILE or 6:FILE",
    ),
    "two standard inputs": (["--ruleset", "-", "--rules", "4:-", *UPLINK_OPTIONS], "can be only one of the files"),
    "a hook device without tables": (
        ["--live", *UPLINK_OPTIONS, "--chain-device", "netdev t c=a"],
        "--ruleset, which is",
    ),
    "a hook device without a chain": (
        [*fixture_options(), *UPLINK_OPTIONS, "--chain-device", "netdev t=a"],
        "expected 'FAMILY TABLE CHAIN=DEVICE', such as",
    ),
    "a hook device of another chain": (
        [*fixture_options(), *UPLINK_OPTIONS, "--chain-device", "netdev t c=a"],
        "no such chain without a device; those without: none",
    ),
    "two outputs": (["rulesets/gluon-fastd.toml", "--json", "--script", "-"], "standard output is taken by --json"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_has_status_2_and_one_line(bad):
    words, expected_message = BAD[bad]
    result = run(*words)
    output = result.stderr.decode()
    assert (result.returncode, result.stdout) == (EXIT_BAD_INPUT, b""), output
    assert output.startswith("nftpolicy: ") and output.count("\n") == 1
    assert expected_message in output


def test_ruleset_is_read_from_standard_input():
    given = (FIXTURES / "default-router/kernel.json").read_bytes()
    piped, read = (
        run("--ruleset", "-", *fixture_options()[2:], *UPLINK_OPTIONS, "--json", given=given),
        run(*fixture_options(), *UPLINK_OPTIONS, "--json"),
    )
    assert piped.stdout == read.stdout
    assert piped.returncode == EXIT_REFUTED


def test_live_without_kernel_has_status_4(monkeypatch):
    def no_kernel():
        raise Failure("no root", EXIT_UNAVAILABLE)

    monkeypatch.setattr(verify, "this_kernel", no_kernel)
    for uplink, mark in ((["wan=eth0"], ["1"]), ([], [])):
        with pytest.raises(Failure) as failure:
            verify.command(live=True, uplink=uplink, mark=mark)
        assert failure.value.status == EXIT_UNAVAILABLE


# --- JSON -----------------------------------------------------------------------------------------

FINDING = {
    "property": str,
    "uplink": str | None,
    "subject": str,
    "verdict": str,
    "decides": bool,
    "detail": str,
    "doubts": list,
    "key": list,
    "policy": str | None,
    "counterexamples": list,
}
EXAMPLE = {
    "text": str,
    "why": str,
    "leaves_by": str | None,
    "packet": dict,
    "steps": list,
    "outcome": str,
    "device": str | None,
    "mark": int,
    "source": str | None,
    "destination": str,
    "dport": int,
    "doubts": list,
    "words": str,
    "script": str | None,
    "no_script": str | None,
}


def assert_shape(value, shape):
    assert value.keys() == shape.keys()
    for key, kind in shape.items():
        assert isinstance(value[key], kind), key


@pytest.mark.parametrize(
    "words",
    [
        ["rulesets/gluon-fastd.toml"],
        [*fixture_options(), *UPLINK_OPTIONS],
        ["rulesets/gluon-fastd.toml", *fixture_options("gluon-node")],
    ],
)
def test_json_has_expected_keys_and_types(words):
    found = json.loads(run(*words, "--json").stdout)
    assert_shape(
        found,
        {
            "judged": str,
            "policy": str | None,
            "applied": bool,
            "verdict": str,
            "properties": dict,
            "findings": list,
            "exemptions": list,
            "assumptions": list,
            "unjudged": list,
        },
    )
    for name, one in found["properties"].items():
        assert name in PROPERTIES
        assert_shape(one, {"title": str, "verdict": str, "decides": bool})
    for finding in found["findings"]:
        assert_shape(finding, FINDING)
        assert finding["verdict"] in (PROVED, REFUTED, NOT_KNOWN)
        assert not (finding["verdict"] == PROVED and finding["counterexamples"])
        for example in finding["counterexamples"]:
            assert_shape(example, EXAMPLE)
            assert example["script"] is None or example["script"].startswith("#!/bin/sh\n")
    worst = {one["verdict"] for one in found["findings"] if one["decides"]}
    assert found["verdict"] == next(one for one in (REFUTED, NOT_KNOWN, PROVED) if one in worst)


# --- scripts --------------------------------------------------------------------------------------


def test_script_reproduces_the_first_counterexample(tmp_path):
    file = tmp_path / "leak.sh"
    result = run(*fixture_options(), *UPLINK_OPTIONS, "--script", file)
    assert result.returncode == EXIT_REFUTED
    assert result.stdout.startswith(b"REFUTED: ")
    assert result.stderr.decode().startswith(f"nftpolicy: {file} reproduces it: ")
    assert stat.S_IMODE(file.stat().st_mode) == 0o755
    text = file.read_text()
    assert text.startswith("#!/bin/sh\n# P1, uplink wan: sockets: ")
    subprocess.run(["sh", "-n", file], check=True, timeout=limit(10))
    printed = run(*fixture_options(), *UPLINK_OPTIONS, "--script", "-")
    assert (printed.returncode, printed.stdout.decode()) == (EXIT_REFUTED, text)
    assert printed.stderr.startswith(b"nftpolicy: REFUTED: ")


def test_script_without_counterexample_is_not_written(tmp_path):
    result = run("rulesets/gluon-fastd.toml", "--script", tmp_path / "leak.sh")
    assert result.returncode == 0
    assert b"there is no counterexample" in result.stderr
    assert not (tmp_path / "leak.sh").exists()


def test_unwritable_script_is_status_5(tmp_path):
    result = run(*fixture_options(), *UPLINK_OPTIONS, "--script", tmp_path / "absent" / "leak.sh")
    assert result.returncode == EXIT_FAILED
    assert (
        result.stderr.decode()
        == f"nftpolicy: {tmp_path}/absent/leak.sh: cannot be written: No such file or directory\n"
    )


def test_names_unfit_for_a_script_are_reported(capsys, monkeypatch):
    def refused(*_):
        raise ValueError("no such name")

    judged = runtime.verify_files(NetState(routes=(Route(4, 254, device="wan0"),)), [WAN], [], lambda _: None)
    monkeypatch.setattr("nftpolicy.proof.reproduce.script.reproduction_script", refused)
    verify._write_script(judged, Path("-"))
    output = capsys.readouterr()
    assert output.out == ""
    assert "a counterexample cannot be written as a script: no such name" in output.err
    found = proof_report.proof_json(judged, lambda _: "")
    expected_message = {example["no_script"] for one in found["findings"] for example in one["counterexamples"]}
    assert expected_message == {"no such name"}


# --- words ----------------------------------------------------------------------------------------

PACKETS = [
    Packet(4, parse_address("192.0.2.1"), fields={("ip", "ttl"): 64}),
    Packet(
        6, parse_address("2001:db8::1"), parse_address("2001:db8::2"), TCP, 1, 2, mark=16, uid=5, gid=6, cgroup="a/b", bound="eth0",
        flow=CtInfo("established", "reply", 3), fields={("ip6", "hoplimit"): 2, ("tcp", "flags"): 4},
    ),
    Packet(
        4, parse_address("192.0.2.1"), parse_address("192.0.2.2"), ICMP, origin="forward", iif="eth1",
        fields={("ip", "ttl"): 1, ("icmp", "type"): 0},
    ),
    Packet(4, parse_address("192.0.2.1"), None, origin="kernel", mark=1, fields={("ip", "ttl"): 64}),
    Packet(
        4, parse_address("192.0.2.1"), parse_address("192.0.2.9"), origin="frame", bound="eth0", uid=1, gid=2, ethertype=0x0800,
        fields={("ip", "ttl"): 64},
    ),
]  # fmt: skip


@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: packet.origin)
def test_suggested_explain_command_gives_the_same_packet(packet):
    words = proof_report.explain_options(packet)
    given, plain, at = {}, {}, 0
    while at < len(words):
        option, takes = words[at][2:].replace("-", "_"), words[at] not in ("--frame", "--kernel", "--reply")
        value = words[at + 1] if takes else True
        option = {"from": "source", "field": "fields"}.get(option, option)
        given[option] = (*given.get("fields", ()), value) if option == "fields" else value
        at += 1 + takes
    plain = {key: int(given[key]) for key in ("dport", "sport")}
    assert PacketOptions(**{**given, **plain}).packet() == packet


def test_packet_without_explain_options_has_no_command():
    names = proof_report.SuggestedCommands(None, (), ())
    assert names.explain(PACKETS[0]) == (
        "nftpolicy explain --to 192.0.2.1 --proto 17 --dport 9 --sport 40000 --uid 0 --gid 0 --field ip.ttl=64"
    )
    assert names.explain(evolve(PACKETS[-1], ethertype=0x88B5)) is None
    assert names.explain(evolve(PACKETS[2], mark=1)) is None


def test_proof_colours_need_a_terminal(monkeypatch, capsys):
    policy, _ = load(GOOD.encode())
    judged = runtime.verify_policy(policy)
    names = proof_report.SuggestedCommands(None, (), ())
    proof_report.print_proof(judged, lambda _: "", names)
    plain = capsys.readouterr().out
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    proof_report.print_proof(judged, lambda _: "", names)
    painted = capsys.readouterr().out
    assert "\x1b" not in plain and "\x1b[32mproved: p: " in painted
    assert painted.replace("\x1b[32m", "").replace("\x1b[0m", "") == plain


class Terminal:
    """Standard error that is a terminal, or a file."""

    def __init__(self, is_one):
        self.is_one, self.text = is_one, ""

    def isatty(self):
        return self.is_one

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize(("terminal", "patience", "output"), [(True, -1, True), (True, 60, False), (False, -1, False)])
def test_progress_is_shown_on_a_slow_terminal_run(monkeypatch, terminal, patience, output):
    error = Terminal(terminal)
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setattr(verify, "_QUIET_SECONDS", patience)
    monkeypatch.setenv("TERM", "xterm")
    with verify._Progress() as progress:
        progress("P1 wan")
        assert ("proving P1 wan" in error.text) == output
    assert error.text.endswith("\r\x1b[K") == output


# --- check ----------------------------------------------------------------------------------------


@pytest.fixture
def policy_file(tmp_path):
    (tmp_path / "policy.toml").write_text(GOOD_ELSEWHERE)
    return tmp_path / "policy.toml"


def with_changed_tables(compiled, change):
    """compile_policy, with its tables changed."""
    return lambda *arguments: evolve(compiled(*arguments), tables=change(compiled(*arguments).tables))


def without_rules(tables):
    """Return the tables without rules and with accepting chains."""
    return tuple(
        evolve(
            table,
            chains=tuple(
                evolve(chain, rules=(), hook=chain.hook and evolve(chain.hook, policy="accept"))
                for chain in table.chains
            ),
        )
        for table in tables
    )


def with_unsupported_match(tables):
    """Return the tables with an unsupported match first in each rule."""
    asks = nft.Match(nft.UnknownExpression('{"frobnicate":1}'), 1)
    return tuple(
        evolve(
            table,
            chains=tuple(
                evolve(chain, rules=tuple(evolve(rule, statements=(asks, *rule.statements)) for rule in chain.rules))
                for chain in table.chains
            ),
        )
        for table in tables
    )


def test_check_of_good_policy_is_one_line(policy_file):
    result = run(policy_file, command="check")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == f"{policy_file}: p: good: 2 uplinks, 3 services, proved\n"


@pytest.mark.parametrize(
    ("change", "status", "verdict"),
    [(without_rules, EXIT_REFUTED, "refuted"), (with_unsupported_match, EXIT_UNKNOWN, "unknown")],
)
def test_check_refuses_a_wrong_compiler(policy_file, monkeypatch, capsys, change, status, verdict):
    monkeypatch.setattr(compiler, "compile_policy", with_changed_tables(compile_policy, change))
    with pytest.raises(Failure) as failure:
        check.command(policy_file)
    assert failure.value.status == status
    output = str(failure.value)
    assert output.startswith(f"{policy_file}:4: P1 {verdict}: ")
    assert f"type 'nftpolicy verify {policy_file}' for the whole report" in output
    assert capsys.readouterr().out == ""


def test_apply_refuses_an_unproved_policy(monkeypatch, tmp_path):
    from nftpolicy.cli.common import Failure, change_errors_as_failure, read_policy
    from nftpolicy.compiler.compile import compile_policy
    from nftpolicy.kernel.fake import FakeKernel
    from nftpolicy.policy.load import load
    from nftpolicy.runtime.apply import executor
    from nftpolicy.runtime.apply.state_dir import StateDir
    from nftpolicy.runtime.apply.transaction import PolicyApplier, TargetPolicy

    policy, source = read_policy(Path("rulesets/gluon-fastd.toml"))
    wanted = TargetPolicy(policy, (source.name, source.text.encode()))
    kernel = FakeKernel()
    changer = PolicyApplier(kernel, StateDir(tmp_path), lambda text: load(text[1], text[0])[0])
    assert changer.check(wanted).order.verdict == "proved"

    def forgetful(policy, machine):
        inet, netdev = compile_policy(policy, machine).tables
        chains = tuple(evolve(one, rules=one.rules[:-1]) if one.name == "wan.link" else one for one in netdev.chains)
        chains = tuple(evolve(one, hook=evolve(one.hook, policy="accept")) if one.hook else one for one in chains)
        return evolve(compile_policy(policy, machine), tables=(inet, evolve(netdev, chains=chains)))

    monkeypatch.setattr(executor, "compile_policy", forgetful)
    with pytest.raises(Failure) as failed, change_errors_as_failure(source):
        changer.check(wanted)
    assert failed.value.status == 1
    assert "rulesets/gluon-fastd.toml:" in str(failed.value)
    assert "nothing was changed" in str(failed.value)
    assert kernel.state == NetState()
