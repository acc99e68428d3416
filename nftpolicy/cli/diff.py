# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy diff FILE [OTHER]"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .common import applied_policy, read_policy
from .options import PrintJson
from .parameters import argument, option
from .plain_output import plain_line, print_json

if TYPE_CHECKING:
    from ..policy.objects import Policy


def command(
    file: Annotated[Path, argument(metavar="FILE", help="Policy file (TOML). - reads standard input.")],
    other: Annotated[
        Path | None,
        argument(metavar="[OTHER]", help="Policy file after FILE; default: FILE after the policy in force."),
    ] = None,
    statements: Annotated[
        bool, option("--statements", help="Print the statements of nft and ip that differ, too.")
    ] = False,
    as_json: PrintJson = False,
) -> None:
    """Show which traffic two policies permit differently.

    With one file, its policy is compared with the policy in force.
    """
    from ..policy.policy_diff import diff_policies

    applied = applied_policy() if other is None else None
    first, _ = read_policy(file)
    before, after = (applied[0] if applied else None, first) if other is None else (first, read_policy(other)[0])
    difference = diff_policies(before, after)
    lines = changed_statements(before, after) if statements else []
    if as_json:
        print_json({**difference.as_json(), "statements": lines})
        return
    if before is None:
        print("no policy is in force")
    print("\n".join(map(plain_line, difference.lines)) or "both policies mean the same")
    if lines:
        print("\n".join(("statements:", *(f"  {line}" for line in lines))))


def changed_statements(before: Policy | None, after: Policy) -> list[str]:
    """Return the steps between the compiled policies, as they would be on a machine without bridges."""
    from ..compiler.compile import compile_policy
    from ..netstate.state import NetState
    from ..planner.plan import plan
    from ..runtime.apply.step_text import plan_lines

    observed = compile_policy(before) if before is not None else NetState()
    return plan_lines(plan(observed, compile_policy(after)))
