# SPDX-License-Identifier: BSD-2-Clause
"""What starts things on a machine, systemd or procd: one row each, of the same files, guard, policy and orders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from attrs import Factory, frozen

from . import procd, units
from .files import KEPT, KEPT_ON_OPENWRT, kept

Order = tuple[str, ...]  # a program and its arguments


@frozen
class Init:
    """One of them.

    `texts` makes name -> text of its files from (this program, nft, the policy), as the machine knows them, for
    `folder`; `beside` are files elsewhere. `started` makes what is to be started out of the uplinks with a resolver:
    the files, or of a template ("@.") instances. `enabled` is a pattern of the links by which something of that name
    is enabled, from `folder`; `links` are those links where they can be made without it (path -> where it leads).
    """

    name: str
    folder: str
    texts: Callable[[str, str, str], Mapping[str, str]]
    names: tuple[str, ...]
    started: Callable[[Iterable[str]], tuple[str, ...]]
    mode: int
    kept: str  # the folder of what outlasts a restart
    running: Path  # is there while it runs the machine
    enabled: str
    enable: Callable[[Iterable[str]], list[Order]]  # names -> orders that enable and start them
    disable: Callable[[Iterable[str]], list[Order]]
    renew: tuple[Order, ...] = ()  # when files were written, for what runs already
    forget: tuple[Order, ...] = ()  # when files were taken away
    links: Mapping[str, str] = Factory(dict)
    beside: Mapping[str, str] = Factory(dict)

    def starts(self, path: str) -> bool:
        """Whether the file at this path is one that starts something."""
        return Path(path).name in self.names and path not in self.beside


def instances(name: str) -> str:
    """A pattern of the instances, if that is the name of a template of systemd; else the name."""
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
    # "stop" takes a pattern for the instances of a template, "disable" its name.
    disable=lambda names: [("systemctl", "stop", *map(instances, names)), ("systemctl", "disable", *names)],
    renew=(_RELOAD, ("systemctl", "try-reload-or-restart", "nftpolicy.service")),
    forget=(_RELOAD,),
)
PROCD = Init(
    name="procd",
    folder=procd.FOLDER,
    texts=procd.scripts,
    names=procd.NAMES,
    started=lambda uplinks: procd.NAMES,  # the script asks for the resolvers itself
    mode=0o755,
    kept=KEPT_ON_OPENWRT,
    running=Path("/var/run/ubus/ubus.sock"),  # its bus
    enabled="../rc.d/[SK][0-9][0-9]{name}",
    enable=lambda names: [(f"{procd.FOLDER}/{one}", verb) for one in names for verb in ("enable", "start")],
    disable=lambda names: [(f"{procd.FOLDER}/{one}", verb) for one in names for verb in ("stop", "disable")],
    links=procd.LINKS,
    beside=procd.KEEP,
)
INITS: Mapping[str, Init] = {one.name: one for one in (SYSTEMD, PROCD)}


def init_of(root: Path) -> Init:
    """The one of a system, by where things are kept there."""
    return next(one for one in INITS.values() if one.kept == kept(root))
