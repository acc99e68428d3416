# SPDX-License-Identifier: BSD-2-Clause
"""The ip rules and routes that netifd makes of UCI's `network`, also of what its writer did not mean.

Seen on netifd of 2024-12 and 2026-07, and in its sources (iprule.c, interface-ip.c). What it can't read it leaves
out without a word; here each such place is a Trap. Objects have their place, (FILE, LINE), as origin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from attrs import evolve, frozen

from ..netstate.routing import TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, IpRule, Route
from .network import LEASED6, NAMED_TABLES, Interface, Network, table, unsigned
from .uci_in import Section

KERNEL, BOOT, STATIC = 2, 3, 4  # RTPROT_*, include/uapi/linux/rtnetlink.h
FROM, TO, NO_WAY, REFUSED = 10000, 20000, 90000, 4200000000  # IPRULE_PRIORITY_* of iprule.h
_KINDS = {"rule": 4, "rule6": 6, "route": 4, "route6": 6}
_ACTIONS = {"prohibit": "prohibit", "unreachable": "unreachable", "blackhole": "blackhole", "throw": "blackhole"}
_TYPED = frozenset({"unreachable", "blackhole", "prohibit", "throw"})
_RULE_OPTIONS = frozenset({"in", "out", "invert", "src", "dest", "priority", "tos", "mark", "lookup", "action", "goto",
                           "suppress_prefixlength", "uidrange", "disabled", "ipproto", "sport", "dport", "name",
                           "comment"})  # fmt: skip
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}


@frozen
class Trap:
    """Something that does not do what it says. `severe`: it takes in all packets."""

    place: str
    text: str
    severe: bool = False


class _Dropped(Exception):
    """netifd leaves the section out."""


@frozen
class Made:
    """What netifd makes."""

    rules: tuple[IpRule, ...]
    routes: tuple[Route, ...]
    traps: tuple[Trap, ...]


def made(sections: Sequence[Section], found: Network, names: Mapping[str, int] = NAMED_TABLES) -> Made:
    """All ip rules and routes, with everything up."""
    traps: list[Trap] = []
    rules = [*_kernels(), *_of_interfaces(found), *_configured(sections, found, names, traps)]
    routes = [*_connected(found), *_static_routes(sections, found, names, traps)]
    rules.sort(key=lambda one: (one.family, one.priority))
    return Made(tuple(rules), tuple(dict.fromkeys(routes)), tuple(traps))


def _kernels() -> Iterator[IpRule]:
    for family in (4, 6):
        yield IpRule(family, 0, table=TABLE_LOCAL, protocol=KERNEL)
        yield IpRule(family, 32766, table=TABLE_MAIN, protocol=KERNEL)
    yield IpRule(4, 32767, table=TABLE_DEFAULT, protocol=KERNEL)


def origin(section: Section, option: str = "") -> tuple[str, str]:
    """The place of a section as the origin of an object."""
    return section.file, str(section.line_of(option) if option else section.line)


def _of_interfaces(found: Network) -> Iterator[IpRule]:
    """The rules that ip4table and ip6table bring, which nobody asked for."""
    for one in found.interfaces:
        if not one.up or not one.device:
            continue
        for family, number in one.tables.items():
            said = origin(one.section, f"ip{family}table")
            index = found.ifindex[one.device]
            for address in one.addresses:
                if address.version != family:
                    continue
                width = address.max_prefixlen
                yield IpRule(family, FROM, table=number, source=f"{address.ip}/{width}", protocol=0, origin=said)
                yield IpRule(family, TO, table=number, destination=str(address.network), protocol=0, origin=said)
            if family == 4 or one.device in found.ipv6_devices:
                yield IpRule(family, NO_WAY + index, table=number, iif="lo", protocol=0, origin=said)
            if family == 6 and one.device in found.ipv6_devices:
                yield IpRule(6, REFUSED + index, "unreachable", iif=one.device, protocol=0, origin=said)


# --- rules ------------------------------------------------------------------------------------


def _configured(
    sections: Sequence[Section], found: Network, names: Mapping[str, int], traps: list[Trap]
) -> Iterator[IpRule]:
    count = {4: 0, 6: 0}
    for one in sections:
        family = _KINDS.get(one.type)
        if one.type not in ("rule", "rule6") or family is None or one.flag("disabled"):
            continue
        count[family] += 1  # one that can't be read has its number too
        for option in one.options:
            if option not in _RULE_OPTIONS:
                traps.append(Trap(one.place(option), f"{one.shown}: netifd knows no option {option!r} and ignores it"))
        try:
            rule = _rule(one, family, count[family], found, names)
        except _Dropped as why:
            traps.append(Trap(one.place(), f"{one.shown}: netifd leaves this rule out without a word: {why}"))
            continue
        if rule is None:
            traps.append(Trap(one.place(), f"{one.shown}: its interface is not up, so the rule is not there"))
            continue
        traps += _of_rule(one, rule)
        yield rule


def _rule(one: Section, family: int, number: int, found: Network, names: Mapping[str, int]) -> IpRule | None:
    value, mask = _mark(one)
    rule = IpRule(family, _number(one, "priority", number), mark=value, mask=mask, protocol=0, origin=origin(one),
                  invert=one.flag("invert"))  # fmt: skip
    for option, key in (("src", "source"), ("dest", "destination")):
        if one.get(option):
            rule = evolve(rule, **{key: _prefix(one, option, family)})
    for option, key in (("in", "iif"), ("out", "oif")):
        if one.get(option):
            named = found.named(one.get(option))
            if named is None or not named.up or not named.device:
                return None
            rule = evolve(rule, **{key: named.device})
    if one.get("tos"):
        rule = evolve(rule, tos=_number(one, "tos", 0))
        if rule.tos > 255:
            raise _Dropped(f"tos {one.get('tos')!r} is above 255")
    if one.get("uidrange"):
        rule = evolve(rule, uids=_uids(one))
    if one.get("suppress_prefixlength"):
        rule = evolve(rule, suppress_prefix=_number(one, "suppress_prefixlength", 0))
    return _ports(one, _destined(one, rule, names))


def _destined(one: Section, rule: IpRule, names: Mapping[str, int]) -> IpRule:
    """What the rule leads to: an action goes before a table, as in netifd's system_iprule."""
    lookup = None
    if one.get("lookup"):
        lookup = table(one.get("lookup"), names)
        if lookup is None:
            raise _Dropped(f"there is no table {one.get('lookup')!r}")
    if one.get("action"):
        if one.get("action") not in _ACTIONS:
            raise _Dropped(f"there is no action {one.get('action')!r}")
        return evolve(rule, action=_ACTIONS[one.get("action")])
    if one.get("goto"):
        target = _number(one, "goto", 0)
        if target <= rule.priority:
            raise _Dropped(f"goto {target} does not lead forward from {rule.priority}")
        return evolve(rule, action="goto", goto=target)
    return evolve(rule, action="nop") if lookup is None else evolve(rule, table=lookup)


