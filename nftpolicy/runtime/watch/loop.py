# SPDX-License-Identifier: BSD-2-Clause
"""Event loop of the watch daemon: netlink notifications, repairs, and proofs of foreign changes.

There are two ways to repair. An object that a notification names is restored from prepared text
within milliseconds. Any other difference is found by a full check in a worker process, so that the
first way never waits for it. Pure decisions are in `repair_plan`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ...compiler.compile import HostFacts, compile_policy
from ...compiler.shadow_guard import shadow_guard_tables
from ...exceptions import NftpolicyError
from ...kernel.errors import StepRefused
from ...kernel.netlink.monitor import UNKNOWN_ORIGIN, ChangeSet, Origin
from ...netstate.operations import NftTransaction
from ...policy.errors import PolicyError
from ...policy.objects import Policy
from ..apply.confirm_timer import restart_if_ended
from ..apply.executor import PlannedChange, apply_change, plan_change, read_host_facts
from ..apply.journal import PolicySource
from ..apply.recover import recover
from ..apply.state_dir import Locked
from ..apply.step_text import summarize
from ..rate_limiter import earliest_deadline
from .check_runner import CheckRunner
from .device_presence import DevicePresence
from .environment import Environment
from .event_poll import EventPoll
from .fault_barrier import FaultBarrier
from .guard_tables import GuardTables
from .proof_log import ProofLog
from .repair_log import RepairLog
from .repair_plan import DesiredState, Repair, guarded_devices, status_text, uplink_devices
from .route_keeper import RouteKeeper
from .socket_audit import SocketAudit
from .termination import termination_signals

# Seconds.
_RETRY_LOCK = 0.02  # until the next try for a lock that another process holds
_RETRY_FAILURE = 1.0
_COMPARE_SYSCTLS = 5.0  # between two comparisons: some sysctl changes cause no notification


class Watch:
    """Watch daemon of one network namespace. The policy stays in the kernel when it ends.

    `first_change`: change to make under the lock before the first reconciliation; None: none.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.kernel, self.state_dir = environment.applier.kernel, environment.applier.state_dir
        self.source: PolicySource | None = None
        self.policy: Policy | None = None
        self.desired: DesiredState | None = None
        self.first_change: Callable[[], None] | None = None
        self._tables = GuardTables(environment)
        self._proof = ProofLog(environment)
        self._barrier = FaultBarrier(environment)
        self._machine = HostFacts()
        self._presence = DevicePresence(self.kernel)
        self._repairs = RepairLog(environment)
        self._reconcile_at: float | None = None
        self._compare_at = 0.0
        self._poll = EventPoll(environment.events, environment.now)
        self._keeper = RouteKeeper(environment, self._poll.is_guard_changed)
        self._checks = CheckRunner(environment, self._poll.poll)
        self._sockets = SocketAudit(self.kernel, environment, self._poll.poll)

    @property
    def is_blocked(self) -> bool:
        """True while the uplinks are blocked."""
        return self._tables.is_blocked

    @property
    def verdict(self) -> str:
        """Verdict of the last proof; "" before the first one."""
        return self._proof.verdict

    # --- the loop ---

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT."""
        with termination_signals() as terminated:
            self.environment.log_event("start", {"pid": os.getpid()})
            self._poll.register_events(terminated)
            self.start()
            self.environment.service_manager.notify(READY=1, STATUS=self._status())
            try:
                while not self._wait(terminated):
                    self.process()
            finally:
                self._checks.cancel()
                self._sockets.cancel()
                self._poll.close()
                self.environment.service_manager.notify(STOPPING=1)
        fields: dict[str, Any] = {"policy": self.policy.name} if self.policy else {}
        if self.is_blocked:
            fields["blocked"] = "block remains loaded"
        self.environment.log_event("end", fields)

    def prepare(self, named: Policy | None = None) -> None:
        """Load the shadow guard of the policy in force; without one, of `named`.

        Takes no lock, so that no other process can delay it.
        """
        self._barrier.run("shadow guard", lambda: self._load_shadow_guard(named))

    def _load_shadow_guard(self, named: Policy | None) -> None:
        source = self.state_dir.policy()
        policy = self.environment.applier.load(source) if source else named
        if policy is not None:
            facts, unwritable_ports = read_host_facts(self.kernel, policy)
            self._tables.load_shadow(shadow_guard_tables(compile_policy(policy, facts)))
            self._tables.block_ports(unwritable_ports)

    def start(self) -> None:
        """Load the shadow guard, then the policy that was applied last, and reconcile the kernel with it."""
        self.prepare()
        self.state_dir.create()
        self.environment.events.watch_directory(self.state_dir.directory)
        self.environment.events.ignore_ports(self.environment.netlink_ports())
        self._compare_at = self.environment.now() + _COMPARE_SYSCTLS
        self._reconcile()
        if self.desired is None and self._reconcile_at is None:
            self.environment.log_event("waiting", {"for": "a policy to be applied"})

    def _wait(self, terminated: int) -> bool:
        """Sleep until the next event or deadline; return True if a termination signal arrived."""
        deadlines = [self.environment.service_manager.watchdog_due(), self._reconcile_at, self._checks.due()]
        deadlines += [self._repairs.due(), self._keeper.due(), self._sockets.due(self.policy)]
        deadlines += [self._poll.due(), self._compare_at if self.desired else None]
        return terminated in self._poll.wait(earliest_deadline(deadlines))

    def process(self) -> None:
        """Process all events, and do all that is due. Never waits."""
        if self._poll.event_time is not None:  # nothing was missing before that
            self._repairs.mark_whole(self._poll.event_time)
        now = self.environment.now()
        changes = ChangeSet(overflowed=True)  # a read that fails has lost events

        def read() -> None:
            nonlocal changes
            changes = self.environment.events.read()

        self._barrier.run("events", read)
        if not changes.affects_ours:
            self._repairs.mark_whole(now)
        if changes.route_added or changes.addresses or changes.withdrawn_routers:
            self._poll.mute_news()
        if not self._barrier.run("repair", lambda: self._react(changes, now)):
            self._reconcile_at = self._reconcile_at or now + _RETRY_FAILURE
        self._barrier.run("full check", self._process_check)
        if self._reconcile_at is not None and now >= self._reconcile_at:
            self._reconcile()
        if self.desired and now >= self._compare_at:
            self._compare_at = now + _COMPARE_SYSCTLS
            self._barrier.run("confirm timer", lambda: restart_if_ended(self.state_dir, self.environment.log_event))
            self._barrier.run("sysctls", lambda: self._compare_sysctls(now))
            self._barrier.run("resolver leaks", self._log_resolver_leaks)
        self._barrier.run("full check", self._start_check_if_due)
        self._barrier.run("routes", lambda: self._keeper.process(changes))
        self._barrier.run("socket audit", lambda: self._sockets.process(self.policy))
        self._barrier.run("log", self._repairs.report_conflict)
        self.environment.service_manager.ping_watchdog(now)

    def _compare_sysctls(self, now: float) -> None:
        assert self.desired is not None
        repair = self.desired.repair_for(ChangeSet(), self.environment.events.sysctl_values())
        self._fast_repair(repair, UNKNOWN_ORIGIN, now)

    def _log_resolver_leaks(self) -> None:
        for fields in self.environment.resolver_leaks(self.policy):
            self.environment.log_event("resolver-leak", fields)

    # --- fast repair ---

    def _react(self, changes: ChangeSet, now: float) -> None:
        """Repair what these events name, and schedule the checks that they require."""
        if changes.files:
            self._reconcile_at = now
        if not changes or self.desired is None:
            return
        if changes.overflowed:
            fields = {"why": "netlink receive buffer overflow (ENOBUFS)", "then": "full check"}
            self.environment.log_event("notifications-lost", fields)
        if changes.links:
            self.environment.events.watch_sysctls(self.desired.sysctls)
            if self._presence.requires_plan():
                self._reconcile_at = now
        values = self.environment.events.sysctl_values() if changes.sysctls or changes.links else {}
        if changes.affects_ours:
            self._repairs.origin = changes.origin
        if (changes.affects_ours and not changes.sysctls) or changes.links:
            self._repairs.start_outage(bool(changes.deleted_families or changes.changed_chains))
        self._fast_repair(self.desired.repair_for(changes, values), changes.origin, now)
        if changes.auxiliary_changed and self._tables.is_blocked:
            self._run_locked(self._block if self._proof.requires_block else self._tables.detect_block)
        if changes.affects_ours or changes.links or changes.addresses:
            self._checks.request_comparison()
        if changes.affects_ours or changes.foreign_changes or changes.foreign_rules_changed or changes.links:
            self._checks.request_proof()

    def _fast_repair(self, repair: Repair, author: Origin, now: float) -> None:
        """Run a repair from prepared text."""
        if not repair:
            return
        self._repairs.start_outage(bool(repair.nft_text))
        repaired = False

        def run() -> None:
            nonlocal repaired
            if self._is_policy_changing() or not self._tables.load_repair(repair):
                return
            self._barrier.run("sysctls", lambda: self.state_dir.save_sysctls(repair.earlier_sysctls))
            for change in repair.changes:
                # Refused: the object is there again, or its device is gone. The full check sees which.
                with suppress(StepRefused):
                    self.kernel.apply_step(change)
            repaired = True

        if self._run_locked(run) and repaired:
            self._repairs.record_repair(repair.repaired_objects, author, bool(repair.nft_text))
        else:
            self._reconcile_at = self._reconcile_at or now
        self._checks.request_comparison()
        self._checks.request_proof()

    # --- under the lock: reconcile ---

    def _run_locked(self, action: Callable[[], object]) -> bool:
        """Run an action under the lock of the state directory.

        Returns False and schedules a retry if another process holds the lock, or the action fails.
        """
        try:
            with self.state_dir.lock():
                action()
            return True
        except Locked:
            self._reconcile_at = self.environment.now() + _RETRY_LOCK
        except Exception as error:
            self._reconcile_at = self.environment.now() + _RETRY_FAILURE
            self._barrier.report("policy", error)
        return False

    def _reconcile(self) -> None:
        """End an interrupted change, adopt the last applied policy, and enforce it, all locked."""
        self._reconcile_at = None
        if not self._run_locked(self._reconcile_locked):
            self._run_locked(self._contain)

    def _contain(self) -> None:
        """Load the guard in spite of a failed reconciliation; block the uplinks if the kernel refuses a part."""
        if self.policy is None or self.state_dir.policy() != self.source:
            return
        facts, _ = read_host_facts(self.kernel, self.policy)
        state = compile_policy(self.policy, facts)
        if not self._tables.load_missing(state.tables) and not self.is_blocked:
            self._block(("the guard cannot be restored",))
            self._notify_status()

    def _reconcile_locked(self) -> None:
        if self.state_dir.journal.interrupted() is not None:
            log_event = self.environment.log_event
            recover(self.environment.applier, log=lambda line: log_event("interrupted", {"what": line}))
        if self.first_change is not None:
            self.first_change()
            self.first_change = None
        self._adopt(self.state_dir.policy())
        if self.policy is None:
            return
        self._repairs.devices = guarded_devices(self.policy, self._machine)
        planned = plan_change(self.kernel, self.policy, self.state_dir)
        if planned.plan.steps:
            self._repairs.start_outage(False)
            apply_change(self.kernel, planned, self.state_dir)
            guard = any(isinstance(step, NftTransaction) for step in planned.plan.steps)
            self._repairs.record_repair(list(summarize(planned.plan.steps)), self._repairs.origin, guard)
        self._repairs.clear_outage()
        self._enforce(self.policy, planned)

    def _enforce(self, policy: Policy, planned: PlannedChange) -> None:
        """Prepare repairs of this desired state, and watch it."""
        self._machine = planned.host
        self._presence.set_devices(uplink_devices(policy), planned.host)
        self._repairs.devices = guarded_devices(policy, self._machine)
        if self.desired is None or self.desired.state != planned.desired:
            self.desired = DesiredState(planned.desired)
        self.environment.events.watch_sysctls(self.desired.sysctls)
        self._tables.load_shadow(shadow_guard_tables(self.desired.state))
        self._tables.block_ports(planned.unwritable_ports)
        self._keeper.set_policy(policy, self.source)
        self._repairs.preload()
        self._tables.preload(self.desired)
        self.environment.events.ignore_ports(self.environment.netlink_ports())
        self._checks.request_proof()

    def _adopt(self, latest: PolicySource | None) -> None:
        """Take over a policy that was applied or released meanwhile."""
        if latest == self.source and (latest is None) == (self.policy is None):
            return
        if latest is None and self.source is not None and self._tables.is_guard_loaded():
            # `release` would have removed the guard as well: only the file is missing.
            self.state_dir.save_policy(*self.source)
            self.environment.log_event(
                "policy-restored", {"policy": self.source[0], "why": "policy file missing, guard loaded"}
            )
            return
        self.source, self.policy, self.desired = latest, None, None
        self._checks.cancel()  # it compares the policy before with the kernel of this one
        self._proof.clear()
        self._keeper.set_policy(None)
        if latest is None:
            self._tables.load_shadow(())
            self._tables.block_ports(())
            self._unblock("policy released")
            self.environment.events.watch_sysctls(())
            self.environment.log_event("released", {"then": "no policy is enforced until one is applied"})
        else:
            try:
                self.policy = self.environment.applier.load(latest)
            except (PolicyError, ValueError) as error:
                fields = {"what": latest[0], "why": str(error), "then": "no policy is enforced"}
                self.environment.log_event("failed", fields)
                self._notify_status()
                return
            if self._tables.detect_block():
                fields = {"policy": self.policy.name, "why": "the block was loaded already"}
                self.environment.log_event("blocked", fields)
            self.environment.log_event("enforcing", {"policy": self.policy.name, "file": latest[0]})
        self._notify_status()

    def _is_policy_changing(self) -> bool:
        """Return True if another process has applied or released a policy since the last adoption, or is doing so."""
        return self.state_dir.policy() != self.source or self.state_dir.journal.interrupted() is not None

    # --- full check in a worker process ---

    def _start_check_if_due(self) -> None:
        if self.policy is None or self.desired is None or self._reconcile_at is not None:
            return
        self._checks.start_if_due(self.policy, self._proof.state, self._repairs.count)

    def _process_check(self) -> None:
        """Act on the result of a check that has ended: reconcile, or handle its proof."""
        try:
            result = self._checks.finished()
        except ValueError as error:
            self._barrier.report("full check", NftpolicyError(str(error)))
            self._checks.request_proof()
            return
        if result is None:
            return
        if self._tables.block_ports(result["unwritable_ports"]):
            self.environment.events.ignore_ports(self.environment.netlink_ports())
        if self._is_policy_changing():
            self._reconcile()  # adopts that policy, and requests a proof
        elif self._checks.is_outdated(self._repairs.count):
            self._checks.request_comparison()
        elif result["differs"]:
            self._reconcile()
        else:
            self._repairs.clear_outage()
            if self._checks.proves:
                self._handle_proof(result)

    def _handle_proof(self, result: dict[str, Any]) -> None:
        """Log a new verdict; block or unblock the uplinks."""
        self._proof.record(result)
        if self._proof.requires_block and not self.is_blocked:
            self._run_locked(lambda: self._block(self._proof.leaks or self._proof.failures))
        if self._proof.is_leak_free and self.is_blocked:
            self._run_locked(lambda: self._unblock("the proof succeeds again"))
        self._notify_status()

    def _block(self, reasons: Sequence[str] = ()) -> None:
        if self.policy is None or self.state_dir.policy() != self.source:
            return
        if not self._tables.block(self.policy, self._machine, reasons):
            self._proof.state = None

    def _unblock(self, why: str) -> None:
        if not self._tables.unblock(why):
            self._checks.request_proof()
            self._proof.state = None

    # --- the service manager ---

    def _status(self) -> str:
        return status_text(self.policy, self.verdict, self.is_blocked, self._proof.is_starved)

    def _notify_status(self) -> None:
        self.environment.service_manager.notify(STATUS=self._status())
