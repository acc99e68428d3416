"""The file that the sh script of `snapshot` writes: what it has is read, what it lacks is said, what is wrong is named."""

import subprocess
import sys
from pathlib import Path

import pytest

from nftpolicy.integration.openwrt.tree import snapshot_script
from nftpolicy.kernel import linux
from nftpolicy.netstate.bypass import AF_XDP, CGROUP_BPF, EBTABLES, ENCAPSULATION, TC, TCX, XDP, XFRM, XTABLES, Look
from nftpolicy.netstate.formats.router_snapshot import HEADER, RouterSnapshotError, parse_router_snapshot
from nftpolicy.netstate.routing import Sysctl
from nftpolicy.netstate.state import Device
from nftpolicy.policy.mark import Mark
from nftpolicy.runtime.snapshot import decode_snapshot, encode_snapshot
from nftpolicy.runtime.verify import GivenUplink, verify_snapshot
from tests.busybox import path as busybox_path

ROOT = Path(__file__).parents[2]
MAIN = [sys.executable, "-c", "from nftpolicy.cli.main import main; main()"]
LINKS = """[{"ifindex":1,"ifname":"lo","flags":["LOOPBACK","UP"],"group":"0","addr_info":[
{"family":"inet","local":"127.0.0.1","prefixlen":8}]},
{"ifindex":2,"link_index":5,"ifname":"wan","flags":["UP"],"group":"3","link_netnsid":0,"master":"br0","linkinfo":
{"info_kind":"veth"},"addr_info":[]},
{"ifindex":3,"ifname":"br0","flags":["UP"],"group":"default","linkinfo":{"info_kind":"bridge"},"addr_info":[]}]"""
RULES = (
    '[{"priority":0,"src":"all","table":"255","protocol":"2"},{"priority":9,"src":"all","table":"254","protocol":"2"}]'
)
ROUTES = '[{"dst":"default","gateway":"192.0.2.1","dev":"br0","protocol":"3","flags":[]}]'
RULESET = """inet t c 2
  [ meta load oifname => reg 1 ]
  [ cmp eq reg 1 0x00307262 0x00000000 0x00000000 0x00000000 ]
  [ immediate reg 0 drop ]

table inet t { # handle 1
\tchain c { # handle 1
\t\ttype filter hook postrouting priority 0; policy accept;
\t\toifname "br0" drop # handle 2
\t}
}"""
PARTS = {
    "host": "kernel 6.1.0\ntime 2026-01-02T03:04:05Z\nbyte-order little\nnft nftables v1.0.6 (Lester Gooch #5)\n"
    "ip ip utility, iproute2-6.1.0\negress yes",
    "nft": RULESET,
    "addresses": LINKS,
    "rules-4": RULES,
    "routes-4": ROUTES,
    "sysctls": "net/ipv4/ip_forward 1\nnet/ipv4/conf/default/rp_filter 1",
    "legacy-tables": "",
    "bridge-tables": "",
    "xdp-sockets": "XDP  1088  0  -1",
    "xfrm": "",
    "tc": "qdisc noqueue 0: dev br0 root refcnt 2",
    "flows": "3 0\n2 1",
}


def snapshot_text(missing=(), **changes):
    """Return a file; an underscore in a name of `changes` is a hyphen. `missing` are parts with a reason."""
    parts = {**PARTS, **{name.replace("_", "-"): text for name, text in changes.items()}}
    lines = [HEADER]
    for name, text in parts.items():
        if name in missing:
            lines.append(f"? {name} no such program")
        elif text is not None:
            lines += [f"@ {name}", *(f" {line}" for line in text.split("\n"))]
    return "\n".join([*lines, "@ end", ""])


def looks(text):
    return {look.subject: look for look in parse_router_snapshot(text).state.looks}


def test_snapshot_of_router_has_its_parts():
    router = parse_router_snapshot(snapshot_text())
    assert [table.key for table in router.state.tables] == [("inet", "t")]
    assert [rule.priority for rule in router.state.rules] == [0, 9]
    assert [route.device for route in router.state.routes] == ["br0"]
    assert router.state.sysctls == (Sysctl("net/ipv4/ip_forward", "1"),)
    assert router.state.devices == (
        Device("lo", ("127.0.0.1/8",)),
        Device("wan", (), True, 3, "br0", "veth", None, True),
        Device("br0", kind="bridge"),
    )
    assert (router.egress_hook, router.families, router.flows) == (True, (4,), {0: 3, 1: 2})
    assert (router.kernel, router.time) == ("6.1.0", "2026-01-02T03:04:05Z")


