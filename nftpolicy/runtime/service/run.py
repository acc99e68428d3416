# SPDX-License-Identifier: BSD-2-Clause
"""Becoming a process of a service: its cgroup, its group and user, and then its program, in this very process.

So signals, terminal, standard input and exit status need no help: there is nobody between the program and who
started it. The cgroup stays when the program ends, as long as nobody removes it (kernel/cgroup.py).
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

from ...kernel import accounts, capability
from ...kernel.cgroup import detach as _detach
from ...kernel.cgroup import enter, unmarked
from ...kernel.interface import Unavailable
from ...policy.objects import Policy, Service, Uplink, cgroup_of
from . import inside, preload
from .inside import Finding

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # what shells say of a command (POSIX, Shell Command Language 2.8.2)
# Where programs are looked for if nobody says, execvp(3).
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOBODYS_GROUP = 65534
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Failed(Exception):
    """The program can't be started as the service; says why. `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        self.status = status
        super().__init__(message)


@frozen
class Job:
    """Service `name` of a policy, of which a program is to be started."""

    name: str
    service: Service
    uplink: Uplink

    @classmethod
    def of(cls, policy: Policy, name: str) -> Job:
        """The job for a service that is in the policy."""
        service = policy.service[name]
        return cls(name, service, policy.uplink[service.uplink])

    @property
    def mark(self) -> tuple[int, int]:
        """Value and mask."""
        return self.uplink.mark.value, self.uplink.mark.mask

    @property
    def cgroup(self) -> str:
        """Its cgroup, below the root of cgroup v2."""
        return cgroup_of(self.name, self.service)

    @property
    def account(self) -> str:
        """The words of the policy for who it is."""
        return f"group {self.service.group.name}" if self.service.group else f"user {self.service.user.name}"  # type: ignore[union-attr]


# --- by the word of `marks` ---------------------------------------------------------------


@frozen
class Way:
    """How a program of a service comes to its mark.

    `enter` runs as root, before anything else of this process is changed; it raises Failed or Unavailable.
    `environment` is what the program's environment gets. `refusal` says why a program can't be marked this way.
    `keeps` gives the capability that a service of another user than root keeps for it.
    `by` says who does it later than that.
    `at_once`: from `enter` on every new socket of this process wears the mark, and it is not started if one does not.
    """

    enter: Callable[[Job], None] = lambda job: None
    environment: Callable[[Job], Mapping[str, str]] = lambda job: {}
    refusal: Callable[[Path], str | None] = lambda program: None
    at_once: bool = False
    keeps: Callable[[], int] | None = None
    by: str = "the program puts it on by itself"


def _into_cgroup(job: Job) -> None:
    devices = job.uplink.devices if job.service.confine else None
    enter(job.cgroup, *job.mark, devices)


def _library(job: Job) -> Mapping[str, str]:
    return preload.environment(job.uplink.mark, user=job.service.user.number if job.service.user else 0)


WAYS: dict[str, Way] = {
    "itself": Way(),
    "preload": Way(
        environment=_library,
        refusal=preload.refusal,
        keeps=capability.to_mark,
        by="a library in the program puts it on",
    ),
    "cgroup": Way(enter=_into_cgroup, at_once=True),
    "uid-rule": Way(by="none, an ip rule leads its user"),
}


# --- the program --------------------------------------------------------------------------


def program(command: str, environment: Mapping[str, str]) -> Path:
    """The file that a command stands for. Raises Failed."""
    if "/" in command:
        found: str | None = command
    else:
        path = environment.get("PATH", _PATH)
        found = shutil.which(command, path=path) or shutil.which(command, os.F_OK, path)
    if not command or found is None or not os.path.exists(found):  # noqa: PTH110
        raise Failed(f"{command!r}: there is no such command", NOT_FOUND)
    if not Path(found).is_file() or not os.access(found, os.X_OK):
        raise Failed(f"{found}: is not executable", NOT_EXECUTABLE)
    return Path(found)


def become(job: Job) -> dict[str, str]:
    """Take on the ids of the service for good; what of the environment belongs to its user.

    A group: that group and no supplementary one; the user stays. A user: with its own groups. Raises Unavailable.
    """
    group, user = job.service.group, job.service.user
    try:
        if user is not None:
            login = accounts.login(user.number)
            os.setgroups(login.groups if login else [])
            gid = login.group if login else _NOBODYS_GROUP
            os.setresgid(gid, gid, gid)
            keeps = WAYS[job.service.marks].keeps
            with capability.kept(keeps()) if keeps else nullcontext():
                os.setresuid(user.number, user.number, user.number)
            return {"HOME": login.home, "USER": login.name, "LOGNAME": login.name} if login else {}
        if group is not None:
            os.setgroups([])
            os.setresgid(group.number, group.number, group.number)
    except OSError as error:
        raise Unavailable(f"{job.account} can't be taken on ({error.strerror}): this needs root") from None
    return {}


def descriptors() -> set[int]:
    """The descriptors that this process has now; at its start, those that it was given by who started it."""
    listed = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return {number for number in listed if Path(f"/proc/self/fd/{number}").is_symlink()}  # without the folder's own


def execute(file: Path, arguments: Sequence[str], environment: Mapping[str, str], keep: set[int]) -> None:
    """Become the program, with the descriptors `keep`. Returns only by raising Failed."""
    for number in _IGNORED_BY_PYTHON:  # or the program would ignore them, too
        signal.signal(number, signal.SIG_DFL)
    for descriptor in descriptors() - keep:  # libraries open some that exec would not close
        with suppress(OSError):
            os.set_inheritable(descriptor, False)
    try:
        os.execve(file, list(arguments), dict(environment))
    except OSError as error:
        status = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        reason = "its interpreter is not there" if error.errno == errno.ENOENT else error.strerror
        raise Failed(f"{file}: can't be executed: {reason}", status) from None


# --- the steps ----------------------------------------------------------------------------


def enter_service(job: Job, say: Callable[[str], None]) -> dict[str, str]:
    """Make this process one of the service; what the environment of its program gets.

    `say` is told what does not stop it. After this the process has the service's ids for good.

    Raises:
        Failed: a new socket does not wear the mark, or is not confined.
        Unavailable: the way of marking, or the ids of the service, can't be had here.
    """
    way = WAYS[job.service.marks]
    way.enter(job)
    if way.at_once:
        for one in unmarked(os.getpid(), job.mark):
            say(f"{one}, was opened before and handed on: it does not wear the mark {job.uplink.mark}")
    added = {**way.environment(job), **become(job)}
    for found in _socket_findings(job):
        if found.good is False:
            raise Failed(f"service {job.name}: {found.text}; look for programs of others: bpftool cgroup tree")
    return added


def looked_at(job: Job) -> Iterator[Finding]:
    """What this process finds, once it is one of the service."""
    way = WAYS[job.service.marks]
    at_once = way.at_once
    if not at_once:
        yield Finding(f"mark: {way.by}", None)
    yield from _socket_findings(job)
    yield from inside.routes(job.uplink, job.service, own=at_once or job.service.unmarked)
    yield from inside.names(job.service.uplink, job.uplink)


def _socket_findings(job: Job) -> Iterator[Finding]:
    if WAYS[job.service.marks].at_once:
        yield from inside.marks(job.uplink)
    if job.service.confine:
        yield from inside.confined(job.uplink)


def detach(job: Job) -> bool:
    """Take the programs off the cgroup of a service that is marked by cgroup; whether any were there.

    Raises Unavailable.
    """
    return _detach(job.cgroup)
