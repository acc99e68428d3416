# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy verify [FILE]"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from attrs import frozen

from .common import (
    EXIT_BAD_INPUT,
    EXIT_REFUTED,
    EXIT_UNKNOWN,
    Failure,
    last_policy,
    read_policy,
    this_kernel,
    warn,
    write_output,
)
from .findings_text import source_locator
from .options import (
    STATE,
    UPLINKS,
    ChainDevices,
    PrintJson,
    RouteFiles,
    RuleFiles,
    RulesetFile,
    SnapshotFile,
    UplinkDevices,
    UplinkMarks,
)
from .parameters import argument, option
from .plain_output import plain_line, print_json, write_controls
from .snapshot import read_snapshot
from .state_files import CHAIN_DEVICE_ALONE, state_from_files
from .uplink_options import uplinks_from_options

if TYPE_CHECKING:
    from ..policy.errors import PolicyText
    from ..policy.objects import Policy
    from ..runtime.snapshot import Snapshot
    from ..runtime.verify import GivenUplink, Verification
    from .render.proof_report import SuggestedCommands

_QUIET_SECONDS = 1.0  # without progress output
_USAGE = "nftpolicy verify --live --uplink wan=eth0 --mark 0x1/0x1"
_SNAPSHOT_USAGE = "nftpolicy verify --snapshot FILE --uplink wan=eth0 --mark 0x1/0x1"
_NO_INPUT = f"name a policy, or with --live or --ruleset the uplinks and their mark: {_USAGE}"


@frozen
class VerifyInput:
    """Options of `verify` that choose the state and the uplinks, as they were typed."""

    file: Path | None
    live: bool
    snapshot: Path | None
    ruleset: Path | None
    chain_devices: Sequence[str]
    rules: Sequence[str]
    routes: Sequence[str]
    uplinks: Sequence[str]
    marks: Sequence[str]
    exempt: Sequence[str]

    @property
    def has_state_files(self) -> bool:
        """Return True if the state comes from files."""
        return bool(self.ruleset or self.rules or self.routes)

    def check(self) -> None:
        """Check that the options of the state fit together.

        Raises:
            Failure: they do not.
        """
        if self.has_state_files and self.live:
            raise Failure("--live is this kernel: it excludes --ruleset, --rules and --routes", EXIT_BAD_INPUT)
        if self.snapshot is not None and (self.has_state_files or self.live):
            raise Failure(
                "--snapshot is a whole state: it excludes --live, --ruleset, --rules, --routes", EXIT_BAD_INPUT
            )
        if self.uplinks and not (self.file or self.has_state_files or self.live or self.snapshot):
            raise Failure(
                "--uplink: names no state to verify; add --live, --snapshot FILE or --ruleset FILE", EXIT_BAD_INPUT
            )
        if self.chain_devices and self.ruleset is None:
            raise Failure(CHAIN_DEVICE_ALONE, EXIT_BAD_INPUT)
        if self.has_state_files and self.ruleset is None:
            raise Failure(
                "--ruleset is missing, and only tables can drop: save them with 'nft -j list ruleset > FILE'",
                EXIT_BAD_INPUT,
            )
        files = [str(file) for file in (self.file, self.snapshot, self.ruleset, *self.rules, *self.routes) if file]
        if [file.removeprefix("4:").removeprefix("6:") for file in files].count("-") > 1:
            raise Failure("standard input (-) can be only one of the files", EXIT_BAD_INPUT)

    def suggested_commands(self) -> SuggestedCommands:
        """Return the commands that the report suggests."""
        from .render.proof_report import SuggestedCommands

        file = [str(self.file)] if self.file else []
        state = ["--ruleset", str(self.ruleset)] if self.ruleset else []
        state += _repeat_option("--chain-device", self.chain_devices)
        state += _repeat_option("--rules", self.rules) + _repeat_option("--routes", self.routes)
        uplinks = _repeat_option("--uplink", self.uplinks) + _repeat_option("--mark", self.marks)
        uplinks += _repeat_option("--exempt", self.exempt)
        explain = state if self.live or state else ["--compiled"]
        live = ["--live"] if self.live else []
        live += ["--snapshot", str(self.snapshot)] if self.snapshot else []
        return SuggestedCommands(file[0] if file else None, (*explain, *file), (*file, *live, *state, *uplinks))


