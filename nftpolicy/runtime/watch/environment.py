# SPDX-License-Identifier: BSD-2-Clause
"""Interfaces through which the watch daemon reaches the kernel, its log and the service manager."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

from ...kernel.interface import Kernel
from ...kernel.netlink.monitor import ChangeSet
from ...kernel.netlink.route_mover import KernelRoute, RouteListing
from ...kernel.sd_notify import ServiceManager
from ...policy.objects import Policy
from ..apply.transaction import PolicyApplier

LogEvent = Callable[[str, dict[str, Any]], None]  # name of an event, and its fields


class EventSource(Protocol):
    """Source of kernel events. `Monitor` implements it."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """File descriptors that become readable when an event arrives."""
        ...

    @property
    def guard_descriptor(self) -> int:
        """Return the descriptor for changes of nftables."""
        ...

    @property
    def news_descriptor(self) -> int:
        """Return the descriptor for new routes and addresses, which any neighbour can cause; -1: none."""
        ...

    def read(self) -> ChangeSet:
        """Return all changes since the last call. Never waits."""
        ...

    def watch_sysctls(self, paths: Iterable[str]) -> None:
        """Watch these sysctls, and no longer the earlier ones."""
        ...

    def watch_directory(self, directory: Path) -> None:
        """Report files that another process replaces in a directory."""
        ...

    def sysctl_values(self) -> dict[str, str]:
        """Return the values of the watched sysctls by path."""
        ...

    def ignore_ports(self, ports: Collection[int]) -> None:
        """Ignore changes made through netlink sockets with these port IDs."""
        ...


class RouteAccess(Protocol):
    """Kernel routes, as the route keeper uses them.

    `RouteMover` implements it.
    """

    def list_routes(self, devices: Collection[str]) -> RouteListing:
        """Return the routes over these devices, of all tables."""
        ...

    def addresses(self, devices: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Return the addresses and peer addresses of each device, as ADDRESS/LENGTH."""
        ...

    def install(self, kernel_route: KernelRoute, table: int, protocol: int | None = None, beside: bool = False) -> int:
        """Add a copy of a route to a table; return 0 or an errno.

        `beside`: routes of the same metric stay.
        """
        ...

    def delete_default(self, device: str, gateway: str, table: int) -> int:
        """Delete the default route by an IPv6 router that it has advertised; return 0 or an errno."""
        ...

    def own_main_routes(self) -> dict[str, KernelRoute]:
        """Return network -> route of nftpolicy's routes in table main."""
        ...

    def add_main_route(
        self, network: IPv4Network | IPv6Network, kind: str, device: str | None, prefsrc: str | None
    ) -> int:
        """Add a route of nftpolicy to table main, by a device if it is unicast; return 0 or an errno."""
        ...

    def delete(self, kernel_route: KernelRoute) -> int:
        """Delete a route; return 0 or an errno."""
        ...


class DeviceBlock(Protocol):
    """Block of all frames of single devices. `PortBlock` implements it."""

    def set_devices(self, devices: Collection[str]) -> dict[str, int]:
        """Block these devices and no others; return the errno of each one that the kernel refused."""
        ...


@frozen
class Environment:
    """Collaborators of the watch daemon, which it uses but does not own.

    `new_kernel` returns a kernel that shares no socket with another one, for worker processes.
    `load_nft(text, check_only)` runs one nft transaction and returns an error message or None.
    `netlink_ports` returns the port IDs of the netlink sockets of this process.
    `supports_owner_flag`: the kernel supports tables with an owner, and `load_nft` always uses the
    same socket. `tx_packets` returns the number of packets that devices have sent. `resolver_leaks`
    yields changes of leaks of uplink DNS servers into the host's resolver. `routes`: access to
    routes; None: routes stay in the tables where they are. `port_block` blocks ports that cannot have
    a link guard; None: they stay as they are.
    """

    applier: PolicyApplier
    new_kernel: Callable[[], Kernel]
    events: EventSource
    load_nft: Callable[[str, bool], str | None]
    log_event: LogEvent
    tx_packets: Callable[[Collection[str]], int]
    netlink_ports: Callable[[], frozenset[int]] = frozenset
    service_manager: ServiceManager = field(factory=ServiceManager)
    block_unknown: bool = False
    supports_owner_flag: bool = False
    routes: RouteAccess | None = None
    port_block: DeviceBlock | None = None
    now: Callable[[], float] = time.monotonic
    resolver_leaks: Callable[[Policy | None], Iterable[dict[str, Any]]] = lambda _: ()
