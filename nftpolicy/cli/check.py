# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy check FILE"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from .common import FILE, REFUSED, UNKNOWN, Failure, policy_file, read_policy, warn
from .told import noted, told

if TYPE_CHECKING:
    from ..policy.errors import Source
    from ..policy.objects import Policy


def command(file: Optional[Path] = typer.Argument(None, help=FILE)) -> None:  # noqa: UP045
    """Read a policy, say what is wrong with it, and prove what it compiles to. Needs no root and changes nothing."""
    file = policy_file(file)
    policy, source = read_policy(file)
    from ..policy.lint import warnings
    from ..policy.others import SIGNS

    here = frozenset(one for one in SIGNS if os.path.exists(one))  # noqa: PTH110
    for note in noted(source, warnings(policy, here)):
        warn(note)
    from ..runtime.resolver.leak_files import found

    for leak in found(policy):
        warn(str(leak))
    _prove(file, policy, source)
    uplinks, services = len(policy.uplink), len(policy.service)
    print(f"{file}: {policy.name}: good: {_count(uplinks, 'uplink')}, {_count(services, 'service')}, proved")


def _prove(file: Path, policy: Policy, source: Source) -> None:
    """Failure if what the policy compiles to does not hold what the policy promises."""
    from ..compiler.compile import compile_policy
    from ..proof.promise import claim
    from ..proof.prover import prove

    proof = prove(compile_policy(policy), claim(policy))
    if proof.verdict == "proved":
        return
    said = "\n".join(told(proof, source))
    more = f"'nftpolicy verify {file}' shows the whole"
    raise Failure(f"{said}\nnftpolicy: {more}", UNKNOWN if proof.verdict == "unknown" else REFUSED)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
