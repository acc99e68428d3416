# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy apply FILE"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from .apply_common import announce, confirm_guard, create_applier, dry_run_text, print_report
from .common import change_errors_as_failure, describe_result, read_policy, this_kernel, warn
from .options import LOCK_WAIT, DryRun, PolicyFile, WaitSeconds
from .parameters import option
from .plain_output import plain_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..policy.objects import Policy
    from ..runtime.apply.transaction import CheckedPlan

_MOST_TRAFFIC = 3  # lines
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
    # The name of --ignore-foreign before 0.2.
    despite_others: Annotated[bool, option("--despite-others", hidden=True)] = False,
) -> None:
    """Apply a policy to the kernel, after proving every step.

    A second run changes nothing.
    """
    policy, source = read_policy(file)
    kernel = this_kernel()
    from ..runtime.apply.executor import link_guard_messages, unwritable_port_message
    from ..runtime.apply.transaction import ChangeOptions, TargetPolicy
    from ..runtime.foreign_rules import foreign_rules

    wanted = TargetPolicy(policy, (source.name, source.text.encode()))
    with change_errors_as_failure(source):
        applier = create_applier(kernel, ChangeOptions(wait, via_block, ignore_foreign or despite_others))
        if dry_run:
            print(dry_run_text(applier.check(wanted), f"{policy.name}: {_UNCHANGED}"))
            return
        with applier.locked():
            checked_plan = applier.check(wanted)
            announce(checked_plan)
            for line in _stopped_traffic(checked_plan, policy):
                warn(line)
            with confirm_guard(applier, checked_plan, confirm):
                report = applier.apply(checked_plan, wanted, f"apply, on trial for {confirm} s" if confirm else "apply")
    for line in link_guard_messages(checked_plan.planned.host):
        warn(line)
    for port in sorted(checked_plan.planned.unwritable_ports):
        warn(unwritable_port_message(port))
    for conflict in foreign_rules(kernel.ip_rules(), policy):
        warn(str(conflict))
    print_report(report)
    print(f"{policy.name}: {describe_result(checked_plan.planned, 'applied', _UNCHANGED)}")


def _stopped_traffic(checked_plan: CheckedPlan, policy: Policy) -> Iterator[str]:
    """Yield lines about connections and flows of now that the change stops; 'check' names all."""
    from ..runtime.present_traffic import describe_traffic, find_stopped_traffic

    if checked_plan.step_count:
        live = [each for each in find_stopped_traffic(policy) if each.is_live]
        yield from map(plain_line, describe_traffic(live, _MOST_TRAFFIC))
