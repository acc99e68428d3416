# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy settings FILE --for PROGRAM"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Optional

import typer

from ..settings.programs import PROGRAMS, settings, shown
from .common import BAD_INPUT, FILE, Failure, read_policy

Program = StrEnum("Program", list(PROGRAMS))  # type: ignore[misc]


def command(
    file: Optional[Path] = typer.Argument(None, help=FILE),  # noqa: UP045
    program: Program = typer.Option(..., "--for", help="The program that configures the uplink's devices."),
    to: Optional[Path] = typer.Option(  # noqa: UP045
        None, help="Write the files below this folder: / for this machine. Without it, they are printed."
    ),
    force: bool = typer.Option(False, "--force", help="Replace files that somebody else wrote or changed."),
) -> None:
    """Make the program that configures the network put an uplink's routes into its table."""
    policy, _ = read_policy(file)
    files = settings(policy, program.value)
    if to is None:
        print(shown(files), end="")
        return
    if to.exists() and not to.is_dir():
        raise Failure(f"--to takes a folder, and {to} is none", BAD_INPUT)
    from ..runtime.place.files import KEPT_ON_OPENWRT
    from ..runtime.place.install import place
    from .install import told_in_words

    with told_in_words():
        written = place(
            to.absolute(),
            {one.path: one.text.encode() for one in files},
            force,
            modes={one.path: one.mode for one in files},
            folder=KEPT_ON_OPENWRT if program.value == "netifd" else None,
        )
    print("\n".join([f"wrote {path}" for path in written] or ["everything is in place already"]))
    if written:
        print(f"next: {PROGRAMS[program.value][1]}")
