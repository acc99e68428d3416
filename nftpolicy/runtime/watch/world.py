# SPDX-License-Identifier: BSD-2-Clause
"""Interfaces through which the watch daemon reaches the kernel, its log and the service manager."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

from ...kernel.interface import Kernel
from ...kernel.monitor import News
from ...kernel.moving import Held
from ...kernel.notify import Manager
from ...policy.objects import Policy
from ..changes.change import Changer

Say = Callable[[str, dict[str, Any]], None]  # name of an event, and its fields


class Ears(Protocol):
    """Source of kernel events. `Monitor` implements it."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """File descriptors that become readable when an event arrives."""
        ...

    def read(self) -> News:
        """Return all changes since the last call. Never waits."""
        ...

    def watch_sysctls(self, paths: Iterable[str]) -> None:
        """Watch these sysctls, and no longer the earlier ones."""
        ...

    def watch_folder(self, folder: Path) -> None:
        """Report files that another process replaces in a directory."""
        ...

    def sysctls(self) -> dict[str, str]:
        """Return the values of the watched sysctls by path."""
        ...

    def leave_out(self, ports: Collection[int]) -> None:
        """Ignore changes made through netlink sockets with these port IDs."""
        ...


class Routes(Protocol):
    """Kernel routes, as the route keeper uses them.

    `RouteMover` implements it.
    """

    def by(self, devices: Collection[str]) -> list[Held]:
        """Return the routes over these devices, of all tables."""
        ...

    def addresses(self, devices: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Return the addresses and peer addresses of each device, as ADDRESS/LENGTH."""
        ...

    def put(self, held: Held, table: int, protocol: int | None = None) -> int:
        """Add a copy of a route to a table; return 0 or an errno."""
        ...

    def take(self, held: Held) -> int:
        """Delete a route; return 0 or an errno."""
        ...


@frozen
class World:
    """Everything that the watch daemon uses but does not own.

    `new_kernel` returns a kernel that shares no socket with another one, for worker processes.
    `load_nft(text, check_only)` runs one nft transaction and returns an error message or None.
    `netlink_ports` returns the port IDs of the netlink sockets of this process.
    `supports_owner_flag`: the kernel supports tables with an owner, and `load_nft` always uses the
    same socket. `tx_packets` returns the number of packets that devices have sent,
    `counter_packets` the packets of the named counters of the tables of a name. `resolver_leaks`
    yields changes of leaks of uplink DNS servers into the host's resolver. `routes`: access to
    routes; None: routes stay in the tables where they are.
    """

    changer: Changer
    fresh: Callable[[], Kernel]
    ears: Ears
    load: Callable[[str, bool], str | None]
    say: Say
    sent: Callable[[Collection[str]], int]
    counted: Callable[[str], dict[str, int]]
    ports: Callable[[], frozenset[int]] = frozenset
    manager: Manager = field(factory=Manager)
    block_unknown: bool = False
    owns: bool = False
    routes: Routes | None = None
    now: Callable[[], float] = time.monotonic
    leaks: Callable[[Policy | None], Iterable[dict[str, Any]]] = lambda _: ()
