# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy uninstall"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .common import INSTALLED_NAME, installed_policies, warn
from .install_common import InitOption, install_errors_as_failure, select_init, target_root
from .options import DestDir
from .parameters import option


def command(
    destdir: DestDir = None,
    purge: Annotated[bool, option("--purge", help="Remove the policy too.")] = False,
    init: InitOption = None,
) -> None:
    """Remove the files that install wrote.

    The guard stays in the kernel until 'nftpolicy release' opens the uplinks.
    """
    from ..runtime.install.installer import uninstall

    root = target_root(destdir)
    with install_errors_as_failure():
        result = uninstall(root, purge, select_init(init, root))
    for path in result.removed_files:
        print(f"removed {path}")
    for path in result.kept_files:
        is_policy = path.name == INSTALLED_NAME and not purge
        reason = "'release' needs it, --purge removes it" if is_policy else "it was changed"
        warn(f"kept {path}: {reason}")
    if not result.removed_files:
        print("there is nothing to remove")
    elif root == Path("/"):
        file = "" if len(installed_policies(root)) == 1 else " FILE"
        print(f"the policy in the kernel stays in force: 'nftpolicy release{file}' opens the uplinks")
