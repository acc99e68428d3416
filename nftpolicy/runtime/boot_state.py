# SPDX-License-Identifier: BSD-2-Clause
"""Boot state: the units or init scripts of nftpolicy that the next boot starts.

It is read from the symlinks by which they are enabled, so that no init system has to run.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from .install.init_systems import PROCD, SYSTEMD
from .paths import under_root

# Directories of units that outlast a restart, the first one wins (systemd.unit(5)).
_UNIT_DIRECTORIES = (
    SYSTEMD.directory,
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
_DEPENDENCIES = ("*.wants", "*.requires")  # directories of links to units that another unit starts
_NULL_DEVICE = "/dev/null"  # a unit that is a link to it is masked
_START_LINK = "etc/rc.d/S[0-9][0-9]{name}"


@frozen
class BootState:
    """The units of systemd and the scripts of procd that load a guard or apply a policy at the next boot."""

    units: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()

    @property
    def disable_commands(self) -> list[str]:
        """The commands after which the next boot leaves the uplinks open; [] if it does so already."""
        commands = [f"systemctl disable --now {' '.join(self.units)}"] if self.units else []
        return commands + [f"{PROCD.directory}/{script} disable" for script in self.scripts]


def read_boot_state(root: Path = Path("/")) -> BootState:
    """Return the boot state of the system below `root`."""
    return BootState(
        tuple(name for name in SYSTEMD.file_names if "@" not in name and _is_unit_enabled(root, name)),
        tuple(name for name in PROCD.file_names if _is_script_enabled(root, name)),
    )


def _is_unit_enabled(root: Path, name: str) -> bool:
    directories = [under_root(root, directory) for directory in _UNIT_DIRECTORIES]
    unit = next(filter(_exists, (directory / name for directory in directories)), None)
    if unit is None or (unit.is_symlink() and str(unit.readlink()) == _NULL_DEVICE):
        return False
    wanted_by = (path for directory in directories for pattern in _DEPENDENCIES for path in directory.glob(pattern))
    return any(_exists(path / name) for path in wanted_by)


def _is_script_enabled(root: Path, name: str) -> bool:
    return _exists(under_root(root, f"{PROCD.directory}/{name}")) and any(root.glob(_START_LINK.format(name=name)))


def _exists(path: Path) -> bool:
    """Return True for a file or a link, also one to a path outside the root of an image."""
    return path.is_symlink() or path.exists()
