# SPDX-License-Identifier: BSD-2-Clause
"""Network state of one namespace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from .bypass import Look
from .nft import Table
from .routing import IpRule, Route, Sysctl

_WITH_PORTS = ("bridge", "bond", "team")  # kinds of devices; a socket can be bound to a port


@frozen
class Device:
    """Network device with the properties that routing uses.

    `addresses` are ADDRESS/LENGTH, in the kernel's order. `group` is its device group, `master` the
    device that it is a port of, `kind` the type of a virtual device ("bridge", "vrf"; "": none).
    `link` is the device below it (VLAN, macvlan, ...) or the other end (veth); `link_elsewhere`: in
    another network namespace, so that `link` is None. `link_type` is the hardware type (1: Ethernet), None
    if it is not known. `other_names` are alternative names: rules of nftables do not match by them.
    """

    name: str
    addresses: tuple[str, ...] = ()
    up: bool = True
    group: int = 0
    master: str | None = None
    kind: str = ""
    link: str | None = None
    link_elsewhere: bool = False
    link_type: int | None = None
    other_names: tuple[str, ...] = ()


def ports_of_devices(devices: Sequence[Device], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the ports of each of `names` that is among `devices` and sends its frames by ports."""
    masters = {device.name for device in devices if device.kind in _WITH_PORTS}
    return {
        name: tuple(sorted(port.name for port in devices if port.master == name)) for name in names if name in masters
    }


@frozen
class NetState:
    """Tables, ip rules in order, routes, sysctls and devices of one network namespace.

    Without rules of a family, its rules are the kernel's defaults. Empty `devices`: unknown.
    `looks` are for what marks or moves packets outside nftables; a subject without a look was not looked at.
    """

    tables: tuple[Table, ...] = ()
    rules: tuple[IpRule, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    devices: tuple[Device, ...] = ()
    looks: tuple[Look, ...] = ()

    def table(self, family: str, name: str) -> Table | None:
        """Return the table of a family and name, or None."""
        return next((table for table in self.tables if table.key == (family, name)), None)


@frozen
class CounterValue:
    """Packet and byte count of one counter."""

    packets: int
    bytes: int


CounterValues = Mapping[tuple[str, str, str], CounterValue]  # (family, table, counter) -> Counts
