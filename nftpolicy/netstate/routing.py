# SPDX-License-Identifier: BSD-2-Clause
"""Values for policy routing (ip-rule(8), ip-route(8)) and sysctls."""

from __future__ import annotations

from attrs import field, frozen

from .nft import Origin

# Kernel numbers, from include/uapi/linux/rtnetlink.h.
TABLE_DEFAULT, TABLE_MAIN, TABLE_LOCAL = 253, 254, 255
# The owner that we write on our rules and routes (rtm_protocol, FRA_PROTOCOL). Unassigned in
# iproute2's etc/iproute2/rt_protos; 78 is "N".
PROTOCOL = 78
# Route types by RTN_*; those from "unreachable" on end a lookup without a device.
KINDS = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable",
         8: "prohibit", 9: "throw", 10: "nat"}  # fmt: skip
SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}  # RT_SCOPE_*


@frozen
class IpRule:
    """One ip rule. Ports and uids are inclusive pairs, marks unsigned 32 bit values.

    `action` is "lookup" (with `table`), "goto" (with `goto`), "unreachable", "prohibit",
    "blackhole" or "nop". `unknown` holds, one text each, the selectors that nobody here
    understands; like `origin` it takes no part in a comparison.
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
    unknown: tuple[str, ...] = field(default=(), eq=False)


@frozen
class Nexthop:
    """One of several ways of a route. The gateway may be of the other family (`via inet6`)."""

    device: str | None = None
    gateway: str | None = None
    weight: int = 1
    onlink: bool = False
    # What the kernel finds out by itself is not part of what is wanted.
    linkdown: bool = field(default=False, eq=False)
    dead: bool = field(default=False, eq=False)


@frozen
class Route:
    """One route. `destination` is "default" or ADDRESS/LENGTH; `kind` is the route type's name.

    With `nexthops` there is neither `device` nor `gateway`. A gateway may be of the other family.
    `source` is the prefix of a source-specific route (IPv6, `from`), `preference` the router's
    preference (IPv6). `dead` says that the kernel passes the route by: its device is down, or has
    no carrier (`linkdown`) where that counts. What the kernel fills in by itself (`scope`, flags)
    and what nobody here understands (`unknown`) takes no part in a comparison, and neither does `expires`: the
    seconds until the kernel takes it away (IPv6), None if it does not.
    """

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
    nexthops: tuple[Nexthop, ...] = ()
    prefsrc: str | None = None
    source: str | None = None
    tos: int = 0
    preference: str = "medium"
    scope: str | None = field(default=None, eq=False)
    linkdown: bool = field(default=False, eq=False)
    dead: bool = field(default=False, eq=False)
    unknown: tuple[str, ...] = field(default=(), eq=False)
    expires: int | None = field(default=None, eq=False, repr=False)

    @property
    def ways(self) -> tuple[Nexthop, ...]:
        """The nexthops, of which there is one if the route has no list of them."""
        return self.nexthops or (Nexthop(self.device, self.gateway, 1, self.onlink, self.linkdown, self.dead),)


@frozen
class Sysctl:
    """A value under /proc/sys, by its path there: "net/ipv4/fwmark_reflect"."""

    path: str
    value: str
    origin: Origin = field(default=(), eq=False, repr=False)
