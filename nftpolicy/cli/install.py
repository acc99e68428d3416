# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy install [FILE]"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .common import EXIT_BAD_INPUT, EXIT_UNAVAILABLE, Failure, installed_policies, policy_file, read_policy, warn
from .install_common import (
    InitOption,
    install_errors_as_failure,
    installed_path,
    is_installed,
    nft_path,
    print_written,
    program_path,
    require_readable_by_units,
    select_init,
    target_root,
    warn_of_numeric_ids,
)
from .lockout import require_trial
from .options import DestDir, ProgramPath
from .parameters import argument, option
from .proving import proved_boot_tables, require_proof

if TYPE_CHECKING:
    from ..runtime.install.init_systems import InitSystem
    from ..runtime.install.installer import InstallPlan


def command(
    file: Annotated[
        Path | None, argument(metavar="[FILE]", help="Policy file (TOML); default: the installed one.")
    ] = None,
    destdir: DestDir = None,
    unitdir: Annotated[Path | None, option(help="Directory of systemd units.")] = None,
    program: ProgramPath = None,
    nft: Annotated[str | None, option(help="Path of nft in the units.")] = None,
    force: Annotated[
        bool,
        option("--force", help="Replace an installed policy that differs, and changed files."),
    ] = False,
    enable: Annotated[bool, option("--enable", help="Enable and start the units. This closes the uplinks.")] = False,
    init: InitOption = None,
) -> None:
    """Install units, policy and guard, for enforcement from boot.

    On OpenWrt, init scripts take the place of the units.
    """
    from ..runtime.install.installer import CommandFailed, create_enable_links, enable_and_start, install

    root = target_root(destdir)
    init_system = select_init(init, root)
    if unitdir is not None and init_system.enable_links:
        raise Failure(
            f"--unitdir is for systemd; the init system of this system is {init_system.name}",
            EXIT_BAD_INPUT,
        )
    if unitdir is not None and not unitdir.is_absolute():
        raise Failure(f"--unitdir takes an absolute path, got {str(unitdir)!r}", EXIT_BAD_INPUT)
    is_this_machine = root == Path("/")
    if enable and not is_this_machine and not init_system.enable_links:
        raise Failure("--enable cannot be used with --destdir: it starts units of this machine", EXIT_BAD_INPUT)
    if enable and is_this_machine and not init_system.running_marker.exists():
        raise Failure(f"--enable needs {init_system.name}, which does not run on this machine", EXIT_UNAVAILABLE)
    wanted = _wanted_files(file, root, init_system, str(unitdir or init_system.directory), (program, nft))
    if enable and wanted.boot_guard is None:
        raise Failure("--enable needs a policy: nftpolicy install --enable FILE", EXIT_BAD_INPUT)
    if enable and is_this_machine and wanted.policy is not None:
        require_trial(wanted.policy, str(file or wanted.policy_path))
    with install_errors_as_failure():
        written = install(root, wanted, force)
        if enable and not is_this_machine:
            written += create_enable_links(root, init_system)
        removed = _remove_obsolete(root, wanted)
    print_written([*(f"wrote {path}" for path in written), *(f"removed {path}" for path in removed)])
    if removed and is_this_machine:
        print("the policy no longer has their uplink or service: restart the network manager, or the service")
    if enable and is_this_machine:
        try:
            stopped = enable_and_start(wanted, bool(written or removed))
        except CommandFailed as error:
            raise Failure(f"the files are installed, but {error}") from None
        print(f"enabled and started {', '.join(wanted.units_to_start)}")
        if stopped:
            names = ", ".join(stopped)
            print(f"stopped and disabled {names}: the policy no longer has these resolvers")
    elif not enable:
        _print_next_commands(wanted, root)


def _remove_obsolete(root: Path, wanted: InstallPlan) -> list[Path]:
    """Remove the files of 'guard', 'netconfig' and 'units' for what the policy no longer has."""
    from ..generated_text import Unwritable
    from ..integration.netconfig.networkd_parser import SharedNetworkFile
    from ..runtime.install.boot_guard import obsolete_device_files
    from ..runtime.install.installed_files import Manifest
    from ..runtime.install.obsolete_files import obsolete_files, remove_files

    if wanted.policy is None:
        return []
    try:
        paths = obsolete_files(root, wanted.policy) + obsolete_device_files(root, wanted.files())
        return remove_files(Manifest.read(root), paths)
    except (SharedNetworkFile, Unwritable) as error:
        warn(f"files of uplinks that the policy no longer has may be left: {error}")
        return []


def _print_next_commands(wanted: InstallPlan, root: Path) -> None:
    from ..runtime.install.installer import stale_instances

    init, obsolete = wanted.init, stale_instances(root, wanted)
    if root != Path("/"):
        if init.enable_links:
            print("next: an image builder of OpenWrt enables the scripts; else use 'install --enable'")
            return
        line = f"systemctl --root={root} enable {' '.join(wanted.units_to_start)}"
        if obsolete:
            line += f" && systemctl --root={root} disable {' '.join(obsolete)}"
        print(f"next, when the image is made: {line}")
        return
    lines = ["next (this closes the uplinks to all but the policy's services):"]
    if wanted.boot_guard is None:
        lines.append(f"nftpolicy install FILE   # there is no {wanted.policy_path} yet")
    commands = [*(init.disable_commands(obsolete) if obsolete else ()), *init.enable_commands(wanted.units_to_start)]
    lines += [" ".join(words) for words in commands]
    print("\n  ".join(lines))


def _wanted_files(
    file: Path | None,
    root: Path,
    init: InitSystem,
    unit_directory: str,
    programs: tuple[str | None, str | None],
) -> InstallPlan:
    """Return the files to install, after the proofs.

    Raises:
        Failure: the policy is not valid or not proved, or a path cannot be used in a unit.
    """
    from ..runtime.install.installer import InstallPlan

    chosen = policy_file(None, root) if file is None and installed_policies(root) else file
    path = installed_path(chosen, root)
    program, nft = programs
    program = program_path(root, program)
    if root == Path("/") and init.name == "systemd":
        require_readable_by_units(program)
    try:
        nft = nft_path(root, nft)
        texts, extra_files = init.render(program, nft, path), init.render_extra_files(nft)
    except ValueError as error:
        raise Failure(str(error), EXIT_BAD_INPUT) from None
    units = {**extra_files, **{f"{unit_directory.rstrip('/')}/{name}": text for name, text in texts.items()}}
    if chosen is None:
        return InstallPlan(init, units, policy_path=path)
    policy, source = read_policy(chosen)
    require_proof(policy, source)
    if root != Path("/"):
        warn_of_numeric_ids(policy)
    content = None if is_installed(chosen, root) else source.text.encode()
    resolvers = tuple(name for name, uplink in policy.uplink.items() if uplink.resolver)
    return InstallPlan(init, units, proved_boot_tables(policy, source), content, path, resolvers, policy)
