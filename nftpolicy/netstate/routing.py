# SPDX-License-Identifier: BSD-2-Clause
"""Policy-routing rules (ip-rule(8)), routes (ip-route(8)) and sysctls as values."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import field, frozen

from .nft import OriginPath

# Kernel numbers, from include/uapi/linux/rtnetlink.h.
TABLE_DEFAULT, TABLE_MAIN, TABLE_LOCAL = 253, 254, 255
# Routing protocol number of our rules and routes (rtm_protocol, FRA_PROTOCOL). Unassigned in
# iproute2's etc/iproute2/rt_protos; 78 is "N".
RTPROT_NFTPOLICY = 78
RTPROT_KERNEL, RTPROT_STATIC, RTPROT_RA = 2, 4, 9
# The highest metric that both families accept; 0xffffffff is IPv6's own null route.
WORST_METRIC = 0xFFFFFFFE
LOOPBACK_ADDRESSES = {4: "127.0.0.1", 6: "::1"}  # of lo, by family
# Route types by RTN_* number; lookups that end in "blackhole" or a later type have no device.
ROUTE_TYPES = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable",
         8: "prohibit", 9: "throw", 10: "nat"}  # fmt: skip
SYSCTL_SEPARATORS = str.maketrans("./", "/.")  # from a path below /proc/sys to a name of sysctl.d(5), and back
ROUTE_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}  # RT_SCOPE_*


@frozen
class IpRule:
    """Policy-routing rule. Ports and uids are inclusive pairs, marks unsigned 32 bit values.

    `action` is "lookup" (with `table`), "goto" (with `goto`), "unreachable", "prohibit",
    "blackhole" or "nop". `unknown` has one text per unsupported selector; comparisons ignore
    `unknown` and `origin`.
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
    protocol: int = RTPROT_NFTPOLICY
    origin: OriginPath = field(default=(), eq=False, repr=False)
    unknown: tuple[str, ...] = field(default=(), eq=False)


@frozen
class Nexthop:
    """Nexthop of a multipath route. The gateway may be of the other family (`via inet6`)."""

    device: str | None = None
    gateway: str | None = None
    weight: int = 1
    onlink: bool = False
    # State of the kernel, not configuration.
    linkdown: bool = field(default=False, eq=False)
    dead: bool = field(default=False, eq=False)


@frozen
class Route:
    """Route. `destination` is "default" or ADDRESS/LENGTH; `kind` is the name of the route type.

    With `nexthops` there is neither `device` nor `gateway`. A gateway may be of the other family.
    `source` is the prefix of a source-specific route (IPv6, `from`), `preference` the router
    preference (IPv6). `dead`: the kernel ignores the route, since its device is down, or has no
    carrier (`linkdown`) where that matters. `expires`: seconds until the kernel deletes it (IPv6),
    or None. Comparisons ignore `origin`, `expires`, values that the kernel fills in (`scope`,
    flags) and unsupported attributes (`unknown`).
    """

    family: int
    table: int
    destination: str = "default"
    kind: str = "unicast"
    gateway: str | None = None
    device: str | None = None
    metric: int = 0
    onlink: bool = False
    protocol: int = RTPROT_NFTPOLICY
    origin: OriginPath = field(default=(), eq=False, repr=False)
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
    def all_nexthops(self) -> tuple[Nexthop, ...]:
        """Return the nexthops; a route without a list of them has one."""
        return self.nexthops or (Nexthop(self.device, self.gateway, 1, self.onlink, self.linkdown, self.dead),)

    @property
    def table_key(self) -> tuple[int, int, str, int]:
        """Return the key of the route: a table has one per destination and metric."""
        return self.family, self.table, self.destination, self.metric


@frozen
class Sysctl:
    """Sysctl value by its path under /proc/sys: "net/ipv4/fwmark_reflect"."""

    path: str
    value: str
    origin: OriginPath = field(default=(), eq=False, repr=False)


_IPV6_DEVICES, _DISABLE_IPV6 = "net/ipv6/conf/", "/disable_ipv6"  # start and end of a path


def ipv6_switched_off(sysctls: Iterable[Sysctl]) -> frozenset[str]:
    """Return the devices on which IPv6 is switched off."""
    return frozenset(
        sysctl.path.removeprefix(_IPV6_DEVICES).removesuffix(_DISABLE_IPV6)
        for sysctl in sysctls
        if sysctl.path.startswith(_IPV6_DEVICES) and sysctl.path.endswith(_DISABLE_IPV6) and sysctl.value != "0"
    )
