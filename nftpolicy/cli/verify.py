# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy verify [FILE]"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from .common import BAD_INPUT, REFUSED, UNKNOWN, Failure, parse_policy, read_policy, this_kernel, warn
from .desk import ROUTES, RULES, RULESET, desk_state

if TYPE_CHECKING:
    from ..policy.errors import Source
    from ..policy.objects import Policy
    from ..runtime.verify import Asked, Judged
    from .report import Names

_PATIENCE = 1.0  # seconds without a word


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy, TOML. - reads standard input."),  # noqa: UP045
    live: bool = typer.Option(False, "--live", help="Judge this kernel, not what FILE compiles to."),
    ruleset: Optional[Path] = typer.Option(None, help=RULESET),  # noqa: UP045
    rules: list[str] = typer.Option([], help=RULES),
    routes: list[str] = typer.Option([], help=ROUTES),
    uplink: list[str] = typer.Option([], help="NAME=DEVICE[,DEVICE]: an uplink, without a policy; may be repeated."),
    mark: list[str] = typer.Option([], help="VALUE/MASK: the mark of the uplinks, or one for each in order."),
    exempt: list[str] = typer.Option([], help="What may leave without the mark, by a policy's word; may be repeated."),
    json: bool = typer.Option(False, "--json", help="Print JSON."),
    script: Optional[Path] = typer.Option(  # noqa: UP045
        None, help="Write the first counterexample there as a script for sh; - prints it, and nothing else."
    ),
) -> None:
    """Prove for all packets that nothing leaves an uplink that may not, or show a packet that does."""
    desk = _state_options(file, live, ruleset, rules, routes)
    if json and script is not None and str(script) == "-":
        raise Failure("--script -: standard output is taken by --json", BAD_INPUT)
    asked = _asked(uplink, mark, exempt)
    if asked and file is not None:
        raise Failure("--uplink: not with a policy, which names the uplinks itself", BAD_INPUT)
    policy = read_policy(file) if file is not None else None
    if policy is None and not asked:
        if not live:
            raise Failure(_NOTHING, BAD_INPUT)
        this_kernel()  # without root, that is what is told
        policy = _last()
    from ..runtime import verify
    from .report import draw, headline

    with _Progress() as progress:
        wanted = policy[0] if policy else asked
        if desk:
            judged = verify.of_files(desk_state(ruleset, rules, routes), wanted, exempt, progress)
        elif live:
            judged = verify.of_kernel(this_kernel(), wanted, exempt, progress)
        else:
            assert policy is not None
            judged = verify.of_policy(policy[0], progress)
    if script is not None:
        _write(judged, script)
    if json:
        _print_json(judged, policy)
    elif str(script) == "-":
        warn(headline(judged))
    else:
        draw(judged, _place(policy), _names(file, live, ruleset, rules, routes, uplink, mark, exempt))
    status = {"proved": 0, "refuted": REFUSED, "unknown": UNKNOWN}[judged.proof.verdict]
    if status:
        raise typer.Exit(status)


_NOTHING = (
    "name a policy, or with --live or --ruleset the uplinks and their mark: "
    "nftpolicy verify --live --uplink wan=eth0 --mark 0x1/0x1"
)


def _state_options(
    file: Path | None, live: bool, ruleset: Path | None, rules: Sequence[str], routes: Sequence[str]
) -> bool:
    """Whether the state comes from files; Failure if the options contradict each other."""
    desk = bool(ruleset or rules or routes)
    if desk and live:
        raise Failure("--live is this kernel; not with --ruleset, --rules or --routes", BAD_INPUT)
    if desk and ruleset is None:
        raise Failure(
            "--ruleset is missing: what drops is in the tables. Save them with 'nft -j list ruleset > FILE'", BAD_INPUT
        )
    inputs = [str(one).removeprefix("4:").removeprefix("6:") for one in (file, ruleset, *rules, *routes) if one]
    if inputs.count("-") > 1:
        raise Failure("standard input (-) can be only one of the files", BAD_INPUT)
    return desk


# --- uplinks without a policy -----------------------------------------------------------------


