"""Random sequences of commands, crashes, flapping links and foreign changes on a real kernel: the last policy holds.

NFTPOLICY_MACHINE sets a larger number of examples than CI makes.
"""

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nftpolicy.policy.objects import Policy
from tests.faulty_kernel import KILL, Faulty
from tests.guarded_lab import PROGRAM
from tests.lab import addresses as at
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.sniffer import Sniffer
from tests.leaks.test_crash import NEW, OLD
from tests.policy_strategies import to_toml
from tests.policy_transitions import STICK

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("NFTPOLICY_MACHINE", "7"))
STEPS = 9
ENVIRONMENT = {"NFTPOLICY_STATE": "/run/lab/state", "PYTHONDONTWRITEBYTECODE": "1"}
PROBE = b"a probe of the state machine"
FAR = {4: "192.0.2.1", 6: "2001:db8:1::1"}
POLICIES = {"old": OLD, "new": NEW}
DEADLINE = 1  # seconds
DAMAGE = {
    "flush ruleset": ["nft", "flush", "ruleset"],
    "delete the guard": ["nft", "delete", "table", "inet", "nftpolicy"],
    "flush rules": ["ip", "-6", "rule", "flush"],
}
HARMLESS = {
    "a table of others": ["nft", "add", "table", "inet", "somebody"],
    "a rule of others": ["ip", "rule", "add", "priority", "2000", "lookup", "main"],
    "a route of others": ["ip", "route", "replace", "default", "via", FAR[4], "dev", at.WAN, "table", "main"],
}


def _environment() -> None:
    os.environ.update(ENVIRONMENT)


