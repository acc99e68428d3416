# SPDX-License-Identifier: BSD-2-Clause
"""The uplink's resolver: a second dnsmasq whose sockets wear the uplink's mark.

It asks only the servers of the uplink, answers on the policy's addresses, keeps no cache, and
without a server it refuses. Its mark is put on by its cgroup and looked at while it runs.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import evolve, field, frozen

from ...kernel import accounts
from ...kernel.cgroup import MarkedGroup, unmarked
from ...kernel.interface import Unavailable
from ...kernel.notify import Manager
from ...kernel.seccomp import MarkedCalls
from ...policy.objects import Listen, Resolver, Uplink
from .learner import Learner, Wanted
from .upstream import Upstream

_EVERY = 1.0  # seconds between two looks at the sockets
_APART = 0.1  # seconds between two changes of the servers, at least
_PR_SET_PDEATHSIG = 1
_SERVERS = "servers"
_libc = ctypes.CDLL(None)


class Failed(Exception):
    """The resolver can't run, or may not go on; says why."""


@frozen
class Job:
    """One resolver to run: uplink `name` with its settings; `folder` is for its files."""

    name: str
    uplink: Uplink
    resolver: Resolver
    folder: Path
    say: Callable[[str], None]
    manager: Manager = field(factory=Manager)

    @property
    def servers_file(self) -> Path:
        """The file by which dnsmasq knows its servers; it reads it again when it changes."""
        return self.folder / _SERVERS


def servers_file(state: Path, uplink: str) -> Path:
    """That file, for the resolver of an uplink; `state` is the folder of the network namespace (runtime.memory)."""
    return folder_of(state, uplink) / _SERVERS


def folder_of(state: Path, uplink: str) -> Path:
    """The folder for the files of an uplink's resolver."""
    return state / f"resolver-{uplink}"


def run(job: Job) -> None:
    """Run until a signal ends it. Raises Failed, or Unavailable."""
    program = shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not program:
        raise Unavailable("dnsmasq is missing: apt-get install dnsmasq-base")
    job = evolve(job, resolver=evolve(job.resolver, listen=_present(job)))
    with ExitStack() as stack:
        _alone(job, stack)
        _prepare(job.folder)
        stack.callback(shutil.rmtree, job.folder, ignore_errors=True)
        learner = stack.enter_context(Learner(Wanted(job.name, job.uplink, job.resolver), job.say))
        upstream = Upstream(job.servers_file)
        _refresh(job, learner, upstream)
        marking = stack.enter_context(_marking(job))
        command = [program, *arguments(job), *_if_known(program, _QUICK_RETRY)]
        child = subprocess.Popen(command, preexec_fn=lambda: _before(marking), stdin=subprocess.DEVNULL)
        stack.callback(_end, child)
        marking.started()
        _watch(job, child, learner, upstream)


def arguments(job: Job) -> list[str]:
    """dnsmasq's options (dnsmasq(8))."""
    user = accounts.user_and_group(job.resolver.user.number)
    if user is None:
        raise Failed(f"user {job.resolver.user.name} has no name on this machine, and dnsmasq wants one; create it")
    return [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
        "--log-facility=-",
        f"--user={user[0]}",
        f"--group={user[1]}",
        f"--port={job.resolver.listen[0].port}",
        "--bind-interfaces",
        *(f"--listen-address={listen.address}" for listen in job.resolver.listen),
        f"--resolv-file={job.servers_file}",
        "--no-hosts",
        "--cache-size=0",
        "--proxy-dnssec",
        "--edns-packet-max=1232",
        "--strict-order",
        "--dns-forward-max=1000",
    ]


# When a server does not answer, the next one is asked after half a second, without waiting for the client.
_QUICK_RETRY = "--fast-dns-retry=500,5000"


def _if_known(program: str, option: str) -> list[str]:
    """The option, if this dnsmasq has it: that one came with 2.87."""
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, errors="replace").stdout
    return [option] if option.partition("=")[0] in shown else []


