# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy apply FILE"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .common import REFUSED, UNKNOWN, Failure, changing, done, dry, read_policy, this_kernel, warn
from .told import told

if TYPE_CHECKING:
    from ..policy.errors import Source
    from ..policy.objects import Policy
    from ..runtime.apply import Prospect


def command(
    file: Path = typer.Argument(help="The policy, TOML. - reads standard input."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would change, and change nothing."),
) -> None:
    """Make the kernel hold what the policy says. The second time changes nothing."""
    policy, source = read_policy(file)
    kernel = this_kernel()
    from ..runtime.apply import apply, prospect
    from ..runtime.memory import of_this_namespace

    memory = of_this_namespace()
    with changing(source):
        if dry_run:
            print(dry(prospect(kernel, policy, memory), f"{policy.name}: the kernel holds it already"))
            return
        with memory.alone():
            found = prospect(kernel, policy, memory)
            if found.plan.steps:
                _prove(found, policy, source, kernel.ip_families())
                apply(kernel, found, memory)
    for device in sorted(found.unhooked):
        warn(
            f"no chain can be hooked at the egress of {device} (an old kernel, or one that wants the device first): "
            "frames of AF_PACKET sockets are not guarded there"
        )
    try:
        memory.remember_policy(source.name, source.text.encode())
    except OSError as error:
        warn(f"{memory.folder} can't be written ({error.strerror}), so 'status' will want to be told the policy")
    print(f"{policy.name}: {done(found, 'applied', 'the kernel holds it already')}")


def _prove(found: Prospect, policy: Policy, source: Source, families: tuple[int, ...]) -> None:
    """Failure if what would be applied lets out what the policy forbids, or if nobody can say."""
    from ..runtime.verify import of_prospect

    proof = of_prospect(found, policy, families)
    if proof.verdict != "proved":
        said = "\n".join(told(proof, source))
        raise Failure(f"{said}\nnftpolicy: nothing was changed", UNKNOWN if proof.verdict == "unknown" else REFUSED)
