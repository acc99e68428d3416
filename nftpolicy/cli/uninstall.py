# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy uninstall"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..compiler.object_names import TABLE
from ..integration.netconfig.registry import step_back
from .common import INSTALLED_NAME, Failure, installed_policies, this_kernel, warn
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
    from ..integration.systemd_dropins import DROPIN_NAME
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
        if step := step_back(map(str, result.removed_files)):
            print(f"next, after 'nftpolicy release': {step}    # its routes are in the uplink's table until then")
        # They need the unit of the guard, and have ended with it.
        directories = [path.parent.name for path in result.removed_files if path.name == DROPIN_NAME]
        if names := " ".join(name.removesuffix(".d") for name in directories if name.endswith(".service.d")):
            print(f"next, after 'nftpolicy release': systemctl restart {names}    # ended with the guard's unit")
    # The scripts of the packages show standard error alone, and remove the program then.
    if root == Path("/") and (tables := _guard_tables()):
        file = "" if len(installed_policies(root)) == 1 else " FILE"
        warn("the policy stays in force until the machine restarts: the uplinks are closed to all but its services")
        commands = "; ".join(f"nft delete table {table}" for table in tables)
        warn(f"'nftpolicy release{file}' opens them; when the program is gone: {commands}")


def _guard_tables() -> list[str]:
    """Return the tables of the guard in the kernel, [] if it cannot be read."""
    try:
        names = this_kernel().table_names()
    except Failure:
        return []
    return sorted(f"{family} {name}" for family, name in names if name == TABLE)