def test_snapshot_of_router_has_looks_at_all_subjects():
    subjects = (XTABLES, EBTABLES, TC, XDP, AF_XDP, TCX, CGROUP_BPF, XFRM, ENCAPSULATION)
    found = looks(snapshot_text())
    assert tuple(found) == subjects
    # A shell cannot look at these.
    assert {subject for subject in subjects if found[subject].missing} == {EBTABLES, CGROUP_BPF}


def test_snapshot_of_router_becomes_a_snapshot_and_a_document():
    snapshot = decode_snapshot(snapshot_text().encode())
    assert snapshot.bridge_ports == {"br0": ("wan",)}
    assert snapshot.marks.flows == {0: 3, 1: 2}
    assert snapshot.marks.sockets is None
    assert any("lengths" in text for text in snapshot.assumptions)
    assert decode_snapshot(encode_snapshot(snapshot).encode()) == snapshot


@pytest.mark.parametrize(
    ("changes", "subject", "missing"),
    [
        ({"legacy_tables": "ip_tables_names filter"}, XTABLES, "table filter of iptables"),
        ({"bridge_tables": "ebtables\nebtable_nat"}, EBTABLES, "table nat"),
        ({"tc": "qdisc htb 1: dev br0 root"}, TC, "classes of htb on br0"),
        ({"tc": "filter br0 Error: Something."}, TC, "filters on br0: Error: Something."),
        ({"host": PARTS["host"].replace("6.1.0\ntime", "6.6.1\ntime")}, TCX, "cannot list"),
        ({"missing": ("tc",)}, TC, "no such program"),
        ({"missing": ("xfrm",)}, XFRM, "no such program"),
        ({"missing": ("bridge-tables",)}, EBTABLES, "no such program"),
        ({"missing": ("xdp-sockets",)}, AF_XDP, "no such program"),
    ],
)
def test_part_that_was_not_read_is_named(changes, subject, missing):
    assert missing in looks(snapshot_text(**changes))[subject].missing


TC_CLASSIC = """qdisc clsact ffff: dev br0 parent
filter br0 filter protocol all pref 73 bpf chain 0
filter br0 filter protocol all pref 73 bpf chain 0 handle 0x1 direct-action not_in_hw bytecode '1,{}'"""


@pytest.mark.parametrize(
    ("changes", "subject", "location"),
    [
        ({"tc": "qdisc clsact ffff: dev br0 parent\nfilter br0 filter protocol all pref 1 u32"}, TC, "filters on br0"),
        ({"tc": TC_CLASSIC.format("6 0 0 7")}, TC, "which the file does not have whole"),
        ({"tc": TC_CLASSIC.format("6 0 0 2") + "\nfilter br0 action order 1: mirred"}, TC, "does not have whole"),
        ({"tc": TC_CLASSIC.format("6 0 0 2")}, TC, "filters on br0: classic BPF"),
        ({"tc": "qdisc ingress ffff: dev br0 parent ffff:fff1 ingress_block 5"}, TC, "filters on br0"),
        ({"xdp_sockets": "XDP  1088  2  -1"}, AF_XDP, "AF_XDP sockets: 2"),
        ({"xfrm": "src 192.0.2.1 dst 192.0.2.2\n\toutput-mark 0x1/0xffffffff"}, XFRM, "output-mark"),
        ({"mpls": "100"}, ENCAPSULATION, "MPLS"),
        ({"routes_4": ROUTES.replace('"flags"', '"encap":"bpf","flags"')}, ENCAPSULATION, "route to default"),
        ({"addresses": LINKS.replace('"group":"3"', '"group":"3","xdp":{"mode":1}')}, XDP, "wan"),
    ],
)
def test_program_that_moves_or_marks_packets_is_an_actor(changes, subject, location):
    (actor,) = looks(snapshot_text(**changes))[subject].actors
    assert location in actor.location
    assert actor.effects


def test_flows_that_were_not_read_are_unknown():
    assert parse_router_snapshot(snapshot_text(missing=("flows",))).flows is None


def test_kernel_without_tcx_has_none():
    assert looks(snapshot_text())[TCX] == Look(TCX)


