# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy demo"""

import json as library
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
    lab = _lab()
    lacks = import_module(f"{lab.__name__}.topology").missing()
    if lacks:
        raise Failure(f"the demo needs {', '.join(lacks)}: run 'sudo nftpolicy demo' or script/demo as root", NOT_HERE)
    try:
        report = import_module(f"{lab.__name__}.story").tell(_policy(lab), _progress, rounds)
    except (OSError, TimeoutError) as error:
        raise Failure(f"the demo could not go on: {error}") from None
    if json:
        print(library.dumps(report.as_json(), indent=1))
    else:
        from .tables import show_demo

        show_demo(report)
    if report.faults():
        raise typer.Exit(REFUSED)


def _progress(title: str) -> None:
    print(f"-- {title}", file=sys.stderr, flush=True)


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
