# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy release [FILE]"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..compiler.object_names import AUXILIARY_TABLES, TABLE
from .apply_common import announce, create_applier, dry_run_text, print_report
from .common import Failure, applied_policy, change_errors_as_failure, describe_result, this_kernel, warn
from .options import LOCK_WAIT, DryRun, UnreadPolicyFile, WaitSeconds

if TYPE_CHECKING:
    from ..kernel.linux import Linux
    from ..policy.errors import PolicyText

_WATCH_SECONDS, _POLL_SECONDS = 3.0, 0.02  # for `watch` to hear of the release, and between two looks


def command(file: UnreadPolicyFile = None, dry_run: DryRun = False, wait: WaitSeconds = LOCK_WAIT) -> None:
    """Remove all of nftpolicy from the kernel: opens the uplinks.

    It needs no policy file. The guard is removed last.
    """
    kernel = this_kernel()
    from ..runtime.apply.pending_confirm import remove_pending
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
            report = applier.apply(checked_plan, None, "release")
            if remove_pending(applier.state_dir) is not None:
                warn("the policy was on trial: its trial has ended")
    print_report(report)
    for uplink in end_orphans(applier.state_dir.directory):
        print(f"ended the process that a killed resolver of uplink {uplink} left")
    result = describe_result(checked_plan.planned, "released", "there was nothing to release")
    print(f"{name}: {result}")
    _print_openness(kernel)


def _print_openness(kernel: Linux) -> None:
    """Print whether the uplinks are open, and what guards them again.

    Raises:
        Failure: the kernel did not remove the guard.
    """
    from ..runtime.boot_state import read_boot_state

    if any(name == TABLE for _, name in kernel.table_names()):
        raise Failure("the guard is still in the kernel, so the uplinks are not open: try again")
    if tables := _wait_for_watch(kernel):
        end = "end that process: 'systemctl stop nftpolicy-watch.service' if it is the unit"
        warn(f"a running watch still drops packets, by the table {tables[0]}, since it does not respond; {end}")
    else:
        print("the uplinks are open now: any program may use them")
    boot = read_boot_state()
    names = (*boot.units, *boot.scripts)
    if names:
        commands = "; ".join(boot.disable_commands)
        print(f"the next boot guards them again, by {' and '.join(names)}; to leave them open: {commands}")


def _wait_for_watch(kernel: Linux) -> list[str]:
    """Return the tables of a running `watch` that are still loaded when its time to remove them is over."""
    end = time.monotonic() + _WATCH_SECONDS
    while True:
        tables = sorted(f"{family} {name}" for family, name in kernel.table_names() if name in AUXILIARY_TABLES)
        if not tables or time.monotonic() > end:
            return tables
        time.sleep(_POLL_SECONDS)


def _policy_in_force() -> tuple[str, PolicyText | None]:
    """Return the name and the text of the policy that was applied last; a general name if it cannot be read."""
    try:
        applied = applied_policy()
    except (Failure, OSError, ValueError):  # for example, an account that it names was removed, or a damaged file
        applied = None
    return (applied[0].name, applied[1]) if applied is not None else ("nftpolicy", None)
