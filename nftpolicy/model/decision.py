# SPDX-License-Identifier: BSD-2-Clause
"""One step on the way of a packet, with its reason."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from ..netstate.nft import Origin


class Untold(list[Any]):
    """A log for nobody: what is not asked for is not written."""

    def append(self, _: object) -> None:
        """Forget it."""


def likewise(log: list[Decision]) -> list[Decision]:
    """An empty log, for nobody if this one is."""
    return Untold() if isinstance(log, Untold) else []


@frozen
class Decision:
    """What decided, in one line for a person, and what came of it.

    `kind` is "source", "ip-rule", "route", "hook", "chain", "rule", "reroute", "reflect", "end" and the
    like. `thing` is the value that decided (an IpRule, a Route, an nft Rule or Chain) if there is one,
    `origin` the policy key that it comes from (empty if it is not ours), `effect` such as "goes on",
    "accept", "drop" or "mark 0x1".
    """

    kind: str
    text: str
    thing: object = None
    origin: Origin = ()
    effect: str = "goes on"
