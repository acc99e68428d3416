# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy init [FILE]"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..importers.machine.draft import PROGRAMS
from .common import EXIT_BAD_INPUT, EXIT_UNAVAILABLE, Failure, parse_policy, write_policy
from .parameters import argument, option
from .plain_output import plain_line
from .proving import require_proof

if TYPE_CHECKING:
    from ..importers.machine.draft import PolicyDraft
    from ..importers.machine.facts import MachineFacts
    from ..policy.objects import Policy

_DEFAULT_FILE = Path("nftpolicy.toml")

DraftProgram = StrEnum("DraftProgram", list(PROGRAMS))  # type: ignore[misc]


def command(
    file: Annotated[
        Path | None,
        argument(metavar="[FILE]", help="File to write; default: nftpolicy.toml here. - writes standard output."),
    ] = None,
    program: Annotated[
        DraftProgram | None,
        option("--for", help="What the policy is for; default: all that is found."),
    ] = None,
    uplink: Annotated[
        list[str] | None, option(help="Device of an uplink; may be repeated. Default: those with a default route.")
    ] = None,
    force: Annotated[bool, option("--force", help="Replace a file that differs.")] = False,
) -> None:
    """Draft a first policy from the state of this machine.

    It is proved before it is written. Nothing else is changed.
    """
    from ..importers.machine.devices import NoUplink
    from ..importers.machine.draft import draft_machine_policy

    facts = _facts()
    try:
        draft = draft_machine_policy(facts, program.value if program is not None else None, uplink or ())
    except NoUplink as error:
        raise Failure(plain_line(str(error)), EXIT_BAD_INPUT) from None
    policy, source = parse_policy(draft.text.encode(), "the draft")
    require_proof(policy, source)
    target = file or _DEFAULT_FILE
    is_stdout = str(target) == "-"
    if is_stdout:
        print(draft.text, end="")
    else:
        write_policy(target, draft.text.encode(), force)
    name = "nftpolicy.toml" if is_stdout else str(target)
    for line in _report(facts, draft, policy, name):
        print(plain_line(line), file=sys.stderr if is_stdout else sys.stdout)


def _facts() -> MachineFacts:
    try:
        from ..runtime.machine_facts import read_machine_facts

        return read_machine_facts()
    except (OSError, ImportError) as error:
        raise Failure(f"the network of this machine cannot be read: {error}", EXIT_UNAVAILABLE) from None


def _report(facts: MachineFacts, draft: PolicyDraft, policy: Policy, file: str) -> Iterator[str]:
    from ..importers.machine.steps import next_steps
    from ..runtime.present_traffic import describe_traffic, find_stopped_traffic

    yield f"{file}: {draft.summary}: proved"
    yield from (f"note: {text}" for text in draft.warnings)
    yield from (f"note: {text}" for text in describe_traffic(find_stopped_traffic(policy)))
    yield "next steps:"
    for number, step in enumerate(next_steps(facts, draft, file), 1):
        yield f"{number}. {step}"