def killed(file: str, number: int, after: bool) -> int:
    """Run an apply that is killed at a step; return the signal, or 0 if it ended earlier. Runs inside the node."""
    from nftpolicy.cli import apply_common
    from nftpolicy.cli.common import read_policy
    from nftpolicy.kernel.linux import Linux
    from nftpolicy.runtime.apply.transaction import ChangeOptions, TargetPolicy

    _environment()
    child = os.fork()
    if child == 0:
        try:
            policy, source = read_policy(Path(file))
            made = apply_common.create_applier(Faulty(Linux(), number, KILL, after), ChangeOptions())  # type: ignore[arg-type]
            wanted = TargetPolicy(policy, (source.name, source.text.encode()))
            with made.locked():
                made.apply(made.check(wanted), wanted)
            os._exit(0)
        finally:
            os._exit(1)
    return max(0, -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def promise(name: str) -> tuple[str, bool]:
    """Return the verdict on P1 and P2 of the policy, and True if a change is unfinished. Runs inside the node."""
    from attrs import evolve

    from nftpolicy.kernel.linux import Linux
    from nftpolicy.proof.policy_spec import build_spec
    from nftpolicy.proof.prover import prove_guard
    from nftpolicy.runtime.apply.executor import read_own_state
    from nftpolicy.runtime.apply.state_dir import current_state_dir

    _environment()
    kernel = Linux()
    present = kernel.device_names()
    asked = build_spec(POLICIES[name])
    # What is said of frames is said of devices that are there.
    asked = evolve(asked, frames={device for one in asked.uplinks for device in one.devices} <= present)
    return prove_guard(read_own_state(kernel, []), asked).verdict, current_state_dir().journal.interrupted() is not None


def send(family: int) -> None:
    """Send an unmarked packet, bound to the uplink. Runs inside the node."""
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.socket(domain, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
        try:
            made.sendto(PROBE, (FAR[family], 9))
        except OSError:
            return


class Machine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.node, self.far = Namespace("node"), Namespace("far")
        self.promised: str | None = None  # the policy whose promise stands
        self.broken = False  # others touched our objects since
        self.crashed = False
        self.known: list[str] = []  # the policies of the history, the newest last
        for device in (STICK, at.MESH):
            veth(self.node, device, self.far, f"to-{device}")
        self._wan()
        for name, policy in POLICIES.items():
            self.node.outside(f"/run/{name}.toml").write_text(self._text(policy))

    @staticmethod
    def _text(policy: Policy) -> str:
        return to_toml(policy)

    def _wan(self) -> None:
        veth(self.node, at.WAN, self.far, "lan")
        self.node.ip(f"addr add 192.0.2.2/24 dev {at.WAN}")
        self._up()
        self.sniffer = Sniffer(self.far, "lan")

    def _up(self) -> None:
        self.node.ip(f"link set {at.WAN} up")
        self.far.ip("link set lan up")
        self.node.ip(f"-6 addr replace 2001:db8:1::2/64 dev {at.WAN} nodad")  # it goes when the link goes down
        for family, address in FAR.items():
            self.node.ip(f"-{family} neigh replace {address} lladdr 02:00:00:00:00:01 dev {at.WAN} nud permanent")

    def teardown(self) -> None:
        if hasattr(self, "node"):
            self.sniffer.stop()
            self.node.close(), self.far.close()

    def _nftpolicy(self, *words: str, check: bool = True) -> Any:
        return self.node.run([PROGRAM, *words], env=ENVIRONMENT, check=check, timeout=30)

    def _applied(self, name: str) -> None:
        self.promised, self.broken, self.crashed = name, False, False
        if not self.known or self.known[-1] != name:
            self.known.append(name)

    @rule(name=st.sampled_from(sorted(POLICIES)))
    def apply(self, name: str) -> None:
        self._nftpolicy("apply", f"/run/{name}.toml")
        self._applied(name)
        assert "nothing to change" in self._nftpolicy("apply", f"/run/{name}.toml").stdout

    @rule(name=st.sampled_from(sorted(POLICIES)), kept=st.booleans())
    @precondition(lambda self: not self.broken and not self.crashed)
    def apply_on_trial(self, name: str, kept: bool) -> None:
        before = self.promised
        # What is to be kept has time for `confirm` on a slow machine.
        deadline = str(60 if kept else DEADLINE)
        done = self._nftpolicy("apply", "--confirm", deadline, f"/run/{name}.toml")
        if "nothing to change" in done.stdout:
            self._applied(name)
            return
        if kept:
            self._nftpolicy("confirm")
            self._applied(name)
            return
        self._applied(name)
        wait_until(lambda: not self.node.outside("/run/lab/state").glob("*/pending.json") or not list(
            self.node.outside("/run/lab/state").glob("*/pending.json")
        ), 20, "the way back")  # fmt: skip
        if before is None:
            self.promised = None
        else:
            self._applied(before)

    @rule()
    @precondition(lambda self: self.promised is not None and not self.crashed)
    def rollback(self) -> None:
        done = self._nftpolicy("rollback", check=False)
        if done.returncode:
            assert "no policy before this one" in done.stderr, done.stderr
            return
        self._applied("new" if self.promised == "old" else "old")

    @rule()
    def release(self) -> None:
        self._nftpolicy("release", "/run/old.toml")
        self.promised, self.broken, self.crashed = None, False, False

    @rule(name=st.sampled_from(sorted(POLICIES)), number=st.integers(0, 12), after=st.booleans())
    def crash(self, name: str, number: int, after: bool) -> None:
        was = self.promised
        if self.node.call(killed, f"/run/{name}.toml", number, after) == signal.SIGKILL:
            self.crashed = True
            begun = number or after
            self.promised = name if was is None and begun else was
            self.broken = self.broken and not begun
            self.crash_of = (was, name)
        else:
            self._applied(name)

    @rule(undo=st.booleans())
    @precondition(lambda self: self.crashed)
    def recover(self, undo: bool) -> None:
        self._nftpolicy("recover", *(["--undo"] if undo else []))
        held = [name for name in POLICIES if "nothing to change" in self._nftpolicy("apply", "--dry-run", f"/run/{name}.toml").stdout]  # fmt: skip
        assert len(held) == 1
        assert held[0] in self.crash_of
        self._applied(held[0])

    @rule(what=st.sampled_from(sorted(DAMAGE)))
    def damage(self, what: str) -> None:
        self.node.run(DAMAGE[what], check=False)
        if what == "flush rules":
            self.node.run(["ip", "-6", "rule", "add", "priority", "32766", "lookup", "main"], check=False)
        self.broken = True

    @rule(what=st.sampled_from(sorted(HARMLESS)))
    def others(self, what: str) -> None:
        self.node.run(HARMLESS[what], check=False)

    @rule(how=st.sampled_from(["flap", "rename", "anew"]))
    def link(self, how: str) -> None:
        if how == "flap":
            self.node.ip(f"link set {at.WAN} down")
        elif how == "rename":
            self.node.ip(f"link set {at.WAN} down", f"link set {at.WAN} name other0", f"link set other0 name {at.WAN}")
        else:
            self.sniffer.stop()
            self.node.ip(f"link del {at.WAN}")
            self._wan()
        if how != "flap":
            self.broken = self.broken or self.promised is not None  # its link guard went with the device
        self._up()

    @invariant()
    def what_was_promised_holds(self) -> None:
        if not hasattr(self, "node"):
            return
        if self.promised is not None and not self.broken:
            names = {self.promised, *(self.crash_of if self.crashed else ())} - {None}
            verdicts = {name: self.node.call(promise, name) for name in names}
            assert "proved" in {verdict for verdict, _ in verdicts.values()}
            assert {begun for _, begun in verdicts.values()} <= {self.crashed, False}
        self.sniffer.drain()
        for family in FAR:
            self.node.call(send, family)
        time.sleep(0.02)
        seen = sum(PROBE in frame.payload for frame in self.sniffer.frames())
        if self.promised is None and not self.crashed and not self.broken:
            assert seen == len(FAR), "the control: without a policy the probes are seen"
        elif self.promised is not None and not self.broken:
            assert seen == 0

    @invariant()
    def the_history_has_what_was_applied(self) -> None:
        if hasattr(self, "node"):
            found = list(self.node.outside("/run/lab/state").glob("*/history/*.json"))
            assert bool(found) >= bool(self.known)
            assert not list(self.node.outside("/run/lab/state").glob("*/history/.*"))


def test_random_command_sequence_keeps_last_policy() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=[Phase.generate] if EXAMPLES < 20 else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            derandomize=EXAMPLES < 20,
            database=None,
        ),
    )
