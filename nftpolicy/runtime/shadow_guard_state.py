# SPDX-License-Identifier: BSD-2-Clause
"""Shadow guard in the kernel compared with a state: an earlier shadow guard drops what a later policy permits."""

from __future__ import annotations

import time

from attrs import evolve

from ..compiler import object_names
from ..compiler.shadow_guard import shadow_guard_tables
from ..kernel.interface import Kernel
from ..netstate.state import NetState
from ..planner.table_diff import diff_tables

EARLIER_SHADOW_GUARD = (
    "watch has not taken over this state: its shadow guard still drops packets by an earlier one; "
    "if that lasts, restart watch"
)
_POLL = 0.02  # seconds


def stale_shadow_families(kernel: Kernel, desired: NetState) -> tuple[str, ...]:
    """Return the families whose loaded shadow guard is not that of a state; () without a shadow guard."""
    if all(name != object_names.SHADOW_TABLE for _, name in kernel.table_names()):
        return ()
    wanted = {table.family: table for table in shadow_guard_tables(desired)}
    loaded = kernel.read_own(object_names.SHADOW_TABLE, object_names.FAMILIES, 0, ()).tables
    # Text of nft does not have the flags (owner), and so no compiled table has one.
    plain = (evolve(table, flags=frozenset()) for table in loaded)
    return tuple(table.family for table in plain if diff_tables(table, wanted.get(table.family)))


def await_shadow_guard(kernel: Kernel, desired: NetState, seconds: float) -> bool:
    """Wait until `watch` has loaded the shadow guard of a state; return False if it has not in these seconds."""
    deadline = time.monotonic() + seconds
    while stale_shadow_families(kernel, desired):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True
