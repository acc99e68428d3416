# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy import SOURCE ...: one subcommand for each kind of configuration."""

import typer

from .import_openwrt import command as import_openwrt
from .parameters import GroupedCommand, OrderedGroup, readable_command

group = typer.Typer(cls=OrderedGroup, help="Draft a policy from an existing configuration.", no_args_is_help=True)


@group.callback()
def _describe_group() -> None:
    """Draft a policy from an existing configuration.

    The report lists what leaks now.
    """


group.command("openwrt", cls=GroupedCommand)(readable_command(import_openwrt))
