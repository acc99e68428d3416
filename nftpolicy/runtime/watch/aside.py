# SPDX-License-Identifier: BSD-2-Clause
"""The tables that the watch puts beside the guard: the block, and the second guard."""

from __future__ import annotations

from collections.abc import Sequence

from ...compiler import names
from ...compiler.block import block
from ...compiler.compile import Machine
from ...netstate.nft import Table
from ...policy.objects import Policy
from . import decisions as watching
from .world import World


class Aside:
    """`blocked`: whether the block stands. Failures are told, and are no exceptions."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.blocked = False
        self._second: tuple[Table, ...] = ()  # the second guard, as it is loaded

    def double(self, tables: tuple[Table, ...]) -> None:
        """Put a second guard in the place of the one that is loaded. The first guard stands whatever comes of it."""
        if (
            self._world.owns
            and (tables or self._second)
            and self._load("the second guard", [*map(watching.away, self._second), *map(watching.owned, tables)])
        ):
            self._second = tables

    def find(self) -> bool:
        """Look whether a block stands; the same as `blocked` from then on."""
        self.blocked = bool(self._block())
        return self.blocked

    def block(self, policy: Policy, machine: Machine) -> bool:
        """Stop the uplinks of a policy; whether that was done."""
        self.blocked = self._load("the block", list(map(watching.anew, block([policy], machine))))
        return self.blocked

    def lift(self, why: str) -> bool:
        """Take the block away, if there is one; False if that failed."""
        there = self._block() if self.blocked else ()
        if there and not self._load("the end of the block", list(map(watching.away, there))):
            return False
        if self.blocked:
            self.blocked = False
            self._world.say("lifted", {"why": why})
        return True

    def _block(self) -> tuple[Table, ...]:
        return self._world.changer.kernel.observe(names.BLOCK_TABLE, names.FAMILIES, 0, ()).tables

    def _load(self, what: str, commands: Sequence[str]) -> bool:
        """All of it as one transaction; what is wrong with it is told."""
        wrong = self._world.load("".join(commands), False)
        if wrong is not None:
            self._world.say("failed", {"what": what, "why": wrong.strip().splitlines()[0]})
        return wrong is None
