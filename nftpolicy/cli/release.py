# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy release FILE"""

from pathlib import Path

import typer

from .common import changing, read_policy, this_kernel


def command(
    file: Path = typer.Argument(help="The policy that was applied."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would go, and change nothing."),
) -> None:
    """Take every object of nftpolicy out of the kernel, the guard last. This opens the uplink."""
    policy, source = read_policy(file)
    kernel = this_kernel()
    from ..runtime.apply import carry_out, release_prospect
    from ..runtime.memory import of_this_namespace
    from ..runtime.status import lines

    memory = of_this_namespace()
    if dry_run:
        found = release_prospect(kernel, memory)
        print("\n".join(lines(found.plan)) if found.plan.steps else "the kernel holds nothing of nftpolicy's")
        return
    with changing(source), memory.alone():
        found = release_prospect(kernel, memory)
        carry_out(kernel, found.plan)
        memory.forget()
    done = f"released in {len(found.plan.steps)} steps" if found.plan.steps else "there was nothing to release"
    print(f"{policy.name}: {done}")