def test_machine_with_ipv6_needs_its_rules_and_routes():
    router = parse_router_snapshot(snapshot_text(rules_6=RULES, routes_6="[]"))
    assert router.families == (4, 6)
    for lacking in ("rules_6", "routes_6"):
        with pytest.raises(RouterSnapshotError, match="expected the part"):
            parse_router_snapshot(snapshot_text(**{"rules_6": RULES, "routes_6": "[]", lacking: None}))


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        (snapshot_text().replace(HEADER, HEADER[:-1] + "9"), HEADER[:-1], HEADER),
        (snapshot_text().replace("@ end\n", ""), "", "@ end"),
        (snapshot_text().replace("@ flows", "@ other"), "@ other", "@ PART"),
        (snapshot_text().replace(" 3 0\n", "3 0\n"), "3 0", "@ PART"),
        (snapshot_text(flows="three 0"), " three", "NUMBER MARK"),
        (snapshot_text(sysctls="net/ipv4/ip_forward"), " net/ipv4", "PATH VALUE"),
        (snapshot_text(legacy_tables="x_names filter"), " x_names", "ip_tables_names"),
        (snapshot_text(tc="nonsense"), " nonsense", "qdisc KIND"),
        (snapshot_text(addresses="nonsense"), " nonsense", "not the JSON"),
        (snapshot_text(addresses='["lo"]'), ' ["lo"]', "a list of objects"),
        (snapshot_text(rules_4='[{"priority":"x"}]'), ' [{"priority":"x"', "not the JSON"),
        (snapshot_text(missing=("rules-4",)), "? rules-4", "nothing can be proved without rules-4"),
        (snapshot_text(missing=("nft",)), "? nft", "nothing can be proved without nft"),
        (snapshot_text(nft=RULESET.replace("policy accept;", "policy maybe;")), " \t\ttype", "policy POLICY"),
        (snapshot_text(host=PARTS["host"].replace("v1.0.6", "v1.2.0")), " kernel", "1.0.2 to 1.1.6"),
        (snapshot_text(host=PARTS["host"].replace("v1.0.6", "v1.0.1")), " kernel", "1.0.2 to 1.1.6"),
        (snapshot_text(host=PARTS["host"].replace("little", "unknown")), " kernel", "byte-order"),
        (snapshot_text(host=PARTS["host"].replace("egress yes", "other yes")), " kernel", "egress"),
    ],
)
def test_unknown_line_of_router_snapshot_is_named(text, place, expected):
    lines = text.split("\n")
    number = next((index for index, line in enumerate(lines, 1) if place and line.startswith(place)), len(lines))
    with pytest.raises(RouterSnapshotError) as caught:
        parse_router_snapshot(text)
    assert str(caught.value).startswith(f"line {number}: "), caught.value
    assert expected in str(caught.value)


def test_verify_names_file_and_line(tmp_path):
    file = tmp_path / "router.txt"
    file.write_text(snapshot_text(flows="three 0"))
    options = ["verify", "--snapshot", str(file), "--uplink", "wan=br0", "--mark", "1/1"]
    done = subprocess.run([*MAIN, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (message,) = done.stderr.splitlines()
    number = file.read_text().split("\n").index(" three 0") + 1
    assert f"{file}: line {number}: expected 'NUMBER MARK'" in message


def test_snapshot_script_is_written(tmp_path):
    file = tmp_path / "snapshot.sh"
    done = subprocess.run([*MAIN, "snapshot", "--script", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert file.read_text() == snapshot_script()
    assert file.stat().st_mode & 0o777 == 0o755
    printed = subprocess.run([*MAIN, "snapshot", "--script"], capture_output=True, text=True, check=True)
    assert printed.stdout == snapshot_script()


def test_snapshot_script_reads_the_sysctls_of_the_proof():
    words = snapshot_script().split()
    lists = [word.strip("'") for word in words]
    for path in linux._GLOBAL_SYSCTLS:
        assert path in [word.removeprefix("GLOBAL='") for word in lists], path
    for key in {path.rpartition("/")[2] for path in linux._device_sysctls("x")}:
        assert key in [word.removeprefix("OF_IPV4='").removeprefix("OF_IPV6='") for word in lists], key


@pytest.mark.parametrize("words", [["a", "b"], ["-x"]])
def test_snapshot_script_usage_error_is_2(words):
    shell = ["sh"] if busybox_path() is None else [str(busybox_path()), "ash"]
    done = subprocess.run(
        [*shell, "-s", "--", *words], input=snapshot_script(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "snapshot: usage: snapshot.sh [FILE]\n")


def test_verdict_of_router_snapshot_has_its_assumptions():
    snapshot = decode_snapshot(snapshot_text().encode())
    uplinks = (GivenUplink("wan", ("br0",), Mark(1, 1)),)
    assumptions = verify_snapshot("the router", snapshot, uplinks, (), lambda _: None).proof.assumptions
    assert set(snapshot.assumptions) <= set(assumptions)
