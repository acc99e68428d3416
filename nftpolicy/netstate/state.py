# SPDX-License-Identifier: BSD-2-Clause
"""A whole state of a kernel, as far as packets care."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from .nft import Table
from .routing import IpRule, Route, Sysctl


@frozen
class NetState:
    """Tables, ip rules in order, routes and sysctls of one network namespace."""

    tables: tuple[Table, ...] = ()
    rules: tuple[IpRule, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()

    def table(self, family: str, name: str) -> Table | None:
        """The table of that family and name, or None."""
        return next((table for table in self.tables if table.key == (family, name)), None)


@frozen
class Counts:
    """Packets and bytes of one counter."""

    packets: int
    bytes: int


Counters = Mapping[tuple[str, str, str], Counts]  # (family, table, counter) -> Counts
