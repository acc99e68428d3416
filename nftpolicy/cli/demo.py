# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy demo"""

import json as library
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import typer

from .common import NOT_HERE, REFUSED, Failure


def command(
    json: bool = typer.Option(False, "--json", help="Print what was found as JSON."),
    rounds: int = typer.Option(5, min=1, max=50, help="How often every probe is sent under the policy."),
) -> None:
    """Show the main job in network namespaces of its own: what leaks without a policy, and what is left with it."""
    if os.geteuid():
        _as_root_of_a_user_namespace()
    lab = _lab()
    lacks = import_module(f"{lab.__name__}.topology").missing()
    if lacks:
        raise Failure(f"the demo needs {', '.join(lacks)}: run 'sudo nftpolicy demo' or script/demo as root", NOT_HERE)
    try:
        report = import_module(f"{lab.__name__}.story").tell(_policy(lab), _progress, rounds)
    except (OSError, TimeoutError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or ""
        raise Failure("\n".join([f"the demo could not go on: {error}", *said.splitlines()[-3:]])) from None
    if json:
        print(library.dumps(report.as_json(), indent=1))
    else:
        from .tables import show_demo

        show_demo(report)
    if report.faults():
        raise typer.Exit(REFUSED)


def _progress(title: str) -> None:
    print(f"-- {title}", file=sys.stderr, flush=True)


# What an ordinary user needs to be root in a user namespace of his own, with room for the groups of the lab.
_UNSHARE = [
    "unshare",
    *[
        "--user",
        "--map-root-user",
        "--map-auto",
        "--mount-proc",
        "--pid",
        "--net",
        "--cgroup",
        "--fork",
        "--kill-child",
    ],
]
_GROUPS = 65536


def _as_root_of_a_user_namespace() -> None:
    """Start again as root of a new user namespace; returns if that can't be done."""
    user = os.environ.get("USER", "")
    ids = [_subordinate(Path(file), user) for file in ("/etc/subuid", "/etc/subgid")]
    possible = shutil.which("newuidmap") and min(ids) >= _GROUPS and os.access("/dev/net/tun", os.R_OK | os.W_OK)
    if possible and "NFTPOLICY_DEMO" not in os.environ:
        os.environ["NFTPOLICY_DEMO"] = "in a user namespace"
        os.execvp(_UNSHARE[0], [*_UNSHARE, "--", sys.executable, "-m", "nftpolicy", *sys.argv[1:]])


def _subordinate(file: Path, user: str) -> int:
    """How many subordinate ids the user has (subuid(5))."""
    names = {user, str(os.getuid())}
    try:
        lines = [line.split(":") for line in file.read_text().splitlines()]
    except OSError:
        return 0
    return max(
        (int(count) for name, _, count in (line for line in lines if len(line) == 3) if name in names), default=0
    )


def _lab() -> ModuleType:
    # A checkout has the lab where its tests are; installed packages carry it as nftpolicy_lab.
    checkout = (Path(__file__).parents[2] / "tests/lab/topology.py").exists()
    try:
        return import_module("tests.lab" if checkout else "nftpolicy_lab")
    except ModuleNotFoundError:
        raise Failure("the lab is not installed with this nftpolicy; run script/demo of a checkout", NOT_HERE) from None


def _policy(lab: ModuleType) -> str:
    folder = Path(str(lab.__file__)).parent
    for place in (folder / "rulesets", folder.parent.parent / "rulesets"):
        if (place / "gluon-fastd.toml").exists():
            return (place / "gluon-fastd.toml").read_text()
    raise Failure("rulesets/gluon-fastd.toml is not beside the lab", NOT_HERE)
