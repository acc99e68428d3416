# SPDX-License-Identifier: BSD-2-Clause
"""Values for policy routing (ip-rule(8), ip-route(8)) and sysctls."""

from __future__ import annotations

from attrs import field, frozen

from .nft import Origin

# Kernel numbers, from include/uapi/linux/rtnetlink.h.
TABLE_MAIN = 254
# The owner that we write on our rules and routes (rtm_protocol, FRA_PROTOCOL). Unassigned in
# iproute2's etc/iproute2/rt_protos; 78 is "N".
PROTOCOL = 78


@frozen
class IpRule:
    """One ip rule. Ports and uids are inclusive pairs, marks unsigned 32 bit values.

    `action` is "lookup" (with `table`), "goto" (with `goto`), "unreachable", "prohibit",
    "blackhole" or "nop".
    """

    family: int
    priority: int
    action: str = "lookup"
    table: int = 0
    mark: int = 0
    mask: int = 0
    source: str | None = None
    destination: str | None = None
    iif: str | None = None
    oif: str | None = None
    uids: tuple[int, int] | None = None
    l4proto: int | None = None
    sports: tuple[int, int] | None = None
    dports: tuple[int, int] | None = None
    tos: int = 0
    invert: bool = False
    goto: int | None = None
    suppress_prefix: int | None = None
    suppress_group: int | None = None
    l3mdev: bool = False
    protocol: int = PROTOCOL
    origin: Origin = field(default=(), eq=False, repr=False)


@frozen
class Route:
    """One route. `destination` is "default" or ADDRESS/LENGTH; `kind` is the route type's name."""

    family: int
    table: int
    destination: str = "default"
    kind: str = "unicast"
    gateway: str | None = None
    device: str | None = None
    metric: int = 0
    onlink: bool = False
    protocol: int = PROTOCOL
    origin: Origin = field(default=(), eq=False, repr=False)


@frozen
class Sysctl:
    """A value under /proc/sys, by its path there: "net/ipv4/fwmark_reflect"."""

    path: str
    value: str
    origin: Origin = field(default=(), eq=False, repr=False)
