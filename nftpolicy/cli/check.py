# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy check FILE"""

from pathlib import Path

import typer

from .common import read_policy


def command(file: Path = typer.Argument(help="The policy, TOML. - reads standard input.")) -> None:
    """Read a policy and say what is wrong with it. Needs no root and changes nothing."""
    policy, _ = read_policy(file)
    uplinks, services = len(policy.uplink), len(policy.service)
    print(f"{file}: {policy.name}: good: {_count(uplinks, 'uplink')}, {_count(services, 'service')}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
