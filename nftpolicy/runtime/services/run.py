# SPDX-License-Identifier: BSD-2-Clause
"""Start of a program as a service: cgroup, group, user and exec, all in this process.

Signals, terminal, standard input and exit status need no forwarding, since no process stands
between the program and its parent; isolation.py keeps from the program what it must not get. The
cgroup remains when the program ends, until another process removes it (kernel/cgroup.py).
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from attrs import frozen

from ...exceptions import NftpolicyError
from ...kernel import accounts, capability, cgroup
from ...kernel.cgroup import enter, unmarked_sockets
from ...kernel.errors import Unavailable
from ...policy.objects import Policy, Service, Uplink, service_cgroup
from . import preload, self_test
from .isolation import ACCOUNT_VARIABLES, isolate_process, open_descriptors
from .name_isolation import check_names, hide_name_daemons
from .program_privileges import gains_privileges
from .self_test import SelfTestResult

NOT_EXECUTABLE, NOT_FOUND = (
    126,
    127,
)  # exit statuses of shells (POSIX, Shell Command Language 2.8.2)
_FAILED = 5  # exit status of a command that failed, nftpolicy(1)
# Search path if PATH is not set, execvp(3).
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOGROUP = 65534  # group of a user ID without an account
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class ServiceStartError(NftpolicyError):
    """Failure to start the program as the service. `status` is the exit status."""

    def __init__(self, message: str, status: int = _FAILED) -> None:
        self.status = status
        super().__init__(message)


@frozen
class ServiceJob:
    """Service `name` of a policy, as which a program is started."""

    name: str
    service: Service
    uplink: Uplink

    @classmethod
    def for_service(cls, policy: Policy, name: str) -> ServiceJob:
        """Return the start of a service of the policy. Raises KeyError."""
        service = policy.service[name]
        return cls(name, service, policy.uplink[service.uplink])

    @property
    def mark(self) -> tuple[int, int]:
        """Value and mask of the mark."""
        return self.uplink.mark.value, self.uplink.mark.mask

    @property
    def cgroup(self) -> str:
        """Path of the service's cgroup, below the root of cgroup v2."""
        return service_cgroup(self.name, self.service)

    @property
    def account_label(self) -> str:
        """Group or user of the service, as "group NAME" or "user NAME"."""
        if self.service.group:
            return f"group {self.service.group.name}"
        assert self.service.user is not None
        return f"user {self.service.user.name}"


# --- marking methods ----------------------------------------------------------------------


@frozen
class MarkingMethod:
    """Method of marking a service's sockets, by a value of the policy key `marks`.

    `prepare` runs as root before any other change of this process; it raises ServiceStartError or
    Unavailable. `environment` returns variables to add to the program's environment. `refusal_reason`
    returns the reason why a program cannot be marked by this method, or None. `kept_capability`
    returns the capability that a service with another user than root keeps. `marked_by` names what
    marks the sockets later. `marks_at_once`: from `prepare` on every new socket of this process has
    the mark; the program is not started if one lacks it.
    """

    prepare: Callable[[ServiceJob], None] = lambda job: None
    environment: Callable[[ServiceJob, Mapping[str, str]], Mapping[str, str]] = lambda job, present: {}
    refusal_reason: Callable[[Path], str | None] = lambda program: None
    marks_at_once: bool = False
    kept_capability: Callable[[], int] | None = None
    marked_by: str = "set by the program itself"


def _join_cgroup(job: ServiceJob) -> None:
    devices = job.uplink.devices if job.service.confine else None
    enter(job.cgroup, *job.mark, devices)


def _preload_variables(job: ServiceJob, present: Mapping[str, str]) -> Mapping[str, str]:
    return preload.preload_environment(job.uplink.mark, present, job.service.user.number if job.service.user else 0)


MARKING_METHODS: dict[str, MarkingMethod] = {
    "itself": MarkingMethod(),
    "preload": MarkingMethod(
        environment=_preload_variables,
        refusal_reason=preload.refusal_reason,
        kept_capability=capability.cap_for_so_mark,
        marked_by="set by the preloaded library in the program",
    ),
    "cgroup": MarkingMethod(prepare=_join_cgroup, marks_at_once=True),
    "uid-rule": MarkingMethod(marked_by="none, an ip rule routes the service's user"),
}


# --- the program --------------------------------------------------------------------------


def find_program(command: str, environment: Mapping[str, str]) -> Path:
    """Return the file of a command. Raises ServiceStartError with the exit status of a shell."""
    if "/" in command:
        file: str | None = command
    else:
        path = environment.get("PATH", _DEFAULT_PATH)
        file = shutil.which(command, path=path) or shutil.which(command, os.F_OK, path)
    if not command or file is None or not os.path.exists(file):  # noqa: PTH110
        raise ServiceStartError(f"{command!r}: no such command", NOT_FOUND)
    if not Path(file).is_file() or not os.access(file, os.X_OK):
        raise ServiceStartError(f"{file}: not an executable file", NOT_EXECUTABLE)
    return Path(file)


