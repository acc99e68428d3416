# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy apply FILE"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import typer

from . import changes
from .common import FILE, changing, done, read_policy, this_kernel, warn


def command(
    file: Optional[Path] = typer.Argument(None, help=FILE),  # noqa: UP045
    dry_run: bool = typer.Option(False, "--dry-run", help="Show every step and its proof, and change nothing."),
    confirm: int = typer.Option(0, "--confirm", min=0, max=86_400, help="Go back after so long, unless confirmed."),
    wait: float = typer.Option(0, "--wait", min=0, help="Seconds to wait for another process that changes things."),
    via_block: bool = typer.Option(False, "--via-block", help="Stop everything on the uplinks during the change."),
    despite_others: bool = typer.Option(
        False, "--despite-others", help="Apply although rules of others let out what must not leave."
    ),
) -> None:
    """Make the kernel hold what the policy says. The second time changes nothing."""
    policy, source = read_policy(file)
    kernel = this_kernel()
    from ..runtime.changes.change import Options, Wanted

    wanted = Wanted(policy, (source.name, source.text.encode()))
    with changing(source):
        changer = changes.changer(kernel, Options(wait, via_block, despite_others))
        if dry_run:
            print(changes.dry(changer.outlook(wanted), f"{policy.name}: the kernel holds it already"))
            return
        with changer.alone():
            outlook = changer.outlook(wanted)
            changes.foretell(outlook)
            with changes.on_trial(changer, outlook, confirm):
                carried = changer.carry_out(outlook, wanted)
    for device in sorted(outlook.found.unhooked):
        warn(
            f"no chain can be hooked at the egress of {device} (an old kernel, or one that wants the device first): "
            "frames of AF_PACKET sockets are not guarded there"
        )
    changes.afterwards(carried)
    print(f"{policy.name}: {done(outlook.found, 'applied', 'the kernel holds it already')}")
