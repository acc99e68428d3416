# SPDX-License-Identifier: BSD-2-Clause
"""Event loop of the watch daemon: netlink notifications, repairs, and proofs of foreign changes.

There are two ways to repair. An object that a notification names is restored from prepared text
within milliseconds. Any other difference is found by a full check in a worker process, so that the
first way never waits for it. Pure decisions are in `repair_plan`.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ...compiler import names
from ...compiler.compile import Machine
from ...compiler.second import second
from ...kernel.errors import Refused, Unavailable
from ...kernel.monitor import UNKNOWN, Author, News
from ...netstate.changes import NftTransaction, RuleChange
from ...policy.errors import PolicyError
from ...policy.objects import Policy
from ...proof.verdict import PROVED
from ..changes.apply import NotHeld, Prospect, StillChanged, apply, prospect
from ..changes.journal import Text
from ..changes.memory import Busy
from ..changes.recover import NoWay, recover
from ..changes.unproved import NotProved, NotSafe
from ..changes.wording import summary
from ..rate_limiter import earliest_deadline
from . import decisions
from .aside import Aside
from .check_runner import CheckRunner
from .decisions import Held, Remedy
from .keeper import Keeper
from .repairs import Repairs
from .sockets import SocketWatch
from .termination import termination_signals
from .world import World

# Seconds.
_RETRY_LOCK = 0.02  # until the next try for a lock that another process holds
_RETRY_FAILURE = 1.0
_COMPARE_SYSCTLS = 5.0  # between two comparisons: some sysctl changes cause no notification
_FAILURES = (Refused, NotHeld, StillChanged, NoWay, NotProved, NotSafe, Unavailable, OSError)


class Watch:
    """Watch daemon of one network namespace. The policy stays in the kernel when it ends."""

    def __init__(self, environment: World) -> None:
        self.world = environment
        self.kernel, self.memory = environment.changer.kernel, environment.changer.memory
        self.text: Text | None = None
        self.policy: Policy | None = None
        self.held: Held | None = None
        self._tables = Aside(environment)
        self.verdict = ""
        self._machine = Machine()
        self._repairs = Repairs(environment)
        self._keeper = Keeper(environment)
        self._repairs_at_check = 0  # number of repairs when the running check started
        self._proved_state: int | None = None  # hash of the state that the verdict is about
        self._failures: list[str] = []
        self._logged_proof: object = None
        self._reconcile_at: float | None = None
        self._compare_at = self._watchdog_at = 0.0
        self._poll = select.poll()
        self._checks = CheckRunner(environment, self._poll)
        self._sockets = SocketWatch(self.kernel, environment, self._poll)

    @property
    def blocked(self) -> bool:
        """True while the uplinks are blocked."""
        return self._tables.blocked

    # --- the loop ---

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT."""
        with termination_signals() as terminated:
            self.world.say("start", {"pid": os.getpid()})
            self._poll.register(terminated, select.POLLIN)
            self.begin()
            for descriptor in self.world.ears.descriptors:
                self._poll.register(descriptor, select.POLLIN)
            self.world.manager.tell(READY=1, STATUS=self._status())
            try:
                while not self._wait(terminated):
                    self.turn()
            finally:
                self._checks.cancel()
                self._sockets.cancel()
                self.world.manager.tell(STOPPING=1)
        fields: dict[str, Any] = {"policy": self.policy.name} if self.policy else {}
        if self.blocked:
            fields["blocked"] = "block remains loaded"
        self.world.say("end", fields)

    def begin(self) -> None:
        """Load the policy that was applied last, and reconcile the kernel with it."""
        self.memory.folder.mkdir(parents=True, exist_ok=True)
        self.world.ears.watch_folder(self.memory.folder)
        self.world.ears.leave_out(self.world.ports())
        self._compare_at = self.world.now() + _COMPARE_SYSCTLS
        self._reconcile()
        if self.held is None and self._reconcile_at is None:
            self.world.say("waiting", {"for": "a policy to be applied"})

    def _wait(self, terminated: int) -> bool:
        """Sleep until the next event or deadline; return True if a termination signal arrived."""
        watchdog = self.world.manager.watchdog
        deadlines = [self._reconcile_at, self._checks.due(), self._repairs.due()]
        deadlines += [self._keeper.due(), self._sockets.due(self.policy)]
        if self.held:
            deadlines.append(self._compare_at)
        if watchdog:
            deadlines.append(self._watchdog_at + watchdog)
        until = earliest_deadline(deadlines)
        wait_ms = None if until is None else max(0.0, until - self.world.now()) * 1000 + 0.5
        return any(descriptor == terminated for descriptor, _ in self._poll.poll(wait_ms))

    def turn(self) -> None:
        """Process all events, and do all that is due. Never waits."""
        now = self.world.now()
        news = self.world.ears.read()
        self._react(news, now)
        self._keeper.turn(news)
        self._process_check()
        if self._reconcile_at is not None and now >= self._reconcile_at:
            self._reconcile()
        if self.held and now >= self._compare_at:
            self._compare_at = now + _COMPARE_SYSCTLS
            self._fast_repair(self.held.remedy(News(), self.world.ears.sysctls()), UNKNOWN, now)
            for fields in self.world.leaks(self.policy):
                self.world.say("resolver-leak", fields)
        self._start_check_if_due()
        self._sockets.turn(self.policy)
        self._repairs.tell()
        watchdog = self.world.manager.watchdog
        if watchdog and now >= self._watchdog_at + watchdog:
            self._watchdog_at = now
            self.world.manager.tell(WATCHDOG=1)

    # --- fast repair ---

    def _react(self, news: News, now: float) -> None:
        """Repair what these events name, and schedule the checks that they require."""
        if news.files:
            self._reconcile_at = now
        if not news or self.held is None:
            return
        if news.lost:
            fields = {"why": "netlink receive buffer overflow (ENOBUFS)", "then": "full check"}
            self.world.say("notifications-lost", fields)
        if news.links:
            self.world.ears.watch_sysctls(self.held.sysctls)
        values = self.world.ears.sysctls() if news.sysctls or news.links else {}
        if news.damage:
            self._repairs.author = news.author
        if (news.damage and not news.sysctls) or news.links:
            self._repairs.begin(bool(news.gone or news.chains))
        self._fast_repair(self.held.remedy(news, values), news.author, now)
        if news.aside and self._tables.blocked:
            self._run_locked(self._block)
        if news.damage or news.links or news.addresses:
            self._checks.request_comparison()
        if news.damage or news.foreign or news.ladder or news.links:
            self._checks.request_proof()

    def _fast_repair(self, remedy: Remedy, author: Author, now: float) -> None:
        """Run a repair from prepared text."""
        if not remedy:
            return
        self._repairs.begin(bool(remedy.nft))
        if self._reconcile_at is not None:
            return  # another process holds the lock; reconciling repairs everything
        repaired = False

        def repair() -> None:
            nonlocal repaired
            if self.memory.policy() != self.text or self.memory.journal.interrupted():
                return
            if remedy.nft and (error := self.world.load(remedy.nft, False)):
                self.world.say("failed", {"what": remedy.what, "why": error.strip().splitlines()[0]})
                return
            for change in remedy.changes:
                # Refused: the object is there again, or its device is gone. The full check sees
                # which.
                with suppress(Refused):
                    self.kernel.carry_out(change)
            repaired = True

        if self._run_locked(repair) and repaired:
            self._repairs.done(remedy.what, author, bool(remedy.nft))
        else:
            self._reconcile_at = self._reconcile_at or now
        self._checks.request_comparison()
        self._checks.request_proof()

    # --- under the lock: reconcile ---

    def _run_locked(self, action: Callable[[], None]) -> bool:
        """Run an action under the lock of the state directory.

        Returns False and schedules a retry if another process holds the lock, or the action fails.
        """
        try:
            with self.memory.alone():
                action()
            return True
        except Busy:
            self._reconcile_at = self.world.now() + _RETRY_LOCK
        except _FAILURES as error:
            self._reconcile_at = self.world.now() + _RETRY_FAILURE
            self.world.say("failed", {"why": str(error) or type(error).__name__})
        return False

    def _reconcile(self) -> None:
        """End an interrupted change, adopt the last applied policy, and enforce it, all locked."""
        self._reconcile_at = None
        self._run_locked(self._reconcile_locked)

    def _reconcile_locked(self) -> None:
        if self.memory.journal.interrupted() is not None:
            recover(self.world.changer, tell=lambda line: self.world.say("interrupted", {"what": line}))
        self._adopt(self.memory.policy())
        if self.policy is None:
            return
        self._repairs.devices = self._uplink_devices()
        planned = prospect(self.kernel, self.policy, self.memory)
        if planned.plan.steps:
            self._repairs.begin(False)
            apply(self.kernel, planned, self.memory)
            guard = any(isinstance(step, NftTransaction) for step in planned.plan.steps)
            self._repairs.done(list(summary(planned.plan.steps)), self._repairs.author, guard)
        self._repairs.nothing()
        self._enforce(planned)

    def _enforce(self, planned: Prospect) -> None:
        """Prepare repairs of this desired state, and watch it."""
        families = {table.family for table in planned.desired.tables}
        self._machine = Machine(planned.ports, "netdev" in families, planned.unhooked)
        self._repairs.devices = self._uplink_devices()
        if self.held is None or self.held.desired != planned.desired:
            self.held = Held(planned.desired)
        self.world.ears.watch_sysctls(self.held.sysctls)
        self._tables.double(second(self.held.desired))
        self._keeper.hold(self.policy)
        self._preload(self.held)
        self.world.ears.leave_out(self.world.ports())
        self._checks.request_proof()

    def _uplink_devices(self) -> frozenset[str]:
        """Return the devices of all uplinks, and their bridge ports."""
        assert self.policy is not None
        devices = {device for uplink in self.policy.uplink.values() for device in uplink.devices}
        return frozenset(devices | {port for ports in self._machine.ports.values() for port in ports})

    def _preload(self, held: Held) -> None:
        """Do once without effect what a repair does: loads libraries, and binds netlink sockets."""
        self._repairs.warm()
        self.world.load(held.everything, True)
        for rule in held.desired.rules[:1]:
            with suppress(Refused):
                self.kernel.carry_out(RuleChange("add", rule))  # refused with EEXIST

    def _adopt(self, latest: Text | None) -> None:
        """Take over a policy that was applied or released meanwhile."""
        if latest == self.text and (latest is None) == (self.policy is None):
            return
        if latest is None and self.text is not None and self._is_guard_loaded():
            # `release` would have removed the guard as well: only the file is missing.
            self.memory.remember_policy(*self.text)
            self.world.say("policy-restored", {"policy": self.text[0], "why": "policy file missing, guard loaded"})
            return
        self.text, self.policy, self.held, self._proved_state, self.verdict = latest, None, None, None, ""
        self._keeper.hold(None)
        if latest is None:
            self._tables.double(())
            self._unblock("policy released")
            self.world.ears.watch_sysctls(())
            self.world.say("released", {"then": "no policy is enforced until one is applied"})
        else:
            try:
                self.policy = self.world.changer.load(latest)
            except (PolicyError, ValueError) as error:
                self.world.say("failed", {"what": latest[0], "why": str(error), "then": "no policy is enforced"})
                self._notify_status()
                return
            if self._tables.find():
                self.world.say("blocked", {"policy": self.policy.name, "why": "the block was loaded already"})
            self.world.say("enforcing", {"policy": self.policy.name, "file": latest[0]})
        self._notify_status()

    def _is_guard_loaded(self) -> bool:
        return bool(self.kernel.observe(names.TABLE, ("inet",), 0, ()).tables)

    # --- full check in a worker process ---

    def _start_check_if_due(self) -> None:
        if self.policy is None or self.held is None or self._reconcile_at is not None:
            return
        if self._checks.start_if_due(self.policy, self._proved_state):
            self._repairs_at_check = self._repairs.number

    def _process_check(self) -> None:
        """Act on the result of a check that has ended: reconcile, or handle its proof."""
        try:
            result = self._checks.finished()
        except ValueError as error:
            self.world.say("failed", {"why": str(error)})
            self._reconcile_at = self.world.now() + _RETRY_FAILURE
            return
        if result is None:
            return
        if result["differs"]:
            self._reconcile()
        elif self._repairs.number == self._repairs_at_check:
            self._repairs.nothing()
            if self._checks.proves:
                self._handle_proof(result)

    def _handle_proof(self, result: dict[str, Any]) -> None:
        """Log a new verdict; block or unblock the uplinks."""
        if result["state"] != self._proved_state:
            self._proved_state, self.verdict = result["state"], result["verdict"]
            self._failures = result["failures"]
            proof = (self.verdict, self._failures)
            if proof != self._logged_proof:
                self._logged_proof = proof
                why = {"why": self._failures} if self._failures else {}
                self.world.say("proof", {"verdict": self.verdict, **why})
        must_block = decisions.blocks(self.verdict, self.world.block_unknown)
        if must_block and not self.blocked and self._run_locked(self._block) and self._tables.blocked:
            self.world.say("blocked", {"policy": self.policy.name if self.policy else "", "why": self._failures})
        if self.verdict == PROVED and self.blocked:
            self._run_locked(lambda: self._unblock("the proof succeeds again"))
        self._notify_status()

    def _block(self) -> None:
        if self.policy is None or self.memory.policy() != self.text:
            return
        if not self._tables.block(self.policy, self._machine):
            self._proved_state = None

    def _unblock(self, why: str) -> None:
        if not self._tables.lift(why):
            self._checks.request_proof()
            self._proved_state = None

    # --- the service manager ---

    def _status(self) -> str:
        if self.policy is None:
            return "no policy is in force"
        blocked = "BLOCKED, " if self.blocked else ""
        return f"{blocked}{self.policy.name}: {self.verdict or 'enforced'}"

    def _notify_status(self) -> None:
        self.world.manager.tell(STATUS=self._status())