def drop_privileges(job: ServiceJob) -> dict[str, str]:
    """Set the group or user of the service for good; return the environment variables of the user.

    A group: that group, no supplementary groups, and the user as before. A user: with its own
    groups. Raises Unavailable.
    """
    group, user = job.service.group, job.service.user
    try:
        if user is not None:
            login = accounts.user_account(user.number)
            os.setgroups(login.groups if login else [])
            gid = login.group if login else _NOGROUP
            os.setresgid(gid, gid, gid)
            kept_capability = MARKING_METHODS[job.service.marks].kept_capability
            with capability.keep_capability(kept_capability()) if kept_capability else nullcontext():
                os.setresuid(user.number, user.number, user.number)
            return {"HOME": login.home, "USER": login.name, "LOGNAME": login.name} if login else {}
        if group is not None:
            os.setgroups([])
            os.setresgid(group.number, group.number, group.number)
    except OSError as error:
        raise Unavailable(f"cannot switch to {job.account_label} ({error.strerror}): this needs root") from None
    return {}


def execute(file: Path, arguments: Sequence[str], environment: Mapping[str, str], keep: set[int]) -> None:
    """Execute the program in this process, with the descriptors `keep`.

    Raises:
        ServiceStartError: the kernel refused; otherwise this does not return.
    """
    for number in _IGNORED_BY_PYTHON:  # the program would inherit SIG_IGN
        signal.signal(number, signal.SIG_DFL)
    for descriptor in open_descriptors() - keep:  # libraries open descriptors without O_CLOEXEC
        with suppress(OSError):
            os.set_inheritable(descriptor, False)
    try:
        os.execve(file, list(arguments), dict(environment))
    except OSError as error:
        status = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        reason = "its interpreter is missing" if error.errno == errno.ENOENT else error.strerror
        raise ServiceStartError(f"{file}: cannot be executed: {reason}", status) from None


# --- the steps ----------------------------------------------------------------------------


def enter_service(
    job: ServiceJob, program: Path | None, environment: Mapping[str, str], warn: Callable[[str], None]
) -> dict[str, str]:
    """Make this process one of the service; return the environment of its program.

    `environment` is what the program may have of the caller's. Warnings go to `warn`. Afterwards the
    process has the service's group or user for good.

    Raises:
        ServiceStartError: a new socket lacks the mark, or is not confined.
        Unavailable: the marking method, or the group or user, is not available here.
    """
    method = MARKING_METHODS[job.service.marks]
    method.prepare(job)
    if method.marks_at_once:
        for inherited in unmarked_sockets(os.getpid(), job.mark):
            mark = job.uplink.mark
            warn(f"{inherited}, was opened before this process: it lacks the mark {mark}")
    if (warning := hide_name_daemons(job.uplink)) is not None:
        warn(f"service {job.name}: {warning}")
    variables = {**environment, **method.environment(job, environment)}
    other_user = job.service.user is not None
    try:
        # A program that root names has the privileges of its file; others find none on their way.
        isolate_process(other_user and not (program and gains_privileges(program)), other_user)
    except OSError as error:
        raise Unavailable(f"cannot separate the program from this terminal: {error.strerror}") from None
    account = drop_privileges(job)
    if other_user:
        variables = {name: value for name, value in variables.items() if name not in ACCOUNT_VARIABLES}
    for result in _socket_findings(job):
        if result.passed is False:
            hint = "look for BPF programs of other software: bpftool cgroup tree"
            raise ServiceStartError(f"service {job.name}: {result.text}; {hint}")
    return {**variables, **account}


def run_self_test(job: ServiceJob) -> Iterator[SelfTestResult]:
    """Run the self-test of this process, once it belongs to the service."""
    method = MARKING_METHODS[job.service.marks]
    if not method.marks_at_once:
        yield SelfTestResult(f"mark: {method.marked_by}", None)
    yield from _socket_findings(job)
    yield from self_test.check_routes(job.uplink, job.service, own=method.marks_at_once or job.service.unmarked)
    yield from self_test.check_dns(job.service.uplink, job.uplink)
    yield from check_names(job.uplink)


def _socket_findings(job: ServiceJob) -> Iterator[SelfTestResult]:
    if MARKING_METHODS[job.service.marks].marks_at_once:
        yield from self_test.check_marks(job.uplink)
    if job.service.confine:
        yield from self_test.check_confinement(job.uplink)


def detach_programs(job: ServiceJob) -> bool:
    """Detach the BPF programs from the service's cgroup; return True if there were any.

    Raises Unavailable.
    """
    return cgroup.detach(job.cgroup)
