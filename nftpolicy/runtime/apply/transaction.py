# SPDX-License-Identifier: BSD-2-Clause
"""A change of policy: lock, plan, prove, journal, apply, read back, record, clean up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import Factory, evolve, frozen

from ...compiler import object_names
from ...exceptions import NftpolicyError
from ...kernel.interface import Kernel
from ...netstate.nft import Table
from ...netstate.operations import NftOperation, NftTransaction
from ...policy.errors import PolicyError
from ...policy.objects import Policy
from .connected_routes import copy_connected_routes
from .errors import PolicyNotProved
from .executor import PlannedChange, apply_change, plan_change, plan_release, run_release
from .history import current_history
from .history_events import RELEASED
from .journal import InterruptedChange, PolicySource
from .moved_routes import MovedRouteFile, RestoredRoutes, restore_routes
from .route_placement import uplink_tables
from .state_dir import StateDir
from .step_text import plan_lines

if TYPE_CHECKING:
    from ...proof.transition_proof import StateProof
    from .proved_order import ProvedOrder

PROVED = "proved"
PolicyLoader = Callable[[PolicySource], Policy]  # a policy from its source; raises PolicyError


@frozen
class TargetPolicy:
    """A policy to apply, and its source, which later changes start from."""

    policy: Policy
    source: PolicySource


@frozen
class ChangeOptions:
    """Options of a change.

    `wait`: seconds to wait for another process that holds the lock. `via_block`: block the uplinks
    during the change. `ignore_foreign`: apply also if a foreign ruleset lets packets leak.
    """

    wait: float = 5  # watch holds the lock for a moment whenever it repairs
    via_block: bool = False
    ignore_foreign: bool = False


@frozen
class CheckedPlan:
    """A planned change with its proof.

    `order` is None if nothing has to be done, or if a release could not be proved; `previous` is
    the policy that is most likely in force; `interrupted` is an earlier change that was not completed.
    """

    planned: PlannedChange
    order: ProvedOrder | None
    previous: Policy | None
    interrupted: InterruptedChange | None = None

    @property
    def step_count(self) -> int:
        """The number of steps."""
        return len(self.planned.plan.steps)


@frozen
class ChangeReport:
    """Report of a change, in lines for the user: warnings; connections that were closed, routes put back."""

    warnings: tuple[str, ...] = ()
    cleanup_lines: tuple[str, ...] = ()


@frozen
class PolicyApplier:
    """Changes the policy of one network namespace.

    `load` parses the source of a policy that was applied before.
    """

    kernel: Kernel
    state_dir: StateDir
    load: PolicyLoader
    options: ChangeOptions = Factory(ChangeOptions)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the network namespace in the block. Raises Locked."""
        with self.state_dir.lock(self.options.wait):
            yield

    def check(self, target: TargetPolicy | None) -> CheckedPlan:
        """Plan and prove a change; None is a release. Changes nothing, and needs no lock.

        Raises:
            PolicyNotProved: the new policy is not safe.
            NoSafeOrder: it is, but no order of the steps is.
        """
        interrupted = self.state_dir.journal.interrupted()
        earlier = list(self._earlier_policies(interrupted))
        before = earlier[0] if earlier else None
        if target is not None:
            planned = plan_change(self.kernel, target.policy, self.state_dir)
        else:
            planned = plan_release(self.kernel, self.state_dir)
        if not planned.plan.steps and not self._block_tables():
            return CheckedPlan(planned, None, before, interrupted)
        # The model is a third of all imports; an apply without steps does not need it.
        from .step_order import prove_desired

        after = None
        if target is not None:
            after = target.policy
            proof = prove_desired(planned, after, self.kernel)
            if proof.verdict != PROVED:
                raise PolicyNotProved(proof)
        try:
            order = self._safe_order(planned, earlier, after)
        except (NftpolicyError, OSError):
            if target is not None:
                raise
            return CheckedPlan(planned, None, before, interrupted)  # what opens the uplinks needs no proof
        return CheckedPlan(evolve(planned, plan=order.plan), order, before, interrupted)

    def _safe_order(self, planned: PlannedChange, earlier: list[Policy], after: Policy | None) -> ProvedOrder:
        tables: tuple[Table, ...] = ()
        if self.options.via_block:
            from ...compiler.block import block_tables

            policies = [policy for policy in (*earlier, after) if policy is not None]
            tables = block_tables(policies, planned.host)
        from .step_order import find_safe_order

        ignore_foreign = self.options.ignore_foreign or after is None
        return find_safe_order(self.kernel, planned, earlier, after, tables, ignore_foreign)

    def _earlier_policies(self, interrupted: InterruptedChange | None) -> Iterator[Policy]:
        """Yield the policies that may be in force, the likeliest first."""
        sources = [self.state_dir.policy()]
        if interrupted is not None:
            sources += [interrupted.after, interrupted.before]
        for source in sources:
            if source is not None:
                try:
                    yield self.load(source)
                except PolicyError:
                    continue  # for example, a group that it names was deleted

    def apply(
        self,
        checked: CheckedPlan,
        target: TargetPolicy | None,
        why: str = "apply",
        repeats: int | None = None,
    ) -> ChangeReport:
        """Execute a checked change and add it to the history. The caller holds the lock.

        `why` is the reason in the history, `repeats` the number of the entry that is applied again.

        Raises:
            StepRefused, ReadBackMismatch: the kernel is as it was.
            RollbackFailed: the kernel holds neither the old nor the new state.
            OSError: the journal could not be written, so nothing was begun.
        """
        begun = time.monotonic()
        if not checked.step_count:
            self._unblock()
            self.state_dir.journal.clear()
            warnings = (*self._copy_routes(target), *self._record(checked, target, why, repeats, begun))
            restored = self._restore_routes(target.policy if target is not None else None)
            return ChangeReport((*warnings, *restored.warnings), restored.lines)
        before = self.state_dir.policy()
        if before is None and checked.interrupted is not None:
            before = checked.interrupted.before
        after = target.source if target is not None else None
        with (
            self._sweep_flows(checked, target) as flows,
            self.state_dir.journal.record(checked.step_count, before, after) as writer,
        ):
            remaining = self._copy_routes(target)  # before a rule selects the table, so that no reply is refused
            if target is None:
                missing = run_release(self.kernel, checked.planned.plan, self.state_dir, writer.count_step)
                steps = (line.strip() for line in plan_lines(missing) if not line.endswith(":"))
                remaining += [f"the kernel refused: {step}" for step in steps]
            else:
                try:
                    apply_change(self.kernel, checked.planned, self.state_dir, writer.count_step)
                except BaseException:
                    self._restore_routes(checked.previous)
                    raise
            self._unblock()
            warnings = (*remaining, *self._record(checked, target, why, repeats, begun))
        restored = self._restore_routes(target.policy if target is not None else None)
        cleanup = self._close_stale(checked.previous, target.policy if target is not None else None)
        return ChangeReport((*warnings, *restored.warnings), (*flows(), *restored.lines, *cleanup))

    def _copy_routes(self, target: TargetPolicy | None) -> list[str]:
        """Copy the connected routes of the uplinks into their tables; return a warning if that fails."""
        access = self.kernel.route_mover() if target is not None else None
        if target is None or access is None:
            return []
        try:
            copy_connected_routes(access, uplink_tables(target.policy), MovedRouteFile(self.state_dir.directory))
        except OSError as error:
            return [f"connected routes were not copied into the uplinks' tables: {error.strerror}"]
        finally:
            access.close()
        return []

    def _restore_routes(self, policy: Policy | None) -> RestoredRoutes:
        """Put back the routes that `watch` moved or `apply` copied, as far as their devices are of no uplink now."""
        uplinks = policy.uplink.values() if policy is not None else ()
        access = self.kernel.route_mover()
        if access is None:
            return RestoredRoutes()
        try:
            devices = frozenset(device for uplink in uplinks for device in uplink.devices)
            return restore_routes(access, MovedRouteFile(self.state_dir.directory), devices)
        except OSError as error:
            return RestoredRoutes(warnings=(f"routes that watch moved were not put back: {error.strerror}",))
        finally:
            access.close()

    @contextmanager
    def _sweep_flows(self, checked: CheckedPlan, target: TargetPolicy | None) -> Iterator[Callable[[], list[str]]]:
        """Delete flows that other rules marked, around the change; yield a function that returns the report's lines."""
        live_sockets = self.kernel.live_sockets() if target is not None else None
        if target is None or live_sockets is None:
            yield list
            return
        from .earlier_flows import swept_flows, uplinks_without_history

        planned = checked.planned
        uplinks = uplinks_without_history(checked.previous, target.policy, planned.observed, planned.desired)
        with live_sockets:
            if not uplinks:
                yield list
                return
            with swept_flows(live_sockets, uplinks, target.policy) as report:
                yield report.lines

    def _close_stale(self, before: Policy | None, after: Policy | None) -> list[str]:
        """Close the connections that run on the old policy; return the report's lines."""
        live_sockets = self.kernel.live_sockets()
        if live_sockets is None:
            return []
        from .stale_cleanup import close_stale

        with live_sockets:
            return close_stale(live_sockets, before, after).lines()

    def _unblock(self) -> None:
        """Delete the block of an earlier process; the state in force was proved without it."""
        if tables := self._block_tables():
            operations = tuple(NftOperation("delete", *table.key, table) for table in tables)
            self.kernel.apply_step(NftTransaction(operations, ()))

    def _block_tables(self) -> list[Table]:
        keys = sorted(key for key in self.kernel.table_names() if key[1] == object_names.BLOCK_TABLE)
        return [Table(*key) for key in keys]

    def _record(
        self,
        checked: CheckedPlan,
        target: TargetPolicy | None,
        why: str,
        repeats: int | None,
        begun: float,
    ) -> Iterator[str]:
        """Save the policy in force and add it, or the release, to the history; yield a warning for each failure."""
        is_release = target is None and (checked.step_count > 0 or self.state_dir.policy() is not None)
        try:
            if target is None:
                self.state_dir.clear()
            else:
                self.state_dir.save_policy(*target.source)
        except OSError as error:
            yield (
                f"{self.state_dir.directory}: cannot be written ({error.strerror}); "
                "pass the policy file to 'nftpolicy status' from now on"
            )
        try:
            if is_release:
                current_history(self.state_dir).add_event(
                    RELEASED, checked.previous.name if checked.previous else "", why
                )
            if target is None:
                return
            current_history(self.state_dir).add(
                target.policy.name,
                *target.source,
                verdict=PROVED,
                seconds=time.monotonic() - begun,
                why=why,
                repeats=repeats,
            )
        except OSError as error:
            missing = "'nftpolicy rollback' will not find this policy" if target else "it lacks this release"
            yield f"the history cannot be written ({error.strerror}); {missing}"


def first_failures(orders: Iterable[ProvedOrder]) -> Iterator[tuple[ProvedOrder, int, StateProof]]:
    """Yield the first state of each order that is not proved, with its number.

    States of our own objects come before states with the foreign rulesets.
    """
    for order in orders:
        for states in (order.own_proofs, order.full_proofs):
            failed = _first_failure(states)
            if failed is not None:
                yield order, *failed
                break


def _first_failure(states: Iterable[StateProof]) -> tuple[int, StateProof] | None:
    for number, state in enumerate(states):
        if state.verdict not in ("", PROVED):
            return number, state
    return None
