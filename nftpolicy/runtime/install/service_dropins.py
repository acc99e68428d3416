# SPDX-License-Identifier: BSD-2-Clause
"""Drop-ins of a policy's services on a machine: unit files, programs, and the cgroup of a unit.

With them a service starts marked, without another program and without another start command. The
text is in nftpolicy/integration/systemd_dropins.py.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path

from attrs import Factory, frozen

from ...exceptions import NftpolicyError
from ...integration.systemd_dropins import DROPIN_NAME, ServiceUnit, dropin_text, service_unit_name
from ...integration.systemd_units import UNIT_DIR, require_safe_path, resolver_unit
from ...kernel import cgroup
from ...kernel.errors import Unavailable
from ...policy.objects import Policy, Service, Uplink
from ..paths import under_root
from ..services import preload

# Directories of units, by precedence (systemd.unit(5)).
_UNIT_DIRECTORIES = (
    UNIT_DIR,
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
_COMMAND = re.compile(r"^ExecStart\s*=\s*[-@:+!|]*(/\S+)", re.MULTILINE)


class DropInError(NftpolicyError):
    """A service cannot have a drop-in, or its program cannot be marked; the message has the cause."""


@frozen
class DropInHost:
    """The machine that the drop-ins are for.

    `root` is its root directory, `program` the path of nftpolicy there, `policy_path` that of the
    policy.
    """

    root: Path
    program: str
    policy_path: str


@frozen
class DropIns:
    """Drop-ins: path on the system -> text. `skipped`: service -> reason why it has none."""

    texts: Mapping[str, str]
    skipped: Mapping[str, str] = Factory(dict)

    def files(self) -> dict[str, bytes]:
        """Return path -> content."""
        return {path: text.encode() for path, text in self.texts.items()}


def build_dropins(policy: Policy, units: Mapping[str, str], directory: str, machine: DropInHost) -> DropIns:
    """Return the drop-ins of all services, below `directory`.

    `units`: service -> unit, for services with another unit than that of their cgroup, else SERVICE.service.

    Raises:
        DropInError: a unit name is invalid or used for two services, or a program cannot be marked
            by a library.
        Unavailable: the marking library is missing (services/preload.py).
        ValueError: a path has a character with a special meaning in a unit.
    """
    texts: dict[str, str] = {}
    unsupported: dict[str, str] = {}
    for name, service in policy.service.items():
        if service.kernel:
            unsupported[name] = "its sockets belong to the kernel; set their mark there (FwMark of WireGuard)"
            continue
        unit = unit_name(units.get(name) or _unit_of_cgroup(service) or name)
        path = f"{directory.rstrip('/')}/{unit}.d/{DROPIN_NAME}"
        if path in texts:
            raise DropInError(
                f"{unit} is the unit of two services, and a process has one group: name another unit with --unit"
            )
        texts[path] = _text(policy, name, unit, machine)
    return DropIns(texts, unsupported)


def _unit_of_cgroup(service: Service) -> str | None:
    """Return the unit whose cgroup the policy names, None without one."""
    last = (service.cgroup or "").rpartition("/")[2]
    return last if last.endswith(".service") else None


def _text(policy: Policy, name: str, unit: str, machine: DropInHost) -> str:
    service = policy.service[name]
    uplink = policy.uplink[service.uplink]
    environment: Mapping[str, str] = {}
    if service.marks == "preload":
        _require_preloadable(name, unit, service, machine.root)
        environment = _preload_environment(uplink)
    after = resolver_unit(service.uplink) if uplink.resolver else None
    return dropin_text(ServiceUnit(name, policy, after, machine.program, machine.policy_path, environment))


def _preload_environment(uplink: Uplink) -> dict[str, str]:
    environment = preload.preload_environment(uplink.mark, {})
    require_safe_path(environment["LD_PRELOAD"])
    return environment


def unit_name(text: str) -> str:
    """Return the name of a service's unit; ".service" may be left out. Raises DropInError."""
    unit = service_unit_name(text)
    if unit is None:
        raise DropInError(f"{text!r} is not a valid name of a systemd unit: letters, digits and : _ . \\ @ -")
    return unit


def attach_to_own_cgroup(policy: Policy, name: str) -> None:
    """Attach the marking programs of a service to the cgroup of the calling unit.

    Raises:
        DropInError: new sockets in that cgroup do not have the mark.
        Unavailable: there is no cgroup v2, or BPF programs cannot be attached.
    """
    service = policy.service[name]
    uplink = policy.uplink[service.uplink]
    path = parse_unit_cgroup(Path("/proc/self/cgroup").read_text(errors="surrogateescape"))
    devices = uplink.devices if service.confine else None
    cgroup.attach(path, uplink.mark.value, uplink.mark.mask, devices)
    for family in (socket.AF_INET, socket.AF_INET6):
        marks = cgroup.own_socket_marks(family).values()
        if not all(uplink.mark.matches(mark) for mark in marks):
            raise DropInError(
                f"service {name}: a new socket does not have the mark {uplink.mark}; run: bpftool cgroup tree"
            )


def parse_unit_cgroup(text: str) -> str:
    """Return the cgroup of a unit relative to the root of cgroup v2.

    `text` is the content of /proc/PID/cgroup (cgroups(7)) of one of its processes. Raises
    Unavailable.
    """
    for line in text.splitlines():
        if line.startswith("0::/"):
            # With Delegate=, systemd runs the commands of a unit in a cgroup below the unit's.
            return line.removeprefix("0::/").removesuffix(".control").rstrip("/")
    raise Unavailable("this process is in no cgroup of version 2, so sockets cannot be marked by cgroup")


def _require_preloadable(name: str, unit: str, service: Service, root: Path) -> None:
    """Raise DropInError if a program of the unit exists that a library cannot mark."""
    user = service.user.number if service.user else 0
    for program in unit_programs(unit, root):
        path = under_root(root, program)
        if not path.exists():
            continue
        why = preload.refusal_reason(path, user)
        if why is not None:
            raise DropInError(f'service {name} has marks = "preload", and {why}; write marks = "cgroup"')


def unit_programs(unit: str, root: Path) -> list[str]:
    """Return the programs that a unit's file starts; [] without a file or a known program."""
    template = re.sub(r"@[^@]*\.service\Z", "@.service", unit)
    for directory in _UNIT_DIRECTORIES:
        for name in dict.fromkeys((unit, template)):
            file = under_root(root, f"{directory}/{name}")
            if file.is_file():
                return _COMMAND.findall(file.read_text(errors="replace"))
    return []