def _present(job: Job) -> tuple[Listen, ...]:
    """The addresses to listen on that this machine has: without IPv6, ::1 is none of them. Raises Failed."""
    found = []
    for listen in job.resolver.listen:
        family = socket.AF_INET6 if listen.address.version == 6 else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as one:
                one.bind((str(listen.address), 0))
            found.append(listen)
        except OSError as error:
            job.say(f"{listen.address} can't be listened on ({error.strerror}); left out")
    if not found:
        raise Failed("none of the resolver's addresses is on this machine")
    return tuple(found)


def _alone(job: Job, stack: ExitStack) -> None:
    """Hold the lock of this resolver until the end, so that what is found of an earlier one is left over."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context(job.folder.with_suffix(".lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failed(f"the resolver of uplink {job.name} runs already") from None


def _prepare(folder: Path) -> None:
    # dnsmasq reads its servers as the unprivileged user, whatever our umask is.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for one in (folder, folder.parent, folder.parent.parent):
        one.chmod(one.stat().st_mode | 0o755)


@contextmanager
def _marking(job: Job) -> Iterator[MarkedGroup | MarkedCalls]:
    """By cgroup, or where that may not be, by answering dnsmasq's socket calls."""
    mark = job.uplink.mark
    with ExitStack() as stack:
        try:
            group = MarkedGroup(f"{job.folder.parent.name}-{job.name}", mark.value, mark.mask)
            stack.enter_context(group)
        except Unavailable as error:
            job.say(f"{error}; its sockets are made for it instead")
            yield stack.enter_context(MarkedCalls(mark.value, mark.mask))
            return
        if not group.tried():
            raise Failed(f"a socket opened in the resolver's cgroup does not wear the mark {mark}")
        yield group


def _before(marking: MarkedGroup | MarkedCalls) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    marking.before()


def _refresh(job: Job, learner: Learner, upstream: Upstream) -> None:
    """Have dnsmasq know the servers as they are now."""
    try:
        servers = learner.look().servers
        changed = upstream.take(servers, learner.machine.own, time.monotonic())
    except OSError as error:  # a full disk; the servers of before may be another network's
        where = error.filename2 or error.filename or "the servers"
        raise Failed(f"{where}: {error.strerror}; stopped, since it would ask the servers of before") from None
    if changed:
        waited = ", ".join(one.sign if one and word == "lease" else word for word, one in learner.sources.items())
        named = ", ".join(map(str, servers)) or f"none yet (waiting for {waited}); names are refused until then"
        job.say(f"servers of uplink {job.name}: {named}")
        job.manager.tell(STATUS=f"servers: {named}")


def _watch(job: Job, child: subprocess.Popen[bytes], learner: Learner, upstream: Upstream) -> None:
    ended, end = os.pipe()
    mark = (job.uplink.mark.value, job.uplink.mark.mask)
    previous = {number: signal.signal(number, lambda *_: os.write(end, b"!")) for number in _ENDING}
    try:
        ready = False
        while not _wait(ended, learner, upstream, _EVERY if ready else 0.05):
            status = child.poll()
            if status is not None:
                raise Failed(f"dnsmasq ended with status {status}; its own words are above")
            bare = unmarked(child.pid, mark)
            if bare:
                raise Failed(f"a socket of dnsmasq does not wear the mark {job.uplink.mark}: {bare[0]}; stopped")
            if not ready and _listens(child.pid):
                ready = True
                job.say(f"resolver of uplink {job.name} answers on {', '.join(map(str, job.resolver.listen))}")
                job.manager.tell(READY=1)
            _refresh(job, learner, upstream)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(ended)
        os.close(end)


def _wait(ended: int, learner: Learner, upstream: Upstream, most: float) -> bool:
    """Until there is something to do, at most that long (seconds); whether that is to end."""
    leaves = upstream.due()
    until = min([learner.due(), *([leaves] if leaves is not None else [])])
    wait = min(most, max(_APART, until - time.monotonic()))
    if ended in select.select([ended, *learner.descriptors], [], [], wait)[0]:
        return True
    return bool(select.select([ended], [], [], _APART if wait > _APART else 0)[0])


_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _listens(pid: int) -> bool:
    """Whether dnsmasq has dropped root: it binds its sockets before that."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "\nUid:\t0\t" not in status


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(3)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
