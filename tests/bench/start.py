"""Whole processes: how long a command of nftpolicy takes, against an interpreter that does nothing."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab import addresses as at
from tests.lab.netns import Namespace, veth

from . import policies
from .figures import Report, Series, in_turns, say

ROUNDS = 15
_CHECK_LIMIT = 8.0
_PYTHON = sys.executable
_OURS = str(Path(_PYTHON).with_name("nftpolicy"))


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    say("start: whole processes")
    gluon = str(policies.GLUON)
    commands = {
        "python -c pass": [_PYTHON, "-c", "pass"],
        "nftpolicy --version": [_OURS, "--version"],
        "nftpolicy check": [_OURS, "check", gluon],
        "nftpolicy apply, no-op": [_OURS, "apply", gluon],
    }
    with Namespace("node") as node, Namespace("peer") as peer:
        veth(node, at.WAN, peer, "eth0")
        first = node.run(commands["nftpolicy apply, no-op"])
        again = node.run(commands["nftpolicy apply, no-op"])
        if first.stdout == again.stdout:
            raise RuntimeError(f"the second apply says the same as the first: {again.stdout}")
        values = node.call(in_turns_of, commands, rounds or ROUNDS, timeout=120)
    bare, *ours = (Series("start", name, "s", values[name]) for name in commands)
    report.series.append(bare)
    found = {one.case: Series(one.bench, one.case, one.unit, one.values, bare) for one in ours}
    report.series += found.values()
    report.limit("nftpolicy check against bare Python", found["nftpolicy check"], bare, _CHECK_LIMIT)


def in_turns_of(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each command, measured in a process that is in the namespace already."""
    turns: dict[str, Callable[[], float]] = {name: lambda argv=argv: _timed(argv) for name, argv in commands.items()}
    in_turns(turns, 1)  # caches of files
    return in_turns(turns, rounds)


def _timed(argv: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
