# SPDX-License-Identifier: BSD-2-Clause
"""What a machine has beside a compiled state: the kernel's own rules, addresses, learned routes. Assumed, and said.

A compiled state says nothing of DHCP's routes or of addresses; words of a policy can be used only where
there are some. What the guard drops does not depend on any of it.
"""

from __future__ import annotations

from attrs import evolve

from ..model.packet import WIDTH, number, shown
from ..model.values import representative
from ..netstate.routing import TABLE_MAIN, IpRule, Route
from ..netstate.state import NetState
from .claim import Claim

TABLE_LOCAL, TABLE_DEFAULT = 255, 253
KERNEL = 2  # RTPROT_KERNEL, include/uapi/linux/rtnetlink.h
BOOT = 3  # RTPROT_BOOT
_NETS = {4: ("192.0.2.0", 24), 6: ("2001:db8:77::", 64)}  # RFC 5737, RFC 3849
_LOOPBACK = {4: "127.0.0.0/8", 6: "::1/128"}
_PRIORITIES = ((0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT))


def inside_device(pattern: str) -> str:
    """A device that a pattern of `inside` matches."""
    return representative(pattern.replace("*", "~"))


def own_address(family: int, at: int) -> int:
    """The address that this machine is assumed to have on its device number `at`."""
    net, length = _NETS[family]
    return number(net) + (at << (24 if family == 6 else 8)) * (length == 64) + (2 if family == 6 else 16 * at + 2)


def link_local(at: int) -> int:
    """The link-local address that this machine is assumed to have on its device number `at`."""
    return number("fe80::a00:27ff:fe00:2") + at


def here(state: NetState, claim: Claim) -> tuple[Claim, dict[str, None]]:
    """The claim with the devices that the machine has now, by their names, and what is left out for want of one."""
    if not state.devices:
        return claim, {}
    up = [one.name for one in state.devices if one.up]
    absent: dict[str, None] = {}
    uplinks, inside = [], []
    for one in claim.uplinks:
        there = tuple(device for device in one.devices if device in up)
        if there:
            uplinks.append(evolve(one, devices=there, ports=tuple(port for port in one.ports if port in up)))
        for device in one.devices:
            if device not in up:
                absent[f"no packet was tried by {device}: it is not there, or not up"] = None
    for pattern in claim.inside or ():
        found = [name for name in up if name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1]))]
        inside += found[:1]
        if not found:
            absent[f"no packet was tried by {pattern}: there is no such device up"] = None
    return evolve(claim, uplinks=tuple(uplinks), inside=tuple(inside)), absent


def completed(state: NetState, claim: Claim) -> tuple[NetState, tuple[str, ...]]:
    """The state with what it lacks for packets to be sent at all, and the assumptions made."""
    rules, routes, said = list(state.rules), list(state.routes), []
    known = {(rule.family, rule.table) for rule in rules if rule.action == "lookup" and not rule.mask}
    local = {route.family for route in routes if route.table == TABLE_LOCAL}
    for family in (4, 6):
        if (family, TABLE_LOCAL) not in known and family not in local:
            last = len(_PRIORITIES) if family == 4 else 2
            rules += [
                IpRule(family, priority, "lookup", table, protocol=KERNEL) for priority, table in _PRIORITIES[:last]
            ]
    devices = [device for one in claim.uplinks for device in one.devices]
    devices += [inside_device(pattern) for pattern in claim.inside or ()]
    if not local:
        said.append("addresses on each device, and routes inside, as a machine has them (the state names none)")
        for family in (4, 6):
            routes.append(Route(family, TABLE_LOCAL, _LOOPBACK[family], "local", device="lo", protocol=KERNEL))
            for at, device in enumerate(devices):
                own = f"{shown(family, own_address(family, at))}/{WIDTH[family]}"
                routes.append(Route(family, TABLE_LOCAL, own, "local", device=device, protocol=KERNEL))
                if family == 6:  # what the kernel adds to every device that has IPv6
                    link = f"{shown(6, link_local(at))}/128"
                    routes += [
                        Route(6, TABLE_LOCAL, link, "local", device=device, protocol=KERNEL),
                        Route(6, TABLE_LOCAL, "ff00::/8", "multicast", device=device, metric=256, protocol=KERNEL),
                        Route(6, TABLE_MAIN, "fe80::/64", device=device, metric=256, protocol=KERNEL),
                    ]
            routes += [
                Route(family, TABLE_LOCAL, f"{shown(family, address)}/{WIDTH[family]}", "local", device="lo",
                      protocol=KERNEL)
                for one in claim.uplinks if one.names is not None
                for address, _ in one.names.at(family) if (family, address >> 24) != (4, 127) and address != 1
            ]  # fmt: skip
            inside = [inside_device(pattern) for pattern in claim.inside or ()]
            if inside:
                routes.append(Route(family, TABLE_MAIN, "default", device=inside[0], metric=512, protocol=BOOT))
    for one in claim.uplinks:
        for family in (4, 6):
            there = any(
                route.family == family and route.table == one.table and route.kind == "unicast"
                and route.destination == "default" for route in routes
            )  # fmt: skip
            if one.table is not None and not there:
                routes += [
                    Route(family, one.table, "default", device=device, metric=512 + at, protocol=BOOT)
                    for at, device in enumerate(one.devices)
                ]
                family_said = f"a default route by {one.devices[0]} in table {one.table} (it has none now)"
                said.append(family_said)
    if len(rules) > len(state.rules):
        rules.sort(key=lambda rule: (rule.family, rule.priority))
    return evolve(state, rules=tuple(rules), routes=tuple(routes)), tuple(dict.fromkeys(said))
