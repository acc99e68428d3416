# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy confirm"""

from .common import Failure, state_failure


def command() -> None:
    """Keep the policy that 'apply --confirm' put on trial."""
    from ..runtime.apply import pending_confirm
    from ..runtime.apply.history import record_event
    from ..runtime.apply.history_events import CONFIRMED
    from ..runtime.apply.state_dir import current_state_dir

    state_dir = current_state_dir()
    try:
        trial = pending_confirm.confirm(state_dir)
    except pending_confirm.ConfirmError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise state_failure(error) from None
    record_event(state_dir, CONFIRMED, f"{trial.remaining():.0f} s before the rollback")
    last = state_dir.policy()
    name = last[0] if last else "the policy"
    print(f"{name}: confirmed with {trial.remaining():.0f} seconds left; it stays in force")
