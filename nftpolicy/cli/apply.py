# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy apply FILE"""

import sys
from pathlib import Path

import typer

from .common import changing, read_policy, this_kernel


def command(
    file: Path = typer.Argument(help="The policy, TOML. - reads standard input."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would change, and change nothing."),
) -> None:
    """Make the kernel hold what the policy says. The second time changes nothing."""
    policy, source = read_policy(file)
    kernel = this_kernel()
    from ..runtime.apply import apply, prospect
    from ..runtime.memory import of_this_namespace
    from ..runtime.status import lines

    memory = of_this_namespace()
    if dry_run:
        found = prospect(kernel, policy, memory)
        print("\n".join(lines(found.plan)) if found.plan.steps else f"{policy.name}: the kernel holds it already")
        return
    with changing(source), memory.alone():
        found = prospect(kernel, policy, memory)
        if found.plan.steps:
            apply(kernel, found, memory)
        memory.remember_policy(source.name, source.text.encode())
    if not found.link_guard:
        print(
            "nftpolicy: this kernel has no netdev egress hook: frames of AF_PACKET sockets are not guarded",
            file=sys.stderr,
        )
    done = f"applied in {len(found.plan.steps)} steps" if found.plan.steps else "the kernel holds it already"
    print(f"{policy.name}: {done}")
