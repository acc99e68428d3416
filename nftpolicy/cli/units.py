# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy units FILE"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from ..policy.errors import nearest
from .common import BAD_INPUT, FILE, NOT_HERE, Failure, policies, read_policy, warn
from .install import place_of, program_of, root_of, told_in_words

if TYPE_CHECKING:
    from ..policy.objects import Policy
    from ..runtime.place.dropins import DropIns


def command(
    file: Optional[Path] = typer.Argument(None, help=FILE),  # noqa: UP045
    to: Optional[Path] = typer.Option(None, help="Write them below this folder, such as /etc/systemd/system."),  # noqa: UP045
    unit: list[str] = typer.Option([], help="The unit of a service, SERVICE=UNIT, where it is not SERVICE.service."),
    destdir: Optional[Path] = typer.Option(None, envvar="DESTDIR", help="Below this folder, for an image."),  # noqa: UP045
    program: Optional[str] = typer.Option(None, help="This program, as the units call it."),  # noqa: UP045
    attach: Optional[str] = typer.Option(None, hidden=True),  # noqa: UP045 - how a unit calls it
    force: bool = typer.Option(False, "--force", help="Replace files that were changed."),
) -> None:
    """Print drop-ins for the systemd units of the policy's services: group, order and mark. --to writes them."""
    policy, _ = read_policy(file)
    if attach is not None:
        _attach(policy, attach)
        return
    root = root_of(destdir)
    if to is not None and not to.is_absolute():
        raise Failure(f"--to takes an absolute path, got {str(to)!r}", BAD_INPUT)
    there = policies(root)
    machine = (root, program, place_of(there[0] if len(there) == 1 else file, root))
    found = _found(policy, _named(policy, unit), str(to or "/etc/systemd/system"), *machine)
    for name, why in found.without.items():
        warn(f"service {name} has no unit: {why}")
    if to is None:
        print("\n".join(f"# {path}\n{text}" for path, text in found.texts.items()), end="")
        return
    from ..runtime.place.install import place

    with told_in_words():
        stale = _stale(root, to, found)
        written = place(root, found.files(), force)
    print("\n".join([f"wrote {path}" for path in written] or ["everything is in place already"]))
    for path in stale:
        warn(f"{path} is of no service of this policy any more: remove it")
    if written and root == Path("/"):
        print("next: systemctl daemon-reload, and restart these services")


def _attach(policy: Policy, name: str) -> None:
    from ..kernel.interface import Unavailable
    from ..runtime.place.dropins import NoDropIn, attach

    if name not in policy.service or policy.service[name].marks != "cgroup":
        raise Failure(f'{policy.name} has no service {name!r} with marks = "cgroup"', BAD_INPUT)
    try:
        attach(policy, name)
    except NoDropIn as error:
        raise Failure(str(error)) from None
    except Unavailable as error:
        raise Failure(str(error), NOT_HERE) from None


def _named(policy: Policy, words: list[str]) -> dict[str, str]:
    """Service -> unit, or Failure."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, unit = word.partition("=")
        if not (name and equals and unit):
            raise Failure(f"--unit takes SERVICE=UNIT, got {word!r}", BAD_INPUT)
        if name not in policy.service:
            known = ", ".join(policy.service) or "none"
            raise Failure(
                f"--unit: there is no service {name!r}{nearest(name, policy.service)}; known are {known}", BAD_INPUT
            )
        if policy.service[name].kernel:
            raise Failure(f"--unit: service {name} has no unit, since its sockets are the kernel's", BAD_INPUT)
        if name in found:
            raise Failure(f"--unit names service {name} twice", BAD_INPUT)
        found[name] = unit
    return found


def _found(policy: Policy, units: dict[str, str], folder: str, root: Path, program: str | None, place: str) -> DropIns:
    from ..kernel.interface import Unavailable
    from ..runtime.place.dropins import Machine, NoDropIn, of_policy
    from ..runtime.place.units import checked

    try:
        machine = Machine(root, checked(program_of(root, program)), place)
        return of_policy(policy, units, folder, machine)
    except (NoDropIn, ValueError) as error:
        raise Failure(str(error), BAD_INPUT) from None
    except Unavailable as error:
        raise Failure(str(error), NOT_HERE) from None


def _stale(root: Path, folder: Path, found: DropIns) -> list[Path]:
    """Drop-ins that were installed there for services which are gone."""
    from ..runtime.place.dropins import NAME
    from ..runtime.place.files import Manifest, below

    mine = [Path(path) for path in Manifest.of(root).files if path.endswith(f".service.d/{NAME}")]
    return [
        below(root, str(path))
        for path in mine
        if path.parents[1] == folder and str(path) not in found.texts and below(root, str(path)).exists()
    ]
