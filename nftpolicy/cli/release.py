# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy release FILE"""

from pathlib import Path
from typing import Optional

import typer

from . import changes
from .common import changing, done, read_policy, this_kernel


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy that was applied, or the one in /etc/nftpolicy."),  # noqa: UP045
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would go, and change nothing."),
    wait: float = typer.Option(0, "--wait", min=0, help="Seconds to wait for another process that changes things."),
) -> None:
    """Take every object of nftpolicy out of the kernel, the guard last. This opens the uplink."""
    policy, source = read_policy(file)
    kernel = this_kernel()
    from ..runtime.changes.change import Options

    with changing(source):
        changer = changes.changer(kernel, Options(wait))
        if dry_run:
            print(changes.dry(changer.outlook(None), "the kernel holds nothing of nftpolicy's"))
            return
        with changer.alone():
            outlook = changer.outlook(None)
            with changes.on_trial(changer, outlook):
                carried = changer.carry_out(outlook, None, "release")
    changes.afterwards(carried)
    print(f"{policy.name}: {done(outlook.found, 'released', 'there was nothing to release')}")
