"""The script that takes a snapshot on a router, run by busybox: the same verdict as the snapshot by Python."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve, fields

from nftpolicy.integration.openwrt import tree
from nftpolicy.kernel.linux import Linux
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.policy.mark import Mark
from nftpolicy.proof.verdict import PROVED, REFUTED, UNKNOWN, Unknown
from nftpolicy.runtime.snapshot import Snapshot, decode_snapshot, take_snapshot
from nftpolicy.runtime.verify import GivenUplink, Verification, verify_snapshot
from tests.debug_output import more_known
from tests.guarded_lab import GLUON
from tests.lab.daemons import tool
from tests.lab.netns import Namespace, veth, wait_until

from .router import BIN, STATE, Router

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("able")]

FILE, SCRIPT = "/run/state.txt", "/run/snapshot.sh"
POLICY = load(GLUON.read_bytes())[0]


@pytest.fixture
def router() -> Iterator[Router]:
    """Yield a router whose uplink br-wan has one port, with its other end in another network namespace."""
    with Namespace("router") as space, Namespace("outside") as outside:
        veth(space, "eth0", outside, "eth0")
        space.ip(
            "link set lo up",
            "link add br-wan type bridge",
            "link set eth0 master br-wan",
            "link set eth0 up",
            "link set br-wan up",
            "addr add 192.0.2.2/24 dev br-wan",
            "addr add 2001:db8::2/64 dev br-wan nodad",
        )
        space.outside(SCRIPT).write_text(tree.snapshot_script())
        yield Router(space, POLICY)


def snapshot(router: Router, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return router.ash(SCRIPT, *words, check=check)


def read(router: Router) -> Snapshot:
    snapshot(router, FILE)
    return decode_snapshot(router.space.outside(FILE).read_bytes())


def judge(taken: Snapshot) -> Verification:
    return verify_snapshot("the router", taken, POLICY, (), lambda _: None)


def sorted_sysctls(state: NetState) -> NetState:
    return evolve(state, sysctls=tuple(sorted(state.sysctls, key=lambda sysctl: sysctl.path)), tables=(), looks=())


def test_snapshot_by_shell_has_the_state_of_python(router: Router) -> None:
    router.nftpolicy("apply")
    router.space.ip("rule add uidrange 5-6 dport 53 lookup 7 pref 77", "route add unreachable default table 7 metric 5")
    by_shell, by_python = read(router), router.space.call(lambda: take_snapshot(Linux()))
    assert sorted_sysctls(by_shell.state) == sorted_sysctls(by_python.state)
    assert more_known(by_python.state.tables, by_shell.state.tables) == []
    # All of the policy's own rules are understood.
    assert by_shell.state.tables == by_python.state.tables
    same = ("bridge_ports", "devices", "egress_hook", "families")
    assert [name for name in same if getattr(by_shell, name) != getattr(by_python, name)] == []
    assert {field.name for field in fields(Snapshot)} > set(same)
    for shell, python in zip(by_shell.state.looks, by_python.state.looks, strict=True):
        assert shell.subject == python.subject
        assert shell.missing or (shell.actors, shell.missing) == (python.actors, python.missing)


def test_snapshot_of_guarded_router_is_proved(router: Router) -> None:
    router.nftpolicy("apply")
    verification = judge(read(router))
    assert verification.proof.verdict == PROVED, verification.proof.findings
    assumptions = "\n".join(verification.proof.assumptions)
    for name in ("cgroup BPF programs", "nft's debug output", "ip (ip utility"):
        assert name in assumptions


def test_snapshot_with_flush_filter_has_no_refuted_leak(router: Router) -> None:
    """Without the guard, the filter may stop the packets of a counterexample, as it does here."""
    router.real("tc")
    router.nftpolicy("apply")
    by_shell, by_python = read(router), router.space.call(lambda: take_snapshot(Linux()))
    assert "bpf" in router.space.run(["tc", "filter", "show", "dev", "eth0", "egress"]).stdout, "inconclusive"
    assert [judge(taken).proof.verdict for taken in (by_shell, by_python)] == [PROVED, PROVED]
    router.space.ip("route add default via 192.0.2.1")
    router.space.nft("flush ruleset\n")
    for taken in (read(router), router.space.call(lambda: take_snapshot(Linux()))):
        leaks = [finding for finding in judge(taken).proof.findings if finding.property == "P1"]
        assert {type(finding.result) for finding in leaks} == {Unknown}


def test_snapshot_of_leaking_router_is_refuted(router: Router) -> None:
    router.nftpolicy("apply")
    assert judge(read(router)).proof.verdict == PROVED, "the control"
    router.space.nft("insert rule inet nftpolicy guard udp dport 123 accept\n")
    verification = judge(read(router))
    assert verification.proof.verdict == REFUTED
    assert "P1" in verification.deciding_properties


def test_snapshot_of_router_without_guard_is_refuted(router: Router) -> None:
    router.space.ip("route add default via 192.0.2.1")
    uplinks = (GivenUplink("wan", ("br-wan",), Mark(1, 1)),)
    verification = verify_snapshot("the router", read(router), uplinks, (), lambda _: None)
    assert verification.proof.verdict == REFUTED


def test_snapshot_with_unsupported_rule_is_unknown(router: Router) -> None:
    router.nftpolicy("apply")
    chain = "type filter hook output priority 0; policy accept"
    router.space.nft(f"table inet other {{\n chain c {{\n {chain}\n reset tcp option mptcp\n }}\n}}\n")
    verification = judge(read(router))
    assert verification.proof.verdict == UNKNOWN
    reasons = "\n".join(finding.detail for finding in verification.proof.findings)
    assert "exthdr reset tcpopt 30" in reasons


# --- the script ------------------------------------------------------------------------------


def test_snapshot_file_is_private_and_complete(router: Router) -> None:
    done = snapshot(router, FILE)
    assert (done.stdout, done.stderr) == ("", "")
    file = router.space.outside(FILE)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().endswith("\n@ end\n")
    assert decode_snapshot(snapshot(router).stdout.encode()).state.devices == read(router).state.devices


def test_snapshot_without_tc_has_a_reason(router: Router) -> None:
    (tc,) = [look for look in read(router).state.looks if look.subject.startswith("tc filters")]
    assert tc.missing == "tc is not installed"
    router._link("tc", tool("tc"))
    (tc,) = [look for look in read(router).state.looks if look.subject.startswith("tc filters")]
    assert (tc.missing, tc.actors) == ("", ())


@pytest.mark.parametrize(
    ("program", "body", "status", "message"),
    [
        ("nft", None, 4, "nft is not installed"),
        ("ip", None, 4, "ip is not installed"),
        ("ip", 'case "$*" in -j*) echo "no such option"; exit 1 ;; esac', 4, "ip has no JSON: install ip-full"),
        ("nft", "echo Operation not permitted >&2; exit 1", 4, "nft cannot list the ruleset: Operation not permitted"),
        ("nft", 'n=$(cat /run/n 2>/dev/null); echo $((n + 1)) >/run/n; echo "table ip t$n {"', 1,
         "the ruleset changed during each of 5 reads"),
    ],
    ids=["no nft", "no ip", "ip without JSON", "no privilege", "changing ruleset"],
)  # fmt: skip
def test_snapshot_failure_is_one_message(
    router: Router, program: str, body: str | None, status: int, message: str
) -> None:
    if body is None:
        router.space.outside(f"{BIN}/{program}").unlink()
    else:
        router.program(program, body)
    done = snapshot(router, FILE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"snapshot: {message}\n")
    assert not router.space.outside(FILE).exists()


def test_snapshot_to_missing_directory_fails(router: Router) -> None:
    done = snapshot(router, "/run/nowhere/file", check=False)
    assert (done.returncode, done.stderr) == (1, "snapshot: /run/nowhere/file cannot be written\n")


def test_snapshot_replaces_regular_file_alone(router: Router) -> None:
    file, victim = router.space.outside(FILE), router.space.outside("/run/victim")
    victim.write_text("victim")
    file.symlink_to("victim")
    done = snapshot(router, FILE, check=False)
    assert (done.returncode, done.stderr) == (1, f"snapshot: {FILE} is not a regular file\n")
    assert (file.is_symlink(), victim.read_text()) == (True, "victim")
    file.unlink()
    file.write_text("older")
    file.chmod(0o666)
    snapshot(router, FILE)
    assert (file.read_text()[-6:], file.stat().st_mode & 0o777) == ("@ end\n", 0o600)


def test_snapshot_usage_error_is_2(router: Router) -> None:
    for words in (("a", "b"), ("-x",)):
        done = snapshot(router, *words, check=False)
        assert (done.returncode, done.stderr) == (2, "snapshot: usage: snapshot.sh [FILE]\n")


def files_of(space: Namespace) -> set[Path]:
    return {path for path in space.outside("/run").rglob("*") if not path.is_relative_to(space.outside(STATE))}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_snapshot_that_is_killed_leaves_no_file(router: Router, number: int) -> None:
    router.program("ip", "case \"$*\" in *address*) echo >/run/reached; exec sleep 60 ;; *) echo '[{}]' ;; esac")
    before = files_of(router.space)
    words = [router.environment["PATH"] + "/sh", SCRIPT, FILE]
    process = router.space.popen(words, env=router.environment)
    reached = router.space.outside("/run/reached")
    wait_until(reached.exists, 20, "the read of the addresses")
    os.killpg(process.pid, number)
    process.wait(20)
    assert process.returncode != 0
    reached.unlink()
    assert files_of(router.space) == before
