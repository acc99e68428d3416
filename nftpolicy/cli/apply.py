# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy apply [FILE]"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

from ..phrases import and_more
from .apply_common import (
    announce,
    confirm_guard,
    create_applier,
    dry_run_text,
    print_report,
    warn_of_earlier_shadow_guard,
)
from .common import change_errors_as_failure, describe_result, policy_file, read_policy, this_kernel, warn
from .inactive_parts import inactive_parts
from .lockout import require_confirmation, warn_of_lockout
from .options import LOCK_WAIT, DryRun, PolicyFile, WaitSeconds
from .parameters import option
from .plain_output import plain_line

if TYPE_CHECKING:
    from ..policy.objects import Policy
    from ..runtime.apply.transaction import CheckedPlan

_MOST_CHANGES = 12  # lines
_UNCHANGED = "in force already, nothing to change"


def command(
    file: PolicyFile = None,
    dry_run: DryRun = False,
    confirm: Annotated[
        int,
        option(
            "--confirm",
            min=0,
            max=86_400,
            help="Seconds until rollback, unless 'nftpolicy confirm'.",
        ),
    ] = 0,
    wait: WaitSeconds = LOCK_WAIT,
    via_block: Annotated[
        bool, option("--via-block", help="Stop all traffic on the uplinks during the change.")
    ] = False,
    ignore_foreign: Annotated[
        bool,
        option("--ignore-foreign", help="Apply even if foreign rules let forbidden packets out."),
    ] = False,
    yes: Annotated[bool, option("--yes", help="Apply even if the change may lock you out.")] = False,
    # The name of --ignore-foreign before 0.2.
    despite_others: Annotated[bool, option("--despite-others", hidden=True)] = False,
) -> None:
    """Apply a policy to the kernel, after proving every step.

    A second run changes nothing.
    """
    file = policy_file(file)
    policy, source = read_policy(file)
    kernel = this_kernel()
    from ..runtime.apply.executor import link_guard_messages, unwritable_port_message
    from ..runtime.apply.transaction import ChangeOptions, TargetPolicy
    from ..runtime.foreign_rules import foreign_rules

    wanted = TargetPolicy(policy, (source.name, source.text.encode()))
    with change_errors_as_failure(source):
        applier = create_applier(kernel, ChangeOptions(wait, via_block, ignore_foreign or despite_others))
        if dry_run:
            checked_plan = applier.check(wanted)
            _print_meaning(checked_plan, policy)
            print(dry_run_text(checked_plan, f"{policy.name}: {_UNCHANGED}"))
            if checked_plan.step_count:
                warn_of_lockout(policy)
            return
        with applier.locked():
            checked_plan = applier.check(wanted)
            announce(checked_plan)
            _print_meaning(checked_plan, policy)
            reasons = warn_of_lockout(policy) if checked_plan.step_count else []
            if not confirm and not yes:
                require_confirmation(reasons, f"nftpolicy apply {shlex.quote(str(file))}")
            with confirm_guard(applier, checked_plan, confirm):
                report = applier.apply(checked_plan, wanted, f"apply, on trial for {confirm} s" if confirm else "apply")
    warn_of_earlier_shadow_guard(kernel, checked_plan.planned.desired)
    for line in link_guard_messages(checked_plan.planned.host):
        warn(line)
    for port in sorted(checked_plan.planned.unwritable_ports):
        warn(unwritable_port_message(port))
    for conflict in foreign_rules(kernel.ip_rules(), policy):
        warn(str(conflict))
    print_report(report)
    print(f"{policy.name}: {describe_result(checked_plan.planned, 'applied', _UNCHANGED)}")
    for line in inactive_parts(kernel, policy, file):
        print(line)


def _print_meaning(checked_plan: CheckedPlan, policy: Policy) -> None:
    """Print which traffic the change permits newly or no longer."""
    if not checked_plan.step_count:
        return
    from ..policy.policy_diff import diff_policies

    is_guarded = any(table.family == "inet" for table in checked_plan.planned.observed.tables)
    lines = diff_policies(checked_plan.previous if is_guarded else None, policy).lines
    texts = [plain_line(line) for line in lines[:_MOST_CHANGES]]
    if len(lines) > _MOST_CHANGES:
        texts.append(f"{and_more(len(lines) - _MOST_CHANGES)}: 'nftpolicy diff' prints all")
    for line in texts:
        print(line, flush=True)  # before the warnings, and before it acts
