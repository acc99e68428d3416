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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import evolve, frozen

from ..kernel import accounts
from ..kernel.cgroup import MarkedGroup, unmarked
from ..kernel.interface import Unavailable
from ..kernel.seccomp import MarkedCalls
from ..policy.objects import Listen, Resolver, Server, Uplink, lease_of
from . import leases

_EVERY = 1.0  # seconds between two looks at the lease, and at the sockets
_PR_SET_PDEATHSIG = 1
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

    @property
    def lease(self) -> Path:
        """The file that names the servers, if the policy does not."""
        return Path(lease_of(self.name, self.resolver))

    @property
    def servers_file(self) -> Path:
        """The file by which dnsmasq knows its servers; it reads it again when it changes."""
        return self.folder / "servers"


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
        marking = stack.enter_context(_marking(job))
        current = _refresh(job, None)
        command = [program, *arguments(job)]
        child = subprocess.Popen(command, preexec_fn=lambda: _before(marking), stdin=subprocess.DEVNULL)
        stack.callback(_end, child)
        marking.started()
        _watch(job, child, current)


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
    ]


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


def _refresh(job: Job, last: tuple[object, ...] | None) -> tuple[object, ...]:
    """Write the servers if they changed; returns what to compare with the next time."""
    if job.resolver.servers:
        found, seen = list(job.resolver.servers), ("static",)
    else:
        seen = _stamp(job.lease)
        if seen == last:
            return seen
        text = job.lease.read_text(errors="replace") if len(seen) > 1 else ""
        found, refused = leases.servers(text, job.uplink.devices[0])
        for word in refused:
            job.say(f"{job.lease}: {word[:60]!r} is no address of a DNS server; left out")
    if seen != last:
        _write(job, found)
    return seen


def _stamp(file: Path) -> tuple[object, ...]:
    try:
        known = file.stat()
    except OSError:
        return ("absent",)
    return known.st_ino, known.st_mtime_ns, known.st_size


def _write(job: Job, found: list[Server]) -> None:
    new = job.servers_file.with_suffix(".new")
    new.write_text("".join(f"nameserver {server}\n" for server in found))
    new.chmod(0o644)
    new.replace(job.servers_file)
    named = ", ".join(map(str, found)) or f"none yet (waiting for {job.lease}); names are refused until then"
    job.say(f"servers of uplink {job.name}: {named}")


def _watch(job: Job, child: subprocess.Popen[bytes], current: tuple[object, ...]) -> None:
    ended, end = os.pipe()
    mark = (job.uplink.mark.value, job.uplink.mark.mask)
    previous = {number: signal.signal(number, lambda *_: os.write(end, b"!")) for number in _ENDING}
    try:
        ready = False
        wait = 0.05
        while not select.select([ended], [], [], wait)[0]:
            status = child.poll()
            if status is not None:
                raise Failed(f"dnsmasq ended with status {status}; its own words are above")
            bare = unmarked(child.pid, mark)
            if bare:
                raise Failed(f"a socket of dnsmasq does not wear the mark {job.uplink.mark}: {bare[0]}; stopped")
            if not ready and _listens(child.pid):
                ready, wait = True, _EVERY
                job.say(f"resolver of uplink {job.name} answers on {', '.join(map(str, job.resolver.listen))}")
            current = _refresh(job, current)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(ended)
        os.close(end)


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
