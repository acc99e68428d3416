# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy wait [FILE]"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from ..policy.errors import nearest
from .common import BAD_INPUT, REFUSED, Failure, changing, parse_policy, read_policy, this_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..policy.objects import Policy
    from ..runtime.changes.memory import Memory
    from ..runtime.service.ready import World


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy; without it, the one that was applied last."),  # noqa: UP045
    uplink: Optional[str] = typer.Option(None, help="Wait until this uplink can be used; without it, until all can."),  # noqa: UP045
    service: Optional[str] = typer.Option(None, help="Wait until this service has had an answer by its uplink."),  # noqa: UP045
    timeout: float = typer.Option(60, min=0, help="Seconds; 0 looks once."),
) -> None:
    """Wait until the uplinks can be used, or a service is in touch with its far end (else exit 1)."""
    if uplink is not None and service is not None:
        raise Failure("--uplink and --service: wait for one of them", BAD_INPUT)
    gc.enable()
    kernel = this_kernel()
    from ..compiler import names
    from ..kernel.monitor import Monitor
    from ..netstate.routing import PROTOCOL
    from ..runtime.changes.apply import prospect
    from ..runtime.changes.memory import of_this_namespace
    from ..runtime.service.ready import World, wait
    from ..runtime.status import status

    memory = of_this_namespace()
    policy = read_policy(file)[0] if file is not None else _last(memory)
    _known("uplink", uplink, policy.uplink)
    _known("service", service, policy.service)

    def guarded() -> bool:
        parts = status(kernel, policy, prospect(kernel, policy, memory)).parts
        return parts["guard"] and parts["ladder"]

    with changing(None), Monitor(names.TABLE, names.BLOCK_TABLE, PROTOCOL) as ears:
        missing = wait(
            _look(World(policy, guarded, memory.folder), uplink, service), timeout, ears.descriptors, ears.read
        )
    if missing:
        raise Failure("\nnftpolicy: ".join(missing), REFUSED)


def _look(world: World, uplink: str | None, service: str | None) -> Callable[[], list[str]]:
    if service is not None:
        return lambda: world.of_service(service)
    wanted = list(world.policy.uplink) if uplink is None else [uplink]
    return lambda: [fault for name in wanted for fault in world.of_uplink(name)]


def _known(kind: str, name: str | None, known: Mapping[str, object]) -> None:
    if name is not None and name not in known:
        raise Failure(
            f"there is no {kind} {name[:60]!r}{nearest(name, known)}; known are {', '.join(known) or 'none'}", BAD_INPUT
        )


def _last(memory: Memory) -> Policy:
    last = memory.policy()
    if last is None:
        raise Failure("no policy was applied here; name one: nftpolicy wait FILE", BAD_INPUT)
    return parse_policy(last[1], last[0])[0]
