# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy uninstall"""

from pathlib import Path
from typing import Optional

import typer

from .common import INSTALLED, policies, warn
from .install import INIT, StartedBy, init_named, root_of, told_in_words


def command(
    destdir: Optional[Path] = typer.Option(None, envvar="DESTDIR", help="Below this folder, for an image."),  # noqa: UP045
    purge: bool = typer.Option(False, "--purge", help="Remove the policy, too."),
    init: Optional[StartedBy] = typer.Option(None, help=INIT),  # noqa: UP045
) -> None:
    """Take away what install wrote. The guard stays in the kernel until release opens the uplinks."""
    from ..runtime.place.install import uninstall

    root = root_of(destdir)
    with told_in_words():
        taken = uninstall(root, purge, init_named(init, root))
    for path in taken.removed:
        print(f"removed {path}")
    for path in taken.kept:
        why = "'release' needs it, --purge removes it" if path.name == INSTALLED and not purge else "it was changed"
        warn(f"kept {path}: {why}")
    if not taken.removed:
        print("there is nothing to remove")
    elif root == Path("/"):
        file = "" if len(policies(root)) == 1 else " FILE"
        print(f"What is in force stays in force: 'nftpolicy release{file}' opens the uplinks.")
