"""`import openwrt`: the files read, the model of netifd, the leaks of today, and the policy."""

import gc
import json
import re
import signal
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from attrs import frozen

from nftpolicy.cli.main import main
from nftpolicy.importers.openwrt.interfaces import add_assumed_leases, read_network
from nftpolicy.importers.openwrt.netifd_model import netifd_state
from nftpolicy.importers.openwrt.uci_parser import parse_uci
from nftpolicy.netstate.formats import ip_json_decode
from nftpolicy.policy.load import load
from tests.openwrt.gluon_configs import GLUON_CASES
from tests.openwrt.router_configs import BAD, LOOPBACK, PLAIN
from tests.openwrt.router_configs import CASES as ROUTER_CASES

CASES = ROUTER_CASES | GLUON_CASES

FIXTURES = Path(__file__).parents[1] / "fixtures"


@frozen
class Done:
    """Result of a command."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments):
    """Run the command line in this process, which is quicker, and restore the process afterwards."""
    handler, held = signal.getsignal(signal.SIGTERM), sys.argv
    sys.argv, status = ["nftpolicy", *map(str, arguments)], 0
    try:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            try:
                main()
            except SystemExit as end:
                status = end.code or 0
    finally:
        sys.argv = held
        signal.signal(signal.SIGTERM, handler)
        gc.enable()
    return Done(status, out.getvalue(), err.getvalue())


@pytest.fixture
def router(tmp_path):
    """Directory with these files of /etc/config, and other files of /etc."""

    def write(files, names=()):
        config = tmp_path / "router/etc/config"
        config.mkdir(parents=True)
        for name, text in files.items():
            (config / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        for name, text in dict(names).items():
            place = config.parent / name
            place.parent.mkdir(exist_ok=True)
            place.write_text(text)
        return tmp_path / "router"

    return write


def of_fixture(name):
    return {kind: (FIXTURES / name / f"{kind}.uci").read_text() for kind in ("network", "firewall")}


@pytest.mark.parametrize("name", CASES)
def test_import_case_gives_proved_policy(router, tmp_path, name):
    case = CASES[name]
    out = tmp_path / "policy.toml"
    done = run("import", "openwrt", router(case.files, case.names), "--out", out, *case.options)
    assert (done.returncode, done.stderr) == (0, "")
    text = out.read_text()
    for piece in case.policy:
        assert piece in text
    for piece in (*case.said, *case.ways):
        assert piece in done.stdout
    for piece in case.unsaid:
        assert piece not in text + done.stdout
    assert "the policy: proved" in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())
    load(out.read_bytes(), "the policy")


def test_uncommented_forwards_of_a_draft_are_proved(router, tmp_path):
    out = tmp_path / "policy.toml"
    run("import", "openwrt", router(CASES["LAN hosts and a redirected port"].files), "--out", out)
    text = re.sub(r"^#(?! )", "", out.read_text(), flags=re.MULTILINE)
    out.write_text(text)
    policy = load(text.encode())[0]
    assert (list(policy.forward), list(policy.publish)) == (["lan"], ["tcp-8443"])
    done = run("check", out)
    assert done.returncode == 0, done
    assert "good: " in done.stdout and ", proved" in done.stdout


@pytest.mark.parametrize("name", BAD)
def test_import_invalid_configuration_is_refused(router, name):
    files, said = BAD[name]
    done = run("import", "openwrt", router(files))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.startswith("nftpolicy: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["default-router", "default-with-include", "gluon-node"])
@pytest.mark.parametrize("look", [False, True], ids=["assumed", "given"])
def test_import_of_fixture_is_refuted_now_and_proved_after(router, tmp_path, name, look):
    out = tmp_path / "policy.toml"
    given = ["--ruleset", FIXTURES / name / "kernel.json"] if look else []
    done = run("import", "openwrt", router(of_fixture(name)), "--out", out, "--json", *given)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["verdict"] == "proved"
    assert document["now"]["verdict"] == "refuted"
    assert document["policy"] == out.read_text()
    assert document["ways_out"]
    assert any("assumed" in one or "accepts all output" in one for one in document["assumptions"]) is not look
    assert run("check", out).returncode == 0


def test_import_names_known_leaks_of_gluon_node(router):
    files = of_fixture("gluon-node")
    # What netifd does of itself for a device with option ipv6: its rule 90000 + ifindex.
    files["network"] = files["network"].replace("\toption igmp_snooping '1'\n", "\toption ipv6 '1'\n", 1)
    done = run("import", "openwrt", router(files), "--json")
    ways = json.loads(done.stdout)["ways_out"]
    leaks = {(one["packet"][:4], one["reason"].partition(",")[0], one["place"]) for one in ways}
    assert ("IPv4", "ip rule 32766", "network:22") in leaks  # the default route, which is the WAN's
    for rule in ("ip rule 10000", "ip rule 20000", "ip rule 90004"):
        assert ("IPv6", rule, "network:32") in leaks
    # The mark rule leads marked packets to the uplink, which is not a leak.
    assert not any("ip rule 1," in one["reason"] for one in ways)


def test_import_of_unchanged_fixture_has_no_ipv6_rule_90000(router):
    document = json.loads(run("import", "openwrt", router(of_fixture("gluon-node")), "--json").stdout)
    assert not any("ip rule 9000" in one["reason"] for one in document["ways_out"])


def test_import_with_drop_ruleset_finds_no_leak(router, tmp_path):
    """Control: leaks come from traces, and a ruleset that drops ends them."""
    drop = {"nftables": [
        {"table": {"family": "inet", "name": "x"}},
        {"chain": {"family": "inet", "table": "x", "name": "c", "type": "filter", "hook": "postrouting",
                   "prio": 0, "policy": "drop"}},
    ]}  # fmt: skip
    (tmp_path / "drop.json").write_text(json.dumps(drop))
    done = run("import", "openwrt", router(of_fixture("gluon-node")), "--json", "--ruleset", tmp_path / "drop.json")
    assert json.loads(done.stdout)["ways_out"] == []


def test_import_observed_rules_replace_assumed_rules(router):
    place = router(of_fixture("gluon-node"))
    seen = FIXTURES / "gluon-node"
    options = [word for family in (4, 6) for kind, option in (("rule", "--rules"), ("route", "--routes"))
               for word in (option, f"{family}:{seen}/ip{family}-{kind}.json")]  # fmt: skip
    guessed, looked = (json.loads(run("import", "openwrt", place, "--json", *more).stdout) for more in ([], options))

    def rules(document):
        return sorted((one["packet"][:4], one["reason"].partition(",")[0]) for one in document["ways_out"])

    assert rules(guessed) == rules(looked)


@pytest.mark.parametrize("name", ["default-router", "gluon-node", "ip4table"])
def test_netifd_model_equals_state_of_real_netifd(name):
    """The rules and routes of a real netifd with the same file, but for addresses that the kernel makes up."""
    sections = parse_uci((FIXTURES / name / "network.uci").read_bytes(), "network", "network")
    found, _ = read_network(sections)
    state = netifd_state(sections, add_assumed_leases(found))
    seen_rules, seen_routes = set(), set()
    for family in (4, 6):
        rules, routes = (
            json.loads((FIXTURES / name / f"ip{family}-{kind}.json").read_text()) for kind in ("rule", "route")
        )
        seen_rules |= {_rule(one) for one in ip_json_decode.decode_rules(rules, family)}
        seen_routes |= {_route(one) for one in ip_json_decode.decode_routes(routes, family)}
    assert {_rule(one) for one in state.rules} == seen_rules
    ours = {_route(one) for one in state.routes if one.table != 255}
    theirs = {one for one in seen_routes if one[1] != 255 and not one[2].startswith("fd12:")}  # the ULA prefix
    assert ours == theirs
    assert {
        _route(one) for one in netifd_state(sections[:-1], add_assumed_leases(read_network(sections[:-1])[0])).routes
    } != ours


def _rule(one):
    import ipaddress

    to = one.destination and str(ipaddress.ip_network(one.destination, strict=False))
    return one.family, one.priority, one.action, one.table, one.mark, one.mask, one.source, to, one.iif


def _route(one):
    return one.family, one.table, one.destination, one.kind, one.gateway, one.device, one.metric


def test_import_reports_every_unknown_section(router):
    """A section of no known kind anywhere is in the report, by file and line."""
    files = dict.fromkeys(("firewall", "dhcp", "fastd", "pbr", "mwan3"), "config nonsense 'x'\n\toption a b\n")
    files["network"] = PLAIN + "\nconfig nonsense\n"
    document = json.loads(run("import", "openwrt", router(files), "--json").stdout)
    places = {one["place"].partition(":")[0] for one in document["not_mapped"]}
    assert places == {*files}


def test_import_again_is_equal_and_keeps_foreign_file(router, tmp_path):
    place, out = router({"network": PLAIN}), tmp_path / "p.toml"
    assert run("import", "openwrt", place, "--out", out).returncode == 0
    first = out.read_text()
    assert run("import", "openwrt", place, "--out", out).returncode == 0
    assert out.read_text() == first
    out.write_text("mine")
    refused = run("import", "openwrt", place, "--out", out)
    assert (refused.returncode, refused.stdout, out.read_text()) == (5, "", "mine")
    assert "--force replaces it" in refused.stderr
    assert run("import", "openwrt", place, "--out", out, "--force").returncode == 0
    assert out.read_text() == first
    gone = run("import", "openwrt", place, "--out", tmp_path / "no/such/p.toml")
    assert (gone.returncode, gone.stderr.count("\n")) == (5, 1)
    full = run("import", "openwrt", place, "--out", "/dev/full", "--force")
    assert (full.returncode, full.stderr) == (5, "nftpolicy: /dev/full: cannot be written: is not a regular file\n")


def test_import_without_out_prints_policy_only(router):
    done = run("import", "openwrt", router({"network": PLAIN}))
    assert done.returncode == 0
    assert tomllib.loads(done.stdout)["uplink"]["wan"]["devices"] == ["eth1"]
    assert "the present configuration leaks" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "openwrt", "/nonexistent"], "/nonexistent: not a directory"),
        (["import", "openwrt", "{router}", "--uplink", "wann"], "there is no interface 'wann' (did you mean 'wan'?)"),
        (["import", "openwrt", "{router}", "--uplink", "loopback"], "has no device for outgoing packets"),
        (["import", "openwrt", "{router}", "--ruleset", "/nonexistent"], "/nonexistent: cannot be read"),
        (["import", "openwrt", "{router}/etc/config/network"], "network: not a directory"),
    ],
)
def test_import_invalid_options_are_refused(router, arguments, said):
    place = router({"network": LOOPBACK + PLAIN})
    done = run(*(one.replace("{router}", str(place)) for one in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_import_directory_in_place_of_file_is_refused(router):
    place = router({})
    (place / "etc/config/network").mkdir()
    done = run("import", "openwrt", place)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be read" in done.stderr
