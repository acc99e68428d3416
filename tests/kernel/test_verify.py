"""`verify --live` on kernels that hold a policy, that lost a rule of it, and that hold foreign tables beside it."""

import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import addresses as at
from tests.lab.limits import limit
from tests.lab.netns import Namespace

from .two_link_node import MESH, WAN, TwoLinkNode, default

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from nftpolicy.cli.main import main; main()"]
POLICY, STATE = "/run/policy.toml", "/run/state"  # in the node
ENVIRONMENT = {"NFTPOLICY_STATE": STATE, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
TEXT = (ROOT / "rulesets/gluon-fastd.toml").read_text()
ASKED = ("--uplink", f"wan={WAN}", "--mark", "0x1/0x1")
BRIDGE = "br-up"
EXEMPT = [word for one in ("arp", "dhcpv4", "dhcpv6", "ndp", "mld", "igmp") for word in ("--exempt", one)]


def line(words: str) -> int:
    """Return the line number of the policy that begins with these words."""
    (found,) = [number for number, one in enumerate(TEXT.splitlines(), 1) if one.startswith(words)]
    return found


class Node:
    """A node, with the shipped policy in force."""

    def __init__(self, two_links: TwoLinkNode) -> None:
        self.two_links, self.space = two_links, two_links.node
        for family in at.FAMILIES:
            self.space.ip(default(MESH, family), default(WAN, family, "1"))
        self.space.outside(POLICY).write_text(TEXT)

    def run(self, *words: object, check: bool = True, uid: int | None = None) -> subprocess.CompletedProcess:
        return self.space.run([*PROGRAM, *map(str, words)], check=check, env=ENVIRONMENT, uid=uid)

    def verify(self, *words: object, status: int = 0) -> str:
        done = self.run("verify", "--live", *words, check=False)
        assert (done.returncode, done.stderr) == (status, ""), done.stdout
        return done.stdout

    def delete(self, chain: str, words: str) -> None:
        """Delete one rule of nftpolicy from the kernel."""
        listed = self.space.run(["nft", "-a", "list", "chain", "inet", "nftpolicy", chain]).stdout.splitlines()
        (found,) = [one for one in listed if words in one and "# handle" in one]
        self.space.nft(f"delete rule inet nftpolicy {chain} handle {found.rpartition(' ')[2]}\n")


@pytest.fixture
def bare(two_links: TwoLinkNode) -> Node:
    return Node(two_links)


@pytest.fixture
def guarded_node(bare: Node, egress: None) -> Node:
    bare.run("apply", POLICY)
    return bare


@pytest.fixture(scope="module")
def shared_node(egress: None) -> Iterator[Node]:
    """Node that the tests leave unchanged."""
    with Namespace("node") as space, Namespace("far") as far, TwoLinkNode(space, far) as two_links:
        node = Node(two_links)
        node.run("apply", POLICY)
        yield node


# --- a policy in force ---------------------------------------------------------------------------


def test_verify_policy_in_force_is_proved(shared_node: Node) -> None:
    output = shared_node.verify(POLICY).splitlines()
    assert output[0] == "proved: gluon-fastd: this kernel: P1 to P5 hold for all packets, IPv4 and IPv6"
    assert shared_node.verify().splitlines() == output  # the policy that was applied last


def test_verify_options_without_policy_are_proved(shared_node: Node) -> None:
    output = shared_node.verify(*ASKED, *EXEMPT)
    assert output.startswith("proved: this kernel: P1 holds for all packets, IPv4 and IPv6\n")
    # What it tolerates has to be named.
    assert "P1 refuted: uplink wan: AF_PACKET sockets: " in shared_node.verify(*ASKED, status=1)


@pytest.fixture(scope="module")
def printed(shared_node: Node, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name the output of nft and ip on that node."""
    folder = tmp_path_factory.mktemp("printed")

    def file(name: str, *words: str) -> Path:
        (folder / name).write_text(shared_node.space.run(words).stdout)
        return folder / name

    options = ["--ruleset", str(file("tables", "nft", "-j", "list", "ruleset"))]
    for family in at.FAMILIES:
        rules = file(f"rules{family}", "ip", "-j", "-N", f"-{family}", "rule")
        routes = file(f"routes{family}", "ip", "-j", "-N", f"-{family}", "route", "show", "table", "all")
        options += ["--rules", f"{family}:{rules}", "--routes", f"{family}:{routes}"]
    return options


def verify_files(printed: list[str], device: str | None, *words: str) -> subprocess.CompletedProcess:
    """Verify state files, with this device for the egress chains (old nft does not print it)."""
    document = json.loads(Path(printed[1]).read_text())
    for one in document["nftables"]:
        if one.get("chain", {}).get("hook") == "egress":
            one["chain"].pop("dev", None)
            one["chain"] |= {"dev": device} if device else {}
    done = subprocess.run(
        [*PROGRAM, "verify", "--ruleset", "-", *printed[2:], *words],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=False,
        timeout=limit(60),
        cwd=ROOT,
    )
    assert done.stderr == ""
    return done


@pytest.mark.parametrize("words", [["rulesets/gluon-fastd.toml"], [*ASKED, *EXEMPT]], ids=["policy", "asked"])
def test_verify_state_files_are_proved(printed: list[str], words: list[str]) -> None:
    done = verify_files(printed, WAN, *words)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("proved: ")


def test_verify_egress_chain_without_device_is_unknown(printed: list[str]) -> None:
    done = verify_files(printed, None, *ASKED, *EXEMPT)
    assert done.returncode == 3, done.stdout
    chain = next(line.split("'")[1] for line in done.stdout.splitlines() if "add --chain-device" in line)
    completed = verify_files(printed, None, *ASKED, *EXEMPT, "--chain-device", chain.replace("DEVICE", WAN))
    assert completed.returncode == 0, completed.stdout
    elsewhere = verify_files(printed, None, *ASKED, *EXEMPT, "--chain-device", chain.replace("DEVICE", "eth9"))
    assert "P1 refuted" in elsewhere.stdout


def test_verify_live_without_root_is_refused(shared_node: Node) -> None:
    done = shared_node.run("verify", "--live", *ASKED, check=False, uid=65534)
    assert (done.returncode, done.stdout) == (4, "")


# --- a policy that is not, or not all of it ------------------------------------------------------


def test_verify_policy_never_applied_is_refuted(bare: Node) -> None:
    output = bare.verify(POLICY, status=1)
    assert output.startswith("REFUTED: gluon-fastd: this kernel: ")
    assert f"  policy  {POLICY}:{line('[uplink.wan]')} uplink.wan\n" in output
    assert f"  next    the policy is not in force here: nftpolicy apply {POLICY}\n" in output
    none = bare.run("verify", "--live", check=False)
    assert none.returncode == 2
    assert "no policy was applied here; name one" in none.stderr


def test_verify_missing_service_rule_refutes_P3(guarded_node: Node) -> None:
    guarded_node.delete("wan.mark-owner", "skgid @wan.group-anywhere")
    output = guarded_node.verify(POLICY, status=1)
    assert "P3 refuted: uplink wan: service fastd\n" in output
    assert f"  policy  {POLICY}:{line('[service.fastd]')} service.fastd\n" in output
    assert "P1  no leak           proved" in output
    assert "  next    nftpolicy verify" in output


def test_verify_accept_rule_in_both_layers_refutes_P1(guarded_node: Node) -> None:
    guarded_node.space.nft(
        "insert rule inet nftpolicy wan.guard udp dport 9 accept\n"
        "insert rule netdev nftpolicy wan.link udp dport 9 accept\n"
    )
    output = guarded_node.verify(POLICY, status=1)
    assert f"P1 refuted: uplink wan: sockets: packets without the mark that leave by {WAN}" in output
    assert "port 9 from a socket of user" in output
    # What it says would leave does leave.
    done = guarded_node.run("verify", "--live", POLICY, "--script", "/run/leak.sh", check=False)
    assert done.returncode == 1
    file = guarded_node.space.outside("/run/leak.sh")
    assert subprocess.run(["sh", file], capture_output=True, text=True, check=False, timeout=limit(60)).returncode == 0


def test_verify_accept_rule_in_one_layer_keeps_P1(guarded_node: Node) -> None:
    guarded_node.space.nft("insert rule inet nftpolicy wan.guard udp dport 9 accept\n")
    assert "P1 refuted: uplink wan: sockets: " not in guarded_node.run("verify", "--live", POLICY, check=False).stdout


def test_verify_missing_ip_rule_refutes_P3(guarded_node: Node) -> None:
    """Do not refute P2: the guard drops what the remaining rules lead elsewhere. But a service cannot send."""
    guarded_node.space.ip("-6 rule del priority 510")
    output = guarded_node.verify(POLICY, status=1)
    assert re.search(r"yes +P2 +mark confinement +proved", output)
    assert "P3 refuted: uplink wan: service fastd\n" in output
    assert "since ip rule 515 decides: priority 515 from all fwmark 0x1/0x1 unreachable" in output


# --- others' tables ------------------------------------------------------------------------------

FOREIGN = """
table inet foreign {{
    chain c {{
        type {hook}; policy accept;
        {rule}
    }}
}}
"""


def test_verify_foreign_mark_rule_refutes_P1(guarded_node: Node) -> None:
    guarded_node.space.nft(FOREIGN.format(hook="route hook output priority -140", rule="meta mark set 1"))
    output = guarded_node.verify(POLICY, status=1)
    assert f"P1 refuted: uplink wan: sockets: packets without the mark that leave by {WAN}\n" in output
    assert "why     marked by a rule: " in output and "meta mark set 0x1" in output


BY_HAND = f"""
table inet hand {{
    chain c {{
        type filter hook postrouting priority 300; policy accept;
        oifname "{WAN}" meta mark & 1 == 0 drop
    }}
}}
table netdev hand {{
    chain c {{
        type filter hook egress device "{WAN}" priority 0; policy accept;
        meta mark & 1 == 0 drop
    }}
}}
"""


def test_verify_hand_written_guard_is_proved(bare: Node, egress: None) -> None:
    bare.space.nft(BY_HAND)
    assert bare.verify(*ASKED).startswith("proved: this kernel: ")
    bare.space.nft(FOREIGN.format(hook="route hook output priority -140", rule="udp dport 9 meta mark set 1"))
    output = bare.verify(*ASKED, status=1)
    assert f"P1 refuted: uplink wan: sockets: packets without the mark that leave by {WAN}\n" in output
    assert "why     marked by a rule: " in output


@pytest.mark.parametrize(
    ("hook", "rule"),
    [
        ("filter hook output priority 0", "tcp dport 80 counter accept"),
        ("filter hook forward priority 0", "ct state established,related accept"),
        ("route hook output priority -140", "meta mark set mark and 0xffffff0f or 0x20"),  # other bits
        ("nat hook postrouting priority 100", 'oifname "bat0" masquerade'),
        ("filter hook output priority 0", "numgen random mod 2 0 drop"),  # unsupported, and drops at most
        ("filter hook output priority 0", "numgen random mod 2 0 accept"),
    ],
)
def test_verify_harmless_foreign_table_is_proved(guarded_node: Node, hook: str, rule: str) -> None:
    guarded_node.space.nft(FOREIGN.format(hook=hook, rule=rule))
    assert guarded_node.verify(*ASKED, *EXEMPT).startswith("proved: this kernel: ")


def test_verify_harmless_table_beside_policy_is_proved(guarded_node: Node) -> None:
    rule = "tcp dport 80 counter accept"
    guarded_node.space.nft(FOREIGN.format(hook="filter hook output priority 0", rule=rule))
    assert guarded_node.verify(POLICY).startswith("proved: gluon-fastd: this kernel: ")


LEGACY_RULES = (
    ("-t nat -A POSTROUTING -o bat0 -j MASQUERADE", 0, ""),
    ("-A FORWARD -j DROP", 0, ""),
    ("-t mangle -A OUTPUT -j MARK --set-xmark 0x40000/0xff0000", 0, ""),
    ("-t mangle -A OUTPUT -j MARK --set-mark 1", 3, "P1 unknown: uplink wan: sockets: "),
    ("-t nat -A OUTPUT -p udp --dport 53 -j DNAT --to-destination 10.9.0.9", 3, "P5 unknown: uplink wan: "),
)


@pytest.mark.parametrize(("rule", "status", "text"), LEGACY_RULES)
def test_verify_legacy_rule_beside_policy_is_judged(guarded_node: Node, rule: str, status: int, text: str) -> None:
    if not shutil.which("iptables-legacy"):
        pytest.skip("iptables-legacy is not installed")
    guarded_node.space.run(["iptables-legacy", *rule.split()])
    assert text in guarded_node.verify(POLICY, status=status)


def test_verify_unsupported_rule_in_guard_is_unknown(guarded_node: Node) -> None:
    guarded_node.space.nft("insert rule inet nftpolicy wan.mark-owner numgen random mod 2 0 accept\n")
    output = guarded_node.verify(POLICY, status=3)
    assert output.startswith("unknown: gluon-fastd: this kernel: ")
    assert "P1 unknown: uplink wan: sockets of no service: " in output
    assert "  unsupported" in output and "numgen" in output


# --- the way out ---------------------------------------------------------------------------------


def test_verify_counterexample_without_policy_leaves_real_kernel(bare: Node) -> None:
    done = bare.run("verify", "--live", *ASKED, "--json", check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"], found["applied"]) == (1, "refuted", False)
    scripts = [
        example["script"]
        for one in found["findings"]
        if one["property"] == "P1" and one["verdict"] == "refuted"
        for example in one["counterexamples"]
    ]
    assert scripts and all(scripts)
    shell = shutil.which("sh")
    assert shell
    for text in scripts:
        done = subprocess.run([shell], input=text, capture_output=True, text=True, check=False, timeout=limit(60))
        assert done.returncode == 0, (done.stdout, done.stderr, text)


def test_verify_bridge_ports_are_read_from_kernel(bare: Node, egress: None) -> None:
    bare.space.ip(f"link add name {BRIDGE} type bridge", f"link set {WAN} master {BRIDGE}", f"link set {BRIDGE} up")
    bare.space.nft(BY_HAND.replace(WAN, BRIDGE))
    done = bare.run("verify", "--live", "--uplink", f"up={BRIDGE}", "--mark", "0x1/0x1", "--json", check=False)
    found = json.loads(done.stdout)
    refuted = [one for one in found["findings"] if one["decides"] and one["verdict"] == "refuted"]
    assert [one["subject"] for one in refuted] == [
        f"AF_PACKET sockets: packets without the mark that leave by {BRIDGE}"
    ]
    assert {example["leaves_by"] for example in refuted[0]["counterexamples"]} == {WAN}


def test_verify_library_abort_is_one_message():
    with Namespace("abort") as space:
        space.nft('table inet other { chain c { iifname { "w*", "x*" } accept; }; }')
        done = space.run([*PROGRAM, "verify", "--live", "--uplink", "wan=eth0", "--mark", "1"], check=False)
    assert done.returncode in (1, 3, 4)  # eth0 is absent here
    assert "Traceback" not in done.stderr
    assert (done.returncode == 4) == ("libnftables itself" in done.stderr)


# --- snapshot ------------------------------------------------------------------------------------


def test_snapshot_has_the_verdict_of_the_kernel(shared_node: Node, tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    shared_node.run("snapshot", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) | {"time": ""} == json.loads(shared_node.run("snapshot").stdout) | {"time": ""}
    live = shared_node.verify().replace("this kernel", "STATE", 1)
    desk = [*PROGRAM, "verify", "--snapshot", str(file)]
    done = subprocess.run(desk, capture_output=True, text=True, check=True, timeout=limit(60), cwd=ROOT)
    assert re.sub(r"the snapshot of [0-9T:-]+Z", "STATE", done.stdout, count=1) == live


def test_snapshot_of_a_leaking_kernel_is_refuted(guarded_node: Node, tmp_path: Path) -> None:
    guarded_node.space.run(["nft", "flush", "chain", "inet", "nftpolicy", "wan.guard"])
    guarded_node.space.run(["nft", "add", "rule", "inet", "nftpolicy", "wan.guard", "accept"])
    file = tmp_path / "node.json"
    guarded_node.run("snapshot", str(file))
    desk = [*PROGRAM, "verify", "--snapshot", str(file)]
    done = subprocess.run(desk, capture_output=True, text=True, check=False, timeout=limit(60), cwd=ROOT)
    live = guarded_node.run("verify", "--live", check=False)
    assert done.returncode == live.returncode != 0
    assert done.stdout.splitlines()[1:6] == live.stdout.splitlines()[1:6]


def test_snapshot_without_root_or_directory_is_refused(shared_node: Node, tmp_path: Path) -> None:
    done = shared_node.run("snapshot", check=False, uid=65534)
    assert (done.returncode, done.stdout) == (4, "")
    done = shared_node.run("snapshot", str(tmp_path / "none" / "file"), check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert "cannot be written: No such file or directory" in done.stderr
