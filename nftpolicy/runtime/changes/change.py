# SPDX-License-Identifier: BSD-2-Clause
"""A change of policy: lock, plan, prove, journal, apply, read back, record, clean up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import Factory, evolve, frozen

from ...compiler import names
from ...compiler.compile import Machine
from ...kernel.interface import Kernel
from ...netstate.changes import NftOperation, NftTransaction
from ...netstate.nft import Table
from ...policy.objects import Policy
from .apply import Prospect, apply, carry_out, prospect, release_prospect
from .history import of_this_namespace as history
from .journal import Interrupted, Text
from .memory import Memory
from .unproved import NotProved

if TYPE_CHECKING:
    from ...proof.stages import Stage
    from .way import Way

PROVED = "proved"
Load = Callable[[Text], Policy]  # a policy from its source; raises PolicyError


@frozen
class Wanted:
    """A policy to apply, and its source, which later changes start from."""

    policy: Policy
    text: Text


@frozen
class Options:
    """Options of a change.

    `wait`: seconds to wait for another process that holds the lock. `via_block`: block the uplinks
    during the change. `ignore_foreign`: apply also if a foreign ruleset lets packets leak.
    """

    wait: float = 0
    via_block: bool = False
    despite_others: bool = False


@frozen
class Outlook:
    """A planned change with its proof.

    `order` is None if nothing has to be done; `previous` is the policy that is most likely in
    force; `interrupted` is an earlier change that was not completed.
    """

    found: Prospect
    way: Way | None
    before: Policy | None
    interrupted: Interrupted | None = None

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.found.plan.steps)


@frozen
class Carried:
    """Report of a change, in lines for the user: warnings, and the connections that were closed."""

    warnings: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


@frozen
class Changer:
    """Changes the policy of one network namespace.

    `load` parses the source of a policy that was applied before.
    """

    kernel: Kernel
    memory: Memory
    load: Load
    options: Options = Factory(Options)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the network namespace in the block. Raises Locked."""
        with self.memory.alone(self.options.wait):
            yield

    def outlook(self, target: Wanted | None) -> Outlook:
        """Plan and prove a change; None is a release. Changes nothing, and needs no lock.

        Raises:
            PolicyNotProved: the new policy is not safe.
            NoSafeOrder: it is, but no order of the steps is.
        """
        interrupted = self.memory.journal.interrupted()
        earlier = list(self._earlier_policies(interrupted))
        before = earlier[0] if earlier else None
        if target is not None:
            planned = prospect(self.kernel, target.policy, self.memory)
        else:
            planned = release_prospect(self.kernel, self.memory)
        if not planned.plan.steps and not self._block_tables():
            return Outlook(planned, None, before, interrupted)
        # The model is a third of all imports; an apply without steps does not need it.
        from .way import prove_desired

        after = None
        if target is not None:
            after = target.policy
            proof = prove_desired(planned, after, self.kernel.ip_families())
            if proof.verdict != PROVED:
                raise NotProved(proof)
        order = self._safe_order(planned, earlier, after)
        return Outlook(evolve(planned, plan=order.plan), order, before, interrupted)

    def _safe_order(self, planned: Prospect, earlier: list[Policy], after: Policy | None) -> Way:
        tables: tuple[Table, ...] = ()
        if self.options.via_block:
            from ...compiler.block import block

            hooks = any(table.family == "netdev" for table in planned.desired.tables)
            machine = Machine(planned.ports, hooks, planned.unhooked)
            policies = [policy for policy in (*earlier, after) if policy is not None]
            tables = block(policies, machine)
        from .way import find

        ignore_foreign = self.options.despite_others or after is None
        return find(self.kernel, planned, earlier, after, tables, ignore_foreign)

    def _earlier_policies(self, interrupted: Interrupted | None) -> Iterator[Policy]:
        """Yield the policies that may be in force, the likeliest first."""
        sources = [self.memory.policy()]
        if interrupted is not None:
            sources += [interrupted.after, interrupted.before]
        for source in sources:
            if source is not None:
                try:
                    yield self.load(source)
                except ValueError:
                    continue  # for example, a group that it names was deleted

    def carry_out(
        self,
        checked: Outlook,
        target: Wanted | None,
        why: str = "apply",
        repeats: int | None = None,
    ) -> Carried:
        """Execute a checked change and add it to the history. The caller holds the lock.

        `why` is the reason in the history, `repeats` the number of the entry that is applied again.

        Raises:
            Refused, ReadBackMismatch: the kernel is as it was.
            RollbackFailed: the kernel holds neither the old nor the new state.
            OSError: the journal could not be written, so nothing was begun.
        """
        begun = time.monotonic()
        if not checked.steps:
            self._unblock()
            self.memory.journal.clear()
            return Carried(tuple(self._record(target, why, repeats, begun)))
        before = self.memory.policy()
        if before is None and checked.interrupted is not None:
            before = checked.interrupted.before
        after = target.text if target is not None else None
        with self.memory.journal.of(checked.steps, before, after) as writer:
            if target is None:
                carry_out(self.kernel, checked.found.plan, writer.done, checked.found.observed)
            else:
                apply(self.kernel, checked.found, self.memory, writer.done)
            self._unblock()
            warnings = tuple(self._record(target, why, repeats, begun))
        cleanup = self._close_stale(checked.before, target.policy if target is not None else None)
        return Carried(warnings, tuple(cleanup))

    def _close_stale(self, before: Policy | None, after: Policy | None) -> list[str]:
        """Close the connections that run on the old policy; return the report's lines."""
        running = self.kernel.running()
        if running is None:
            return []
        from .aftermath import close_stale

        with running:
            return close_stale(running, before, after).lines()

    def _unblock(self) -> None:
        """Delete the block of an earlier process; the state in force was proved without it."""
        if tables := self._block_tables():
            operations = tuple(NftOperation("delete", *table.key, table) for table in tables)
            self.kernel.carry_out(NftTransaction(operations, ()))

    def _block_tables(self) -> list[Table]:
        keys = sorted(key for key in self.kernel.table_names() if key[1] == names.BLOCK_TABLE)
        return [Table(*key) for key in keys]

    def _record(
        self,
        target: Wanted | None,
        why: str,
        repeats: int | None,
        begun: float,
    ) -> Iterator[str]:
        """Save the policy in force and add it to the history; yield a warning for each failure."""
        try:
            if target is None:
                self.memory.forget()
            else:
                self.memory.remember_policy(*target.text)
        except OSError as error:
            yield (
                f"{self.memory.folder}: cannot be written ({error.strerror}); "
                "pass the policy file to 'nftpolicy status' from now on"
            )
        if target is None:
            return
        try:
            history(self.memory).add(
                target.policy.name,
                *target.text,
                verdict=PROVED,
                seconds=time.monotonic() - begun,
                why=why,
                of=repeats,
            )
        except OSError as error:
            yield (f"the history cannot be written ({error.strerror}); 'nftpolicy rollback' will not find this policy")


def failures(ways: Iterable[Way]) -> Iterator[tuple[Way, int, Stage]]:
    """Yield the first state of each order that is not proved, with its number.

    States of our own objects come before states with the foreign rulesets.
    """
    for order in ways:
        for states in (order.own, order.whole):
            failed = _first_failure(states)
            if failed is not None:
                yield order, *failed
                break


def _first_failure(states: Iterable[Stage]) -> tuple[int, Stage] | None:
    for number, state in enumerate(states):
        if state.verdict not in ("", PROVED):
            return number, state
    return None
