# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy run SERVICE -- PROGRAM [ARGUMENT ...]"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from .common import (
    BAD_INPUT,
    NOT_HERE,
    REFUSED,
    Failure,
    changing,
    nearest,
    parse_policy,
    read_policy,
    this_kernel,
    warn,
)

if TYPE_CHECKING:
    from ..kernel.linux import Linux
    from ..policy.objects import Policy
    from ..runtime.changes.memory import Memory
    from ..runtime.service.run import Job

_WORDS = {True: "ok", False: "fault", None: "not tried"}


def command(
    service: str = typer.Argument(help="The service of the policy."),
    program: Optional[list[str]] = typer.Argument(None, help="The program and its arguments, after --."),  # noqa: UP045
    policy: Optional[Path] = typer.Option(None, help="The policy; without it, the one that was applied last."),  # noqa: UP045
    check: bool = typer.Option(False, "--check", help="Try mark, routes and names from inside first (else exit 1)."),
    detach: bool = typer.Option(False, "--detach", help="Take the BPF programs off the cgroup; start nothing."),
) -> None:
    """Start a program as a service: in its cgroup, with its group, user and mark. Its exit status is the program's."""
    from ..kernel.interface import Unavailable
    from ..runtime.service import run

    given = run.descriptors()
    _consistent(program, check, detach)
    kernel = this_kernel()
    from ..runtime.changes.memory import of_this_namespace

    memory = of_this_namespace()
    found = _policy(policy, memory)
    job = _job(found, service)
    try:
        if detach:
            if job.service.marks != "cgroup":
                marks = job.service.marks
                raise Failure(f'--detach: service {service} has marks = "{marks}", and nothing on a cgroup', BAD_INPUT)
            gone = run.detach(job)
            print(f"{service}: {'taken off' if gone else 'nothing is on'} cgroup {job.cgroup}")
            return
        file = run.program(program[0], os.environ) if program else None
        if file is not None and (why := run.WAYS[job.service.marks].refusal(file)):
            raise Failure(f"service {service}: {why}")
        _in_force(kernel, found, memory, policy)
        environment = {**os.environ, **run.enter_service(job, warn)}
        if check:
            _check(job)
        if file is not None and program:
            sys.stdout.flush()
            run.execute(file, program, environment, given)
    except run.Failed as error:
        raise Failure(str(error), error.status) from None
    except Unavailable as error:
        raise Failure(str(error), NOT_HERE) from None


def _consistent(program: list[str] | None, check: bool, detach: bool) -> None:
    if detach and (program or check):
        raise Failure("--detach: starts nothing, so there is neither a program nor --check with it", BAD_INPUT)
    if not (program or check or detach):
        raise Failure("name the program to start: nftpolicy run SERVICE -- PROGRAM", BAD_INPUT)


def _policy(file: Path | None, memory: Memory) -> Policy:
    if file is not None:
        return read_policy(file)[0]
    last = memory.policy()
    if last is None:
        raise Failure("no policy was applied here; name one: nftpolicy run SERVICE --policy FILE", BAD_INPUT)
    return parse_policy(last[1], last[0])[0]


def _job(policy: Policy, name: str) -> Job:
    from ..runtime.service.run import Job

    if name not in policy.service:
        known = ", ".join(policy.service) or "none"
        raise Failure(
            f"{policy.name} has no service {name[:60]!r}{nearest(name, policy.service)}; known are {known}", BAD_INPUT
        )
    job = Job.of(policy, name)
    if job.service.kernel:
        raise Failure(f"service {name} is the kernel's own sockets, and no program that could be started", BAD_INPUT)
    return job


def _in_force(kernel: Linux, policy: Policy, memory: Memory, file: Path | None) -> None:
    from ..runtime.changes.apply import prospect
    from ..runtime.status import status

    with changing(None):
        found = status(kernel, policy, prospect(kernel, policy, memory))
    if not found.guarded:
        what = f"nftpolicy apply {file}" if file else "nftpolicy status"
        raise Failure(f"{policy.name} is not in force, so packets could leave by any way: run '{what}' first")


def _check(job: Job) -> None:
    from ..runtime.service.run import looked_at

    findings = list(looked_at(job))
    for one in findings:
        warn(f"{_WORDS[one.good]}: {one.text}")
    if any(one.good is False for one in findings):
        raise typer.Exit(REFUSED)