def _repeat_option(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def command(
    file: Annotated[Path | None, argument(metavar="[FILE]", help="Policy file (TOML). - reads standard input.")] = None,
    live: Annotated[
        bool,
        option("--live", group=STATE, help="Verify the state of this kernel, not what FILE compiles to."),
    ] = False,
    snapshot: SnapshotFile = None,
    ruleset: RulesetFile = None,
    chain_device: ChainDevices = None,
    rules: RuleFiles = None,
    routes: RouteFiles = None,
    uplink: UplinkDevices = None,
    mark: UplinkMarks = None,
    exempt: Annotated[
        list[str] | None,
        option(group=UPLINKS, help="Exemption of a policy: packets without the mark; may be repeated."),
    ] = None,
    as_json: PrintJson = False,
    script: Annotated[
        Path | None,
        option(help="Write the first counterexample as a sh script to this file; - prints it alone."),
    ] = None,
) -> None:
    """Prove that no packet leaks, or show one that does.

    The proof covers all packets of IPv4 and IPv6.
    """
    inputs = VerifyInput(
        file, live, snapshot, ruleset, chain_device or (), rules or (), routes or (), uplink or (), mark or (),
        exempt or (),
    )  # fmt: skip
    inputs.check()
    if as_json and script is not None and str(script) == "-":
        raise Failure("--script -: standard output is taken by --json", EXIT_BAD_INPUT)
    uplinks = uplinks_from_options(file, inputs.uplinks, inputs.marks, inputs.exempt)
    policy = read_policy(file) if file is not None else None
    stored = read_snapshot(snapshot) if snapshot is not None else None
    if live:
        stored, policy = _read_kernel(policy, bool(uplinks))
    elif policy is None and not uplinks and stored is not None:
        policy = _policy_of(stored, snapshot)
    if policy is None and not uplinks:
        raise Failure(_NO_INPUT, EXIT_BAD_INPUT)
    judged_state = _prove(inputs, stored, policy, uplinks)
    from .render.proof_report import print_proof, verdict_headline

    if script is not None:
        _write_script(judged_state, script)
    if as_json:
        _print_json(judged_state, policy)
    elif str(script) == "-":
        warn(verdict_headline(judged_state))
    else:
        print_proof(judged_state, source_locator(policy and policy[1]), inputs.suggested_commands())
    status = {"proved": 0, "refuted": EXIT_REFUTED, "unknown": EXIT_UNKNOWN}[judged_state.proof.verdict]
    if status:
        raise typer.Exit(status)


def _read_kernel(
    named: tuple[Policy, PolicyText] | None, has_uplinks: bool
) -> tuple[Snapshot, tuple[Policy, PolicyText] | None]:
    """Return what a proof reads of this kernel, and the policy: the named one, else the one in force at that time."""
    kernel = this_kernel()  # first, so that a missing root privilege is the message
    from ..runtime.apply.state_dir import current_state_dir, read_undisturbed
    from ..runtime.snapshot import take_snapshot

    state_dir = current_state_dir()

    def read() -> tuple[Snapshot, tuple[Policy, PolicyText] | None]:
        policy = named
        if policy is None and not has_uplinks:
            policy = last_policy(f"nftpolicy verify --live FILE, or its uplinks: {_USAGE}", state_dir)
        return take_snapshot(kernel), policy

    return read_undisturbed(state_dir, read)


def _policy_of(stored: Snapshot, file: Path | None) -> tuple[Policy, PolicyText]:
    from ..policy.errors import PolicyError

    if stored.policy is None:
        raise Failure(f"{file}: no policy was in force; name one, or its uplinks: {_SNAPSHOT_USAGE}", EXIT_BAD_INPUT)
    try:
        return stored.policy.load()
    except PolicyError as error:
        raise Failure(f"{file}: the policy in it is not valid: {error}", EXIT_BAD_INPUT) from None


def _prove(
    inputs: VerifyInput,
    stored: Snapshot | None,
    policy: tuple[Policy, PolicyText] | None,
    uplinks: Sequence[GivenUplink],
) -> Verification:
    from ..runtime import verify

    subject = policy[0] if policy else uplinks
    try:
        with _Progress() as progress:
            if stored is not None:
                name = "this kernel" if inputs.live else f"the snapshot of {stored.time}"
                return verify.verify_snapshot(name, stored, subject, inputs.exempt, progress)
            if inputs.has_state_files:
                state = state_from_files(inputs.ruleset, inputs.rules, inputs.routes, inputs.chain_devices)
                return verify.verify_files(state, subject, inputs.exempt, progress)
            assert policy is not None
            return verify.verify_policy(policy[0], progress)
    except verify.AlternativeNameError as error:
        raise Failure(str(error), EXIT_BAD_INPUT) from None


# --- output -----------------------------------------------------------------------------------


def _print_json(judged_state: Verification, policy: tuple[Policy, PolicyText] | None) -> None:
    from .render.proof_report import proof_json

    print_json(proof_json(judged_state, source_locator(policy and policy[1])))


def _write_script(judged_state: Verification, file: Path) -> None:
    """Write the first counterexample that can be reproduced as a script."""
    reason = "there is no counterexample"
    for finding, example in judged_state.refutations():
        try:
            text = judged_state.reproduction_script(finding, example)
        except ValueError as error:
            warn(f"a counterexample cannot be written as a script: {error}")
            reason = "no counterexample can be written"
            continue
        if text is None:
            continue
        write_output(file, text, 0o755)
        if str(file) != "-":
            warn(f"{file} reproduces it: run it as root, it makes network namespaces of its own")
        return
    warn(f"--script: nothing was written, since {reason}")


class _Progress:
    """Progress of a long proof, on standard error if that is a terminal."""

    def __init__(self) -> None:
        self._begin, self._has_printed = time.monotonic(), False
        self._enabled = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Callable[[str], None]:
        return self._print

    def __exit__(self, *_: object) -> None:
        if self._has_printed:
            self._write("")

    def _print(self, subject: str) -> None:
        if self._enabled and time.monotonic() - self._begin > _QUIET_SECONDS:
            self._has_printed = True
            self._write(f"proving {plain_line(subject)}")

    @staticmethod
    def _write(line: str) -> None:
        """Replace the last line on the terminal."""
        write_controls(sys.stderr, f"\r\x1b[K{line}")
