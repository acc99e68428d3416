# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy resolver FILE"""

from __future__ import annotations

import gc
import json as library
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from .common import BAD_INPUT, NOT_HERE, Failure, read_policy, this_kernel, warn

if TYPE_CHECKING:
    from ..policy.objects import Policy
    from ..runtime.resolver.learner import Learner

_PATIENCE = 2.0  # seconds that --show waits for a router's advertisement


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy, TOML; without it, the one in /etc/nftpolicy."),  # noqa: UP045
    uplink: Optional[str] = typer.Option(None, help="The uplink, where more than one has a resolver."),  # noqa: UP045
    list_: bool = typer.Option(False, "--list", help="Print the names of the uplinks that have one, and end."),
    show: bool = typer.Option(False, "--show", help="Print which DNS servers it would ask and who says so, and end."),
    json: bool = typer.Option(False, "--json", help="Print JSON, with --show."),
) -> None:
    """Run an uplink's resolver in the foreground, for a service manager. Ends on SIGTERM."""
    policy, source = read_policy(file)
    choices = [name for name, value in policy.uplink.items() if value.resolver]
    if json and not show:
        raise Failure("--json is for --show", BAD_INPUT)
    if list_:
        print("".join(f"{one}\n" for one in choices), end="")
        return
    if show and uplink is None and choices:
        _show(policy, choices, json)
        return
    name = uplink or (choices[0] if len(choices) == 1 else None)
    if name not in choices:
        asked = f"there is no resolver of an uplink {uplink!r}" if uplink else "choose an uplink with --uplink"
        raise Failure(f"{asked}; with a resolver: {', '.join(choices) or 'none'}", BAD_INPUT)
    if show:
        _show(policy, [name], json)
        return
    kernel = this_kernel()
    from ..kernel.interface import Unavailable
    from ..runtime.changes.apply import prospect
    from ..runtime.changes.memory import of_this_namespace
    from ..runtime.resolver import engine as resolver
    from ..runtime.status import status

    memory = of_this_namespace()
    found = status(kernel, policy, prospect(kernel, policy, memory))
    if not found.guarded:
        raise Failure(
            f"{policy.name} is not in force, so queries could leave by any way: "
            f"run 'nftpolicy apply {source.name}' first"
        )
    value = policy.uplink[name]
    assert value.resolver is not None
    gc.enable()
    job = resolver.Job(name, value, value.resolver, resolver.folder_of(memory.folder, name), warn)
    try:
        resolver.run(job)
    except resolver.Failed as error:
        raise Failure(str(error)) from None
    except Unavailable as error:
        raise Failure(str(error), NOT_HERE) from None


def _show(policy: Policy, uplinks: list[str], as_json: bool) -> None:
    from ..runtime.resolver.learner import Learner, Wanted
    from ..runtime.resolver.sources.reading import HEARD

    told = {}
    for name in uplinks:
        uplink = policy.uplink[name]
        assert uplink.resolver is not None
        try:
            with Learner(Wanted(name, uplink, uplink.resolver), lambda _: None) as learner:
                until = time.monotonic() + _PATIENCE
                learner.look()
                while HEARD in learner.sources and not learner.readings[HEARD].words and time.monotonic() < until:
                    if learner.readings[HEARD].trouble:
                        break
                    time.sleep(0.05)
                    learner.look()
                told[name] = _facts(learner)
        except OSError as error:
            raise Failure(f"the kernel can't be asked for devices and addresses: {error.strerror}", NOT_HERE) from None
    if as_json:
        print(library.dumps(told, indent=1))
        return
    for name, facts in told.items():
        servers = ", ".join(facts["servers"]) or "none: names are refused"
        print(f"uplink {name}: {servers}")
        for word, found in facts["sources"].items():
            said = ", ".join(dict.fromkeys(found["words"])) or "nothing"
            trouble = f" ({found['trouble']})" if found["trouble"] else ""
            print(f"  {word:<15} {said}{trouble}")
        for word, why in facts["left_out"].items():
            print(f"  left out        {word}: {why}")


def _facts(learner: Learner) -> dict[str, Any]:
    written = list(map(str, learner.wanted.resolver.servers))
    sources = {}
    for word in learner.sources:
        found = learner.readings.get(word)
        words = [one for _, one in found.words] if found else written
        sources[word] = {"words": words, "trouble": found.trouble if found else ""}
    choice = learner.choice
    return {"servers": list(map(str, choice.servers)), "sources": sources, "left_out": dict(choice.refused)}
