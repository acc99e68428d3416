# SPDX-License-Identifier: BSD-2-Clause
"""Auxiliary tables that the watch daemon loads: the block, and the shadow guard."""

from __future__ import annotations

from collections.abc import Sequence

from ...compiler import names
from ...compiler.block import block
from ...compiler.compile import Machine
from ...netstate.nft import Table
from ...policy.objects import Policy
from . import decisions
from .world import World


class Aside:
    """Block and shadow guard of one network namespace. Failures are logged and raise no exception.

    `blocked`: True while the block is loaded.
    """

    def __init__(self, environment: World) -> None:
        self._environment = environment
        self.blocked = False
        self._shadow: tuple[Table, ...] = ()  # the loaded shadow guard

    def double(self, tables: tuple[Table, ...]) -> None:
        """Replace the shadow guard by these tables; () removes it.

        The guard stays in place on failure.
        """
        if not self._environment.owns or not (tables or self._shadow):
            return
        commands = [*map(decisions.away, self._shadow), *map(decisions.owned, tables)]
        if self._load("shadow guard", commands):
            self._shadow = tables

    def find(self) -> bool:
        """Read from the kernel whether a block is loaded; set and return `blocked`."""
        self.blocked = bool(self._loaded_block())
        return self.blocked

    def block(self, policy: Policy, machine: Machine) -> bool:
        """Block the uplinks of a policy; return True on success."""
        self.blocked = self._load("block", list(map(decisions.anew, block([policy], machine))))
        return self.blocked

    def lift(self, why: str) -> bool:
        """Remove the block, if there is one; return False if that failed."""
        if not self.blocked:
            return True
        tables = self._loaded_block()
        if tables and not self._load("removal of the block", list(map(decisions.away, tables))):
            return False
        self.blocked = False
        self._environment.say("unblocked", {"why": why})
        return True

    def _loaded_block(self) -> tuple[Table, ...]:
        kernel = self._environment.changer.kernel
        return kernel.observe(names.BLOCK_TABLE, names.FAMILIES, 0, ()).tables

    def _load(self, what: str, commands: Sequence[str]) -> bool:
        """Run all commands as one transaction; log an error. Returns True on success."""
        error = self._environment.load("".join(commands), False)
        if error is not None:
            self._environment.say("failed", {"what": what, "why": error.strip().splitlines()[0]})
        return error is None
