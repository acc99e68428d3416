# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy demo"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from .common import EXIT_REFUTED, EXIT_UNAVAILABLE, Failure
from .options import PrintJson
from .parameters import option
from .plain_output import print_json

_POLICY = "gluon-fastd.toml"


def command(
    as_json: PrintJson = False,
    rounds: Annotated[int, option(min=1, max=50, help="Number of times to send each probe.")] = 5,
) -> None:
    """Show leaks without and with a policy, in network namespaces.

    Nothing outside the namespaces is touched.
    """
    if os.geteuid():
        _restart_in_user_namespace()
    lab = _import_lab()
    missing = import_module(f"{lab.__name__}.topology").missing()
    if missing:
        raise Failure(
            f"the demo needs {', '.join(missing)}: run 'sudo nftpolicy demo' or script/demo as root",
            EXIT_UNAVAILABLE,
        )
    try:
        report = import_module(f"{lab.__name__}.demo_scenario").tell(_policy_text(lab), _print_progress, rounds)
    except (OSError, TimeoutError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or ""
        raise Failure("\n".join([f"the demo failed: {error}", *output.splitlines()[-3:]])) from None
    if as_json:
        print_json(report.as_json())
    else:
        from .render.demo_report import print_demo

        print_demo(report)
    if report.faults():
        raise typer.Exit(EXIT_REFUTED)


def _print_progress(title: str) -> None:
    print(f"-- {title}", file=sys.stderr, flush=True)


# Root in a new user namespace, with subordinate IDs for the groups of the lab.
_UNSHARE = [
    "unshare", "--user", "--map-root-user", "--map-auto", "--mount-proc", "--pid", "--net",
    "--cgroup", "--fork", "--kill-child",
]  # fmt: skip
_SUBORDINATE_IDS = 65536


def _restart_in_user_namespace() -> None:
    """Execute this command again as root of a new user namespace, if that is possible."""
    user = os.environ.get("USER", "")
    ids = min(_most_subordinate_ids(Path(file), user) for file in ("/etc/subuid", "/etc/subgid"))
    has_tun = os.access("/dev/net/tun", os.R_OK | os.W_OK)
    possible = shutil.which("newuidmap") and ids >= _SUBORDINATE_IDS and has_tun
    if possible and "NFTPOLICY_DEMO" not in os.environ:
        os.environ["NFTPOLICY_DEMO"] = "in a user namespace"
        os.execvp(_UNSHARE[0], [*_UNSHARE, "--", sys.executable, "-m", "nftpolicy", *sys.argv[1:]])


def _most_subordinate_ids(file: Path, user: str) -> int:
    """Return the largest number of subordinate IDs in one line of the user (subuid(5))."""
    names = {user, str(os.getuid())}
    try:
        lines = [line.split(":") for line in file.read_text().splitlines()]
    except OSError:
        return 0
    return max((int(line[2]) for line in lines if len(line) == 3 and line[0] in names), default=0)


def _import_lab() -> ModuleType:
    # A checkout has the lab below tests; an installed package has it as nftpolicy_lab.
    checkout = (Path(__file__).parents[2] / "tests/lab/topology.py").exists()
    try:
        return import_module("tests.lab" if checkout else "nftpolicy_lab")
    except ModuleNotFoundError:
        raise Failure("the lab is not installed: run script/demo of a checkout", EXIT_UNAVAILABLE) from None


def _policy_text(lab: ModuleType) -> str:
    directory = Path(str(lab.__file__)).parent
    for rulesets in (directory / "rulesets", directory.parent.parent / "rulesets"):
        if (rulesets / _POLICY).exists():
            return (rulesets / _POLICY).read_text()
    raise Failure(f"rulesets/{_POLICY} is missing beside the lab: install nftpolicy again", EXIT_UNAVAILABLE)
