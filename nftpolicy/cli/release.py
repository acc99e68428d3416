# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy release [FILE]"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .apply_common import announce, confirm_guard, create_applier, dry_run_text, print_report
from .common import Failure, applied_policy, change_errors_as_failure, describe_result, this_kernel
from .options import LOCK_WAIT, DryRun, UnreadPolicyFile, WaitSeconds

if TYPE_CHECKING:
    from ..policy.errors import PolicyText


def command(file: UnreadPolicyFile = None, dry_run: DryRun = False, wait: WaitSeconds = LOCK_WAIT) -> None:
    """Remove all of nftpolicy from the kernel: opens the uplinks.

    It needs no policy file. The guard is removed last.
    """
    kernel = this_kernel()
    from ..runtime.apply.transaction import ChangeOptions
    from ..runtime.resolver.orphans import end_orphans

    name, source = _policy_in_force()
    with change_errors_as_failure(source):
        applier = create_applier(kernel, ChangeOptions(wait))
        if dry_run:
            print(dry_run_text(applier.check(None), "the kernel has no objects of nftpolicy"))
            return
        with applier.locked():
            checked_plan = applier.check(None)
            announce(checked_plan)
            with confirm_guard(applier, checked_plan):
                report = applier.apply(checked_plan, None, "release")
    print_report(report)
    for uplink in end_orphans(applier.state_dir.directory):
        print(f"ended the dnsmasq that a killed resolver of uplink {uplink} left")
    result = describe_result(checked_plan.planned, "released", "there was nothing to release")
    print(f"{name}: {result}")


def _policy_in_force() -> tuple[str, PolicyText | None]:
    """Return the name and the text of the policy that was applied last; a general name if it cannot be read."""
    try:
        applied = applied_policy()
    except Failure:  # for example, an account that it names was removed
        applied = None
    return (applied[0].name, applied[1]) if applied is not None else ("nftpolicy", None)
