# SPDX-License-Identifier: BSD-2-Clause
"""Operations that planner and runtime may request from a kernel.

An example, with the real kernel and with the one in memory:

    kernel: Kernel = Linux()    # or FakeKernel(NetState(...)) in a test
    state = kernel.read_own("nftpolicy", ("inet",), PROTOCOL, ("net/ipv4/ip_forward",))
    kernel.apply_step(NftTransaction(operations))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ..netstate.operations import Step
from ..netstate.routing import IpRule
from ..netstate.state import CounterValues, NetState

if TYPE_CHECKING:
    from .live_sockets import LiveSockets
    from .netlink.route_mover import RouteMover


class Kernel(Protocol):
    """A network namespace of a kernel."""

    def read_own(self, table: str, families: Sequence[str], protocol: int, sysctls: Iterable[str]) -> NetState:
        """Return the objects of nftpolicy.

        These are the tables named `table` of those families, the ip rules and routes of that
        routing protocol, and the sysctls at those paths below /proc/sys, as far as they exist.
        """

    def table_names(self) -> set[tuple[str, str]]:
        """Return (family, name) of every nft table, foreign ones included."""

    def read_all(self) -> NetState:
        """Return all tables, ip rules, routes, devices, and the sysctls that affect packets."""

    def has_more_routes(self, number: int) -> bool:
        """Return True if an address family has more than this number of routes. Reads no more than that."""

    def counters(self, table: str) -> CounterValues:
        """Return the named counters of the tables named `table`, of all families."""

    def apply_step(self, step: Step) -> None:
        """Apply one step. Raises StepRefused."""

    def ip_families(self) -> tuple[int, ...]:
        """Return the address families of this kernel: (4, 6) or (4,)."""

    def ip_rules(self) -> tuple[IpRule, ...]:
        """Return all ip rules of the families of this kernel, in the order in which it asks them."""

    def loopback_families(self) -> tuple[int, ...]:
        """Return the address families that lo has now: neither if it is down, no IPv6 if that is switched off."""

    def device_names(self) -> set[str]:
        """Return the names of all network devices."""

    def bridge_ports(self, devices: Iterable[str]) -> Mapping[str, Sequence[str]]:
        """Return the ports of each of the devices that is a bridge or a bond."""

    def supports_egress_hook(self, device: str) -> bool:
        """Return True if an nft chain can be hooked at the egress of the device now."""

    def route_mover(self) -> RouteMover | None:
        """Return access to routes with all their attributes; None if this kernel has none."""

    def live_sockets(self) -> LiveSockets | None:
        """Return access to sockets and conntrack entries; None if this kernel has none."""
