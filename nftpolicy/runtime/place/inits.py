# SPDX-License-Identifier: BSD-2-Clause
"""Init systems, systemd and procd: paths, files and commands of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from attrs import Factory, frozen

from ..paths import KEPT, KEPT_ON_OPENWRT, kept
from . import procd, units

Order = tuple[str, ...]  # a program and its arguments


@frozen
class Init:
    """An init system.

    `render` returns file name -> text for (program, nft, policy), as paths on the system; the files
    go to `directory`. `extra_files` are further files, path -> text. `units_to_start` returns the
    names to start for the uplinks with a resolver: files, or instances of a template ("@.").
    `enable_link_pattern` is a glob pattern, relative to `directory`, of the links by which a name
    is enabled; `enable_links` are these links where they can be created without the init system
    (path -> target).
    """

    name: str
    folder: str
    texts: Callable[[str, str, str], Mapping[str, str]]
    names: tuple[str, ...]
    started: Callable[[Iterable[str]], tuple[str, ...]]
    mode: int
    kept: str  # the directory for files that outlast a restart
    running: Path  # exists while this init system runs the machine
    enabled: str
    enable: Callable[[Iterable[str]], list[Order]]  # names -> commands that enable and start them
    disable: Callable[[Iterable[str]], list[Order]]
    renew: tuple[Order, ...] = ()  # commands after files were written, for running units
    forget: tuple[Order, ...] = ()  # commands after files were removed
    links: Mapping[str, str] = Factory(dict)
    beside: Mapping[str, str] = Factory(dict)

    def starts(self, path: str) -> bool:
        """Return True if the file at this path is a unit or script that can be started."""
        return Path(path).name in self.names and path not in self.beside


def instances(name: str) -> str:
    """Return a pattern of the instances of a systemd template; other names are returned as is."""
    return name.replace("@.", "@?*.")


_RELOAD = ("systemctl", "daemon-reload")

SYSTEMD = Init(
    name="systemd",
    folder=units.UNITDIR,
    texts=units.units,
    names=units.NAMES,
    started=units.started,
    mode=0o644,
    kept=KEPT,
    running=Path("/run/systemd/system"),  # sd_booted(3)
    enabled="*.wants/{name}",
    enable=lambda names: [_RELOAD, ("systemctl", "enable", "--quiet", "--now", *names)],
    # "stop" takes a pattern of the instances of a template, "disable" the template's name.
    disable=lambda names: [
        ("systemctl", "stop", *map(instances, names)),
        ("systemctl", "disable", *names),
    ],
    renew=(_RELOAD, ("systemctl", "try-reload-or-restart", "nftpolicy.service")),
    forget=(_RELOAD,),
)
PROCD = Init(
    name="procd",
    folder=procd.FOLDER,
    texts=procd.scripts,
    names=procd.NAMES,
    started=lambda uplinks: procd.NAMES,  # the script starts the resolvers
    mode=0o755,
    kept=KEPT_ON_OPENWRT,
    running=Path("/var/run/ubus/ubus.sock"),  # the socket of ubus
    enabled="../rc.d/[SK][0-9][0-9]{name}",
    enable=lambda names: [(f"{procd.FOLDER}/{name}", verb) for name in names for verb in ("enable", "start")],
    disable=lambda names: [(f"{procd.FOLDER}/{name}", verb) for name in names for verb in ("stop", "disable")],
    links=procd.LINKS,
    beside=procd.KEEP,
)
INITS: Mapping[str, Init] = {init.name: init for init in (SYSTEMD, PROCD)}


def init_of(root: Path) -> Init:
    """Return the init system of a system, by its directory for files that outlast a restart."""
    return next(init for init in INITS.values() if init.kept == kept(root))
