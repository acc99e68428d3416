"""Machine of a scenario: systemd in a Debian root directory, with nftpolicy as its units run it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab import systemd_machine
from tests.lab.limits import limit
from tests.lab.systemd_machine import Machine

from .outside import LAN, LENGTH, MACHINE, MACHINE_LAN, SERVICE_GID, UPLINK, Outside
from .scenario import Check, Scenario

ROOT = Path(__file__).parents[2]
PROGRAM = "/opt/nftpolicy"
POLICY = "/etc/nftpolicy/policy.toml"
_PREFIX = "nftpolicy-beside-"  # of the temporary directories, before the process id
_STEP = 90  # seconds of a command
_SETTLED = 20  # seconds until the job works after a command
_WRAPPER = """#!/bin/sh
PYTHONPATH=/opt/share:$(echo /opt/share/.venv/lib/python3*/site-packages)
PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH PYTHONDONTWRITEBYTECODE
exec /usr/bin/python3 -m nftpolicy "$@"
"""
_DEVICES = f"""
ip link set lo up
ip link set {LAN} up
ip addr add {MACHINE_LAN[4]}/{LENGTH[4]} dev {LAN}
ip addr add {MACHINE_LAN[6]}/{LENGTH[6]} dev {LAN} nodad
"""
_STATIC = f"""
ip link set {UPLINK} up
ip addr add {MACHINE[4]}/{LENGTH[4]} dev {UPLINK}
ip addr add {MACHINE[6]}/{LENGTH[6]} dev {UPLINK} nodad
ip route add default via 192.0.2.1 dev {UPLINK}
ip -6 route add default via 2001:db8:1::1 dev {UPLINK}
"""
_UNIT = """
[Unit]
DefaultDependencies=no
After=network-pre.target systemd-sysctl.service dbus.socket
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -e /opt/network.sh
"""
_BOOTED = """
[Unit]
After=network.target dbus.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mkdir -p /run/out; echo >/run/out/done'
"""
# Nothing that a package enabled starts by itself. Devices have no udev here.
_PREPARE = f"""
rm -rf etc/systemd/system/*.wants var/lib/nftpolicy etc/resolv.conf
for one in systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udev-trigger.service systemd-modules-load.service; do
    ln -sf /dev/null etc/systemd/system/$one
done
mkdir -p dev/net etc/systemd/system/multi-user.target.wants
mknod dev/net/tun c 10 200
for one in network booted; do ln -s ../$one.service etc/systemd/system/multi-user.target.wants/; done
echo nameserver 192.0.2.1 >etc/resolv.conf
echo machine >etc/hostname
echo 127.0.0.1 localhost machine >etc/hosts
echo 'service:x:{SERVICE_GID}:' >>etc/group
chmod 755 opt/nftpolicy
mount -o remount,bind,ro sys  # so network managers know that no udev will come
"""
# The daemon says these while it does its work; `socket` is about the senders of the flood, `resolver-leak` about the
# configuration of the machine.
_EXPECTED_EVENTS = {
    "start",
    "enforcing",
    "route-moved",
    "route-withdrawn",
    "private-networks",
    "socket",
    "waiting",
    "resolver-leak",
}


class StepFailed(Exception):
    """A command of the scenario failed, or its job does not work."""


class Host:
    """The machine, seen by the runner."""

    def __init__(self, machine: Machine, around: Outside, scenario: Scenario) -> None:
        self._machine, self.around, self._scenario = machine, around, scenario

    def run(self, command: str) -> str:
        """Run a command of the scenario and return its output; StepFailed if its exit status is not 0."""
        try:
            done = self._machine.shell(command, _STEP)
        except subprocess.TimeoutExpired:
            raise StepFailed(f"{command}: not done after {limit(_STEP):g} s") from None
        if done.returncode:
            raise StepFailed(f"{command}: exit status {done.returncode}: {done.stdout[-1500:].strip()}")
        return done.stdout

    def nftpolicy(self, words: str) -> subprocess.CompletedProcess[str]:
        """Run nftpolicy; its errors are in its output."""
        return self._machine.shell(f"{PROGRAM} {words}", _STEP)

    def guard(self) -> None:
        """Install the policy with its units, and start them. StepFailed."""
        self.run(f"{PROGRAM} install --enable --program {PROGRAM} --nft /usr/sbin/nft {POLICY}")

    def open(self) -> None:
        """Remove all of nftpolicy. StepFailed."""
        self.run(f"{PROGRAM} uninstall && {PROGRAM} release")

    def check(self, guarded: bool) -> None:
        """Wait until the job works; StepFailed with the output of the check that fails."""
        for check in self._scenario.works:
            if check.guarded not in (None, guarded):
                continue
            end = time.monotonic() + limit(_SETTLED)
            while not re.search(check.expects, output := self._output(check)):
                if time.monotonic() > end:
                    raise StepFailed(f"{check.command}: {output[-500:].strip() or 'no output'}")
                time.sleep(0.3)

    def _output(self, check: Check) -> str:
        if check.lan or check.internet:
            space = self.around.lan if check.lan else self.around.internet
            return space.run(["sh", "-c", f"{check.command} 2>&1"], check=False, timeout=_STEP).stdout
        return self._machine.shell(check.command, _STEP).stdout

    def events(self) -> list[str]:
        """Return the lines of watch's log that speak of more than its ordinary work."""
        log = self._machine.shell("journalctl --no-pager -o cat -u nftpolicy-watch", _STEP).stdout
        found = []
        for line in log.splitlines():
            if event := re.search(r"\bevent=([\w-]+)", line):
                expected = {*_EXPECTED_EVENTS, *self._scenario.events}
                is_proof = event[1] == "proof" and "verdict=proved" in line
                if event[1] not in expected and not is_proof:
                    found.append(line)
        return found

    def wait_for_watch(self) -> None:
        """Wait until watch has proved the present state, as it does after a change. StepFailed."""
        end = time.monotonic() + limit(30)
        while self._machine.shell("systemctl is-active -q nftpolicy-watch nftpolicy", _STEP).returncode:
            if time.monotonic() > end:
                raise StepFailed(self._machine.shell("systemctl status nftpolicy nftpolicy-watch", _STEP).stdout)
            time.sleep(0.3)

    def state(self) -> list[str]:
        """Return ip rules in their order, and routes, nft ruleset and network sysctls, without what time changes."""
        space = self.around.machine
        lines = []
        for family in (4, 6):
            rules = space.run(["ip", "-N", f"-{family}", "rule"]).stdout.splitlines()
            # A program that lets the kernel choose the priority gets another one beside the rules of nftpolicy.
            lines += [f"rule {family} {line.partition(':')[2].strip()}" for line in rules]
            routes = space.run(["ip", "-N", f"-{family}", "route", "show", "table", "all"]).stdout.splitlines()
            lines += sorted(f"route {family} {_without_time(line)}" for line in routes)
        ruleset = space.run(["nft", "-s", "list", "ruleset"]).stdout
        # A program that starts again may write its chains in another order.
        lines += sorted(f"nft {_without_time(line)}" for line in ruleset.splitlines() if line.strip())
        sysctls = self._machine.shell("sysctl -a 2>/dev/null", _STEP).stdout.splitlines()
        lines += [line for line in sysctls if line.startswith("net.") and not _VOLATILE.search(line)]
        return lines

    def words(self) -> str:
        """Return the end of the journal."""
        return self._machine.shell("journalctl -b --no-pager | tail -n 60", _STEP).stdout


_VOLATILE = re.compile(r"nf_conntrack_count|stable_secret|tcp_fastopen_key|\.neigh\.")
# The link-local address of a tunnel's device is another one at each start.
_TIMED = re.compile(" expires [0-9]+sec|(?<=fe80::)[0-9a-f]+:[0-9a-f]+:[0-9a-f]+:[0-9a-f]+")


def _without_time(line: str) -> str:
    return _TIMED.sub("", line).strip()


def remove_leftovers() -> None:
    """Remove the files and cgroups of runs that were killed. Namespaces and processes have ended with them."""
    systemd_machine.remove_leftovers()
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not Path("/proc", folder.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            shutil.rmtree(folder)


@contextlib.contextmanager
def booted_host(root: Path, around: Outside, scenario: Scenario) -> Iterator[Host]:
    """Yield the machine, with addresses on its devices and nothing else."""
    served = scenario.serve(around) if scenario.serve else {}
    units = {"network": _UNIT, "booted": _BOOTED}
    files = {f"etc/systemd/system/{name}.service": text for name, text in units.items()}
    files |= {"opt/nftpolicy": _WRAPPER, POLICY.removeprefix("/"): scenario.policy}
    files |= {"opt/network.sh": _DEVICES + (_STATIC if scenario.static else ""), **scenario.files, **served}
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as folder:
        machine = systemd_machine.booted(
            Path(folder), ROOT, files, _PREPARE + scenario.prepare, "/run/out/done", 60, root, around.machine
        )
        with machine as made:
            yield Host(made, around, scenario)


def verdict(output: str) -> tuple[str, list[str]]:
    """Return the verdict of `nftpolicy verify --json`, and the titles of the findings that are not proved."""
    try:
        report = json.loads(output[output.index("{") :])
    except ValueError:
        return "no report", [output[-300:]]
    findings = [one for one in report["findings"] if one.get("verdict") not in ("proved", None)]
    return str(report["verdict"]), [json.dumps(one)[:300] for one in findings[:3]]
