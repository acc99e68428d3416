# SPDX-License-Identifier: BSD-2-Clause
"""Files of sysctl.d(5) that set a sysctl of a policy to another value when the machine starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ..compiler.sysctls import required_sysctls
from ..netstate.routing import SYSCTL_SEPARATORS
from ..policy.objects import Policy
from .regular_file import read_regular

# A file hides those of the same name in later directories; the last assignment counts, in the order of the names.
_DIRECTORIES = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")
_LAST_FILE = "etc/sysctl.conf"  # of sysctl(8) --system; often also a link in /etc/sysctl.d
_MAX_SIZE = 256 << 10  # bytes of a file that are read
_MAX_FILES = 1000


@frozen
class SysctlFileConflict:
    """Line of a file that sets a sysctl of the policy to another value than `required`."""

    file: str
    line: int
    path: str  # below /proc/sys
    value: str
    required: str

    def __str__(self) -> str:
        return (
            f"{self.file}:{self.line}: sets {self.path.translate(SYSCTL_SEPARATORS)} to {self.value}, and the policy "
            f"needs {self.required}: after a boot the value is wrong until 'nftpolicy apply' or 'nftpolicy watch' "
            "sets it; change the line"
        )


def find_sysctl_conflicts(policy: Policy, root: Path = Path("/")) -> list[SysctlFileConflict]:
    """Return the lines of this host's files, of all that are readable. `root` is for tests.

    A pattern of paths (net.ipv4.conf.*.rp_filter) is not reported: it is for devices as they appear, and that is when
    `watch` sets their values.
    """
    last = {}
    for file in _files(root):
        for line, path, value in _assignments(file):
            last[path] = (f"/{file.relative_to(root)}", line, value)
    conflicts = []
    for sysctl in required_sysctls(policy):
        if sysctl.path in last:
            name, line, value = last[sysctl.path]
            if value != sysctl.value:
                conflicts.append(SysctlFileConflict(name, line, sysctl.path, value, sysctl.value))
    return conflicts


def _files(root: Path) -> list[Path]:
    """Return the files in the order in which they are read."""
    by_name: dict[str, Path] = {}
    for directory in _DIRECTORIES:
        with suppress(OSError):
            for file in sorted((root / directory).glob("*.conf")):
                by_name.setdefault(file.name, file)
    return [*(by_name[name] for name in sorted(by_name)[:_MAX_FILES]), root / _LAST_FILE]


def _assignments(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, path below /proc/sys, value); nothing if the file cannot be read."""
    try:
        text = read_regular(file, _MAX_SIZE).decode(errors="replace")
    except OSError:  # also a link to /dev/null, which hides a file
        return
    for number, line in enumerate(text.splitlines(), 1):
        key, separator, value = line.strip().lstrip("-").partition("=")
        key = key.strip()
        if separator and not key.startswith(("#", ";")):
            yield number, _path(key), value.strip()


def _path(key: str) -> str:
    """Return the path of a key: its first separator says if dots or slashes separate (sysctl.d(5))."""
    first = next((character for character in key if character in "./"), "/")
    return (key.translate(SYSCTL_SEPARATORS) if first == "." else key).strip("/")
