# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy recover"""

from __future__ import annotations

from typing import Annotated

from .apply_common import create_applier, print_report
from .common import change_errors_as_failure, describe_result, this_kernel, warn
from .options import LOCK_WAIT, WaitSeconds
from .parameters import option


def command(
    undo: Annotated[
        bool,
        option("--undo", help="Go back to the policy before, instead of completing the change."),
    ] = False,
    wait: WaitSeconds = LOCK_WAIT,
) -> None:
    """Complete or undo an interrupted change.

    An apply is completed, a release is undone; the uplinks are never opened.
    """
    kernel = this_kernel()
    from ..runtime.apply import confirm_timer
    from ..runtime.apply.recover import recover
    from ..runtime.apply.transaction import ChangeOptions

    with change_errors_as_failure(None):
        applier = create_applier(kernel, ChangeOptions(wait))
        with applier.locked():
            recovered = recover(applier, undo, warn)
    if problem := confirm_timer.describe_problem(applier.state_dir):
        warn(problem)
    if recovered is None:
        print("no change was interrupted")
        return
    print_report(recovered.report)
    result = describe_result(recovered.checked.planned, "recovered", "in force already, nothing to change")
    print(f"{recovered.target.policy.name}: {result}")
