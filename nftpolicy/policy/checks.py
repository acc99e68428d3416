# SPDX-License-Identifier: BSD-2-Clause
"""Faults that only the whole policy shows. Each check yields (path of the key, what to do)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

from . import words
from .errors import Path, nearest
from .objects import OURS, Account, Policy, Resolver, Service, cgroup_of

Fault = tuple[Path, str]
MOST_UPLINKS = 32  # the ladder's priorities have room for 39 (compiler/names.py)
# Tables with a meaning of their own, include/uapi/linux/rtnetlink.h.
RESERVED_TABLES = frozenset({0, 253, 254, 255})


def faults(policy: Policy) -> Iterator[Fault]:
    """All faults of the policy, in the order of the checks."""
    for check in _CHECKS:
        yield from check(policy)


def covered(device: str, inside: tuple[str, ...]) -> str | None:
    """The pattern of `inside` that names the device, or None."""
    return next((one for one in inside if device == one or (one[-1] == "*" and device.startswith(one[:-1]))), None)


def _uplinks_are_there(policy: Policy) -> Iterator[Fault]:
    if not policy.uplink:
        yield ("uplink",), "a policy guards at least one uplink: add [uplink.wan]"
    if len(policy.uplink) > MOST_UPLINKS:
        yield ("uplink",), f"{len(policy.uplink)} uplinks are more than the {MOST_UPLINKS} that a policy can have"
    for name, uplink in policy.uplink.items():
        if not uplink.devices:
            yield ("uplink", name, "devices"), "an uplink has at least one device"


def _tables(policy: Policy) -> Iterator[Fault]:
    for name, uplink in policy.uplink.items():
        if uplink.table in RESERVED_TABLES:
            yield (
                ("uplink", name, "table"),
                f"table {uplink.table} is the kernel's own (0, 253 default, 254 main, 255 local); choose another",
            )
        elif not 1 <= uplink.table <= 2**32 - 1:
            yield ("uplink", name, "table"), "a table is a number from 1 to 4294967295"
    for (first, a), (second, b) in combinations(policy.uplink.items(), 2):
        if a.table == b.table:
            yield ("uplink", second, "table"), f"table {b.table} is uplink {first!r}'s already; each uplink has its own"


def _devices(policy: Policy) -> Iterator[Fault]:
    owners: dict[str, str] = {}
    for name, uplink in policy.uplink.items():
        for index, device in enumerate(uplink.devices):
            path = ("uplink", name, "devices", index)
            pattern = covered(device, policy.inside)
            if device == "lo":
                yield path, "'lo' never leaves the machine and can be no uplink"
            elif device in ("all", "default"):
                yield path, f"{device!r} is no device: under /proc/sys/net the kernel calls the settings of all so"
            elif pattern:
                yield path, f"{device!r} is inside by {pattern!r}; a device is inside or an uplink, not both"
            elif device in owners:
                yield path, f"{device!r} is a device of uplink {owners[device]!r} already; one device, one uplink"
            owners[device] = name


def _marks(policy: Policy) -> Iterator[Fault]:
    for (first, a), (second, b) in combinations(policy.uplink.items(), 2):
        if a.mark.overlaps(b.mark):
            both = a.mark.value | b.mark.value
            yield (
                ("uplink", second, "mark"),
                (
                    f"overlaps with uplink {first!r}: the mark {both:#x} would be {a.mark} and {b.mark} at once; "
                    "give both one mask and different values"
                ),
            )


def _words_once(policy: Policy) -> Iterator[Fault]:
    for path, listed in _lists(policy):
        seen: set[object] = set()
        for index, item in enumerate(listed):
            if item in seen:
                yield (*path, index), "is listed twice"
            seen.add(item)


def _lists(policy: Policy) -> Iterator[tuple[Path, tuple[object, ...]]]:
    yield ("inside",), policy.inside
    for name, uplink in policy.uplink.items():
        path: Path = ("uplink", name)
        yield (*path, "exempt"), uplink.exempt
        yield (*path, "learn"), uplink.learn
        yield (*path, "answer"), tuple(answer.port for answer in uplink.answer)  # "http" is "tcp/80"
        yield (*path, "gateways"), uplink.gateways
        if uplink.resolver:
            yield (*path, "resolver", "servers"), uplink.resolver.servers
            yield (*path, "resolver", "sources"), uplink.resolver.sources
    for name, service in policy.service.items():
        yield ("service", name, "to"), service.to
        yield ("service", name, "ports"), service.ports
        yield ("service", name, "sport"), service.sport


def _listening(policy: Policy) -> Iterator[Fault]:
    taken: dict[tuple[str, int], str] = {}
    for name, uplink in policy.uplink.items():
        if uplink.resolver is None:
            continue
        path: Path = ("uplink", name, "resolver")
        if not uplink.resolver.listen:
            yield (*path, "listen"), "a resolver listens somewhere; leave the key out for 127.0.0.1:54 and [::1]:54"
        if len({listen.port for listen in uplink.resolver.listen}) > 1:
            yield (*path, "listen"), "a resolver has one port on all its addresses"
        for index, listen in enumerate(uplink.resolver.listen):
            place = (str(listen.address), listen.port)
            if place in taken:
                yield (*path, "listen", index), f"{listen} is taken by the resolver of uplink {taken[place]!r}"
            if listen.port == 53 and listen.address.is_loopback:
                yield (
                    (*path, "listen", index),
                    f"{listen} is where the machine's own resolver is asked; choose another port, such as 54",
                )
            same = [one for one in uplink.resolver.listen if one.address.version == listen.address.version]
            if same.index(listen):
                yield (*path, "listen", index), f"a resolver has one address of each family, and {same[0]} is it"
            taken[place] = name
        if uplink.resolver.user.number == 0:
            yield (*path, "user"), "root's sockets are too many to be the resolver's; choose a user of its own"
        if uplink.resolver.servers and uplink.resolver.lease:
            yield (*path, "lease"), "either 'servers' are written down or a lease names them, not both"
        yield from _sources((*path, "sources"), uplink.resolver)


def _sources(path: Path, resolver: Resolver) -> Iterator[Fault]:
    if resolver.sources and (resolver.servers or resolver.lease):
        other = "servers" if resolver.servers else "lease"
        yield path, f"either {other!r} names the resolver's servers or 'sources' do, not both"
    if "auto" in resolver.sources and len(resolver.sources) > 1:
        yield (*path, resolver.sources.index("auto")), "'auto' is all sources at once; leave it or the others out"


def _gateways(policy: Policy) -> Iterator[Fault]:
    for name, uplink in policy.uplink.items():
        for index, gateway in enumerate(uplink.gateways):
            if gateway.is_loopback or gateway.is_multicast or gateway.is_unspecified:
                yield ("uplink", name, "gateways", index), f"{gateway} can be no gateway"


def _selectors(policy: Policy) -> Iterator[Fault]:
    taken: dict[tuple[str, int], str] = {}
    for name, service in policy.service.items():
        path = ("service", name)
        yield from _selector(path, service)
        for key, account in accounts(service):
            if account.number == 0:
                yield (*path, key), f"every process of root has {key} 0; give the service a {key} of its own"
            if (key, account.number) in taken:
                owner = taken[key, account.number]
                yield (*path, key), f"{key} {account.name!r} is service {owner!r} already; two services have two {key}s"
            taken[key, account.number] = name


def _selector(path: Path, service: Service) -> Iterator[Fault]:
    chosen = len(accounts(service)) + service.kernel
    if chosen != 1:
        yield path, "a service is known by exactly one of 'group', 'user' and 'kernel = true'"
    for index, net in enumerate(service.to):
        if net.is_loopback or net.is_unspecified:
            yield (*path, "to", index), f"what is sent to {net} never leaves the machine"
    if service.kernel and (service.to or service.ports):
        yield path, "the kernel's own sockets can not be narrowed with 'to' or 'ports'; write a group or user instead"
    if service.sport and not service.kernel:
        yield (*path, "sport"), "is of the kernel's own sockets; with a group or user, 'ports' says where it may send"
    for index, port in enumerate(service.sport):
        if port.protocol != "udp":
            yield (*path, "sport", index), f"the kernel's own sockets are of UDP; write 'udp/{port.low}'"


def accounts(service: Service) -> list[tuple[str, Account]]:
    """The accounts that a service is known by: [("group", ...)] or [("user", ...)]."""
    pairs = [("group", service.group), ("user", service.user)]
    return [(key, account) for key, account in pairs if account is not None]


def _marking(policy: Policy) -> Iterator[Fault]:
    for name, service in policy.service.items():
        path = ("service", name)
        for key, way in words.MARKS_KEYS.items():
            if getattr(service, key) and service.marks != way:
                yield (*path, key), f'is for services with marks = "{way}", and this one has "{service.marks}"'
        if service.kernel and service.marks != "itself":
            yield (
                (*path, "marks"),
                f'the kernel\'s own sockets belong to no program that could be started with "{service.marks}"; '
                'write "itself", and have their owner set the mark (FwMark of WireGuard)',
            )
        elif service.unmarked and service.user is None:
            yield (*path, "marks"), "an ip rule knows users alone: write 'user' instead, or another way to mark"


def _cgroups(policy: Policy) -> Iterator[Fault]:
    """A program on a cgroup works below it too, so that one in another would wear two marks."""
    owners: dict[str, str] = {}  # cgroup -> its service
    within: dict[str, str] = {}  # cgroup -> a service whose cgroup is below it
    for name, service in policy.service.items():
        if service.marks != "cgroup":
            continue
        mine = cgroup_of(name, service)
        path: Path = ("service", name, "cgroup") if service.cgroup else ("service", name)
        if mine == OURS:
            yield path, f"{OURS!r} holds the cgroups of all services; name one of the service's own"
        parts = mine.split("/")
        above = ["/".join(parts[:end]) for end in range(1, len(parts))]
        other = within.get(mine) or next((owners[one] for one in (*above, mine) if one in owners), None)
        if other:
            yield (
                path,
                f"{mine} is that of service {other!r}, or one is inside the other; two services have two cgroups",
            )
        owners[mine] = name
        within.update(dict.fromkeys(above, name))


def _services_have_uplinks(policy: Policy) -> Iterator[Fault]:
    for name, service in policy.service.items():
        if service.uplink not in policy.uplink:
            known = ", ".join(policy.uplink)
            yield (
                ("service", name, "uplink"),
                f"there is no uplink {service.uplink!r}{nearest(service.uplink, policy.uplink)}; known are {known}",
            )


def _resolver_is_no_service(policy: Policy) -> Iterator[Fault]:
    resolvers = {up.resolver.user.number: name for name, up in policy.uplink.items() if up.resolver}
    for name, service in policy.service.items():
        if service.user and service.user.number in resolvers:
            yield (
                ("service", name, "user"),
                (
                    f"user {service.user.name!r} runs the resolver of uplink {resolvers[service.user.number]!r}, "
                    "whose own queries would come back to it; choose another"
                ),
            )


_CHECKS: tuple[Callable[[Policy], Iterator[Fault]], ...] = (
    _uplinks_are_there,
    _tables,
    _devices,
    _marks,
    _words_once,
    _listening,
    _gateways,
    _services_have_uplinks,
    _selectors,
    _marking,
    _cgroups,
    _resolver_is_no_service,
)
