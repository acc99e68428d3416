# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy status [FILE]"""

from __future__ import annotations

import gc
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from attrs import evolve

from ..policy.objects import Policy
from .common import (
    EXIT_BAD_INPUT,
    EXIT_OUTPUT_CLOSED,
    EXIT_REFUTED,
    Failure,
    applied_policy,
    change_errors_as_failure,
    read_policy,
    this_kernel,
    warn,
)
from .options import AppliedPolicyFile, PrintJson
from .parameters import option, require_number
from .plain_output import json_line, print_json, write_controls

if TYPE_CHECKING:
    from ..kernel.linux import Linux
    from ..runtime.status_report import StatusReport

_LONGEST_INTERVAL = 3600  # seconds
_CLEAR = "\x1b[H\x1b[2J"


def command(
    file: AppliedPolicyFile = None,
    as_json: PrintJson = False,
    is_live: Annotated[bool, option("--watch", help="Print the status again after each change, until Ctrl-C.")] = False,
    interval: Annotated[
        float,
        option(min=0.2, max=_LONGEST_INTERVAL, callback=require_number, help="Seconds between two updates of --watch."),
    ] = 2,
) -> None:
    """Show if the policy is in force, with counters and sockets.

    Exits with 1 if it is not: if guard, shadow guard, ip rules, routes or sysctls differ, if the uplinks are blocked,
    or if a foreign ip rule starves the services. Exits with 2 if no policy is applied.
    """
    kernel = this_kernel()
    if is_live:
        if str(file) == "-":
            raise Failure("--watch reads the policy again and again, so it cannot be standard input", EXIT_BAD_INPUT)
        gc.enable()
        _print_changes(lambda: _read(kernel, file), as_json, interval)
        return
    report = _read(kernel, file)
    if as_json:
        print_json(report.as_json())
    else:
        from .render.status_text import print_report

        print_report(report)
    from .render.status_text import warning_lines

    sys.stdout.flush()  # an error of standard output comes alone
    for line in warning_lines(report):
        warn(line)
    if report.comparison is None:
        raise typer.Exit(EXIT_BAD_INPUT)  # not 1: what applies a policy again after damage must not undo a release
    if not report.is_in_force:
        raise typer.Exit(EXIT_REFUTED)


def _read(kernel: Linux, file: Path | None) -> StatusReport:
    """Return the report about the policy in a file; None: the one that was applied last."""
    from ..runtime.apply.state_dir import current_state_dir
    from ..runtime.resolver.resolv_files import find_host_leaks
    from ..runtime.status_report import read_report
    from ..runtime.sysctl_files import find_sysctl_conflicts

    state_dir = current_state_dir()
    with change_errors_as_failure(None):
        source = applied_policy(state_dir) if file is None else read_policy(file)
        report = read_report(kernel, source, state_dir)
        if source is None or report.comparison is None:
            return report
        policy, _ = source
        return evolve(
            report,
            comparison=evolve(report.comparison, misplaced_routes=_misplaced_routes(policy)),
            resolver_leaks=tuple(map(str, find_host_leaks(policy))),
            sysctl_files=tuple(map(str, find_sysctl_conflicts(policy))),
        )


def _misplaced_routes(policy: Policy) -> tuple[str, ...]:
    from ..kernel.netlink.route_mover import RouteMover
    from ..runtime.watch.route_keeper import misplaced_routes

    routes = RouteMover()
    try:
        return misplaced_routes(routes, policy)
    finally:
        routes.close()


def _print_changes(read: Callable[[], StatusReport], as_json: bool, interval: float) -> None:
    """Print each new status until SIGINT: over the old one on a terminal, else as a block."""
    from .render.status_text import print_report, readable_time, warning_lines

    essence: object = None
    try:
        while True:
            report = read()
            if report.essence != essence or (sys.stdout.isatty() and not as_json):
                essence = report.essence
                if as_json:
                    print(json_line(report.as_json()))
                else:
                    now = readable_time(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
                    if sys.stdout.isatty():
                        write_controls(sys.stdout, _CLEAR)
                    print(f"--- {now}")
                    print_report(report)
                    for line in warning_lines(report):
                        print(f"warning: {line}")
                sys.stdout.flush()
            _wait(interval)
    except KeyboardInterrupt:
        return


def _wait(seconds: float) -> None:
    """Sleep, or end this command as soon as the program that reads standard output has ended."""
    poll = select.poll()
    with suppress(OSError):  # a stream without a descriptor
        poll.register(sys.stdout, 0)
    if poll.poll(seconds * 1000):
        raise typer.Exit(EXIT_OUTPUT_CLOSED)
