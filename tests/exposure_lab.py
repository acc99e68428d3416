"""Guarded lab under `watch`: damages, and the duration and extent of the exposure after each of them.

Used by tests/leaks/test_watch.py and by `script/bench exposure`.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.guarded_lab import ENVIRONMENT, PROGRAM, Guarded
from tests.lab.limits import limit
from tests.lab.netns import wait_until

LOG = "/run/lab/watch.log"
WATCH = [PROGRAM, "watch", "--json"]
PATIENCE = 10  # seconds for a machine under load


class Watched:
    """`nftpolicy watch` in a lab's node."""

    def __init__(self, made: Guarded, *words: str) -> None:
        self.made, self._words = made, words
        self._log = made.lab.node.outside(LOG)
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Watched":
        log = self._log.open("wb")
        with log:
            self.process = self.made.lab.node.popen([*WATCH, *self._words], env=ENVIRONMENT, stderr=log, stdout=log)
        self.wait_for("proof")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit(PATIENCE))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return all log lines so far."""
        whole = self._log.read_text().rpartition("\n")[0]
        assert all(line.startswith("{") for line in whole.splitlines()), whole
        return [json.loads(line) for line in whole.splitlines()]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [one for one in self.lines if one["event"] == name]

    def wait_for(self, name: str, number: int = 1) -> dict[str, Any]:
        """Wait for an event, or for a number of such events, and return the last one."""

        def there() -> list[dict[str, Any]]:
            assert self.process is not None
            assert self.process.poll() is None, self._log.read_text()
            found = self.events(name)
            return found if len(found) >= number else []

        return wait_until(there, PATIENCE, f"{name} in {self._log.read_text()}")[number - 1]

    def wait_until_right(self) -> None:
        """Until the kernel holds what the policy wants, as another process sees it."""
        wait_until(lambda: self.made.nftpolicy("status", check=False).returncode == 0, PATIENCE, "the right state")

    def resources(self) -> "Resources":
        """Return the resources of the process itself, without its children."""
        assert self.process is not None
        home = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (home / "status").read_text().splitlines())
        cpu = sum(map(int, (home / "stat").read_text().rpartition(")")[2].split()[11:15]))
        switches = int(status["voluntary_ctxt_switches"]) + int(status["nonvoluntary_ctxt_switches"])
        return Resources(
            cpu / os.sysconf("SC_CLK_TCK"),
            switches,
            int(status["VmRSS"].split()[0]),
            len(list((home / "fd").iterdir())),
        )


@dataclass(frozen=True)
class Resources:
    """CPU seconds (those of children that were waited for too), context switches, KiB of memory, open files."""

    cpu: float
    switches: int
    memory: int
    files: int


# What happens


def _load(text: str) -> Callable[[], None]:
    def damage() -> None:
        from nftpolicy.kernel.libnft import Nft

        assert Nft().load(text) is None

    return damage


def _run(*commands: str) -> Callable[[], None]:
    def damage() -> None:
        for command in commands:
            subprocess.run(command.split(), check=True)

    return damage


def _write(path: str, value: str) -> Callable[[], None]:
    return lambda: Path("/proc/sys", path).write_text(value) and None


# Name -> what to do inside the node, and whether the guard itself is gone by it.
DAMAGES: Mapping[str, tuple[Callable[[], None], bool]] = {
    "nft flush ruleset": (_run("nft flush ruleset"), True),
    "nft delete table inet nftpolicy": (_run("nft delete table inet nftpolicy"), True),
    "nft delete table netdev nftpolicy": (_run("nft delete table netdev nftpolicy"), True),
    "a rule before the guard's": (_run("nft insert rule inet nftpolicy guard accept"), True),
    "the same, by a program that stays": (_load("flush ruleset\n"), True),
    "ip rule flush": (
        _run("ip rule flush", "ip rule add priority 32766 lookup main"),
        False,
    ),
    "ip -6 rule flush": (
        _run("ip -6 rule flush", "ip -6 rule add priority 32766 lookup main"),
        False,
    ),
    "ip route flush table 1": (_run("ip route flush table 1 proto 78"), False),
    "sysctl -w": (_write("net/ipv4/fwmark_reflect", "0"), False),
}


@dataclass(frozen=True)
class Exposure:
    """Time from the kernel's event to the repair (milliseconds), as the watch reports it, and the
    number of leaked packets of the flood. `by` is the program that the kernel named.
    """

    ms: float
    leaked: int
    by: str


def hurt(watched: Watched, name: str, payload: bytes) -> Exposure:
    """Do the damage, wait for the repair, and count the frames with that payload."""
    lab, before = watched.made.lab, len(watched.lines)
    lab.wan.drain()
    lab.node.call(DAMAGES[name][0])

    def repaired() -> list[dict[str, Any]]:
        return [one for one in watched.lines[before:] if one["event"] == "restored"]

    said = wait_until(repaired, PATIENCE, f"a repair of {name}")
    watched.wait_until_right()
    leaked = sum(payload in frame.payload for frame in lab.wan.frames())
    return Exposure(max(one["ms"] for one in said), leaked, said[0]["by"])
