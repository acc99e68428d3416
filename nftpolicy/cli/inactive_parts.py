# SPDX-License-Identifier: BSD-2-Clause
"""Parts of a policy that do not run beside its rules: watch, resolvers, the start at boot; how to start each."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..compiler.object_names import SHADOW_TABLE

if TYPE_CHECKING:
    from ..kernel.interface import Kernel
    from ..policy.objects import Policy

_INIT = 1  # PID


def inactive_parts(kernel: Kernel, policy: Policy, file: Path) -> Iterator[str]:
    """Yield a line for each part that does not run, with the command that starts it; none in a unit of the boot."""
    if os.getppid() == _INIT:  # its unit is one of several that start one after the other
        return
    from ..runtime.boot_state import read_boot_state
    from ..runtime.services.resolver_sockets import uplinks_without_resolver

    boot = read_boot_state()
    name = shlex.quote(str(file)) if str(file) != "-" else "FILE"

    def start(unit: str, command: str) -> str:
        return f"systemctl start {unit}" if unit in boot.units or ("@" in unit and boot.units) else command

    if not any(table == SHADOW_TABLE for _, table in kernel.table_names()):
        command = start("nftpolicy-watch.service", f"nftpolicy watch {name}")
        yield f"not running: watch, which repairs the rules and keeps the uplinks' routes; type: {command}"
    for uplink in uplinks_without_resolver(kernel, policy):
        command = start(f"nftpolicy-resolver@{uplink}.service", f"nftpolicy resolver {name} --uplink {uplink}")
        yield f"not running: the resolver of uplink {uplink}; type: {command}"
    if not boot.units and not boot.scripts:
        yield f"not installed: the guard from boot; type: nftpolicy install {name} --enable"
