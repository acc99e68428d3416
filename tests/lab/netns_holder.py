"""Process that holds a namespace: the first of a PID namespace, with a network and a mount namespace of its own."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from . import syscalls

PRIVATE = "/run"  # the tmpfs that each namespace has for itself


def start(etc: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a holder; when this returns, its namespaces are ready.

    `etc` maps names of files in /etc to the text to show in their place. Raises OSError or
    subprocess.SubprocessError (an error in the child) if the kernel refuses.
    """
    parent = os.pidfd_open(os.getpid())
    home = os.open("/proc/thread-self/ns/pid", os.O_RDONLY)

    def prepare() -> None:
        restore()
        syscalls.die_with(parent)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # survives exec: orphans inside are reaped by the kernel
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
        _private_files(etc)

    try:
        syscalls.unshare(syscalls.CLONE_NEWPID)
        try:
            with syscalls.uninterrupted() as restore:
                return subprocess.Popen(["sleep", "infinity"], preexec_fn=prepare, start_new_session=True, cwd="/")
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWPID)
    finally:
        os.close(home)
        os.close(parent)


def _private_files(etc: Mapping[str, str]) -> None:
    targets = {name: Path("/etc", name).resolve() for name in etc}  # resolv.conf is often a link into /run
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", PRIVATE, "tmpfs", data="mode=755,size=16m")
    shelf = Path(PRIVATE, "lab", "etc")
    shelf.mkdir(parents=True)
    syscalls.mount("proc", "/proc", "proc")  # programs find themselves by the process ids that they know
    _fresh_sysfs()
    for name, target in targets.items():
        copy = shelf / name
        copy.write_text(etc[name])
        if target.is_relative_to(PRIVATE):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(etc[name])
        elif target.exists():
            syscalls.mount(str(copy), str(target), flags=syscalls.MS_BIND)


def _fresh_sysfs() -> None:
    """Let /sys show this namespace's devices, and keep the cgroup tree, which a fresh sysfs lacks."""
    tree, shelf = "/sys/fs/cgroup", f"{PRIVATE}/lab/cgroup"
    Path(shelf).mkdir()
    syscalls.mount(tree, shelf, flags=syscalls.MS_BIND | syscalls.MS_REC)
    syscalls.mount("sysfs", "/sys", "sysfs")
    syscalls.mount(shelf, tree, flags=syscalls.MS_MOVE)
