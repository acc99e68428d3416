# SPDX-License-Identifier: BSD-2-Clause
"""The one part of the package that is compiled: nftpolicy/preload/packetmark.c.

Without a C compiler the package is built all the same, and says what it will lack.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # `python hatch_build.py` needs none of it
    BuildHookInterface = object  # type: ignore[assignment,misc]

FOLDER = Path(__file__).parent / "nftpolicy" / "preload"
SOURCE, LIBRARY = FOLDER / "packetmark.c", FOLDER / "libpacketmark.so"
FLAGS = (
    *("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-Wl,-z,defs", "-Wl,-z,now", "-Wl,-z,relro", "-Wl,-soname,libpacketmark.so"),
)


class NotBuilt(Exception):
    """The library can't be built here; says why."""


def compiler() -> list[str]:
    """The C compiler: CC, or cc or gcc. Raises NotBuilt."""
    words = shlex.split(os.environ.get("CC", ""))
    found = shutil.which(words[0]) if words else shutil.which("cc") or shutil.which("gcc")
    if found is None:
        raise NotBuilt(f"there is no C compiler ({words[0] if words else 'cc'}): apt-get install gcc libc6-dev")
    return [found, *words[1:]]


def build(target: Path = LIBRARY) -> None:
    """Compile the library. It takes the place of an older one as a whole, which may be in use. Raises NotBuilt."""
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            [*compiler(), *FLAGS, "-o", str(new), str(SOURCE), "-ldl"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NotBuilt(f"the C compiler failed (is libc6-dev installed?): {done.stderr.strip()}")
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


class Hook(BuildHookInterface):  # type: ignore[misc,type-arg]
    """Called by hatchling before a wheel, or an installation that is edited in place, is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to the wheel, which then fits machines like this one only."""
        LIBRARY.unlink(missing_ok=True)  # one of another machine, or of older source
        try:
            build()
        except NotBuilt as error:
            self.app.display_warning(f'marks = "preload" will not work, libpacketmark.so is not built: {error}')
            return
        build_data["artifacts"].append(f"/{LIBRARY.relative_to(self.root)}")
        if version != "editable":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"py3-none-{platform}")


if __name__ == "__main__":
    try:
        build()
    except NotBuilt as error:
        sys.exit(f"libpacketmark.so is not built: {error}")
