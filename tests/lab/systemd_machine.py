"""Machine with systemd as its first process, made of this machine's programs, or of another root directory.

Its /usr is this machine's, read-only; all other directories are its own, in memory. Of another root directory it has
all, and what it writes is in memory. It has namespaces of its own of every kind except users, and a cgroup. It ends
with the process that made it, and nothing of it stays.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import syscalls
from .limits import limit
from .netns import PATH, Namespace, wait_until

SYSTEMD = "/lib/systemd/systemd"
_TREE = Path("/sys/fs/cgroup")
_CGROUP = "nftpolicy-machine"
_NUMBERS = itertools.count()
_MAKE = """
set -eu
exec >"$OUT" 2>&1
mount --make-rprivate /
mount -t tmpfs -o mode=755,size="$SIZE" tmpfs "$root"
if [ "$SYSTEM" ]; then
    mkdir -p "${DISK:=$root}/upper" "$DISK/work"
    mount -t overlay -o lowerdir="$SYSTEM",upperdir="$DISK/upper",workdir="$DISK/work" overlay "$root"
fi
cd "$root"
mkdir -p usr etc/systemd/system var/lib var/log run tmp proc sys dev root var/tmp "./$SHARE" opt/share put
if [ ! "$SYSTEM" ]; then
    for one in bin sbin lib lib32 lib64 libx32; do [ ! -L /$one ] || cp -a /$one $one; done
    mount --bind /usr usr
    mount -o remount,bind,ro usr
    for one in passwd group nsswitch.conf ld.so.cache; do [ ! -e /etc/$one ] || cp /etc/$one etc/; done
fi
for one in "./$SHARE" opt/share; do mount --bind "$SHARE" "$one"; mount -o remount,bind,ro "$one"; done
echo 0123456789abcdef0123456789abcdef >etc/machine-id
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs dev
for one in null zero full random urandom tty; do touch dev/$one; mount --bind /dev/$one dev/$one; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=755 tmpfs run
for one in systemd-udevd systemd-logind systemd-timesyncd systemd-tmpfiles-setup getty@tty1 console-getty systemd-update-utmp; do
    ln -sf /dev/null etc/systemd/system/$one.service
done
ln -sf /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
cp -a "$FILES/." .
. "$FILES/prepare"
pivot_root . put
umount -l /put
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=notice \
    /lib/systemd/systemd --show-status=no
"""


def missing() -> list[str]:
    """Return the requirements that this machine lacks, in words; empty if none."""
    lacks = [f"the program {name}" for name in ("unshare", "pivot_root", "systemctl") if not shutil.which(name)]
    if not Path(SYSTEMD).exists():
        lacks.append("systemd (apt-get install systemd)")
    if os.geteuid():
        lacks.append("root")
    elif _tree() is None:
        lacks.append("a tree of cgroup v2 that can be written to")
    if not Path("/bin").is_symlink():
        lacks.append("/bin as a part of /usr")
    return lacks


def _tree() -> Path | None:
    """Return the mount point of cgroup v2 on this machine."""
    for place in (_TREE, _TREE / "unified"):
        if (place / "cgroup.controllers").exists() and os.access(place, os.W_OK):
            return place
    return None


class Machine:
    """View of the test: process id of the first process (`pid`), its root directory, and its output."""

    def __init__(self, pid: int, out: Path) -> None:
        self.pid, self.root, self._out = pid, Path(f"/proc/{pid}/root"), out

    def shell(self, command: str, seconds: float) -> subprocess.CompletedProcess[str]:
        """Run a shell command inside, as a unit of root; its errors are part of its output.

        Raises subprocess.TimeoutExpired after `limit(seconds)`.
        """
        inside = ["nsenter", "--all", f"--target={self.pid}", "env", "-i", f"PATH={PATH}", "LANG=C.UTF-8"]
        unit = [
            "systemd-run",
            "--quiet",
            "--pipe",
            "--wait",
            "--collect",
            "--setenv=HOME=/root",
            f"--setenv=PATH={PATH}",
        ]
        return subprocess.run(
            [*inside, *unit, "sh", "-c", f"exec 2>&1; {command}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit(seconds),
            check=False,
        )

    def read(self, path: str) -> str | None:
        """Return the text of a file of the machine, or None while it does not exist."""
        with contextlib.suppress(OSError):
            return (self.root / path.lstrip("/")).read_text()
        return None

    def words(self) -> str:
        """Return the output of its creation, and of systemd."""
        return self._out.read_text(errors="replace")


@contextlib.contextmanager
def booted(
    folder: Path,
    share: Path,
    files: Mapping[str, str],
    prepare: str,
    until: str,
    seconds: float,
    system: Path | None = None,
    network: Namespace | None = None,
    disk: Path | None = None,
) -> Iterator[Machine]:
    """Start a machine, and yield it when the file `until` exists.

    `folder` is for temporary files; `share` is visible inside at the same path, and as /opt/share. `files` (path ->
    text) are put into it; `prepare` is a part of a shell script that runs outside, in its root directory, before the
    start. `system` is another root directory, which stays as it is. `network` lends its network namespace.
    `disk` is a directory for what the machine writes into `system`, which a second start finds again; None: in memory.
    Raises TimeoutError with the output.
    """
    made = folder / "files"
    for path, text in {**files, "prepare": prepare}.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    out = folder / "out"
    out.touch()
    root = folder / "root"
    root.mkdir()
    tree = _tree()
    assert tree is not None
    home = tree / f"{_CGROUP}-{os.getpid()}-{next(_NUMBERS)}"
    home.mkdir()
    parent = os.pidfd_open(os.getpid())

    def inside() -> None:
        syscalls.die_with(parent)
        (home / "cgroup.procs").write_text("0")

    command = ["nsenter", f"--net={network.path}"] if network else []
    command += ["unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
    command += [] if network else ["--net"]
    env = {
        **os.environ,
        "OUT": str(out),
        "root": str(root),
        "SHARE": str(share),
        "FILES": str(made),
        "SYSTEM": str(system or ""),
        "DISK": str(disk or ""),
        "SIZE": "1g" if system else "64m",
        "PROGRAM_PATH": os.environ["PATH"],
    }
    process = subprocess.Popen([*command, "sh", "-c", _MAKE], preexec_fn=inside, env=env, start_new_session=True)
    try:
        first = int(wait_until(lambda: _child(process.pid), seconds, "the first process"))
        machine = Machine(first, out)
        try:
            wait_until(lambda: machine.read(until) is not None or process.poll() is not None, seconds, until)
        except TimeoutError as error:
            error.add_note(machine.words()[-4000:])
            raise
        assert process.poll() is None, machine.words()[-4000:]
        yield machine
    finally:
        with contextlib.suppress(OSError, UnboundLocalError):
            os.kill(first, signal.SIGKILL)
        process.kill()
        process.wait()
        os.close(parent)
        _remove(home)


def remove_leftovers() -> None:
    """Remove the cgroups of machines whose process was killed."""
    for cgroup in (_tree() or _TREE).glob(f"{_CGROUP}-*"):
        if not Path("/proc", cgroup.name.removeprefix(f"{_CGROUP}-").partition("-")[0]).exists():
            _remove(cgroup)


def _child(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip().partition(" ")[0]


def _remove(cgroup: Path) -> None:
    def gone() -> bool:
        for one in sorted(cgroup.rglob("*"), reverse=True):
            if one.is_dir():
                with contextlib.suppress(OSError):
                    one.rmdir()
        with contextlib.suppress(OSError):
            cgroup.rmdir()
        return not cgroup.exists()

    wait_until(gone, 10, f"the end of {cgroup}")
