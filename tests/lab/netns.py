"""Namespaces without names, which end with the process that made them.

One holder process per namespace is the first process of a PID namespace, and owns a network and a mount namespace with
it. The kernel kills the holder when its parent dies (PR_SET_PDEATHSIG), and with the holder all processes of its PID
namespace. A death signal on each daemon would not do: the kernel clears it when a process changes its uid or gid.
Each namespace has a private /run (tmpfs) for files, so nothing is written to the machine's disk.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import forked_call, netns_holder, syscalls
from .limits import limit

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
QUIET = {  # nothing waits for duplicate address detection, nothing configures itself
    f"net/ipv6/conf/{which}/{key}": value
    for which in ("all", "default")
    for key, value in (("accept_dad", 0), ("dad_transmits", 0), ("accept_ra", 0), ("disable_ipv6", 0))
} | {f"net/ipv4/conf/{which}/rp_filter": 0 for which in ("all", "default")}


class Namespace:
    """A network, mount and PID namespace; a context manager.

    `etc` maps names of files in /etc to the text that this namespace sees in them (files that the machine lacks are
    left out). The namespace lives as long as the thread that made it, at most.

    Raises OSError if the kernel refuses (no root, no namespaces).
    """

    def __init__(self, name: str, etc: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._processes: list[subprocess.Popen[Any]] = []
        self._children: list[int] = []
        self._holder = netns_holder.start(etc or {})
        self._fds = {kind: os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt", "pid")}
        with self._net():
            for key, value in QUIET.items():
                _write_sysctl(key, value)
        self.ip("link set lo up")

    @property
    def pid(self) -> int:
        """Process id of the holder."""
        return self._holder.pid

    @property
    def path(self) -> str:
        """The network namespace as a file, for setns(2) or `ip link set ... netns`."""
        return f"/proc/{self.pid}/ns/net"

    def outside(self, path: str) -> Path:
        """Return the path, outside the namespace, of the file that the namespace sees as `path`."""
        return Path(f"/proc/{self.pid}/root{path}")

    def __enter__(self) -> "Namespace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all that runs inside and let the namespaces go. Can be called twice."""
        self._holder.kill()
        for process in self._processes:  # the holder's end waits until its processes are reaped
            process.kill()
            process.communicate()
        for child_ in self._children:
            with contextlib.suppress(ChildProcessError):  # reaped already, and interrupted then
                os.waitpid(child_, 0)
        self._processes, self._children = [], []
        with contextlib.suppress(subprocess.TimeoutExpired):  # with threads, an interrupt can lose a dead child
            self._holder.wait(2)
        while self._fds:
            os.close(self._fds.popitem()[1])

    # Commands

    def run(
        self,
        argv: Sequence[str],
        check: bool = True,
        input: str | None = None,
        uid: int | None = None,
        gid: int | None = None,
        groups: list[int] | None = None,
        timeout: float = 20,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and return its output as text.

        `timeout` is in seconds; `limit` extends it. Raises subprocess.CalledProcessError (with the command's stderr as a
        note) if `check` and it failed, subprocess.TimeoutExpired if it took too long.
        """
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self._start(argv, (uid, gid, groups), env, text=True, **pipes) as process:
            try:
                out, err = process.communicate(input, timeout=limit(timeout))
            except BaseException:
                process.kill()
                raise
        self._processes.remove(process)
        done = subprocess.CompletedProcess(argv, process.returncode, out, err)
        if check and done.returncode:
            error = subprocess.CalledProcessError(done.returncode, list(argv), out, err)
            error.add_note(f"in {self.name}: {err.strip()}")
            raise error
        return done

    def popen(
        self,
        argv: Sequence[str],
        uid: int | None = None,
        gid: int | None = None,
        groups: list[int] | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "subprocess.Popen[Any]":
        """Start a daemon inside, in the foreground of its own session; it ends with the namespace.

        `options` go to subprocess.Popen; input and output are /dev/null unless they say otherwise.
        """
        null = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        return self._start(argv, (uid, gid, groups), env, **(null | options))

    def ip(self, *commands: str) -> None:
        """Run `ip` commands in order: "link set lo up", "-6 rule add ..."; CalledProcessError if one fails."""
        for family, group in itertools.groupby(commands, key=_family_flag):
            lines = "".join(f"{line.removeprefix(family)}\n" for line in group)
            self.run(["ip", *family.split(), "-batch", "-"], input=lines)  # a batch's lines cannot hold the flag

    def nft(self, text: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Load nft text as one transaction."""
        return self.run(["nft", "-f", "-"], input=text, check=check)

    def sysctl(self, key: str, value: object) -> str:
        """Write a network sysctl, such as "net.ipv4.ip_forward", or "net/ipv4/conf/eth0.5/forwarding".

        Returns the value before.
        """
        with self._net():
            return _write_sysctl(key if "/" in key else key.replace(".", "/"), value)

    # Python inside

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket that belongs to this namespace and is used from outside."""
        with self._net():
            return socket.socket(family, kind, protocol)

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        uid: int | None = None,
        gid: int | None = None,
        groups: list[int] | None = None,
        keep_caps: bool = False,
        timeout: float = 30,
    ) -> Any:
        """Run a function in a forked child inside, with these ids, and return its (pickled) result.

        What the function raises is raised here. Raises TimeoutError after `limit(timeout)` seconds,
        ChildProcessError if the child was killed.
        """
        receiver, sender = os.pipe()
        ids = (uid, gid, groups, keep_caps)
        process = self._fork(lambda: forked_call.answer(sender, lambda: function(*args)), ids)
        os.close(sender)
        try:
            pickled = forked_call.read(receiver, limit(timeout))
        finally:
            os.close(receiver)
            os.kill(process, signal.SIGKILL)  # harmless if it has ended: it is not reaped yet
            os.waitpid(process, 0)
            self._children.remove(process)
        if not pickled:
            raise ChildProcessError(f"{self.name}: {function} ended without an answer")
        return forked_call.result(pickled)

    def spawn(
        self,
        function: Callable[..., Any],
        *args: Any,
        uid: int | None = None,
        gid: int | None = None,
        groups: list[int] | None = None,
        keep_caps: bool = False,
    ) -> int:
        """Run a function in a forked child inside until it returns or the namespace ends; returns its process id."""
        return self._fork(lambda: function(*args), (uid, gid, groups, keep_caps))

    def end(self, process: int) -> None:
        """End what `spawn` started."""
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        self._children.remove(process)

    # Entering

    @contextlib.contextmanager
    def _net(self) -> Iterator[None]:
        with syscalls.visit(self._fds["net"], "net"):
            yield

    @contextlib.contextmanager
    def _pid(self) -> Iterator[None]:
        """Fork into the PID namespace while this context is open."""
        with syscalls.visit(self._fds["pid"], "pid"):
            yield

    def _enter(self, directory: Path) -> None:
        syscalls.setns(self._fds["net"], syscalls.CLONE_NEWNET)
        syscalls.setns(self._fds["mnt"], syscalls.CLONE_NEWNS)  # this moves to the root directory
        with contextlib.suppress(OSError):
            os.chdir(directory)

    def _fork(self, work: Callable[[], Any], ids: tuple[Any, ...]) -> int:
        here = Path.cwd()
        with self._pid(), syscalls.uninterrupted() as restore:
            if process := os.fork():
                self._children.append(process)
                return process
            try:  # the child must not unwind the stack that it shares with its parent
                os.setsid()
                restore()
                self._enter(here)
                syscalls.become(*ids)
                work()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)

    def _start(
        self, argv: Sequence[str], ids: tuple[Any, ...], env: Mapping[str, str] | None, **options: Any
    ) -> "subprocess.Popen[Any]":
        here = Path.cwd()

        def inside() -> None:
            # nohup, and a shell that runs the tests in its background, have these ignored, which programs inherit.
            for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
                signal.signal(ignored, signal.SIG_DFL)
            restore()
            self._enter(here)
            syscalls.become(*ids)

        environment = {**os.environ, "PATH": search_path(), "LC_ALL": "C", **(env or {})}
        with self._pid(), syscalls.uninterrupted() as restore:
            made = subprocess.Popen(argv, preexec_fn=inside, env=environment, start_new_session=True, **options)
            self._processes.append(made)
            return made


def _family_flag(command: str) -> str:
    first = command.split(maxsplit=1)[0]
    return first if first in ("-4", "-6") else ""


def search_path() -> str:
    """Return PATH with the directories of system programs, which PATH may lack."""
    return f"{os.environ.get('PATH', '')}:{PATH}"


def veth(
    a: Namespace, name_a: str, b: Namespace, name_b: str, mac_a: str | None = None, mac_b: str | None = None
) -> None:
    """Join two namespaces by a pair of devices, both up."""
    address_a, address_b = (f" address {mac}" if mac else "" for mac in (mac_a, mac_b))
    pair = f"ip link add {name_a}{address_a} type veth peer name {name_b}{address_b} netns {b.pid}"
    with a._net():  # not a.run: inside, the PID namespace would hide the other holder
        subprocess.run(pair.split(), check=True, env={**os.environ, "PATH": search_path()})
    a.ip(f"link set {name_a} up")
    b.ip(f"link set {name_b} up")


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until `condition` returns a true value, and return that value.

    Raises TimeoutError that names `what` after `limit(seconds)`.
    """
    allowed = limit(seconds)
    end = time.monotonic() + allowed
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {allowed:g} s")
        time.sleep(0.01)
    return value


def _write_sysctl(key: str, value: object) -> str:
    """Return the value before."""
    file = Path("/proc/sys", key)
    before = file.read_text().strip()
    file.write_text(f"{value}\n")
    return before
