"""python -m tests.platforms.first_minute RELEASE ROOT TREE [WAY...]: from a fresh Debian to a guard, and back.

Prints a transcript of each way: the package is installed, and then only what the program prints is typed. ROOT is the
root directory of the release, TREE a source tree with the package in dist/. "fact:" lines are what was seen by packets.
Exits with 1 if a fact does not hold.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nftpolicy.policy.load import load
from tests.beside.outside import LAN, UPLINK, Leaks, Outside, outside
from tests.lab import systemd_machine
from tests.lab.limits import limit
from tests.lab.netns import Namespace

from . import debian_shell
from .first_machines import BOOT, FIRST_BOOT, WAYS, Way

_HOME = "/root"
_POLICY = f"{_HOME}/nftpolicy.toml"
_STEP = re.compile(r"^\d+\. (.*?)(?:    #.*)?$", re.MULTILINE)
_WRITE = re.compile(r"write into (?:\[Interface\] of )?(\S+): (.*)")
_NEXT = re.compile(r"^next.*: (systemctl restart [\w@.-]+|ifdown and ifup the device)", re.MULTILINE)
_NOISE = re.compile(r"^\(Reading database| udp \*:20[0-9]{3}: ")  # the second: senders of the test
_SHOWN = 14  # lines of an output in the transcript
# A command prints this with its exit status when it has ended.
_ENDED = "-ended-with-"


class Broken(Exception):
    """A fact does not hold, or a command that the program printed fails."""


class Console:
    """A shell of root in the machine, as an administrator has one: what it starts in the background stays."""

    def __init__(self, pid: int) -> None:
        words = (
            "systemd-run --quiet --pipe --wait --collect --setenv=HOME=/root --setenv=DEBIAN_FRONTEND=noninteractive"
        )
        inside = [
            "nsenter",
            "--all",
            f"--target={pid}",
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
        ]
        self._shell = subprocess.Popen(
            [*inside, *words.split(), "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.run(f"cd {_HOME}")

    def run(self, command: str) -> tuple[int, str]:
        """Run a command of the shell; return its exit status and its output with errors."""
        assert self._shell.stdin and self._shell.stdout
        self._shell.stdin.write(f"{{ {command}\n}} 2>&1 </dev/null; status=$?; echo; echo {_ENDED}$status\n")
        self._shell.stdin.flush()
        lines = []
        for line in self._shell.stdout:
            if line.startswith(_ENDED):
                return int(line.removeprefix(_ENDED)), "".join(lines).rstrip("\n")
            lines.append(line)
        raise Broken(f"{command}: the shell has ended: {''.join(lines)}")

    def type(self, command: str) -> str:
        """Run a command as a part of the transcript. Raises Broken if it fails."""
        print(f"# {command}", flush=True)
        status, output = self.run(command)
        lines = [line for line in output.splitlines() if not _NOISE.search(line)]
        print("\n".join([*lines[:_SHOWN], *(["[...]"] if lines[_SHOWN:] else [])]), flush=True)
        if status:
            log = self.run("journalctl -b --no-pager | tail -n 25")[1]
            raise Broken(f"{command}: exit status {status}: {output}\n{log}")
        return output

    def until(self, command: str, expected: str) -> None:
        """Run a command until its output matches. Raises Broken."""
        end = time.monotonic() + limit(60)
        while time.monotonic() < end:
            output = self.run(command)[1]
            if re.search(expected, output):
                return
            self.run("sleep 1")
        log = self.run("ip rule; ip route show table all; journalctl -b --no-pager | tail -n 40")[1]
        raise Broken(f"{command}: {expected} is not in: {output}\n{log}")


def fact(text: str) -> None:
    """Print what was seen."""
    print(f"fact: {text}", flush=True)


def walk(way: Way, root: Path, tree: Path, folder: Path) -> None:
    """Go the way on a machine of its own. Raises Broken."""
    disk = folder / "disk"
    disk.mkdir()
    install = "apt-get -qq update; apt-get -q -y install ./dist/nftpolicy_*.deb"
    done = debian_shell.run(root, tree, install, _fresh(folder, "apt"), 900, disk)
    print(f"\n## {way.name}\n\n# apt-get install ./nftpolicy_*.deb", flush=True)
    if done.returncode:
        raise Broken(done.stdout)
    with outside() as first, contextlib.ExitStack() as stack:
        files = {**way.files, **way.serve(first)}
        around = first
        with _booted(first, way, folder, root, disk, files, FIRST_BOOT + way.prepare) as console:
            console.until(way.job, way.works)
            steps = _STEP.findall(console.type(way.init))
            policy = load(console.run(f"cat {_POLICY}")[1].encode())[0]
            mark = next(iter(policy.uplink.values())).mark.value
            leaks = Leaks(first, mark, {})
            _require_open(leaks, "without a policy")
            _enter(way, console, steps)
            console.until(way.job, way.works)
            _require_closed(leaks, "after the last step")
        around = stack.enter_context(_rebooted(around))
        leaks = Leaks(around, mark, {})
        with leaks.flowing():
            with _booted(around, way, folder, root, disk, {}, BOOT) as console:
                console.until(way.job, way.works)
                console.until("nftpolicy status >/dev/null && echo in force", "in force")
                if way.reached:
                    if "SSH" not in around.internet.run(way.reached.split(), check=False).stdout:
                        raise Broken(f"{way.reached}: no answer")
                    fact("an administrator is answered at the uplink's far end")
                fact("the job works after a reboot, and the policy is in force")
                _judge(leaks, "from the first moment of a reboot")
                _leave(console)
                console.until(way.job, way.works)
                fact("the job works after the way back")
        around = stack.enter_context(_rebooted(around))
        with _booted(around, way, folder, root, disk, {}, BOOT) as console:
            console.until(way.job, way.works)
            _require_open(Leaks(around, mark, {}), "after the purge and a reboot")
            left = console.run("find /etc /var/lib /run /usr -name '*nftpolicy*'; nft list tables; ip rule | grep 78")[
                1
            ]
            if "nftpolicy" in left:
                raise Broken(f"left: {left}")
            fact("the purge left nothing")


def _fresh(folder: Path, name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=name, dir=folder))


@contextlib.contextmanager
def _booted(
    around: Outside, way: Way, folder: Path, root: Path, disk: Path, files: dict[str, str], prepare: str
) -> Iterator[Console]:
    for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        around.machine.sysctl(key, 0)
    around.machine.sysctl(f"net/ipv6/conf/{UPLINK}/accept_ra", 1)
    place = _fresh(folder, "boot")
    share = debian_shell.ROOT
    with systemd_machine.booted(
        place, share, files, prepare, "/run/out/done", 90, root, around.machine, disk
    ) as machine:
        yield Console(machine.pid)


@contextlib.contextmanager
def _rebooted(around: Outside) -> Iterator[Outside]:
    """Yield the same surroundings with a new kernel state for the machine: its devices have lost everything."""
    with Namespace("machine") as machine, Namespace("no lan") as lan:
        for device in (UPLINK, LAN):
            move = ["ip", "link", "set", device, "netns", str(machine.pid)]
            subprocess.run(["nsenter", f"--net={around.machine.path}", *move], check=True)
        yield Outside(around.internet, machine, lan)


def _enter(way: Way, console: Console, steps: list[str]) -> None:
    """Type the steps that `init` has printed."""
    confirmed = False
    for step in steps:
        if written := _WRITE.fullmatch(step):
            _edit(console, written[1], written[2].split(", and "))
            continue
        if step.startswith(("groupadd", "nftpolicy units", "nftpolicy install")) and not confirmed:
            console.type("nftpolicy confirm")
            confirmed = True
        if step.startswith("start anew"):
            console.type(f"systemctl restart {way.unit}")
        elif step == "nftpolicy resolver nftpolicy.toml" or " fastd " in step:
            console.type(f"{step} >/tmp/log 2>&1 &")
            console.run('started="$started $!"; sleep 2')
        else:
            if step.startswith("nftpolicy install"):
                console.run("kill $started; sleep 2")
            output = console.type(step)
            if follow := re.search(
                r"^next: (systemctl restart [\w@.-]+|ifdown and ifup the device)", output, re.MULTILINE
            ):
                console.type(follow[1].replace("ifdown and ifup the device", f"ifdown {UPLINK}; ifup {UPLINK}"))


def _edit(console: Console, file: str, lines: list[str]) -> None:
    print(f"# editor {file}    # {', '.join(lines)}", flush=True)
    for line in lines:
        expression = rf"/^\[Interface\]/a {line}" if " = " in line else f"1i {line}"
        console.run(f"sed -i '{expression}' {file}")


def _leave(console: Console) -> None:
    """Type what leads back."""
    output = console.type("nftpolicy uninstall")
    console.type("nftpolicy release")
    _follow(console, output)
    console.type("apt-get -q -y purge nftpolicy")


def _follow(console: Console, output: str) -> None:
    """Type the steps that a command names at its end."""
    for step in _NEXT.findall(output):
        console.type(step.replace("ifdown and ifup the device", f"ifdown {UPLINK}; ifup {UPLINK}"))


def _require_open(leaks: Leaks, when: str) -> None:
    """Require that each kind that is sent by the uplink's device arrives: the control."""
    with leaks.flowing():
        subprocess.run(["sleep", "2"], check=True)
    wanted = [name for name in leaks.names if name.endswith(f"by {UPLINK}")]
    arrived = leaks.arrived()
    if absent := [name for name in wanted if name not in arrived]:
        raise Broken(f"{when}: the control: never arrived: {absent}")
    fact(f"open {when}: each of {len(wanted)} kinds of packets arrives")


def _require_closed(leaks: Leaks, when: str) -> None:
    with leaks.flowing():
        subprocess.run(["sleep", "2"], check=True)
    _judge(leaks, when)


def _judge(leaks: Leaks, when: str) -> None:
    if arrived := leaks.arrived():
        raise Broken(f"{when}: {arrived}")
    if leaks.lost:
        raise Broken(f"{when}: the capture lost frames")
    fact(f"closed {when}: 0 of {leaks.sent} packets arrive")


def main() -> int:
    """Go the ways."""
    root, tree, *names = sys.argv[1:]
    failed = False
    for way in [one for one in WAYS if one.name in names] or WAYS:
        with tempfile.TemporaryDirectory(prefix=f"nftpolicy-ways-{os.getpid()}-") as folder:
            try:
                walk(way, Path(root), Path(tree), Path(folder))
            except Broken as error:
                print(f"FAILED: {way.name}: {error}", flush=True)
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
