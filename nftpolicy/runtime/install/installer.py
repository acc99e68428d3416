# SPDX-License-Identifier: BSD-2-Clause
"""Installation and removal of the policy, the boot guard, and units or init scripts.

Below a root: "/" for this machine, another directory for an image or a package (DESTDIR).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from attrs import evolve, frozen

from ...exceptions import NftpolicyError
from ...integration.systemd_units import POLICY_PATH
from ...policy.objects import Policy
from ..paths import under_root
from .boot_guard import BootGuard
from .init_systems import Command, InitSystem, detect_init, instance_pattern
from .installed_files import Manifest, read_if_exists, replace_files

_NAME = "nftpolicy"
_SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


class FileConflict(NftpolicyError):
    """Files exist that were not installed by nftpolicy, or were changed since.

    Nothing was written.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        super().__init__(", ".join(map(str, paths)))


class CommandFailed(NftpolicyError):
    """A command of the init system failed; the message has the command and its error."""


def find_program(name: str) -> str | None:
    """Return the path of a program on this machine, or None."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATHS)


def own_program() -> str | None:
    """Return the absolute path of nftpolicy, or None if it was started otherwise (python -m)."""
    called = shutil.which(sys.argv[0]) if Path(sys.argv[0]).name == _NAME else None
    beside_python = Path(sys.executable).with_name(_NAME)
    path = called or (str(beside_python) if beside_python.exists() else None) or find_program(_NAME)
    return str(Path(path).absolute()) if path else None


@frozen
class InstallPlan:
    """The files to install.

    `units`: all files of `init`, path on the system -> text; `boot_guard`: the boot guard;
    `policy_content`: the content to write to the path `policy_path`, None if that file stays as it
    is; `resolver_uplinks`: the uplinks with a resolver; `policy`: the policy, None without one.
    """

    init: InitSystem
    units: Mapping[str, str]
    boot_guard: BootGuard | None = None
    policy_content: bytes | None = None
    policy_path: str = POLICY_PATH
    resolver_uplinks: tuple[str, ...] = ()
    policy: Policy | None = None

    @property
    def units_to_start(self) -> tuple[str, ...]:
        """The names of the units or scripts to enable and start."""
        return self.init.units_to_start(self.resolver_uplinks)

    def files(self) -> dict[str, bytes]:
        """Return path -> content of all files; the units last, after the files that they name."""
        files: dict[str, bytes] = {}
        if self.policy_content is not None:
            files[self.policy_path] = self.policy_content
        if self.boot_guard is not None:
            files |= {str(path): content for path, content in self.boot_guard.files().items()}
        return files | {path: text.encode() for path, text in self.units.items()}


def install(root: Path, plan: InstallPlan, force: bool = False) -> list[Path]:
    """Install all files or none, and return the files written; [] if all were there already.

    Raises:
        FileConflict: other files are there, and not `force`.
        ManifestDamaged: the manifest is damaged.
        OSError: a file cannot be written.
    """
    modes = {path: plan.init.mode for path in plan.units if plan.init.is_startable(path)}
    return install_files(root, plan.files(), force, {plan.policy_path}, modes, plan.init.persistent_dir)


def install_files(
    root: Path,
    files: Mapping[str, bytes],
    force: bool = False,
    admin_files: Collection[str] = (),
    modes: Mapping[str, int] | None = None,
    directory: str | None = None,
) -> list[Path]:
    """Install files, all or none, and add them to the manifest. Returns and raises as `install`.

    `admin_files` are files that the administrator may have written: if one differs, that is a
    conflict even if it is in the manifest, and one that is equal is not added to the manifest.
    `modes` are the modes of new files, 0o644 by default. `directory` is the directory of the
    manifest, if not the system's (runtime/paths.py).
    """
    manifest = Manifest.read(root, directory)
    fresh = select_fresh(
        root, files, lambda path, present: path not in admin_files and manifest.matches(path, present), force
    )
    # A file that the administrator wrote must not be removed by uninstall.
    ours = {
        path: content for path, content in files.items() if path not in admin_files or under_root(root, path) in fresh
    }
    new_manifest = manifest.with_files(ours)
    if fresh or new_manifest != manifest:
        file_modes = {under_root(root, path): mode for path, mode in (modes or {}).items()}
        with replace_files({**fresh, **new_manifest.as_files()}, file_modes):
            pass
    return list(fresh)


def select_fresh(
    root: Path, files: Mapping[str, bytes], is_ours: Callable[[str, bytes], bool], force: bool
) -> dict[Path, bytes]:
    """Return the files that differ from those below `root`, by the path to write.

    `is_ours` tells whether nftpolicy installed the content that is at a path.

    Raises:
        FileConflict: files that nftpolicy did not install would be replaced, and not `force`.
    """
    fresh: dict[Path, bytes] = {}
    conflicts = []
    for path, content in files.items():
        target = under_root(root, path)
        present = read_if_exists(target)
        if present == content:
            continue
        fresh[target] = content
        if present is not None and not is_ours(path, present):
            conflicts.append(target)
    if conflicts and not force:
        raise FileConflict(conflicts)
    return fresh


@frozen
class UninstallResult:
    """Result of uninstall: the files removed, and the files kept because they were changed."""

    removed_files: tuple[Path, ...] = ()
    kept_files: tuple[Path, ...] = ()


def uninstall(root: Path, purge: bool = False, init: InitSystem | None = None) -> UninstallResult:
    """Remove the installed files that are unchanged; the policy, which release needs, with `purge`.

    On the running machine (root "/"), units are stopped and disabled first. The guard stays in the
    kernel.

    Raises:
        CommandFailed, ManifestDamaged, OSError: nothing was removed, or a second run removes the
        rest.
    """
    init = init or detect_init(root)
    manifest = Manifest.read(root, init.persistent_dir)
    removed_files: dict[str, Path] = {}
    kept_files: dict[str, Path] = {}
    for path in manifest.files:
        target = under_root(root, path)
        present = read_if_exists(target)
        if present is not None:
            removable = manifest.matches(path, present) and (path != POLICY_PATH or purge)
            (removed_files if removable else kept_files)[path] = target
    for directory in {target.parent for target in removed_files.values()}:
        if not os.access(directory, os.W_OK):
            raise OSError(errno.EACCES, "not writable, so nothing was removed", str(directory))
    is_running = root == Path("/") and init.running_marker.exists()
    names = [target.name for path, target in removed_files.items() if init.is_startable(path)]
    if names and is_running:
        run_commands(init.disable_commands(names))
    # Units first: a unit without its files would load no guard.
    for path, target in sorted(removed_files.items(), key=lambda item: not init.is_startable(item[0])):
        target.unlink(missing_ok=True)
        if init.is_startable(path):
            _remove_links(target, init)
    _shrink(evolve(manifest, files={path: manifest.files[path] for path in kept_files}))
    parents = {target.parent for target in removed_files.values()}
    for directory in parents:
        if directory.name.endswith(("nftpolicy", ".d")) and directory.name != "rules.d":  # of udev
            with suppress(OSError):
                directory.rmdir()  # if it is empty
    if is_running and any(target.suffix in (".service", ".conf") for target in removed_files.values()):
        run_commands(init.cleanup_commands)
    return UninstallResult(tuple(removed_files.values()), tuple(kept_files.values()))


def _shrink(manifest: Manifest) -> None:
    """Write a manifest with fewer files, or remove it if no file is left."""
    if manifest.files:
        with replace_files(manifest.as_files()):
            return
    if manifest.path.exists():
        manifest.path.unlink()
        with suppress(OSError):
            manifest.path.parent.rmdir()


def create_enable_links(root: Path, init: InitSystem) -> list[Path]:
    """Create the links by which `init` enables its files, and return the new ones.

    For an image, where the commands of `init` cannot run. Raises OSError.
    """
    created = []
    for path, target in init.enable_links.items():
        symlink = under_root(root, path)
        if not (symlink.is_symlink() and str(symlink.readlink()) == target):
            symlink.parent.mkdir(parents=True, exist_ok=True)
            symlink.unlink(missing_ok=True)
            symlink.symlink_to(target)
            created.append(symlink)
    return created


def _remove_links(unit: Path, init: InitSystem) -> None:
    """Remove the links by which a removed unit was enabled."""
    for symlink in unit.parent.glob(init.enable_link_pattern.format(name=instance_pattern(unit.name))):
        if symlink.is_symlink():
            symlink.unlink()
            with suppress(OSError):
                symlink.parent.rmdir()


def stale_instances(root: Path, plan: InstallPlan) -> list[str]:
    """Return the names of enabled instances that are not to be started any more."""
    init = plan.init
    directory = under_root(root, init.directory)
    templates = [pattern for name in init.file_names if (pattern := instance_pattern(name)) != name]
    links = {
        symlink.name
        for pattern in templates
        for symlink in directory.glob(init.enable_link_pattern.format(name=pattern))
    }
    return sorted(links - set(plan.units_to_start))


def enable_and_start(plan: InstallPlan, fresh: bool) -> list[str]:
    """Enable and start the installed units; `fresh` is True if files were written.

    Instances that are left over are stopped and disabled, and their names returned. Raises
    CommandFailed.
    """
    init = plan.init
    old_instances = stale_instances(Path("/"), plan)
    commands: list[Command] = []
    if fresh:
        commands += init.reload_commands
    if old_instances:
        commands += init.disable_commands(old_instances)
    commands += init.enable_commands(plan.units_to_start)
    run_commands(commands)
    return old_instances


def run_commands(commands: Iterable[Command]) -> None:
    """Run commands one after the other. Raises CommandFailed."""
    for name, *arguments in commands:
        program = find_program(name)
        if program is None:
            raise CommandFailed(f"the program {name} is missing")
        result = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            error = result.stderr.strip() or f"exit status {result.returncode}"
            raise CommandFailed(f"{' '.join((name, *arguments))}: {error}")