def _mark(one: Section) -> tuple[int, int]:
    text = one.get("mark")
    if not text:
        return 0, 0
    first, slash, second = text.partition("/")
    value, mask = unsigned(first), unsigned(second) if slash else None
    if value is None or (slash and mask is None):
        raise _Dropped(f"{text!r} is no mark (VALUE or VALUE/MASK)")
    if mask is None:  # without a mask the kernel compares all bits, but for the value 0: that is no condition
        mask = 0xFFFFFFFF if value else 0
    return value, mask


def _number(one: Section, option: str, default: int) -> int:
    text = one.get(option)
    number = unsigned(text) if text else default
    if number is None:
        raise _Dropped(f"{option} {text!r} is no number")
    return number


def _prefix(one: Section, option: str, family: int) -> str:
    text = one.get(option)
    try:
        found = ip_interface(text)
    except ValueError:
        raise _Dropped(f"{option} {text!r} is no network") from None
    if found.version != family:
        raise _Dropped(
            f"{option} {text!r} is not IPv{family}; 'config rule{'6' if found.version == 6 else ''}' is for it"
        )
    return str(found.network)


def _uids(one: Section) -> tuple[int, int]:
    parts = re.match(r"\s*([0-9]+)(?:-([0-9]+))?", one.get("uidrange"))
    if not parts:
        raise _Dropped(f"uidrange {one.get('uidrange')!r} is no number; names are not looked up")
    low, high = int(parts[1][:10]), int((parts[2] or parts[1])[:10])
    if low > high:
        raise _Dropped(f"uidrange {one.get('uidrange')!r} runs backwards")
    return low, high


