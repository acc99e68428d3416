# SPDX-License-Identifier: BSD-2-Clause
"""Resolver of an uplink: a second dnsmasq, or an unbound, with the uplink's mark on its sockets.

It queries only the servers of the uplink, answers on the policy's addresses and has no cache;
without a server it refuses queries. Its cgroup sets the mark, which is verified while dnsmasq runs.
"""

from __future__ import annotations

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

from ...exceptions import NftpolicyError
from ...generated_text import fill, word
from ...kernel import accounts, capability
from ...kernel.cgroup import MarkedCgroup, unmarked_sockets
from ...kernel.errors import Unavailable
from ...kernel.netlink.sock_diag import UDP, InetSocket
from ...kernel.parent_death import end_with_parent, killed_with_this_process
from ...kernel.sd_notify import ServiceManager
from ...kernel.seccomp import SocketCallMarker
from ...kernel.seccomp_filter import set_no_new_privs
from ...policy.objects import Listen, Resolver, Uplink
from ..file_lock import LockTimeout, exclusive_lock
from ..helper_environment import helper_environment
from ..private_files import make_directory
from ..rate_limiter import earliest_deadline
from .discovery import DiscoveryTarget, ServerDiscovery
from .servers_file import ServersFile, lock_path, servers_file_in_directory
from .unbound import unbound_text

# Seconds.
_CHECK_INTERVAL = 1.0  # between two checks of the sockets' marks
_STARTUP_INTERVAL = 0.05  # the same until dnsmasq listens
_REFRESH_PAUSE = 0.1  # least time between two changes of the servers
_STOP_TIMEOUT = 3.0

# While dnsmasq runs: to read the marks of its sockets and leases of any user, and to stop it.
_NEEDED_CAPABILITIES = (
    capability.CAP_NET_ADMIN,
    capability.CAP_NET_RAW,
    capability.CAP_DAC_READ_SEARCH,
    capability.CAP_KILL,
)
_PUBLIC = 0o755  # mode of the directories that the user of dnsmasq enters
_TERMINATION_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class ResolverError(NftpolicyError):
    """Failure that keeps the resolver from running, or stops it."""


@frozen
class ResolverJob:
    """Run of one resolver: uplink `name` with its resolver's settings.

    `directory` is for its files.
    """

    name: str
    uplink: Uplink
    resolver: Resolver
    directory: Path
    warn: Callable[[str], None]
    service_manager: ServiceManager = field(factory=ServiceManager)

    @property
    def program(self) -> str:
        """Name of the program that forwards the queries; dnsmasq does not query over TLS."""
        return "unbound" if self.resolver.uses_tls else "dnsmasq"

    @property
    def servers_file(self) -> Path:
        """Path of the file with dnsmasq's servers."""
        return servers_file_in_directory(self.directory)


def run_resolver(job: ResolverJob) -> None:
    """Run the resolver until a signal ends it. Raises ResolverError, or Unavailable."""
    program = _find_program(job)
    job = evolve(job, resolver=evolve(job.resolver, listen=_usable_addresses(job)))
    with ExitStack() as stack:
        _lock(job, stack)
        _create_directory(job.directory)
        stack.callback(shutil.rmtree, job.directory, ignore_errors=True)
        learner = stack.enter_context(ServerDiscovery(DiscoveryTarget(job.name, job.uplink, job.resolver), job.warn))
        upstream = _servers_file(job)
        _refresh(job, learner, upstream)
        marking = stack.enter_context(_marking(job))
        command = _command(job, program)
        child = _start(job, command, marking)
        stack.callback(_stop, child)  # if the next line fails
        stack.enter_context(killed_with_this_process(child.pid))
        stack.callback(_stop, child)
        marking.after_start()
        if isinstance(marking, MarkedCgroup):  # the other method opens sockets for dnsmasq
            capability.limit_capabilities(_NEEDED_CAPABILITIES)
        _supervise(job, child, marking, learner, upstream)


