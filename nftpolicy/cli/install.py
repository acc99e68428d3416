# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy install [FILE]"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from .common import (
    BAD_INPUT,
    FOLDER,
    INSTALLED,
    NOT_HERE,
    REFUSED,
    UNKNOWN,
    Failure,
    policies,
    policy_file,
    read_policy,
    warn,
)
from .guard import proved
from .told import told

if TYPE_CHECKING:
    from ..policy.errors import Source
    from ..policy.objects import Policy
    from ..runtime.place.inits import Init
    from ..runtime.place.install import Wanted

INIT = "What starts things on that machine, if it is not to be found out."
StartedBy = StrEnum("StartedBy", ["systemd", "procd"])  # runtime/place/inits.py


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy, TOML; without it, the one that is installed."),  # noqa: UP045
    destdir: Optional[Path] = typer.Option(None, envvar="DESTDIR", help="Below this folder, for an image."),  # noqa: UP045
    unitdir: Optional[Path] = typer.Option(None, help="Where systemd's units go."),  # noqa: UP045
    program: Optional[str] = typer.Option(None, help="This program, as the units call it."),  # noqa: UP045
    nft: Optional[str] = typer.Option(None, help="The program nft, as the units call it."),  # noqa: UP045
    force: bool = typer.Option(False, "--force", help="Replace another policy, and files that were changed."),
    enable: bool = typer.Option(False, "--enable", help="Enable and start the units. This closes the uplinks."),
    init: Optional[StartedBy] = typer.Option(None, help=INIT),  # noqa: UP045
) -> None:
    """Put units or init scripts, the policy and its guard in place, so that the uplinks are guarded from the start."""
    from ..runtime.place.install import CommandFailed, install, link, start

    root = root_of(destdir)
    by = init_named(init, root)
    if unitdir is not None and (by.links or not unitdir.is_absolute()):
        said = f"is for systemd, and this is {by.name}" if by.links else f"takes an absolute path, got {str(unitdir)!r}"
        raise Failure(f"--unitdir {said}", BAD_INPUT)
    here = root == Path("/")
    if enable and not here and not by.links:
        raise Failure("--enable is for this machine, not for one below --destdir", BAD_INPUT)
    if enable and here and not by.running.exists():
        raise Failure(f"--enable needs {by.name}, which does not run this machine", NOT_HERE)
    wanted = _wanted(file, root, by, str(unitdir or by.folder), (program, nft))
    if enable and wanted.tables is None:
        raise Failure("--enable needs a policy: nftpolicy install --enable FILE", BAD_INPUT)
    with told_in_words():
        written = install(root, wanted, force)
        written += link(root, by) if enable and not here else []
    print("\n".join([f"wrote {path}" for path in written] or ["everything is in place already"]))
    if enable and here:
        try:
            gone = start(wanted, bool(written))
        except CommandFailed as error:
            raise Failure(f"the files are in place, but {error}") from None
        print(f"enabled and started {', '.join(wanted.started)}")
        if gone:
            print(f"stopped and disabled {', '.join(gone)}: the policy has no such resolver any more")
    elif not enable:
        _say_next(wanted, root)


def init_named(init: StartedBy | None, root: Path) -> Init:
    """What starts things on that machine: the one that was named, or the one that is found."""
    from ..runtime.place.inits import INITS, init_of

    return INITS[init.value] if init is not None else init_of(root)


def _say_next(wanted: Wanted, root: Path) -> None:
    from ..runtime.place.install import left_over

    init, gone = wanted.init, left_over(root, wanted)
    if root != Path("/"):
        also = f" && systemctl --root={root} disable {' '.join(gone)}" if gone else ""
        print(
            f"next, when the image is made: systemctl --root={root} enable {' '.join(wanted.started)}{also}"
            if not init.links
            else "next: an image builder of OpenWrt enables the scripts by itself; elsewhere 'install --enable' does"
        )
        return
    first = [] if wanted.tables is not None else [f"nftpolicy install FILE   # there is no {wanted.file} yet"]
    orders = [*(init.disable(gone) if gone else ()), *init.enable(wanted.started)]
    lines = [*first, *(" ".join(words) for words in orders)]
    print("\n  ".join(["next (this closes the uplinks to all but the policy's services):", *lines]))


