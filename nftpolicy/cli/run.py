# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy run SERVICE -- PROGRAM [ARGUMENT ...]"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    EXIT_BAD_INPUT,
    EXIT_REFUTED,
    EXIT_UNAVAILABLE,
    Failure,
    change_errors_as_failure,
    last_policy,
    read_policy,
    require_known,
    this_kernel,
    warn,
)
from .parameters import argument, option

if TYPE_CHECKING:
    from ..kernel.linux import Linux
    from ..policy.objects import Policy
    from ..runtime.apply.state_dir import StateDir
    from ..runtime.services.run import ServiceJob

_TEST_RESULTS = {True: "ok", False: "fault", None: "not tried"}


def command(
    service: Annotated[str, argument(metavar="SERVICE", help="Service of the policy.")],
    program: Annotated[
        list[str] | None, argument(metavar="[PROGRAM]...", help="The program and its arguments, after --.")
    ] = None,
    policy: Annotated[
        Path | None,
        option(help="Policy file (TOML); default: the policy that was applied last."),
    ] = None,
    check: Annotated[
        bool,
        option("--check", help="Test mark, routes and DNS from inside first; exit with 1 on a fault."),
    ] = False,
    env: Annotated[
        list[str] | None,
        option(help="Variable of this environment that the program gets too; may be repeated."),
    ] = None,
    fd: Annotated[
        list[int] | None,
        option(help="Open file descriptor that the program gets too; may be repeated."),
    ] = None,
    detach: Annotated[
        bool,
        option("--detach", help="Detach the BPF programs from the cgroup; start nothing."),
    ] = False,
) -> None:
    """Start a program as a service: its cgroup, group, user, mark.

    The exit status is that of the program.
    """
    from ..kernel.errors import Unavailable
    from ..runtime.services import run
    from ..runtime.services.isolation import close_inherited, passed_environment

    descriptors = close_inherited(fd or ())
    _check_named(env or [], fd or [], descriptors)
    _check_options(program, check, detach)
    kernel = this_kernel()
    from ..runtime.apply.state_dir import current_state_dir

    state_dir = current_state_dir()
    usage = "nftpolicy run SERVICE --policy FILE"
    chosen, _ = read_policy(policy) if policy is not None else last_policy(usage, state_dir)
    job = _service_start(chosen, service)
    try:
        if detach:
            _detach_programs(job, service)
            return
        file = run.find_program(program[0], os.environ) if program else None
        if file is not None and (refusal := run.MARKING_METHODS[job.service.marks].refusal_reason(file)):
            raise Failure(f"service {service}: {refusal}")
        _require_in_force(kernel, chosen, state_dir, policy)
        environment = run.enter_service(job, file, passed_environment(os.environ, env or ()), warn)
        if check:
            _run_self_test(job)
        if file is not None and program:
            sys.stdout.flush()
            run.execute(file, program, environment, descriptors)
    except run.ServiceStartError as error:
        raise Failure(str(error), error.status) from None
    except Unavailable as error:
        raise Failure(str(error), EXIT_UNAVAILABLE) from None


def _check_named(variables: list[str], descriptors: list[int], open_descriptors: set[int]) -> None:
    """Raise Failure unless the variables are set, and the descriptors open."""
    for name in variables:
        if name not in os.environ:
            raise Failure(f"--env: the environment has no variable {name!r}", EXIT_BAD_INPUT)
    for number in descriptors:
        if number not in open_descriptors:
            raise Failure(f"--fd: descriptor {number} is not open", EXIT_BAD_INPUT)


def _check_options(program: list[str] | None, check: bool, detach: bool) -> None:
    if detach and (program or check):
        raise Failure("--detach starts nothing: it takes neither a program nor --check", EXIT_BAD_INPUT)
    if not (program or check or detach):
        raise Failure("name the program to start: nftpolicy run SERVICE -- PROGRAM", EXIT_BAD_INPUT)


def _service_start(policy: Policy, name: str) -> ServiceJob:
    """Return how the service is started.

    Raises:
        Failure: the policy has no such service, or its sockets are the kernel's.
    """
    from ..runtime.services.run import ServiceJob

    require_known("service", name, policy.service, owner=policy.name)
    job = ServiceJob.for_service(policy, name)
    if job.service.kernel:
        raise Failure(f"service {name}: its sockets are the kernel's, so no program can be started", EXIT_BAD_INPUT)
    return job


def _detach_programs(job: ServiceJob, service: str) -> None:
    from ..runtime.services import run

    if job.service.marks != "cgroup":
        raise Failure(
            f'--detach: service {service} has marks = "{job.service.marks}", so no program is attached to a cgroup',
            EXIT_BAD_INPUT,
        )
    result = "detached from" if run.detach_programs(job) else "no program is attached to"
    print(f"{service}: {result} cgroup {job.cgroup}")


def _require_in_force(kernel: Linux, policy: Policy, state_dir: StateDir, file: Path | None) -> None:
    from ..runtime.apply.executor import plan_change
    from ..runtime.status import read_status

    with change_errors_as_failure(None):
        state = read_status(kernel, policy, plan_change(kernel, policy, state_dir))
    if not state.has_guard_and_rules:
        command = f"nftpolicy apply {file}" if file else "nftpolicy status"
        raise Failure(f"{policy.name} is not in force, since guard or ip rules differ: run '{command}' first")


def _run_self_test(job: ServiceJob) -> None:
    from ..runtime.services.run import run_self_test

    results = list(run_self_test(job))
    for result in results:
        warn(f"{_TEST_RESULTS[result.passed]}: {result.text}")
    if any(result.passed is False for result in results):
        raise typer.Exit(EXIT_REFUTED)