def _find_program(job: ResolverJob) -> str:
    """Return the path of dnsmasq or unbound. Raises Unavailable."""
    path = shutil.which(job.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path:
        return path
    if job.program == "dnsmasq":
        raise Unavailable("dnsmasq is missing: apt-get install dnsmasq-base")
    raise Unavailable(
        "unbound, which queries servers over TLS, is missing: apt-get install unbound; "
        "its own service is not needed: systemctl disable --now unbound"
    )


def _servers_file(job: ResolverJob) -> ServersFile:
    """Return the file of dnsmasq's servers, or the configuration of unbound."""
    if job.program == "dnsmasq":
        return ServersFile(job.servers_file)
    listen, user = job.resolver.listen, _user_and_group(job)[0]
    return ServersFile(job.servers_file, lambda servers, domains: unbound_text(listen, user, servers, domains))


def _command(job: ResolverJob, program: str) -> list[str]:
    if job.program == "unbound":
        return [program, "-d", "-c", str(job.servers_file)]
    return [program, *dnsmasq_arguments(job), *_option_if_supported(program, _QUICK_RETRY)]


def _user_and_group(job: ResolverJob) -> tuple[str, str]:
    """Return the names of the resolver's user and its group. Raises ResolverError."""
    user = accounts.user_and_group(job.resolver.user.number)
    if user is None:
        name = job.resolver.user.name
        raise ResolverError(f"user {name} has no name on this host, and {job.program} needs one: create the user")
    return user


def dnsmasq_arguments(job: ResolverJob) -> list[str]:
    """Return the options of dnsmasq(8). Raises ResolverError."""
    user = _user_and_group(job)
    return [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
        "--log-facility=-",
        fill("--user={name}", name=word(user[0])),
        fill("--group={name}", name=word(user[1])),
        fill("--port={port}", port=job.resolver.listen[0].port),
        "--bind-interfaces",
        *(fill("--listen-address={address}", address=word(str(listen.address))) for listen in job.resolver.listen),
        "--no-resolv",
        fill("--servers-file={path}", path=word(str(job.servers_file))),
        "--no-hosts",
        "--cache-size=0",
        "--proxy-dnssec",
        "--edns-packet-max=1232",
        # The first answer counts. In strict order dnsmasq 2.90 drops the REFUSED or SERVFAIL of the last server, and
        # repeats a query to a server that does not answer until the client does, which waits 5 seconds for each name.
        "--all-servers",
        "--dns-forward-max=1000",
    ]


# If no server answers within half a second, they are queried again, without a retry of the client.
_QUICK_RETRY = "--fast-dns-retry=500,5000"


def _option_if_supported(dnsmasq: str, option: str) -> list[str]:
    """Return the option if this dnsmasq supports it: --fast-dns-retry came with 2.87."""
    usage = subprocess.run(
        [dnsmasq, "--help"], capture_output=True, text=True, check=False, errors="replace", env=helper_environment()
    )
    return [option] if option.partition("=")[0] in usage.stdout else []


def _usable_addresses(job: ResolverJob) -> tuple[Listen, ...]:
    """Return the listen addresses that this host has: without IPv6 it has no ::1.

    Raises ResolverError.
    """
    usable = []
    for listen in job.resolver.listen:
        family = socket.AF_INET6 if listen.address.version == 6 else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.bind((str(listen.address), 0))
            usable.append(listen)
        except OSError as error:
            job.warn(f"cannot listen on {listen.address} ({error.strerror}); left out")
    if not usable:
        raise ResolverError("this host has none of the resolver's addresses")
    return tuple(usable)


def _lock(job: ResolverJob, stack: ExitStack) -> None:
    """Lock this resolver until the end, so that files of an earlier run are certainly left over."""
    make_directory(job.directory.parent, _PUBLIC)
    try:
        stack.enter_context(exclusive_lock(lock_path(job.directory), wait=0))
    except LockTimeout:
        raise ResolverError(f"the resolver of uplink {job.name} runs already") from None


def _create_directory(directory: Path) -> None:
    # dnsmasq reads its servers as an unprivileged user.
    shutil.rmtree(directory, ignore_errors=True)
    make_directory(directory, _PUBLIC)


@contextmanager
def _marking(job: ResolverJob) -> Iterator[MarkedCgroup | SocketCallMarker]:
    """Mark dnsmasq's sockets by a cgroup or, without BPF permission, by seccomp."""
    mark = job.uplink.mark
    with ExitStack() as stack:
        try:
            group = MarkedCgroup(job.directory.name, mark.value, mark.mask)
            stack.enter_context(group)
        except Unavailable as error:
            job.warn(f"{error}; falling back to seccomp user notification")
            yield stack.enter_context(SocketCallMarker(mark.value, mark.mask))
            return
        if not group.verify():
            raise ResolverError(f"a socket opened in the resolver's cgroup lacks the mark {mark}")
        yield group


def _start(job: ResolverJob, command: list[str], marking: MarkedCgroup | SocketCallMarker) -> subprocess.Popen[bytes]:
    """Start the program with the mark. Raises ResolverError."""
    parent = os.getpid()
    try:
        return subprocess.Popen(
            command,
            preexec_fn=lambda: _before_exec(marking, parent),
            stdin=subprocess.DEVNULL,
            env=helper_environment(),
            start_new_session=True,  # without a terminal: it reads what the network sends
        )
    except (OSError, subprocess.SubprocessError) as error:  # the second one: _before_exec failed
        method = "its cgroup" if isinstance(marking, MarkedCgroup) else "a seccomp filter"
        raise ResolverError(f"{job.program} cannot be started with the mark by {method}: {error}") from None


def _before_exec(marking: MarkedCgroup | SocketCallMarker, parent: int) -> None:
    end_with_parent(parent)
    set_no_new_privs()
    marking.before_exec()


def _refresh(job: ResolverJob, learner: ServerDiscovery, upstream: ServersFile) -> bool:
    """Write the current servers for dnsmasq; return True if it has to read them again."""
    known = upstream.servers
    try:
        servers = learner.refresh().servers
        changed = upstream.update(servers, learner.host.own, time.monotonic(), learner.domains)
    except OSError as error:  # such as a full disk
        where = error.filename2 or error.filename or "the servers"
        why = "stopped: cannot update the server list, the old servers may be stale"
        raise ResolverError(f"{where}: {error.strerror}; {why}") from None
    if servers != known:
        sources = learner.sources.items()
        awaited = ", ".join(source.marker if source and key == "lease" else key for key, source in sources)
        server_text = (
            ", ".join(map(str, servers)) or f"none yet (waiting for {awaited}); queries are refused until then"
        )
        job.warn(f"servers of uplink {job.name}: {server_text}")
        job.service_manager.notify(STATUS=f"servers: {server_text}")
    return changed


def _verify_sockets(job: ResolverJob, marking: MarkedCgroup | SocketCallMarker, pid: int) -> bool:
    """Return True if dnsmasq listens. Raises ResolverError if a socket of it lacks the mark.

    The kernel lists the sockets of the cgroup, without a right to look into dnsmasq, which has another
    user. Otherwise they are duplicated.
    """
    mark = job.uplink.mark
    sockets = _listed_sockets(marking)
    if sockets:
        without_mark = [str(opened) for opened in sockets if opened.mark is None or not mark.matches(opened.mark)]
        ready = {(str(listen.address), listen.port) for listen in job.resolver.listen} <= {
            (opened.local, opened.sport) for opened in sockets if opened.protocol == UDP
        }
    else:
        try:
            without_mark = unmarked_sockets(pid, (mark.value, mark.mask))
            ready = _has_dropped_root(pid)
        except PermissionError:
            return False  # it has opened none yet, or it cannot be verified and never counts as ready
    if without_mark:
        raise ResolverError(f"a socket of {job.program} lacks the mark {mark}: {without_mark[0]}; stopped")
    return ready


def _listed_sockets(marking: MarkedCgroup | SocketCallMarker) -> list[InetSocket]:
    if not isinstance(marking, MarkedCgroup):
        return []
    try:
        return marking.sockets()
    except Unavailable:
        return []


def _supervise(
    job: ResolverJob,
    child: subprocess.Popen[bytes],
    marking: MarkedCgroup | SocketCallMarker,
    learner: ServerDiscovery,
    upstream: ServersFile,
) -> None:
    """Refresh the servers and verify the marks until a signal ends it. Raises ResolverError."""
    terminated, wakeup = os.pipe()
    old_handlers = {number: signal.signal(number, lambda *_: os.write(wakeup, b"!")) for number in _TERMINATION_SIGNALS}
    try:
        ready = is_outdated = False
        while not _wait(terminated, learner, upstream, _CHECK_INTERVAL if ready else _STARTUP_INTERVAL):
            status = child.poll()
            if status is not None:
                raise ResolverError(f"{job.program} ended with status {status}; see its messages above")
            if _verify_sockets(job, marking, child.pid) and not ready:
                ready = True
                addresses = ", ".join(map(str, job.resolver.listen))
                job.warn(f"resolver of uplink {job.name} answers on {addresses}")
                job.service_manager.notify(READY=1)
            is_outdated = _refresh(job, learner, upstream) or is_outdated
            if ready and is_outdated:  # before, SIGHUP could end it
                _reload(job, child)
                is_outdated = False
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(terminated)
        os.close(wakeup)


def _reload(job: ResolverJob, child: subprocess.Popen[bytes]) -> None:
    """Have dnsmasq read its servers again. Raises ResolverError for unbound.

    unbound may be unable to read its configuration again, and would go on without one, as a recursive server.
    """
    if job.program == "unbound":
        raise ResolverError("the usable servers of the policy changed; stopped, to start with the new ones")
    child.send_signal(signal.SIGHUP)


def _wait(terminated: int, learner: ServerDiscovery, upstream: ServersFile, longest: float) -> bool:
    """Wait for an event or a deadline, at most `longest` seconds.

    Return True if a termination signal arrived.
    """
    until = earliest_deadline((learner.due(), upstream.due()))
    left = longest if until is None else until - time.monotonic()
    timeout = min(longest, max(_REFRESH_PAUSE, left))
    if terminated in select.select([terminated, *learner.descriptors], [], [], timeout)[0]:
        return True
    return bool(select.select([terminated], [], [], _REFRESH_PAUSE if timeout > _REFRESH_PAUSE else 0)[0])


def _has_dropped_root(pid: int) -> bool:
    """Return True if dnsmasq has dropped root: it binds its sockets before."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    return "\nUid:\t0\t" not in status


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
