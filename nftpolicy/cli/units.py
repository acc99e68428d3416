# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy units [FILE]"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .common import (
    EXIT_BAD_INPUT,
    EXIT_UNAVAILABLE,
    Failure,
    installed_policies,
    read_policy,
    require_known,
    warn,
)
from .install_common import (
    install_errors_as_failure,
    installed_path,
    print_written,
    program_path,
    target_root,
)
from .options import DestDir, PolicyFile, ProgramPath
from .parameters import option

if TYPE_CHECKING:
    from ..policy.objects import Policy
    from ..runtime.install.service_dropins import DropIns


def command(
    file: PolicyFile = None,
    to: Annotated[
        Path | None,
        option(help="Write them below this directory, such as /etc/systemd/system."),
    ] = None,
    unit: Annotated[
        list[str] | None,
        option(help="SERVICE=UNIT, if it is neither that of its cgroup nor SERVICE.service."),
    ] = None,
    destdir: DestDir = None,
    program: ProgramPath = None,
    attach: Annotated[str | None, option(hidden=True)] = None,  # the call in the drop-in of a cgroup service
    force: Annotated[bool, option("--force", help="Replace files that were changed.")] = False,
) -> None:
    """Print or write systemd drop-ins for the services.

    They set the group, the order of start and the mark. --to writes them.
    """
    policy, _ = read_policy(file)
    if attach is not None:
        _attach_programs(policy, attach)
        return
    root = target_root(destdir)
    if to is not None and not to.is_absolute():
        raise Failure(f"--to takes an absolute path, got {str(to)!r}", EXIT_BAD_INPUT)
    installed = installed_policies(root)
    policy_path = installed_path(installed[0] if len(installed) == 1 else file, root)
    unit_names = _parse_unit_names(policy, unit or [])
    drop_ins = _drop_ins(policy, unit_names, str(to or "/etc/systemd/system"), root, program, policy_path)
    for name, reason in drop_ins.skipped.items():
        warn(f"service {name} has no unit: {reason}")
    if to is None:
        print("\n".join(f"# {path}\n{text}" for path, text in drop_ins.texts.items()), end="")
        return
    from ..runtime.install.installed_files import Manifest
    from ..runtime.install.installer import install_files
    from ..runtime.install.obsolete_files import obsolete_dropins, remove_files

    with install_errors_as_failure():
        written = install_files(root, drop_ins.files(), force)
        removed = remove_files(Manifest.read(root), obsolete_dropins(root, drop_ins.texts, to))
    print_written([*(f"wrote {path}" for path in written), *(f"removed {path}" for path in removed)])
    if root == Path("/"):
        for problem in nameless_accounts(policy):
            warn(problem)
    if (written or removed) and root == Path("/"):
        print("next: systemctl daemon-reload, and restart these services")


def nameless_accounts(policy: Policy) -> Iterator[str]:
    """Yield the groups and users of services that have no name here: systemd starts no unit as one of them."""
    import grp
    import pwd

    groups = {entry.gr_gid for entry in grp.getgrall()}
    users = {entry.pw_uid for entry in pwd.getpwall()}
    for name, service in policy.service.items():
        if service.user is not None:
            if service.user.number not in users:
                yield f"service {name}: systemd needs a name for user {service.user.number}; useradd makes one"
        elif service.group is not None and service.group.number not in groups:
            command = f"groupadd --gid {service.group.number} nftpolicy-{name}"
            yield f"service {name}: systemd needs a name for group {service.group.number}: {command}"


def _attach_programs(policy: Policy, name: str) -> None:
    """Attach the BPF programs of a service to the cgroup of this process."""
    from ..kernel.errors import Unavailable
    from ..runtime.install.service_dropins import DropInError, attach_to_own_cgroup

    if name not in policy.service or policy.service[name].marks != "cgroup":
        raise Failure(f'{policy.name} has no service {name!r} with marks = "cgroup"', EXIT_BAD_INPUT)
    try:
        attach_to_own_cgroup(policy, name)
    except DropInError as error:
        raise Failure(str(error)) from None
    except Unavailable as error:
        raise Failure(str(error), EXIT_UNAVAILABLE) from None


def _parse_unit_names(policy: Policy, options: list[str]) -> dict[str, str]:
    """Return the unit of each service that --unit names.

    Raises:
        Failure: an option is malformed, or its service does not exist or has no unit.
    """
    units: dict[str, str] = {}
    for text in options:
        name, equals, unit = text.partition("=")
        if not (name and equals and unit):
            raise Failure(f"--unit takes SERVICE=UNIT, got {text!r}", EXIT_BAD_INPUT)
        require_known("service", name, policy.service, option="--unit: ")
        if policy.service[name].kernel:
            raise Failure(f"--unit: service {name} has no unit, since its sockets are the kernel's", EXIT_BAD_INPUT)
        if name in units:
            raise Failure(f"--unit names service {name} twice", EXIT_BAD_INPUT)
        units[name] = unit
    return units


def _drop_ins(
    policy: Policy,
    units: dict[str, str],
    directory: str,
    root: Path,
    program: str | None,
    policy_path: str,
) -> DropIns:
    from ..integration.systemd_units import require_safe_path
    from ..kernel.errors import Unavailable
    from ..runtime.install.service_dropins import DropInError, DropInHost, build_dropins

    try:
        machine = DropInHost(root, require_safe_path(program_path(root, program)), policy_path)
        return build_dropins(policy, units, directory, machine)
    except (DropInError, ValueError) as error:
        raise Failure(str(error), EXIT_BAD_INPUT) from None
    except Unavailable as error:
        raise Failure(str(error), EXIT_UNAVAILABLE) from None
