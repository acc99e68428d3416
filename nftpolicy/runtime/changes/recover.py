# SPDX-License-Identifier: BSD-2-Clause
"""Recovery of a change that was interrupted."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from ...kernel.errors import Refused
from .apply import NotHeld
from .change import Carried, Changer, Outlook, Wanted
from .journal import APPLY, Interrupted, Text, Unfinished
from .unproved import NotProved, NotSafe

_TRY_NEXT = (Refused, NotHeld, NotProved, NotSafe, ValueError)


@frozen
class Recovered:
    """Result of a recovery: the policy in force now, its checked plan, and the report."""

    wanted: Wanted
    outlook: Outlook
    carried: Carried


class NoWay(Unfinished):
    """Neither the new nor the old policy could be applied; the guard stays as it was."""


def recover(
    changer: Changer,
    undo: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Recovered | None:
    """Complete or undo an interrupted change. The caller holds the lock.

    An interrupted apply is completed, or else undone (with `undo`, the other way round); an
    interrupted release is undone. Returns None if nothing was interrupted.

    Raises:
        RecoveryFailed: neither was possible; `log` got the reasons.
    """
    interrupted = changer.memory.journal.interrupted()
    if interrupted is None:
        return None
    tell(str(interrupted))
    for source in _candidates(interrupted, changer.memory.policy(), undo):
        try:
            wanted = Wanted(changer.load(source), source)
            outlook = changer.outlook(wanted)
            return Recovered(wanted, outlook, changer.carry_out(outlook, wanted, why="recover"))
        except _TRY_NEXT as error:
            tell(f"{source[0]}: {error}")
    raise NoWay("no policy of the interrupted change can be applied; apply one: nftpolicy apply FILE")


def _candidates(interrupted: Interrupted, saved: Text | None, undo: bool) -> list[Text]:
    """Return the policies to try, in order, without duplicates."""
    ends = [interrupted.before]
    if interrupted.kind == APPLY:
        ends = [interrupted.after, interrupted.before]
    if undo:
        ends.reverse()
    sources = [source for source in (*ends, saved) if source is not None]
    return list(dict.fromkeys(sources))
