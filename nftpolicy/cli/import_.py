# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy import SOURCE ...: one command for each kind of configuration that a policy can be made of."""

import typer

from .import_openwrt import command as openwrt

group = typer.Typer(help="Make a policy of what a machine has now.", no_args_is_help=True)


@group.callback()
def _group() -> None:
    """Make a policy of what a machine has now, and say what leaks there."""


group.command("openwrt")(openwrt)