def _ports(one: Section, rule: IpRule) -> IpRule:
    """ipproto, sport and dport, which netifd knows since 2025; protocols by number or by a name of /etc/protocols."""
    if one.get("ipproto"):
        number = _PROTOCOLS.get(one.get("ipproto"), unsigned(one.get("ipproto")))
        rule = evolve(rule, l4proto=number) if number else evolve(rule, unknown=(f"ipproto {one.get('ipproto')}",))
    for option, key in (("sport", "sports"), ("dport", "dports")):
        parts = re.match(r"([0-9]{1,5})(?:-([0-9]{1,5}))?\Z", one.get(option))
        if parts:
            rule = evolve(rule, **{key: (int(parts[1]), int(parts[2] or parts[1]))})
        elif one.get(option):
            raise _Dropped(f"{option} {one.get(option)!r} is no port")
    return rule


def _of_rule(one: Section, rule: IpRule) -> Iterator[Trap]:
    """What is there, but perhaps not what was meant."""
    text = one.get("mark")
    first = text.partition("/")[0].strip()
    where, cut = one.place("mark"), ", since of the value only 32 bits are kept" if _bits(first) > 32 else ""
    if text and not rule.mask:
        yield Trap(where, f"{one.shown}: mark {text} is no condition: the rule takes in ALL packets{cut}", True)
    elif text and not rule.mark:
        yield Trap(where, f"{one.shown}: mark {text} means packets WITHOUT the mark: all that nobody marked", True)
    elif _bits(first) > 32:
        yield Trap(where, f"{one.shown}: of the mark {text} only the lower 32 bits are kept: {rule.mark:#x}")
    elif re.match(r"0[0-7]+\Z", first):
        yield Trap(where, f"{one.shown}: mark {first} is octal, that is {rule.mark:#x}")
    elif first.startswith("-"):
        yield Trap(where, f"{one.shown}: mark {first} wraps to {rule.mark:#x}")
    if rule.mask and rule.mark & ~rule.mask:
        yield Trap(where, f"{one.shown}: mark {text} has bits outside its mask, so no packet matches it")
    if rule.action == "nop":
        yield Trap(one.place(), f"{one.shown}: neither lookup nor action nor goto: the rule does nothing")
    if one.get("action") and one.get("lookup"):
        yield Trap(one.place("action"), f"{one.shown}: action {one.get('action')} goes before lookup, which is ignored")
    if not one.get("priority"):
        said = f"it is {rule.priority} only as long as no {one.type} is put before it in the file"
        yield Trap(one.place(), f"{one.shown}: no priority: {said}")
    elif rule.priority > 32766:
        said = "is behind table main (32766), which has answered before if it has a default route"
        yield Trap(one.place("priority"), f"{one.shown}: priority {rule.priority} {said}")


def _bits(text: str) -> int:
    try:
        return int(text, 0).bit_length() if len(text) < 40 and not text.startswith("-") else 0
    except ValueError:
        return 0


# --- routes -----------------------------------------------------------------------------------


def _connected(found: Network) -> Iterator[Route]:
    """Local addresses, connected networks and default routes of interfaces."""
    for family, network in ((4, "127.0.0.0/8"), (6, "::1/128")):
        yield Route(family, TABLE_LOCAL, network, "local", device="lo", protocol=KERNEL)
    for at, device in enumerate(_devices(found)):
        link_local = f"fe80::a00:27ff:fe00:{at + 2:x}/128"
        yield Route(6, TABLE_LOCAL, link_local, "local", device=device, protocol=KERNEL)
        yield Route(6, TABLE_LOCAL, "ff00::/8", "multicast", device=device, metric=256, protocol=KERNEL)
        yield Route(6, TABLE_MAIN, "fe80::/64", device=device, metric=256, protocol=KERNEL)
    for one in found.interfaces:
        if one.up and one.device and one.device != "lo":
            yield from _of_one(one)


def _devices(found: Network) -> list[str]:
    return list(dict.fromkeys(one.device for one in found.interfaces if one.up and one.device and one.device != "lo"))


