"""Root directory of a Debian system, made by debootstrap and kept for later runs."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.lab import syscalls
from tests.lab.daemons import tool

SUITE = "bookworm"
_PROGRAMS = ("debootstrap", "nsenter", "unshare", "pivot_root", "openvpn", "wireguard-go", "curl", "dnsmasq")
# What nftpolicy and the checks need.
_BASE = ["systemd", "systemd-sysv", "dbus", "iproute2", "iputils-ping", "kmod", "nftables", "procps", "curl"]
_BASE += ["python3", "python3-nftables", "dnsmasq-base", "ca-certificates"]
_LIST = ".packages"  # in the root directory: the packages that were installed
_MAKE = """
set -eu
rm -rf "$root.new"
debootstrap --variant="$variant" "$suite" "$root.new" ${mirror:+"$mirror"}
mv "$root.new" "$root"
"""
_INSTALL = """
set -eu
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
rm -f "$root/etc/resolv.conf"
cat /etc/resolv.conf >"$root/etc/resolv.conf"
printf '#!/bin/sh\\nexit 101\\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
chroot "$root" dpkg --configure -a
chroot "$root" apt-get -q update
chroot "$root" apt-get -q -y --no-install-recommends install "$@"
chroot "$root" apt-get clean
"""


def missing() -> list[str]:
    """Return the requirements that this machine lacks, in words; empty if none."""
    lacks = [f"the program {name}" for name in _PROGRAMS if tool(name) is None]
    return lacks + (["root"] if os.geteuid() else [])


def debian_root(
    cache: Path, packages: Iterable[str], mirror: str | None, suite: str = SUITE, base: Iterable[str] | None = None
) -> Path:
    """Return a root directory in `cache` that has these packages; it is made, or completed, if it has to be.

    `mirror` is an address for debootstrap, None for its own; `base` replaces the packages that nftpolicy and the checks
    need: then it is a standard installation of the release. Raises subprocess.CalledProcessError; the output of
    debootstrap and apt-get goes to standard error.
    """
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / suite
    variant = "minbase" if base is None else "-"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            run(_MAKE, {"root": str(root), "suite": suite, "variant": variant, "mirror": mirror or ""})
        installed = set((root / _LIST).read_text().split()) if (root / _LIST).exists() else set()
        if absent := sorted({*(_BASE if base is None else base), *packages} - installed):
            run(_INSTALL, {"root": str(root)}, *absent)
            (root / _LIST).write_text("\n".join(sorted({*installed, *absent})))
    return root


def versions(root: Path, packages: Iterable[str]) -> dict[str, str]:
    """Return package -> version."""
    query = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\\n", *packages]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split(" ", 1) for line in lines)


def run(script: str, variables: Mapping[str, str], *arguments: str) -> None:
    """Run a script whose processes and mounts all end with this process."""
    parent = os.pidfd_open(os.getpid())
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run(
            [*namespaces, "sh", "-c", script, "sh", *arguments],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", **variables},
            stdin=subprocess.DEVNULL,
            stdout=2,
            preexec_fn=lambda: syscalls.die_with(parent),
            check=True,
        )
    finally:
        os.close(parent)


def remove(cache: Path) -> None:
    """Delete the kept root directory."""
    shutil.rmtree(cache / SUITE, ignore_errors=True)
