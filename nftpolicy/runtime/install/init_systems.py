# SPDX-License-Identifier: BSD-2-Clause
"""Init systems, systemd and procd: paths, files and commands of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from attrs import Factory, frozen

from ...integration import procd, systemd_units
from ..paths import PERSISTENT_DIR, PERSISTENT_DIR_OPENWRT, persistent_dir

Command = tuple[str, ...]  # a program and its arguments


@frozen
class InitSystem:
    """An init system.

    `render` returns file name -> text for (program, nft, policy), as paths on the system; the files
    go to `directory`. `render_extra_files` returns further files, path -> text, for the path of nft.
    `units_to_start` returns the names to start for the uplinks with a resolver: files, or instances
    of a template ("@.").
    `enable_link_pattern` is a glob pattern, relative to `directory`, of the links by which a name
    is enabled; `enable_links` are these links where they can be created without the init system
    (path -> target).
    """

    name: str
    directory: str
    render: Callable[[str, str, str], Mapping[str, str]]
    file_names: tuple[str, ...]
    units_to_start: Callable[[Iterable[str]], tuple[str, ...]]
    mode: int
    persistent_dir: str  # the directory for files that outlast a restart
    running_marker: Path  # exists while this init system runs the machine
    enable_link_pattern: str
    render_extra_files: Callable[[str], Mapping[str, str]]
    enable_commands: Callable[[Iterable[str]], list[Command]]  # names -> commands that enable and start them
    disable_commands: Callable[[Iterable[str]], list[Command]]
    reload_commands: tuple[Command, ...] = ()  # commands after files were written, for running units
    cleanup_commands: tuple[Command, ...] = ()  # commands after files were removed
    enable_links: Mapping[str, str] = Factory(dict)

    def is_startable(self, path: str) -> bool:
        """Return True if the file at this path is a unit or script that can be started."""
        return Path(path).name in self.file_names and path not in self.render_extra_files("/nft")


def instance_pattern(name: str) -> str:
    """Return a pattern of the instances of a systemd template; other names are returned as is."""
    return name.replace("@.", "@?*.")


_RELOAD = ("systemctl", "daemon-reload")

SYSTEMD = InitSystem(
    name="systemd",
    directory=systemd_units.UNIT_DIR,
    render=systemd_units.render_units,
    file_names=systemd_units.UNIT_NAMES,
    units_to_start=systemd_units.units_to_start,
    mode=0o644,
    persistent_dir=PERSISTENT_DIR,
    running_marker=Path("/run/systemd/system"),  # sd_booted(3)
    enable_link_pattern="*.wants/{name}",
    render_extra_files=systemd_units.render_udev_rules,
    enable_commands=lambda names: [_RELOAD, ("systemctl", "enable", "--quiet", "--now", *names)],
    # "stop" takes a pattern of the instances of a template, "disable" the template's name.
    disable_commands=lambda names: [
        ("systemctl", "stop", *map(instance_pattern, names)),
        ("systemctl", "disable", *names),
    ],
    reload_commands=(_RELOAD, ("systemctl", "try-reload-or-restart", "nftpolicy.service")),
    cleanup_commands=(_RELOAD,),
)
PROCD = InitSystem(
    name="procd",
    directory=procd.INIT_DIR,
    render=procd.render_scripts,
    file_names=procd.SCRIPT_NAMES,
    units_to_start=lambda uplinks: procd.SCRIPT_NAMES,  # the script starts the resolvers
    mode=0o755,
    persistent_dir=PERSISTENT_DIR_OPENWRT,
    running_marker=Path("/var/run/ubus/ubus.sock"),  # the socket of ubus
    enable_link_pattern="../rc.d/[SK][0-9][0-9]{name}",
    render_extra_files=lambda nft: procd.SYSUPGRADE_KEEP,
    enable_commands=lambda names: [
        (f"{procd.INIT_DIR}/{name}", verb) for name in names for verb in ("enable", "start")
    ],
    disable_commands=lambda names: [
        (f"{procd.INIT_DIR}/{name}", verb) for name in names for verb in ("stop", "disable")
    ],
    enable_links=procd.ENABLE_LINKS,
)
INIT_SYSTEMS: Mapping[str, InitSystem] = {init.name: init for init in (SYSTEMD, PROCD)}


def detect_init(root: Path) -> InitSystem:
    """Return the init system of a system, by its directory for files that outlast a restart."""
    return next(init for init in INIT_SYSTEMS.values() if init.persistent_dir == persistent_dir(root))
