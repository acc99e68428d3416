# SPDX-License-Identifier: BSD-2-Clause
"""Arguments and options that several commands share, as annotations for typer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .parameters import argument, option, require_number

PolicyFile = Annotated[
    Path | None,
    argument(metavar="[FILE]", help="Policy file (TOML); default: the one in /etc/nftpolicy. - reads standard input."),
]
AppliedPolicyFile = Annotated[
    Path | None,
    argument(metavar="[FILE]", help="Policy file (TOML); default: the policy that was applied last."),
]
UnreadPolicyFile = Annotated[
    Path | None,
    argument(metavar="[FILE]", help="Policy file; it is not read, and need not be valid."),
]

PrintJson = Annotated[bool, option("--json", help="Print JSON.")]
DryRun = Annotated[bool, option("--dry-run", help="Print every step and its proof; change nothing.")]
STATE, UPLINKS = "State", "Uplinks without a policy"  # groups of the help
LOCK_WAIT = 5  # seconds: watch holds the lock for a moment whenever it repairs
LONGEST_WAIT = 365 * 86_400  # seconds
WaitSeconds = Annotated[
    float,
    option(
        "--wait",
        min=0,
        max=LONGEST_WAIT,
        callback=require_number,
        help="Seconds to wait for the lock of another nftpolicy process.",
    ),
]
DestDir = Annotated[
    Path | None,
    option(envvar="DESTDIR", help="Root directory of the target system, such as an image."),
]
ProgramPath = Annotated[str | None, option(help="Path of nftpolicy in the units.")]

# Saved state: what nft(8) and ip(8) printed on some machine.
RulesetFile = Annotated[
    Path | None,
    option(group=STATE, help="Read tables from this output of 'nft -j list ruleset', not from this kernel."),
]
RuleFiles = Annotated[
    list[str] | None, option(group=STATE, help="Output of 'ip -j -N -4 rule' (or -6); may be repeated.")
]
RouteFiles = Annotated[
    list[str] | None,
    option(group=STATE, help="Output of 'ip -j -N -4 route show table all' (or -6); may be repeated."),
]
ChainDevices = Annotated[
    list[str] | None,
    option(
        "--chain-device",
        group=STATE,
        help="CHAIN=DEVICE[,DEVICE]: hook device that the ruleset lacks; may be repeated.",
    ),
]
SnapshotFile = Annotated[
    Path | None,
    option(
        "--snapshot", group=STATE, help="Read the state from this output of 'nftpolicy snapshot', not from this kernel."
    ),
]

# Uplinks that no policy describes.
UplinkDevices = Annotated[
    list[str] | None,
    option(group=UPLINKS, help="NAME=DEVICE[,DEVICE]: an uplink, instead of a policy; may be repeated."),
]
UplinkMarks = Annotated[
    list[str] | None,
    option(group=UPLINKS, help="VALUE/MASK: one mark for all uplinks, or one for each in their order."),
]


def print_version(
    version: Annotated[bool, option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Control which services may use an uplink, and prove it.

    A policy is compiled to one nftables ruleset, ip rules and routes.
    """
    if version:
        print(f"nftpolicy {__version__}")
        raise typer.Exit
