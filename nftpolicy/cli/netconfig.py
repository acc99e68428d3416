# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy netconfig FILE --for PROGRAM"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from ..integration.netconfig.registry import PROGRAMS, netconfig_files, render_files
from .common import read_policy
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
    files = netconfig_files(policy, program.value)
    if to is None:
        print(render_files(files), end="")
        return
    require_directory("--to", to)
    from ..runtime.install.installer import install_files
    from ..runtime.paths import PERSISTENT_DIR_OPENWRT

    with install_errors_as_failure():
        written = install_files(
            to.absolute(),
            {item.path: item.text.encode() for item in files},
            force,
            modes={item.path: item.mode for item in files},
            directory=PERSISTENT_DIR_OPENWRT if program.value == "netifd" else None,
        )
    print_written([f"wrote {path}" for path in written])
    if written:
        print(f"next: {PROGRAMS[program.value][1]}")
