# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy resolver FILE"""

import gc
from pathlib import Path
from typing import Optional

import typer

from .common import BAD_INPUT, NOT_HERE, Failure, read_policy, this_kernel, warn


def command(
    file: Path = typer.Argument(help="The policy, TOML."),
    uplink: Optional[str] = typer.Option(None, help="The uplink, where more than one has a resolver."),  # noqa: UP045
) -> None:
    """Run an uplink's resolver in the foreground, for a service manager. Ends on SIGTERM."""
    policy, _ = read_policy(file)
    choices = [name for name, value in policy.uplink.items() if value.resolver]
    name = uplink or (choices[0] if len(choices) == 1 else None)
    if name not in choices:
        asked = f"there is no resolver of an uplink {uplink!r}" if uplink else "choose an uplink with --uplink"
        raise Failure(f"{asked}; with a resolver: {', '.join(choices) or 'none'}", BAD_INPUT)
    kernel = this_kernel()
    from ..kernel.interface import Unavailable
    from ..runtime import resolver
    from ..runtime.apply import prospect
    from ..runtime.memory import of_this_namespace
    from ..runtime.status import status

    memory = of_this_namespace()
    found = status(kernel, policy, prospect(kernel, policy, memory))
    if not (found.parts["guard"] and found.parts["ladder"]):
        raise Failure(
            f"{policy.name} is not in force, so queries could leave by any way: run 'nftpolicy apply {file}' first"
        )
    value = policy.uplink[name]
    assert value.resolver is not None
    gc.enable()
    job = resolver.Job(name, value, value.resolver, memory.folder / f"resolver-{name}", warn)
    try:
        resolver.run(job)
    except resolver.Failed as error:
        raise Failure(str(error)) from None
    except Unavailable as error:
        raise Failure(str(error), NOT_HERE) from None
