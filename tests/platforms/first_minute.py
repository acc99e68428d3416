"""python -m tests.platforms.first_minute ROOT TREE [WAY...]: from a fresh Debian to a guard, and back.

Prints a transcript of each way: only what the program has printed, or the README's quick starts have, is typed. ROOT is
the root directory of the release, TREE a source tree with the package in dist/. "fact:" lines are what was seen by
packets. Exits with 1 if a fact does not hold, or a command was printed nowhere.
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
_PROMPT = "root# "
_INSTALL = "apt-get install ./dist/nftpolicy_*.deb"
_PAGE = """# From a fresh Debian to a guard, and back

Written by `script/matrix ways --write`: what was typed on Debian {}, in machines with systemd. Each command was printed
by one before it, or is in the [README](../README.md) (Install, Quick starts); the script fails at any other. A `fact` is
what was seen by packets at the far end of the uplink, with `open` as the control.
"""


class Broken(Exception):
    """A fact does not hold, a command that the program printed fails, or one was printed nowhere."""


def documented() -> str:
    """Return the parts of the README that a new user reads before the first command."""
    text = (debian_shell.ROOT / "README.md").read_text()
    return text[text.index("\n## Install\n") : text.index("\n## Ready policies\n")]


def page(debian: str, transcript: str) -> str:
    """Return the page with the commands and facts of a transcript, without the output of the commands."""
    lines = [_PAGE.format(debian)]
    for line in transcript.splitlines():
        if line.startswith("## "):
            lines += ["```\n"] * (len(lines) > 1) + [f"{line}\n", "```sh"]
        elif line.startswith(_PROMPT):
            lines.append(line.removeprefix(_PROMPT))
        elif line.startswith("fact: "):
            lines.append(f"    # {line}")
    return "\n".join([*lines, "```\n"])


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
        self._printed = documented()

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

    def type(self, command: str, step: str = "") -> str:
        """Run a command as a part of the transcript, and return its output.

        `step` is what was printed, if not the command itself. Raises Broken if it was not, or if the command fails.
        """
        if (step or command) not in self._printed:
            raise Broken(f"{step or command}: printed by no command, and not in the README")
        print(f"{_PROMPT}{command}", flush=True)
        status, output = self.run(command)
        self._printed += f"{output}\n"
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
    quiet = f"apt-get -qq update; {_INSTALL.replace('install', '-q -y install')}"
    done = debian_shell.run(root, tree, quiet, _fresh(folder, "apt"), 900, disk)
    print(f"\n## {way.name}\n\n{_PROMPT}{_INSTALL}", flush=True)
    if done.returncode or _INSTALL not in documented():
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
    print(f"{_PROMPT}reboot", flush=True)
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
            console.type(f"systemctl restart {way.unit}", step)
        elif step == "nftpolicy resolver nftpolicy.toml" or " fastd " in step:
            console.type(f"{step} >/tmp/log 2>&1 &", step)
            console.run('started="$started $!"; sleep 2')
        else:
            if step.startswith("nftpolicy install"):
                console.run("kill $started; sleep 2")
            _follow(console, console.type(step))


def _edit(console: Console, file: str, lines: list[str]) -> None:
    print(f"{_PROMPT}editor {file}    # {', '.join(lines)}", flush=True)
    for line in lines:
        expression = rf"/^\[Interface\]/a {line}" if " = " in line else f"1i {line}"
        console.run(f"sed -i '{expression}' {file}")


def _leave(console: Console) -> None:
    """Type what leads back."""
    output = console.type("nftpolicy uninstall")
    console.type("nftpolicy release")
    _follow(console, output)
    console.type("apt-get -q -y purge nftpolicy", "apt-get purge nftpolicy")


def _follow(console: Console, output: str) -> None:
    """Type the steps that a command names at its end."""
    for step in _NEXT.findall(output):
        console.type(step.replace("ifdown and ifup the device", f"ifdown {UPLINK}; ifup {UPLINK}"), step)


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
