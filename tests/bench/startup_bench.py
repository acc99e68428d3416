"""Whole processes: the time of a command of nftpolicy, against an interpreter that does nothing.

The commands run with compiled bytecode, as an installed package does, whatever the environment sets.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab import addresses as at
from tests.lab.netns import Namespace, veth

from . import sized_policies
from .figures import Report, Series, in_turns, say

ROUNDS = 15
_PYTHON = sys.executable
_OURS = str(Path(_PYTHON).with_name("nftpolicy"))
_BARE, _LIBRARIES = "python -c pass", "python, the libraries"
_VERSION, _CHECK, _APPLY = "nftpolicy --version", "nftpolicy check", "nftpolicy apply, no-op"

# What is held to what, at most, and what that is about.
_LIMITS = (
    (_VERSION, _BARE, 2.5, "the command line begins: nftpolicy --version against bare Python"),
    (
        _CHECK,
        _LIBRARIES,
        4.0,
        "what is ours of check, which proves and looks for DNS leaks: against its libraries alone",
    ),
    (_CHECK, _BARE, 20.0, "all of it: nftpolicy check against bare Python"),
    (_APPLY, _BARE, 25.0, "a look at the kernel that finds nothing to do: nftpolicy apply against bare Python"),
)


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    say("start: whole processes")
    gluon = str(sized_policies.GLUON)
    commands = {
        _BARE: [_PYTHON, "-c", "pass"],
        _LIBRARIES: [_PYTHON, "-c", "import attrs, cattrs, tomllib, typer"],
        _VERSION: [_OURS, "--version"],
        _CHECK: [_OURS, "check", gluon],
        _APPLY: [_OURS, "apply", gluon],
    }
    with Namespace("node") as node, Namespace("peer") as peer:
        veth(node, at.WAN, peer, "eth0")
        first = node.run(commands[_APPLY])
        again = node.run(commands[_APPLY])
        if first.stdout == again.stdout:
            raise RuntimeError(f"the second apply says the same as the first: {again.stdout}")
        with tempfile.TemporaryDirectory() as compiled:
            values = node.call(in_turns_of, commands, rounds or ROUNDS, compiled, timeout=120)
    bare = Series("start", _BARE, "s", values[_BARE])
    found = {name: Series("start", name, "s", values[name], bare) for name in commands if name != _BARE}
    report.series += [bare, *found.values()]
    for name, peer_name, bound, words in _LIMITS:
        report.limit(words, found[name], found.get(peer_name, bare), bound)


def in_turns_of(commands: dict[str, list[str]], rounds: int, compiled: str) -> dict[str, list[float]]:
    """Return the seconds of each command, measured in a process inside the namespace. `compiled`: a directory."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "PYTHONPYCACHEPREFIX": compiled}
    turns: dict[str, Callable[[], float]] = {
        name: lambda argv=argv: _timed(argv, environment) for name, argv in commands.items()
    }
    in_turns(turns, 1)  # bytecode, and caches of files
    return in_turns(turns, rounds)


def _timed(argv: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start
