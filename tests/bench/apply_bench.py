"""Application of a policy that is loaded already, against nft and ip with the same content as files."""

import subprocess
import tempfile
import time
from pathlib import Path

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.linux import Linux
from nftpolicy.netstate.formats import ip_text, nft_text
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Policy
from nftpolicy.runtime.apply.executor import apply_change, plan_change
from tests.lab import addresses as at
from tests.lab.netns import Namespace, veth

from . import sized_policies
from .bench_namespaces import PATIENCE, memory
from .figures import Report, Series, in_turns, say

ROUNDS_SMALL, ROUNDS_LARGE = 9, 7
SERVICES = 10_000
_LIMIT = 1.5
_THEIRS, _OURS, _AGAIN = "nft -f, ip -batch", "plan and apply", "apply again, no-op"
_READY, _LOAD = "import libnftables, pyroute2", "load the file"  # beside the limit, for the whole picture


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    say("apply: gluon-fastd")
    _one(report, "apply gluon-fastd", sized_policies.GLUON.read_bytes(), rounds or ROUNDS_SMALL)
    say(f"apply: {SERVICES:,} services")
    _one(report, f"apply {SERVICES:,} services", sized_policies.generated(SERVICES).encode(), rounds or ROUNDS_LARGE)


def _one(report: Report, bench: str, toml: bytes, rounds: int) -> None:
    policy, _ = load(toml)
    ready: list[float] = []
    again: list[float] = []

    def ours() -> float:
        before, first, second = _in_fresh_namespace(_apply_twice, policy)
        ready.append(before)
        again.append(second)
        return first

    with tempfile.TemporaryDirectory(prefix="nftpolicy-bench-") as folder:
        _write(Path(folder), policy)
        turns = {
            _OURS: ours,
            _THEIRS: lambda: _in_fresh_namespace(_feed, Path(folder)),
            _LOAD: lambda: _timed_load(toml),
        }
        values = in_turns(turns, rounds)
    theirs = Series(bench, _THEIRS, "s", values[_THEIRS])
    mine = Series(bench, _OURS, "s", values[_OURS], theirs)
    report.series += [
        theirs,
        mine,
        Series(bench, _AGAIN, "s", again, theirs),
        Series(bench, _READY, "s", ready, theirs),
        Series(bench, _LOAD, "s", values[_LOAD], theirs),
    ]
    if len(policy.service) == SERVICES:  # in 13 ms, opening sockets outweighs all the rest
        report.limit(f"{bench} against nft and ip", mine, theirs, _LIMIT)


def _write(folder: Path, policy: Policy) -> None:
    state = compile_policy(policy)
    (folder / "nft").write_text("".join(map(nft_text.table_text, state.tables)))
    for family in at.FAMILIES:
        (folder / f"ip{family}").write_text(ip_text.batch_text(state.rules, state.routes, family))


def _in_fresh_namespace(function, argument):  # type: ignore[no-untyped-def]
    with Namespace("node") as node, Namespace("peer") as peer:
        veth(node, at.WAN, peer, "eth0")
        return node.call(function, argument, timeout=PATIENCE)


def _apply_twice(policy: Policy) -> tuple[float, float, float]:
    mine = memory()
    start = time.perf_counter()
    kernel = Linux()
    begun = time.perf_counter()
    apply_change(kernel, plan_change(kernel, policy, mine), mine)
    middle = time.perf_counter()
    if plan_change(kernel, policy, mine).plan.steps:
        raise RuntimeError("the second apply would change something")
    return begun - start, middle - begun, time.perf_counter() - middle


def _feed(folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["nft", "-f", str(folder / "nft")], check=True)
    for family in at.FAMILIES:
        subprocess.run(["ip", f"-{family}", "-batch", str(folder / f"ip{family}")], check=True)
    return time.perf_counter() - start


def _timed_load(toml: bytes) -> float:
    start = time.perf_counter()
    load(toml)
    return time.perf_counter() - start
