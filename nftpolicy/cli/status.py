# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy status [FILE]"""

from pathlib import Path
from typing import Optional

import typer

from .common import BAD_INPUT, REFUSED, Failure, parse_policy, read_policy, this_kernel


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy; without it, the one that was applied last."),  # noqa: UP045
    json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show uplinks, ladder and counters, and whether the kernel holds what the policy wants (else exit 1)."""
    kernel = this_kernel()
    from ..runtime.apply import prospect
    from ..runtime.memory import of_this_namespace
    from ..runtime.status import status

    memory = of_this_namespace()
    if file is not None:
        policy, _ = read_policy(file)
    else:
        last = memory.policy()
        if last is None:
            raise Failure("no policy was applied here; name one: nftpolicy status FILE", BAD_INPUT)
        policy, _ = parse_policy(last[1], last[0])
    found = status(kernel, policy, prospect(kernel, policy, memory))
    if json:
        import json as library

        print(library.dumps(found.as_json(), indent=1))
    else:
        from .tables import show_status

        show_status(found)
    if not found.as_expected:
        raise typer.Exit(REFUSED)
