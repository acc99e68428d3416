# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy netconfig [FILE] --for PROGRAM"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from ..generated_text import Unwritable
from ..integration.netconfig.networkd_parser import SharedNetworkFile
from ..integration.netconfig.registry import PROGRAMS, netconfig_files, render_files
from .common import EXIT_BAD_INPUT, Failure, read_policy
from .install_common import install_errors_as_failure, print_written, require_directory
from .options import PolicyFile
from .parameters import option

Program = StrEnum("Program", list(PROGRAMS))  # type: ignore[misc]


def command(
    program: Annotated[Program, option("--for", help="The program that configures the uplink's devices.")],
    file: PolicyFile = None,
    to: Annotated[
        Path | None,
        option(help="Write the files below this root directory (/: this machine), not to stdout."),
    ] = None,
    force: Annotated[
        bool,
        option("--force", help="Replace files that nftpolicy did not write, or that were changed."),
    ] = False,
) -> None:
    """Make the network manager use an uplink's routing table.

    Prints or writes configuration for the program that configures the network.
    """
    policy, _ = read_policy(file)
    if to is None:
        print(render_files(netconfig_files(policy, program.value)), end="")
        return
    require_directory("--to", to)
    from ..runtime.install.installed_files import Manifest
    from ..runtime.install.installer import install_files
    from ..runtime.install.obsolete_files import network_files, obsolete_netconfig_files, remove_files
    from ..runtime.paths import PERSISTENT_DIR_OPENWRT

    root = to.absolute()
    with install_errors_as_failure():
        try:
            files = netconfig_files(policy, program.value, network_files(root))
            obsolete = obsolete_netconfig_files(root, policy, program.value)
        except (SharedNetworkFile, Unwritable) as error:
            raise Failure(str(error), EXIT_BAD_INPUT) from None
        written = install_files(
            root,
            {item.path: item.text.encode() for item in files},
            force,
            modes={item.path: item.mode for item in files},
            directory=PERSISTENT_DIR_OPENWRT if program.value == "netifd" else None,
        )
        removed = remove_files(Manifest.read(root), obsolete)
    print_written([*(f"wrote {path}" for path in written), *(f"removed {path}" for path in removed)])
    if written or removed:
        print(f"next: {PROGRAMS[program.value][1]}")
