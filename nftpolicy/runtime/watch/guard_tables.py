# SPDX-License-Identifier: BSD-2-Clause
"""Auxiliary tables that the watch daemon loads: the block, and the shadow guard."""

from __future__ import annotations

from collections.abc import Sequence

from ...compiler import object_names
from ...compiler.block import block_tables
from ...compiler.compile import HostFacts
from ...netstate.nft import Table
from ...policy.objects import Policy
from . import repair_plan
from .environment import Environment


class GuardTables:
    """Block and shadow guard of one network namespace. Failures are logged and raise no exception.

    `is_blocked`: True while the block is loaded.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.is_blocked = False
        self._shadow: tuple[Table, ...] = ()  # the loaded shadow guard

    def load_shadow(self, tables: tuple[Table, ...]) -> None:
        """Replace the shadow guard by these tables; () removes it.

        The guard stays in place on failure.
        """
        if not self._environment.supports_owner_flag or not (tables or self._shadow):
            return
        commands = [*map(repair_plan.delete_table_text, self._shadow), *map(repair_plan.owned_table_text, tables)]
        if self._load("shadow guard", commands):
            self._shadow = tables

    def detect_block(self) -> bool:
        """Read from the kernel whether a block is loaded; set and return `is_blocked`."""
        self.is_blocked = bool(self._loaded_block())
        return self.is_blocked

    def block(self, policy: Policy, machine: HostFacts) -> bool:
        """Block the uplinks of a policy; return True on success."""
        self.is_blocked = self._load(
            "block", list(map(repair_plan.replace_table_text, block_tables([policy], machine)))
        )
        return self.is_blocked

    def unblock(self, why: str) -> bool:
        """Remove the block, if there is one; return False if that failed."""
        if not self.is_blocked:
            return True
        tables = self._loaded_block()
        if tables and not self._load("removal of the block", list(map(repair_plan.delete_table_text, tables))):
            return False
        self.is_blocked = False
        self._environment.log_event("unblocked", {"why": why})
        return True

    def _loaded_block(self) -> tuple[Table, ...]:
        kernel = self._environment.applier.kernel
        return kernel.read_own(object_names.BLOCK_TABLE, object_names.FAMILIES, 0, ()).tables

    def _load(self, operation: str, commands: Sequence[str]) -> bool:
        """Run all commands as one transaction; log an error. Returns True on success."""
        error = self._environment.load_nft("".join(commands), False)
        if error is not None:
            self._environment.log_event("failed", {"what": operation, "why": error.strip().splitlines()[0]})
        return error is None
