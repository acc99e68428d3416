# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy uninstall"""

from pathlib import Path
from typing import Optional

import typer

from .common import warn
from .install import root_of, told_in_words


def command(
    destdir: Optional[Path] = typer.Option(None, envvar="DESTDIR", help="Below this folder, for an image."),  # noqa: UP045
    purge: bool = typer.Option(False, "--purge", help="Remove the policy, too."),
) -> None:
    """Take away what install wrote. The guard stays in the kernel until release opens the uplinks."""
    from ..runtime.place.install import uninstall
    from ..runtime.place.units import POLICY

    root = root_of(destdir)
    with told_in_words():
        taken = uninstall(root, purge)
    for path in taken.removed:
        print(f"removed {path}")
    for path in taken.kept:
        why = "'release' needs it, --purge removes it" if str(path).endswith(POLICY) and not purge else "it was changed"
        warn(f"kept {path}: {why}")
    if not taken.removed:
        print("there is nothing to remove")
    elif root == Path("/"):
        print(f"What is in force stays in force: 'nftpolicy release {'FILE' if purge else POLICY}' opens the uplinks.")
