# SPDX-License-Identifier: BSD-2-Clause
"""A whole state of a kernel, as far as packets care."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from .nft import Table
from .routing import IpRule, Route, Sysctl


@frozen
class Device:
    """A network device, as far as routing asks for it. `addresses` are ADDRESS/LENGTH, in the kernel's order.

    `group` is its interface group, `master` the device that it is a port of, `kind` the driver's name
    for it ("bridge", "vrf", "" if it has none).
    """

    name: str
    addresses: tuple[str, ...] = ()
    up: bool = True
    group: int = 0
    master: str | None = None
    kind: str = ""


@frozen
class NetState:
    """Tables, ip rules in order, routes, sysctls and devices of one network namespace.

    No rules of a family stand for the kernel's own; no `devices`: nothing is known about them.
    """

    tables: tuple[Table, ...] = ()
    rules: tuple[IpRule, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    devices: tuple[Device, ...] = ()

    def table(self, family: str, name: str) -> Table | None:
        """The table of that family and name, or None."""
        return next((table for table in self.tables if table.key == (family, name)), None)


@frozen
class Counts:
    """Packets and bytes of one counter."""

    packets: int
    bytes: int


Counters = Mapping[tuple[str, str, str], Counts]  # (family, table, counter) -> Counts
