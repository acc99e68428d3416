"""Shell scripts in a Debian root directory, as a machine of that release would run them: it stays as it is."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.lab import syscalls

ROOT = Path(__file__).parents[2]
SOURCE = "/opt/nftpolicy"  # inside: the source tree, which can be written to
_ENTER = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=4g tmpfs "$place"
mkdir -p "$place/root" "${disk:=$place}/upper" "$disk/work"
mount -t overlay -o lowerdir="$lower",upperdir="$disk/upper",workdir="$disk/work" overlay "$place/root"
cat /etc/resolv.conf >"$place/resolv.conf"
cd "$place/root"
mkdir -p "./$source" put
mount --bind "$tree" "./$source"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/netns run/lock
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p etc
rm -f etc/resolv.conf
cat ../resolv.conf >etc/resolv.conf
pivot_root . put
umount -l /put
cd "/$source"
# This shell stays: the first process of the PID namespace reaps the others.
code=0
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb \\
    DEBIAN_FRONTEND=noninteractive NFTPOLICY_TEST_PATIENCE="$patience" sh -euc "$script" || code=$?
exit $code
"""


def copy_source(place: Path) -> Path:
    """Copy the files of this source tree to a directory, and return it."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    words = ["--null", "--ignore-failed-read", "-T", "-", "-f", "-"]
    archive = subprocess.run(["tar", "-c", *words], cwd=ROOT, input=names, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", place], input=archive, check=True)
    return place


def run(
    lower: Path, tree: Path, script: str, place: Path, seconds: float, disk: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script of sh in an overlay of the root directory `lower`, with this machine's network.

    `tree` is the source tree, `place` an empty directory for the overlay, and `disk` one for what is written into it,
    as systemd_machine.booted has it; None: in memory. Errors are part of the output. Raises
    subprocess.TimeoutExpired after `seconds`.
    """
    parent = os.pidfd_open(os.getpid())
    variables = {
        "lower": lower,
        "place": place,
        "tree": tree,
        "source": SOURCE.lstrip("/"),
        "script": script,
        "disk": disk or "",
    }
    variables["patience"] = os.environ.get("NFTPOLICY_TEST_PATIENCE", "3")
    try:
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER],
            env={**os.environ, **{name: str(value) for name, value in variables.items()}},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            preexec_fn=lambda: syscalls.die_with(parent),
        )
    finally:
        os.close(parent)
