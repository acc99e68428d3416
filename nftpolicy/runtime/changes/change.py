# SPDX-License-Identifier: BSD-2-Clause
"""One change, to another policy or to none: alone, proved, written down, carried out, read back."""

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
Load = Callable[[Text], Policy]  # a policy from its text; raises PolicyError


@frozen
class Wanted:
    """A policy and its text. The text of one that was applied is what later changes start from."""

    policy: Policy
    text: Text


@frozen
class Options:
    """How a change is made.

    `wait`: seconds for another process that is at it. `via_block`: stop everything on the uplinks, change,
    open. `despite_others`: also when the tables of others let through what must not leave.
    """

    wait: float = 0
    via_block: bool = False
    despite_others: bool = False


@frozen
class Outlook:
    """What would be done, and its proof. `interrupted`: what an earlier process began and did not end."""

    found: Prospect
    way: Way | None
    before: Policy | None
    interrupted: Interrupted | None = None

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.found.plan.steps)


@frozen
class Carried:
    """What a person should know of a change that was made: what could not be kept, and what was ended."""

    warnings: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


@frozen
class Changer:
    """Makes changes in one network namespace. `load` reads the text of a policy that was applied before."""

    kernel: Kernel
    memory: Memory
    load: Load
    options: Options = Factory(Options)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes anything meanwhile. Raises Busy."""
        with self.memory.alone(self.options.wait):
            yield

    def outlook(self, wanted: Wanted | None) -> Outlook:
        """Look, plan and prove; None is nothing in force. Changes nothing, and needs not be alone for a mere look.

        Raises:
            NotProved: what is wanted is not safe. NotSafe: it is, but there is no safe way to it.
        """
        interrupted = self.memory.journal.interrupted()
        earlier = list(self._earlier(interrupted))
        found = (
            prospect(self.kernel, wanted.policy, self.memory)
            if wanted is not None
            else release_prospect(self.kernel, self.memory)
        )
        if not found.plan.steps and not self._block():
            return Outlook(found, None, earlier[0] if earlier else None, interrupted)
        # The model is a third of what is imported; the second apply does not need it.
        from ..verify import of_prospect

        if wanted is not None:
            proof = of_prospect(found, wanted.policy, self.kernel.ip_families())
            if proof.verdict != PROVED:
                raise NotProved(proof)
        way = self._way(found, earlier, wanted.policy if wanted is not None else None)
        return Outlook(_planned(found, way), way, earlier[0] if earlier else None, interrupted)

    def _way(self, found: Prospect, earlier: list[Policy], after: Policy | None) -> Way:
        tables: tuple[Table, ...] = ()
        if self.options.via_block:
            from ...compiler.block import block

            hooks = any(table.family == "netdev" for table in found.desired.tables)
            machine = Machine(found.ports, hooks, found.unhooked)
            tables = block([one for one in (*earlier, after) if one is not None], machine)
        from .way import find

        return find(self.kernel, found, earlier, after, tables, self.options.despite_others or after is None)

    def _earlier(self, interrupted: Interrupted | None) -> Iterator[Policy]:
        """The policies that may be in force, the likeliest first."""
        texts = [self.memory.policy()]
        if interrupted is not None:
            texts += [interrupted.after, interrupted.before]
        for text in texts:
            if text is not None:
                try:
                    yield self.load(text)
                except ValueError:
                    continue  # a group that it names is gone, say: what it promised can't be known any more

    def carry_out(self, outlook: Outlook, wanted: Wanted | None, why: str = "apply", of: int | None = None) -> Carried:
        """Do it, in the order of the way, and keep it in the history as `why` (a repetition of entry `of`).

        The caller is alone.

        Raises:
            Refused, NotHeld: with the kernel as it was. StillChanged: neither as it was nor as it should be.
            OSError: nothing could be written down, so nothing was begun.
        """
        begun = time.monotonic()
        if not outlook.steps:
            self._unblock()
            self.memory.journal.clear()
            return Carried(tuple(self._kept(wanted, why, of, begun)))
        before = self.memory.policy()
        if before is None and outlook.interrupted is not None:
            before = outlook.interrupted.before
        with self.memory.journal.of(outlook.steps, before, wanted.text if wanted else None) as writer:
            if wanted is None:
                carry_out(self.kernel, outlook.found.plan, writer.done, outlook.found.observed)
            else:
                apply(self.kernel, outlook.found, self.memory, writer.done)
            self._unblock()
            warnings = tuple(self._kept(wanted, why, of, begun))
        return Carried(warnings, tuple(self._closed(outlook.before, wanted.policy if wanted else None)))

    def _closed(self, before: Policy | None, after: Policy | None) -> list[str]:
        """End what still runs on the old decision; what was ended and what not, in words."""
        running = self.kernel.running()
        if running is None:
            return []
        from .aftermath import close_stale

        with running:
            return close_stale(running, before, after).lines()

    def _unblock(self) -> None:
        """Take away a block that somebody left: what is in force now was proved without it."""
        if left := self._block():
            away = tuple(NftOperation("delete", *table.key, table) for table in left)
            self.kernel.carry_out(NftTransaction(away, ()))

    def _block(self) -> list[Table]:
        return [Table(*key) for key in sorted(self.kernel.table_names()) if key[1] == names.BLOCK_TABLE]

    def _kept(self, wanted: Wanted | None, why: str, of: int | None, begun: float) -> Iterator[str]:
        """Remember what is in force now; yields what could not be written."""
        try:
            if wanted is None:
                self.memory.forget()
            else:
                self.memory.remember_policy(*wanted.text)
        except OSError as error:
            where = self.memory.folder
            yield f"{where} can't be written ({error.strerror}), so 'status' will want to be told the policy"
        if wanted is not None:
            try:
                history(self.memory).add(
                    wanted.policy.name, *wanted.text, verdict=PROVED, seconds=time.monotonic() - begun, why=why, of=of
                )
            except OSError as error:
                yield f"the history can't be written ({error.strerror}), so 'rollback' won't find this policy"


def _planned(found: Prospect, way: Way) -> Prospect:
    return evolve(found, plan=way.plan)


def failures(ways: Iterable[Way]) -> Iterator[tuple[Way, int, Stage]]:
    """The first state of each way that is not proved, with its number; of our own objects or with those of others."""
    for way in ways:
        for stages in (way.own, way.whole):
            bad = next(((number, one) for number, one in enumerate(stages) if one.verdict not in ("", PROVED)), None)
            if bad is not None:
                yield way, *bad
                break