def _of_one(one: Interface) -> Iterator[Route]:
    metric = unsigned(one.section.get("metric")) or 0
    for address in one.addresses:
        family, width = address.version, address.max_prefixlen
        number = one.tables.get(family, TABLE_MAIN)
        yield Route(family, TABLE_LOCAL, f"{address.ip}/{width}", "local", device=one.device, protocol=KERNEL)
        if address.network.prefixlen == width and family == 4:
            continue  # a host address has no network
        if address.ip.is_link_local and family == 6:
            continue  # fe80::/64 is there anyway
        moved = number != TABLE_MAIN
        yield Route(family, number, str(address.network), device=one.device, protocol=STATIC if moved else KERNEL,
                    metric=_metric(family, metric, moved), origin=origin(one.section))  # fmt: skip
    if not one.section.flag("defaultroute", True):
        return
    for gateway in one.gateways:
        family = gateway.version
        number = one.tables.get(family, TABLE_MAIN)
        option = "gateway" if family == 4 else "ip6gw"
        said = origin(one.section, option if one.section.get(option) else "")
        plain = Route(family, number, gateway=str(gateway), device=one.device, protocol=STATIC,
                      metric=metric or (1024 if family == 6 else 0), origin=said)  # fmt: skip
        if one.proto in LEASED6 and one.section.flag("sourcefilter", True):
            for address in one.addresses:
                if address.version == 6:
                    yield evolve(plain, source=str(address.network))
        else:
            yield plain


def _metric(family: int, metric: int, moved: bool) -> int:
    return metric or (0 if family == 4 else 1024 if moved else 256)


def _static_routes(
    sections: Sequence[Section], found: Network, names: Mapping[str, int], traps: list[Trap]
) -> Iterator[Route]:
    for one in sections:
        if one.type not in ("route", "route6") or one.flag("disabled"):
            continue
        try:
            route = _route(one, _KINDS[one.type], found, names)
        except _Dropped as why:
            traps.append(Trap(one.place(), f"{one.shown}: netifd leaves this route out without a word: {why}"))
            continue
        if route is None:
            traps.append(
                Trap(one.place(), f"{one.shown}: its interface is not there or not up, so the route is missing")
            )
            continue
        if route.kind in _TYPED and one.get("interface"):
            traps.append(Trap(one.place("interface"), f"{one.shown}: this guard is away while interface "
                                                      f"'{one.get('interface')}' is down"))  # fmt: skip
        yield route


def _route(one: Section, family: int, found: Network, names: Mapping[str, int]) -> Route | None:
    kind = one.get("type", "unicast")
    if kind not in _TYPED and kind not in ("unicast", "local", "broadcast", "multicast", "anycast"):
        raise _Dropped(f"there is no type {kind!r}")
    number = TABLE_MAIN
    if one.get("table"):
        wanted = table(one.get("table"), names)
        if wanted is None:
            raise _Dropped(f"there is no table {one.get('table')!r}")
        number = wanted
    via = found.named(one.get("interface"))
    if one.get("interface"):
        if via is None or not via.up:
            return None
        if not one.get("table") or number == TABLE_MAIN:
            number = via.tables.get(family, number)
    elif kind not in _TYPED:
        raise _Dropped("it names no interface, which only routes of type unreachable and the like may")
    target = _target(one, family)
    gateway = one.get("gateway")
    if gateway in ("::", "0.0.0.0"):
        gateway = ""
    if gateway:
        try:
            if ip_interface(gateway).version != family or "/" in gateway:
                raise _Dropped(f"gateway {gateway!r} is no IPv{family} address")
        except ValueError:
            raise _Dropped(f"gateway {gateway!r} is no IPv{family} address") from None
    metric = _number(one, "metric", 0) or (1024 if family == 6 else 0)
    device = via.device if via else None
    typed = kind in _TYPED
    return Route(family, number, target, kind, None if typed else gateway or None,
                 ("lo" if family == 6 else None) if typed else device or None, metric,
                 one.flag("onlink"), STATIC, origin(one))  # fmt: skip


def _target(one: Section, family: int) -> str:
    text = one.get("target", "0.0.0.0/0" if family == 4 else "::/0")
    mask = one.get("netmask")
    try:
        found = ip_interface(f"{text}/{mask}" if mask and "/" not in text else text)
    except ValueError:
        raise _Dropped(f"target {text!r} is no network") from None
    if found.version != family:
        raise _Dropped(f"target {text!r} is not IPv{family}")
    assert isinstance(found, IPv4Interface | IPv6Interface)
    return "default" if not found.network.prefixlen else str(found.network)
