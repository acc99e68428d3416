# SPDX-License-Identifier: BSD-2-Clause
"""dnsmasq or unbound that a killed resolver left running: it still has the mark of its uplink."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...kernel.cgroup import end_marked_cgroup
from ...kernel.errors import Unavailable
from ..file_lock import LockTimeout, exclusive_lock
from .servers_file import lock_path, resolver_directory


def end_orphans(state: Path) -> list[str]:
    """End what killed resolvers of any uplink left; return the uplinks where a process was killed.

    `state`: the state directory of the network namespace. A running resolver is left alone.
    """
    ended = []
    prefix = resolver_directory(state, "")
    for directory in sorted(prefix.parent.glob(f"{prefix.name}*")):
        uplink = directory.name.removeprefix(prefix.name)
        try:
            with exclusive_lock(lock_path(directory), wait=0):
                if end_marked_cgroup(directory.name):
                    ended.append(uplink)
                shutil.rmtree(directory, ignore_errors=True)
        except (LockTimeout, OSError, Unavailable):
            continue
    return ended
