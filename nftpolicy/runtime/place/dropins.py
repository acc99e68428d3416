# SPDX-License-Identifier: BSD-2-Clause
"""Drop-ins for the systemd units of services, so that no service needs another program or another start.

A drop-in (systemd.unit(5)) adds the group or user by which the policy knows the service, the order after the
guard, and the way to its mark.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import Factory, frozen

from ...kernel import cgroup
from ...kernel.interface import Unavailable
from ...policy.objects import Policy, Service, Uplink
from ..service import preload
from .files import below
from .units import UNITDIR, checked, resolver

NAME = "nftpolicy.conf"
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.service\Z")
# Where units of packages are, the first one wins (systemd.unit(5)).
_PLACES = (
    UNITDIR,
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
_COMMAND = re.compile(r"^ExecStart\s*=\s*[-@:+!|]*(/\S+)", re.MULTILINE)

_TEXT = """\
# Service {name} of policy {policy}, as 'nftpolicy units' wrote it. It is not to be changed here: change the
# policy, and type 'nftpolicy units' again.

[Unit]
# It does not start where the guard could not be loaded.
Requires=nftpolicy-guard.service
Wants=nftpolicy.service
After={after}

[Service]
{lines}"""
_AFTER = ("nftpolicy-guard.service", "nftpolicy.service")


class NoDropIn(Exception):
    """A service can have none, or its program can't be marked; the words say which and why."""


@frozen
class Machine:
    """What is to be known of the machine that the drop-ins are for: its root, this program as its units call it,
    and the policy that it reads there."""

    root: Path
    program: str
    policy: str


@frozen
class DropIns:
    """Path as the system knows it -> text. `without`: services that have none, and why."""

    texts: Mapping[str, str]
    without: Mapping[str, str] = Factory(dict)

    def files(self) -> dict[str, bytes]:
        """What is to be written where."""
        return {path: text.encode() for path, text in self.texts.items()}


def of_policy(policy: Policy, units: Mapping[str, str], folder: str, machine: Machine) -> DropIns:
    """The drop-ins of all services. `units`: service -> its unit, where that is not SERVICE.service.

    Raises:
        NoDropIn: a unit is none, or serves two; or its program can't be marked by a library.
        Unavailable: see runtime.preload.
        ValueError: a path that would mean something else in a unit.
    """
    texts: dict[str, str] = {}
    without: dict[str, str] = {}
    for name, service in policy.service.items():
        if service.kernel:
            without[name] = "its sockets are the kernel's, whose owner sets their mark (FwMark of WireGuard)"
            continue
        unit = unit_of(units.get(name, name))
        path = f"{folder.rstrip('/')}/{unit}.d/{NAME}"
        if path in texts:
            raise NoDropIn(f"{unit} is the unit of two services, and a process has one group: name another with --unit")
        if service.marks == "preload":
            _may_be_loaded(name, unit, service, machine.root)
        uplink = policy.uplink[service.uplink]
        lines = "".join(f"{line}\n" for line in (*_identity(service), *_WAYS[service.marks](name, uplink, machine)))
        after = " ".join([*_AFTER, *([resolver(service.uplink)] if uplink.resolver else [])])
        texts[path] = _TEXT.format(name=name, policy=policy.name, after=after, lines=lines)
    return DropIns(texts, without)


def unit_of(word: str) -> str:
    """The name of a service's unit; ".service" may be left out. Raises NoDropIn."""
    unit = word if "." in word.rpartition("@")[2] and word.endswith(".service") else f"{word}.service"
    if not _UNIT.match(unit):
        raise NoDropIn(f"{word!r} is no name of a unit of systemd: letters, digits and : _ . \\ @ -")
    return unit


def _identity(service: Service) -> list[str]:
    if service.user is not None:
        return [f"User={service.user.name}"]
    assert service.group is not None
    # The policy asks for the group of the process; those beside it are not looked at.
    return [f"Group={service.group.name}"]


# --- by the word of `marks` ---------------------------------------------------------------


def _itself(name: str, uplink: Uplink, machine: Machine) -> list[str]:
    return [f"# The program puts the mark {uplink.mark} on its sockets itself."]


def _preload(name: str, uplink: Uplink, machine: Machine) -> list[str]:
    set_ = preload.environment(uplink.mark, {})
    checked(set_["LD_PRELOAD"])
    return [
        *(f"Environment={key}={value}" for key, value in set_.items()),
        "# What SO_MARK takes (before Linux 5.17 it is CAP_NET_ADMIN). It does not keep LD_PRELOAD from working.",
        "AmbientCapabilities=CAP_NET_RAW",
        "# With this status the library ends a program that is told of no mark; another start does not help.",
        "RestartPreventExitStatus=78",
    ]


def _cgroup(name: str, uplink: Uplink, machine: Machine) -> list[str]:
    # Not BPFProgram=: where its file is missing, systemd starts the service all the same.
    return [
        "# The programs stay on the unit's cgroup as long as that lives. Where this fails, the service does not start.",
        f"ExecStartPre=+{machine.program} units --attach {name} {machine.policy}",
    ]


_WAYS: dict[str, Callable[[str, Uplink, Machine], list[str]]] = {
    "itself": _itself,
    "preload": _preload,
    "cgroup": _cgroup,
}


def attach(policy: Policy, name: str) -> None:
    """Have the sockets of the unit's cgroup, which the calling process is in, wear the mark of the service.

    Raises:
        NoDropIn: they do not.
        Unavailable: there is no cgroup v2, or no such program may be attached.
    """
    service = policy.service[name]
    uplink = policy.uplink[service.uplink]
    mark = (uplink.mark.value, uplink.mark.mask)
    cgroup.attach(own_cgroup(Path("/proc/self/cgroup").read_text()), *mark, uplink.devices if service.confine else None)
    for domain in (socket.AF_INET, socket.AF_INET6):
        if any(not uplink.mark.worn_by(worn) for worn in cgroup.own_sockets(domain).values()):
            raise NoDropIn(f"service {name}: a new socket does not wear the mark {uplink.mark}: bpftool cgroup tree")


def own_cgroup(text: str) -> str:
    """The cgroup of a unit, below the root of cgroup v2, out of /proc/PID/cgroup (cgroups(7)) of one of its processes.

    Raises Unavailable.
    """
    for line in text.splitlines():
        if line.startswith("0::/"):
            # Where a unit hands its cgroup on (Delegate=), systemd runs its commands in one below it.
            return line.removeprefix("0::/").removesuffix(".control").rstrip("/")
    raise Unavailable("this process is in no cgroup of version 2, so sockets can't be marked by cgroup")


def _may_be_loaded(name: str, unit: str, service: Service, root: Path) -> None:
    """NoDropIn if the unit's program is there and would not be marked by a library."""
    for program in programs(unit, root):
        place = below(root, program)
        if place.exists():
            why = preload.refusal(place, service.user.number if service.user else 0)
            if why is not None:
                raise NoDropIn(f'service {name} has marks = "preload", and {why}; write marks = "cgroup"')


def programs(unit: str, root: Path) -> list[str]:
    """The programs that a unit starts, as its file says; none if there is no such file, or they can't be known."""
    template = re.sub(r"@[^@]*\.service\Z", "@.service", unit)
    for place in _PLACES:
        for one in dict.fromkeys((unit, template)):
            file = below(root, f"{place}/{one}")
            if file.is_file():
                return _COMMAND.findall(file.read_text(errors="replace"))
    return []
