# SPDX-License-Identifier: BSD-2-Clause
"""The end of a change that somebody began and did not end."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from ...kernel.interface import Refused
from .apply import NotHeld
from .change import Carried, Changer, Outlook, Wanted
from .journal import APPLY, Interrupted, Text, Unfinished
from .unproved import NotProved, NotSafe

_TRY_NEXT = (Refused, NotHeld, NotProved, NotSafe, ValueError)


@frozen
class Recovered:
    """What is in force now, and how that came to be."""

    wanted: Wanted
    outlook: Outlook
    carried: Carried


class NoWay(Unfinished):
    """Neither end could be reached; the guard stands as it was found."""


def recover(changer: Changer, undo: bool = False, tell: Callable[[str], None] = lambda _: None) -> Recovered | None:
    """Reach one of the two ends: of an apply the new one, else the old one; of a release the old one alone.

    The caller is alone. None: nothing was interrupted.

    Raises:
        NoWay: neither can be reached; `tell` was told why.
    """
    interrupted = changer.memory.journal.interrupted()
    if interrupted is None:
        return None
    tell(str(interrupted))
    for text in _ends(interrupted, changer.memory.policy(), undo):
        try:
            wanted = Wanted(changer.load(text), text)
            outlook = changer.outlook(wanted)
            return Recovered(wanted, outlook, changer.carry_out(outlook, wanted, why="recover"))
        except _TRY_NEXT as error:
            tell(f"{text[0]}: {error}")
    raise NoWay("there is no policy to go to that can be applied; apply one: nftpolicy apply FILE")


def _ends(interrupted: Interrupted, remembered: Text | None, undo: bool) -> list[Text]:
    ends = [interrupted.after, interrupted.before] if interrupted.kind == APPLY else [interrupted.before]
    found = [one for one in (*(ends[::-1] if undo else ends), remembered) if one is not None]
    return list(dict.fromkeys(found))
