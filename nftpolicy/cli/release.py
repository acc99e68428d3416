# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy release FILE"""

from pathlib import Path

import typer

from .common import changing, done, dry, read_policy, this_kernel


def command(
    file: Path = typer.Argument(help="The policy that was applied."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would go, and change nothing."),
) -> None:
    """Take every object of nftpolicy out of the kernel, the guard last. This opens the uplink."""
    policy, source = read_policy(file)
    kernel = this_kernel()
    from ..runtime.apply import carry_out, release_prospect
    from ..runtime.memory import of_this_namespace

    memory = of_this_namespace()
    with changing(source):
        if dry_run:
            print(dry(release_prospect(kernel, memory), "the kernel holds nothing of nftpolicy's"))
            return
        with memory.alone():
            found = release_prospect(kernel, memory)
            carry_out(kernel, found.plan)
            memory.forget()
    print(f"{policy.name}: {done(found, 'released', 'there was nothing to release')}")