def _asked(uplinks: Sequence[str], marks: Sequence[str], exempt: Sequence[str]) -> list[Asked]:
    """The uplinks of the options, each with its mark, or Failure."""
    devices: dict[str, list[str]] = {}
    for text in uplinks:
        name, equals, named = text.partition("=")
        if not equals or not named:
            raise Failure(f"--uplink: expected NAME=DEVICE such as wan=eth0, got {text!r}", BAD_INPUT)
        devices.setdefault(_valid("--uplink", name, "name"), []).extend(
            _valid("--uplink", one, "device") for one in named.split(",")
        )
    if not devices:
        for option, given in (("--mark", marks), ("--exempt", exempt)):
            if given:
                raise Failure(f"{option} is of an uplink that no policy describes: name it with --uplink", BAD_INPUT)
        return []
    _once(devices)
    if len(marks) not in (1, len(devices)):
        count = f"{len(marks)} for {len(devices)} uplinks" if marks else "missing"
        raise Failure(f"--mark: {count}; give one mark for all, or one for each in their order", BAD_INPUT)
    from ..policy.errors import nearest
    from ..policy.mark import parse
    from ..policy.words import EXEMPTIONS
    from ..runtime.verify import Asked

    for word in exempt:
        if word not in EXEMPTIONS:
            known = f"{', '.join(EXEMPTIONS)}{nearest(word, EXEMPTIONS)}"
            raise Failure(f"--exempt: {word!r} is no exemption: {known}", BAD_INPUT)
    try:
        found = [parse(text) for text in marks]
    except ValueError as error:
        raise Failure(f"--mark: {error}", BAD_INPUT) from None
    found = found * len(devices) if len(found) == 1 else found
    return [Asked(name, tuple(of), mark) for (name, of), mark in zip(devices.items(), found, strict=True)]


def _valid(option: str, text: str, what: str) -> str:
    from ..policy import values

    try:
        return {"name": values.name, "device": values.device}[what](text)
    except ValueError as error:
        raise Failure(f"{option}: {error}", BAD_INPUT) from None


def _once(devices: dict[str, list[str]]) -> None:
    owners: dict[str, str] = {}
    for name, listed in devices.items():
        for device in listed:
            if device == "lo":
                raise Failure("--uplink: 'lo' never leaves the machine and can be no uplink", BAD_INPUT)
            if device in owners:
                raise Failure(f"--uplink: {device} is a device of {owners[device]} already", BAD_INPUT)
            owners[device] = name


def _last() -> tuple[Policy, Source]:
    from ..runtime.changes.memory import of_this_namespace

    last = of_this_namespace().policy()
    if last is None:
        raise Failure(f"no policy was applied here; {_NOTHING}", BAD_INPUT)
    return parse_policy(last[1], last[0])


# --- output -----------------------------------------------------------------------------------


def _place(policy: tuple[Policy, Source] | None) -> Callable[[tuple[str, ...]], str]:
    from .picture import nowhere, of_source

    return of_source(policy[1].name, policy[1].line) if policy else nowhere


def _names(
    file: Path | None,
    live: bool,
    ruleset: Path | None,
    rules: Sequence[str],
    routes: Sequence[str],
    uplinks: Sequence[str],
    marks: Sequence[str],
    exempt: Sequence[str],
) -> Names:
    """The words of the commands that come next."""
    from .report import Names

    given = [str(file)] if file else []
    desk = ["--ruleset", str(ruleset)] if ruleset else []
    desk += [word for option, files in (("--rules", rules), ("--routes", routes)) for one in files
             for word in (option, one)]  # fmt: skip
    claimed = [word for option, texts in (("--uplink", uplinks), ("--mark", marks), ("--exempt", exempt))
               for one in texts for word in (option, one)]  # fmt: skip
    of_explain = [*([] if live or desk else ["--compiled"]), *desk, *given]
    of_verify = [*given, *(["--live"] if live else []), *desk, *claimed]
    return Names(str(file) if file else None, tuple(of_explain), tuple(of_verify))


def _print_json(judged: Judged, policy: tuple[Policy, Source] | None) -> None:
    import json

    from .report import as_json

    print(json.dumps(as_json(judged, _place(policy)), indent=1))


def _write(judged: Judged, file: Path) -> None:
    """The first counterexample that can be reproduced, as a script."""
    for finding, example in judged.refutations():
        try:
            text = judged.script(finding, example)
        except ValueError as error:
            warn(f"a counterexample can't be written as a script: {error}")
            continue
        if text is None:
            continue
        if str(file) == "-":
            print(text, end="")
            return
        try:
            file.write_text(text)
            file.chmod(0o755)
        except OSError as error:
            raise Failure(f"{file}: can't be written: {error.strerror}", BAD_INPUT) from None
        warn(f"{file} shows it: run it as root, it makes network namespaces of its own")
        return
    warn("--script: nothing is written, since there is no counterexample")


class _Progress:
    """What is being looked at, on a terminal, if it takes long."""

    def __init__(self) -> None:
        self._begun, self._shown = time.monotonic(), False
        self._wanted = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Callable[[str], None]:
        return self._say

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _say(self, what: str) -> None:
        if self._wanted and time.monotonic() - self._begun > _PATIENCE:
            self._shown = True
            print(f"\r\x1b[Kproving {what}", end="", file=sys.stderr, flush=True)
