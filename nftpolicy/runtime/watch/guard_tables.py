# SPDX-License-Identifier: BSD-2-Clause
"""Tables that the watch daemon loads: the shadow guard, the block, and missing tables of the guard."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress

from ...compiler import object_names
from ...compiler.block import block_tables
from ...compiler.compile import HostFacts
from ...kernel.errors import StepRefused
from ...netstate.nft import Table
from ...netstate.operations import IpRuleChange
from ...policy.objects import Policy
from ..apply.block_reason import WAY_OUT, BlockReasonFile
from ..apply.executor import unwritable_port_message
from . import repair_plan
from .environment import Environment
from .repair_plan import DesiredState, Repair


class GuardTables:
    """Loader of the tables of one network namespace. Failures are logged and raise no exception.

    `is_blocked`: True while the block is loaded.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.is_blocked = False
        self._blocked_ports: frozenset[str] = frozenset()  # those that were blocked last, or refused
        self._shadow: tuple[Table, ...] = ()  # the loaded shadow guard
        self._reason = BlockReasonFile(environment.applier.state_dir.directory)

    def load_shadow(self, tables: tuple[Table, ...]) -> None:
        """Replace the shadow guard by these tables; () removes it.

        A table that the kernel refuses stays as it was.
        """
        if not self._environment.supports_owner_flag:
            return
        loaded, wanted = ({table.family: table for table in group} for group in (self._shadow, tables))
        # A transaction for each table: the kernel may refuse one of them, for instance since a device has gone.
        for family in dict.fromkeys((*loaded, *wanted)):
            commands = [repair_plan.delete_table_text(loaded[family])] if family in loaded else []
            commands += [repair_plan.owned_table_text(wanted[family])] if family in wanted else []
            if not self._load(f"shadow guard {family}", commands):
                wanted.pop(family, None)
                if family in loaded:
                    wanted[family] = loaded[family]
        self._shadow = tuple(wanted.values())

    def block_ports(self, ports: Collection[str]) -> bool:
        """Block these ports, where no link guard can be hooked, and no others. Return True after a change."""
        wanted, block = frozenset(ports), self._environment.port_block
        if block is None or not (wanted or self._blocked_ports):
            return False
        refused = block.set_devices(wanted)
        if wanted == self._blocked_ports:
            return False
        new_ports, old_ports = wanted - self._blocked_ports - refused.keys(), self._blocked_ports - wanted
        self._blocked_ports = wanted
        for port in sorted(new_ports):
            self._environment.log_event("port-blocked", {"port": port, "why": unwritable_port_message(port)})
        for port, code in refused.items():
            self._environment.log_event("failed", {"what": f"block of port {port}", "why": os.strerror(code)})
        for port in sorted(old_ports):
            self._environment.log_event("port-unblocked", {"port": port})
        return True

    def load_repair(self, repair: Repair) -> bool:
        """Load the nft text of a repair; return False if the kernel refused a part of it.

        A table that it refuses, for instance since a device has gone, does not keep the others away.
        """
        if not repair.nft_texts or self._environment.load_nft(repair.nft_text, False) is None:
            return True
        for text in repair.nft_texts:
            self._load(", ".join(repair.repaired_objects), [text])
        return False

    def load_missing(self, tables: Sequence[Table]) -> bool:
        """Load those of the guard's tables that are missing; return False if the kernel refused one."""
        present = self._environment.applier.kernel.table_names()
        missing = [table for table in tables if table.key not in present]
        texts = tuple(map(repair_plan.replace_table_text, missing))
        return self.load_repair(Repair(texts, (), tuple(f"table:{table.family}" for table in missing)))

    def preload(self, desired: DesiredState) -> None:
        """Do once without effect what a repair does: loads libraries, and binds netlink sockets."""
        self._environment.load_nft(desired.all_tables_text, True)
        for rule in desired.state.rules[:1]:
            with suppress(StepRefused):
                self._environment.applier.kernel.apply_step(IpRuleChange("add", rule))  # refused with EEXIST

    def is_guard_loaded(self) -> bool:
        """Return True if the kernel has the guard's inet table."""
        return bool(self._environment.applier.kernel.read_own(object_names.TABLE, ("inet",), 0, ()).tables)

    def detect_block(self) -> bool:
        """Read from the kernel whether a block is loaded; set and return `is_blocked`."""
        self.is_blocked = bool(self._loaded_block())
        return self.is_blocked

    def block(self, policy: Policy, machine: HostFacts, reasons: Sequence[str] = ()) -> bool:
        """Block the uplinks of a policy; return True if all tables are loaded.

        `reasons` are logged, and kept for `nftpolicy status`, unless the uplinks were blocked before.
        """
        loaded = [
            self._load(f"block {table.family}", [repair_plan.replace_table_text(table)])
            for table in block_tables([policy], machine)
        ]
        was_blocked, self.is_blocked = self.is_blocked, any(loaded)
        if self.is_blocked and not was_blocked:
            self._environment.log_event("blocked", {"policy": policy.name, "why": reasons, "then": WAY_OUT})
            with suppress(OSError):
                self._reason.write(reasons)
        return all(loaded)

    def unblock(self, why: str) -> bool:
        """Remove the block, if there is one; return False if that failed."""
        if not self.is_blocked:
            return True
        tables = self._loaded_block()
        if tables and not self._load("removal of the block", list(map(repair_plan.delete_table_text, tables))):
            return False
        self.is_blocked = False
        self._environment.log_event("unblocked", {"why": why})
        with suppress(OSError):
            self._reason.write(())
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