def root_of(destdir: Path | None) -> Path:
    """The folder that is the root of the machine that is meant, or Failure."""
    if destdir is None or not destdir.parts:
        return Path("/")
    if destdir.exists() and not destdir.is_dir():
        raise Failure(f"--destdir takes a folder, and {destdir} is none", BAD_INPUT)
    return destdir.absolute()


def _wanted(file: Path | None, root: Path, init: Init, folder: str, programs: tuple[str | None, str | None]) -> Wanted:
    """What is to be where, or Failure."""
    from ..runtime.place.install import Wanted

    there = policy_file(None, root) if file is None and policies(root) else file
    named = place_of(there, root)
    program, nft = programs
    try:
        texts = init.texts(program_of(root, program), _nft(root, nft), named)
    except ValueError as error:
        raise Failure(str(error), BAD_INPUT) from None
    units = {f"{folder.rstrip('/')}/{name}": text for name, text in texts.items()}
    if there is None:
        return Wanted(init, units, file=named)
    policy, source = read_policy(there)
    prove(policy, source)
    if root != Path("/"):
        warn_of_names(policy)
    content = None if _is_policy_of(there, root) else source.text.encode()
    resolvers = tuple(name for name, uplink in policy.uplink.items() if uplink.resolver)
    return Wanted(init, units, proved(policy, source), content, named, resolvers)


def place_of(file: Path | None, root: Path) -> str:
    """Where a machine is to have this policy, as it calls it: where it is, if there already, or where it is put."""
    return f"{FOLDER}/{file.name if file is not None and _is_policy_of(file, root) else INSTALLED}"


def _is_policy_of(file: Path, root: Path) -> bool:
    return file.resolve() in [one.resolve() for one in policies(root)]


def program_of(root: Path, program: str | None) -> str:
    """This program as the units of that machine call it, or Failure."""
    from ..runtime.place.install import this_program

    found = program or (this_program() if root == Path("/") else "/usr/bin/nftpolicy")
    if found is None:
        raise Failure("this program is called in a way that no unit can repeat: say --program PATH", BAD_INPUT)
    return found


def _nft(root: Path, nft: str | None) -> str:
    from ..runtime.place.install import found_program

    found = nft or (found_program("nft") if root == Path("/") else "/usr/sbin/nft")
    if found is None:
        raise Failure("the program nft is missing: apt-get install nftables, or say --nft PATH", NOT_HERE)
    return found


def prove(policy: Policy, source: Source) -> None:
    """Failure if the policy as a whole is not proved, as `check` has it."""
    from ..runtime.verify import of_policy

    proof = of_policy(policy).proof
    if proof.verdict != "proved":
        said = "\n".join([*told(proof, source), "nftpolicy: nothing was written"])
        raise Failure(said, UNKNOWN if proof.verdict == "unknown" else REFUSED)


def warn_of_names(policy: Policy) -> None:
    """Guards hold numbers; those of the machine that this is for may be others."""
    found = {account for service in policy.service.values() for account in (service.group, service.user) if account}
    found |= {uplink.resolver.user for uplink in policy.uplink.values() if uplink.resolver}
    named = sorted(f"{one.name} is {one.number}" for one in found if one.name != str(one.number))
    if named:
        warn(f"numbers of users and groups are this machine's in the guard: {', '.join(named)}")


@contextmanager
def told_in_words() -> Iterator[None]:
    """Turn what can go wrong with files into Failures."""
    from ..runtime.place.files import Damaged
    from ..runtime.place.install import CommandFailed, Conflict

    try:
        yield
    except Conflict as error:
        raise Failure(
            f"{error}: not as nftpolicy would write it, and not as nftpolicy wrote it before; nothing was written. "
            "--force replaces it"
        ) from None
    except (Damaged, CommandFailed) as error:
        raise Failure(str(error)) from None
    except OSError as error:
        hint = "; try again with sudo" if isinstance(error, PermissionError) else ""
        raise Failure(f"{error.filename}: {error.strerror}{hint}") from None
