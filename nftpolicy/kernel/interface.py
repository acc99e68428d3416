# SPDX-License-Identifier: BSD-2-Clause
"""What planner and runtime may ask of a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ..netstate.changes import Step
from ..netstate.state import Counters, NetState

if TYPE_CHECKING:
    from .closing import Running


class Refused(Exception):
    """The kernel refused a step; nothing of that step was done.

    `reason` is the kernel's or libnftables' word; `object` the value that it was about, if known.
    """

    def __init__(self, step: Step, reason: str, item: object = None) -> None:
        self.step, self.reason, self.object = step, reason, item
        super().__init__(reason)


class Unavailable(Exception):
    """The kernel, or the library to reach it by, can't be used at all; says what to do."""


class Kernel(Protocol):
    """One network namespace of a kernel."""

    def observe(self, table: str, families: Sequence[str], protocol: int, sysctls: Iterable[str]) -> NetState:
        """Our own objects: tables of that name, rules and routes of that protocol, and the sysctls
        at those paths as far as they exist."""

    def table_names(self) -> set[tuple[str, str]]:
        """Family and name of every nft table, whosever they are."""

    def everything(self) -> NetState:
        """All tables, ip rules, routes, devices and the sysctls that decide about packets, whosever they are."""

    def counters(self, table: str) -> Counters:
        """The named counters of our tables."""

    def carry_out(self, step: Step) -> None:
        """Do one step. Raises Refused."""

    def ip_families(self) -> tuple[int, ...]:
        """The address families that this kernel has: (4, 6) or (4,)."""

    def links(self) -> set[str]:
        """The names of all network devices."""

    def bridge_ports(self, devices: Iterable[str]) -> Mapping[str, Sequence[str]]:
        """For each of the devices that is a bridge: its ports."""

    def takes_link_guard(self, device: str) -> bool:
        """Whether an nft chain can be hooked at the egress of the device, now."""

    def running(self) -> Running | None:
        """The sockets and flows that run on this kernel's decisions; None if there are none to be had."""
