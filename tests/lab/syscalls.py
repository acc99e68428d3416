"""System calls that Python 3.11 does not offer: setns, unshare, mount, prctl, capset."""

import contextlib
import ctypes
import os
import select
import signal
from collections.abc import Callable, Iterator

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_MOVE = 0x2000

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def setns(descriptor: int, kind: int) -> None:
    """Move this thread into the namespace behind an open /proc/PID/ns file; OSError if refused."""
    _check(_libc.setns(descriptor, kind), "setns")


@contextlib.contextmanager
def visit(descriptor: int, kind: str) -> Iterator[None]:
    """Change the "net" or "pid" namespace of this thread, and change it back."""
    flag = {"net": CLONE_NEWNET, "pid": CLONE_NEWPID}[kind]
    home = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY)
    try:
        setns(descriptor, flag)
        try:
            yield
        finally:
            setns(home, flag)
    finally:
        os.close(home)


@contextlib.contextmanager
def uninterrupted() -> Iterator[Callable[[], None]]:
    """Block signals, so that Ctrl-C cannot part a fork from its bookkeeping; the child calls the yielded function."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield restore
    finally:
        restore()


def unshare(kinds: int) -> None:
    """Give this thread new namespaces (CLONE_NEW* flags); OSError if refused."""
    _check(_libc.unshare(kinds), "unshare")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Call mount(2); OSError with the target's name if refused."""
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _check(result, f"mount {target}")


def prctl(option: int, value: int) -> None:
    """Call prctl(2) with one argument; OSError if refused."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def die_with(parent_pidfd: int) -> None:
    """Let SIGKILL end this process as soon as the thread that forked it is gone."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent_pidfd], [], [], 0)[0]:  # it died before prctl, so no signal will come
        os._exit(1)


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def _raise_permitted() -> None:
    """Make every permitted capability effective again (a change of uid clears the effective ones)."""
    header, data = _CapHeader(0x20080522, 0), (_CapData * 2)()
    _check(_libc.capget(ctypes.byref(header), data), "capget")
    for half in data:
        half.effective = half.permitted
    _check(_libc.capset(ctypes.byref(header), data), "capset")


def become(uid: int | None, gid: int | None, groups: list[int] | None = None, keep_caps: bool = False) -> None:
    """Take on real, effective and saved ids for good; None keeps an id. Capabilities go unless `keep_caps`.

    Supplementary groups are `groups`, or none at all as soon as an id changes.
    """
    if groups is not None or uid is not None or gid is not None:
        os.setgroups(groups or [])
    if keep_caps:
        prctl(PR_SET_KEEPCAPS, 1)
    if gid is not None:
        os.setresgid(gid, gid, gid)
    if uid is not None:
        os.setresuid(uid, uid, uid)
    if keep_caps:
        _raise_permitted()
