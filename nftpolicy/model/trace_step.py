# SPDX-License-Identifier: BSD-2-Clause
"""Step of a packet trace, with its reason."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from ..netstate.nft import OriginPath
from .packet import KERNEL, Packet


class NullLog(list[Any]):
    """Null log: discards all steps."""

    def append(self, _: object) -> None:
        """Discard the step."""


def empty_like(log: TraceLog) -> TraceLog:
    """Return an empty log; a null log if `log` is one."""
    return NullLog() if isinstance(log, NullLog) else []


@frozen
class TraceStep:
    """A line of text about what decided, and the effect of it.

    `kind` is "source", "ip-rule", "route", "hook", "chain", "rule", "reroute", "reflect", "end" and
    the like. `subject` is the value that decided (an IpRule, a Route, an nft Rule or Chain) or
    None, `origin` the policy key that it comes from (empty for a foreign one), `effect` such as
    "continue", "accept", "drop" or "mark 0x1".
    """

    kind: str
    text: str
    subject: object = None
    origin: OriginPath = ()
    effect: str = "continue"


def sender_step(packet: Packet) -> TraceStep:
    """Return the first step of a packet that this machine sends."""
    if packet.origin == KERNEL:
        return TraceStep("reflect", f"sent by the kernel, mark {packet.mark:#x}")
    bound = f", bound to {packet.bound}" if packet.bound else ""
    owner = f"user {packet.uid}, group {packet.gid}"
    return TraceStep("source", f"a socket of {owner}, mark {packet.mark:#x}{bound}")


TraceLog = list[TraceStep]
