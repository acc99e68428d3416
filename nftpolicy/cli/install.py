# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy install [FILE]"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from .common import BAD_INPUT, NOT_HERE, REFUSED, UNKNOWN, Failure, read_policy, warn
from .guard import proved
from .told import told

if TYPE_CHECKING:
    from ..policy.errors import Source
    from ..policy.objects import Policy
    from ..runtime.place.install import Wanted


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy, TOML; without it, the one that is installed."),  # noqa: UP045
    destdir: Optional[Path] = typer.Option(None, envvar="DESTDIR", help="Below this folder, for an image."),  # noqa: UP045
    unitdir: Path = typer.Option(Path("/etc/systemd/system"), help="Where the units go."),
    program: Optional[str] = typer.Option(None, help="This program, as the units call it."),  # noqa: UP045
    nft: Optional[str] = typer.Option(None, help="The program nft, as the units call it."),  # noqa: UP045
    force: bool = typer.Option(False, "--force", help="Replace another policy, and files that were changed."),
    enable: bool = typer.Option(False, "--enable", help="Enable and start the units. This closes the uplinks."),
) -> None:
    """Put systemd units, the policy and its guard in place, so that the uplinks are guarded from the start."""
    from ..runtime.place.install import BOOTED, CommandFailed, install, systemctl
    from ..runtime.place.units import NAMES

    root = root_of(destdir)
    if not unitdir.is_absolute():
        raise Failure(f"--unitdir takes an absolute path, got {str(unitdir)!r}", BAD_INPUT)
    if enable and root != Path("/"):
        raise Failure("--enable is for this machine, not for one below --destdir", BAD_INPUT)
    if enable and not BOOTED.exists():
        raise Failure("--enable needs systemd, which does not run this machine", NOT_HERE)
    wanted = _wanted(file, root, str(unitdir), program, nft)
    if enable and wanted.tables is None:
        raise Failure("--enable needs a policy: nftpolicy install --enable FILE", BAD_INPUT)
    with told_in_words():
        written = install(root, wanted, force)
    print("\n".join([f"wrote {path}" for path in written] or ["everything is in place already"]))
    commands = [("daemon-reload",), ("enable", "--now", *NAMES)]
    if enable:
        try:
            for words in commands:
                systemctl(*words)
        except CommandFailed as error:
            raise Failure(f"the files are in place, but {error}") from None
        print(f"enabled and started {', '.join(NAMES)}")
    else:
        _say_next(wanted, root, commands)


def _say_next(wanted: Wanted, root: Path, commands: list[tuple[str, ...]]) -> None:
    from ..runtime.place.units import NAMES, POLICY

    if root != Path("/"):
        print(f"next, when the image is made: systemctl --root={root} enable {' '.join(NAMES)}")
        return
    first = [] if wanted.tables is not None else [f"nftpolicy install FILE   # there is no {POLICY} yet"]
    lines = [*first, *(f"systemctl {' '.join(words)}" for words in commands)]
    print("\n  ".join(["next (this closes the uplinks to all but the policy's services):", *lines]))


def root_of(destdir: Path | None) -> Path:
    """The folder that is the root of the machine that is meant, or Failure."""
    if destdir is None or not destdir.parts:
        return Path("/")
    if destdir.exists() and not destdir.is_dir():
        raise Failure(f"--destdir takes a folder, and {destdir} is none", BAD_INPUT)
    return destdir.absolute()


def _wanted(file: Path | None, root: Path, unitdir: str, program: str | None, nft: str | None) -> Wanted:
    """What is to be where, or Failure."""
    from ..runtime.place.files import below
    from ..runtime.place.install import Wanted
    from ..runtime.place.units import POLICY, units

    try:
        texts = units(program_of(root, program), _nft(root, nft))
    except ValueError as error:
        raise Failure(str(error), BAD_INPUT) from None
    there = below(root, POLICY)
    if file is None and not there.exists():
        return Wanted(texts, unitdir)
    policy, source = read_policy(there if file is None else file)
    prove(policy, source)
    if root != Path("/"):
        warn_of_names(policy)
    content = None if file is None else source.text.encode()
    return Wanted(texts, unitdir, proved(policy, source), content)


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
