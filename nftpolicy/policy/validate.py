# SPDX-License-Identifier: BSD-2-Clause
"""Validation across the fields of a policy. Each check yields (key path, what to do)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from itertools import combinations

from . import vocabulary
from .errors import did_you_mean
from .objects import (
    SERVICES_CGROUP,
    Account,
    Forward,
    Lan,
    Network,
    Policy,
    Port,
    Publish,
    Service,
    service_cgroup,
)
from .scalars import MAX_PORT, has_hosts, is_routed, matching_pattern
from .toml_positions import KeyPath
from .validate_clat import find_clat_faults
from .validate_forwards import PolicyFault, find_forward_faults
from .validate_resolvers import find_resolver_faults, find_resolver_user_faults
from .validate_tunnels import find_shared_tunnels, find_tunnel_faults

MAX_UPLINKS = 32  # there are priorities for 39 ip rules of marks (compiler/object_names.py)
MAX_TABLE = 2**32 - 1
# Tables with a fixed meaning, include/uapi/linux/rtnetlink.h.
KERNEL_TABLES = frozenset({0, 253, 254, 255})
QUERY_TABLE = 7853  # nftpolicy's own, for the routes of DNS queries by lo; 853 is the port of DNS over TLS
RESERVED_TABLES = KERNEL_TABLES | {QUERY_TABLE}


def find_faults(policy: Policy) -> Iterator[PolicyFault]:
    """Yield all faults of the policy, in the order of the checks."""
    for check in _CHECKS:
        yield from check(policy)


def _uplink_count(policy: Policy) -> Iterator[PolicyFault]:
    if not policy.uplink:
        yield ("uplink",), "a policy needs at least one uplink: add [uplink.wan]"
    if len(policy.uplink) > MAX_UPLINKS:
        yield (
            ("uplink",),
            f"{len(policy.uplink)} uplinks are more than the {MAX_UPLINKS} that a policy can have",
        )
    for name, uplink in policy.uplink.items():
        if not uplink.devices:
            yield ("uplink", name, "devices"), "an uplink needs at least one device"


def _tables(policy: Policy) -> Iterator[PolicyFault]:
    for name, uplink in policy.uplink.items():
        if uplink.table == QUERY_TABLE:
            yield ("uplink", name, "table"), f"table {QUERY_TABLE} is nftpolicy's own, for DNS queries; choose another"
        elif uplink.table in KERNEL_TABLES:
            yield (
                ("uplink", name, "table"),
                f"table {uplink.table} is reserved by the kernel (0, 253 default, 254 main, 255 local); choose another",
            )
        elif not 1 <= uplink.table <= MAX_TABLE:
            yield ("uplink", name, "table"), f"a table is a number from 1 to {MAX_TABLE}"
    for (first, a), (second, b) in combinations(policy.uplink.items(), 2):
        if a.table == b.table:
            yield (
                ("uplink", second, "table"),
                f"uplink {first!r} already uses table {b.table}; each uplink needs its own",
            )


def _devices(policy: Policy) -> Iterator[PolicyFault]:
    owners: dict[str, str] = {}
    for name, uplink in policy.uplink.items():
        for index, device in enumerate(uplink.devices):
            path = ("uplink", name, "devices", index)
            pattern = matching_pattern(device, policy.inside)
            if device == "lo":
                yield path, "'lo' cannot be an uplink: its packets stay on this machine"
            elif device in ("all", "default"):
                yield (
                    path,
                    f"{device!r} cannot be a device name: /proc/sys/net uses it for the settings of all devices",
                )
            elif pattern:
                yield (
                    path,
                    f"{device!r} matches {pattern!r} of 'inside'; a device is inside or an uplink, not both",
                )
            elif device in owners:
                yield (
                    path,
                    f"{device!r} is already a device of uplink {owners[device]!r}; a device belongs to one uplink",
                )
            owners[device] = name


def _marks(policy: Policy) -> Iterator[PolicyFault]:
    for (first, a), (second, b) in combinations(policy.uplink.items(), 2):
        if a.mark.overlaps(b.mark):
            both = a.mark.value | b.mark.value
            yield (
                ("uplink", second, "mark"),
                f"overlaps with the mark of uplink {first!r}: fwmark {both:#x} matches both "
                f"{a.mark} and {b.mark}; use one mask and different values",
            )


def _duplicates(policy: Policy) -> Iterator[PolicyFault]:
    for path, items in _lists(policy):
        known: set[object] = set()
        for index, item in enumerate(items):
            if item in known:
                yield (*path, index), "is listed twice"
            known.add(item)


def _lists(policy: Policy) -> Iterator[tuple[KeyPath, tuple[object, ...]]]:
    yield ("inside",), policy.inside
    for name, uplink in policy.uplink.items():
        path: KeyPath = ("uplink", name)
        yield (*path, "exempt"), uplink.exempt
        yield (*path, "learn"), uplink.learn
        yield (*path, "answer"), tuple(answer.port for answer in uplink.answer)  # "http" is "tcp/80"
        for index, answer in enumerate(uplink.answer):
            yield (*path, "answer", index, "source"), answer.source
        yield (*path, "gateways"), uplink.gateways
        yield (*path, "addresses"), uplink.addresses
        if uplink.resolver:
            yield (*path, "resolver", "servers"), uplink.resolver.servers
            yield (*path, "resolver", "sources"), uplink.resolver.sources
            for domain, servers in uplink.resolver.domains.items():
                yield (*path, "resolver", "domains", domain), servers
    for name, service in policy.service.items():
        yield ("service", name, "to"), service.to
        yield ("service", name, "ports"), service.ports
        yield ("service", name, "sport"), service.sport
    for name, forward in policy.forward.items():
        yield ("forward", name, "source"), forward.source
        yield ("forward", name, "to"), forward.to
        yield ("forward", name, "ports"), forward.ports
    for name, lan in policy.lan.items():
        yield ("lan", name, "to"), lan.to
        yield ("lan", name, "ports"), lan.ports
        yield ("lan", name, "sport"), lan.sport


def _gateways(policy: Policy) -> Iterator[PolicyFault]:
    for name, uplink in policy.uplink.items():
        for index, gateway in enumerate(uplink.gateways):
            if gateway.is_loopback or gateway.is_multicast or gateway.is_unspecified:
                yield ("uplink", name, "gateways", index), f"{gateway} cannot be a gateway"


def _answers(policy: Policy) -> Iterator[PolicyFault]:
    for name, uplink in policy.uplink.items():
        for index, answer in enumerate(uplink.answer):
            for number, network in enumerate(answer.source):
                if not has_hosts(network):
                    path: KeyPath = ("uplink", name, "answer", index, "source", number)
                    yield path, f"no request arrives from {network} (loopback, groups, unspecified); remove it"
            if answer.exclusive:
                yield from _exclusive_port(policy, name, index, answer.port)


def _exclusive_port(policy: Policy, name: str, index: int, port: Port | None) -> Iterator[PolicyFault]:
    path: KeyPath = ("uplink", name, "answer", index, "exclusive")
    if port is None or port.protocol != "udp":
        yield path, "is only for UDP ports: other replies leave by the uplink of their request in any case"
        return
    if port.high == MAX_PORT:
        yield path, f"no ip rule can select port {MAX_PORT}; let the server use another one, or bind it"
    for other, uplink in policy.uplink.items():
        if other != name and any(answer.port and answer.port.overlaps(port) for answer in uplink.answer):
            yield path, f"uplink {other!r} answers {port} too; give each uplink a port of its own, or bind the server"


def _addresses(policy: Policy) -> Iterator[PolicyFault]:
    for name, uplink in policy.uplink.items():
        for index, network in enumerate(uplink.addresses):
            if not is_routed(network):
                yield (
                    ("uplink", name, "addresses", index),
                    f"{network} holds addresses that no network routes to this machine (loopback, link-local, groups); "
                    "name those of the uplink",
                )


def _selectors(policy: Policy) -> Iterator[PolicyFault]:
    owners: dict[tuple[str, int], str] = {}
    for name, service in policy.service.items():
        path = ("service", name)
        yield from _selector(path, service)
        for key, account in account_selectors(service):
            if service.of_root and service.marks == "cgroup":
                continue  # the mark tells its sockets from the other ones of root
            if account.number == 0:
                yield (
                    (*path, key),
                    f"{key} 0 matches every process of root; give the service a {key} of its own, or write "
                    'user = "root" and marks = "cgroup"',
                )
            if (key, account.number) in owners:
                owner = owners[key, account.number]
                yield (
                    (*path, key),
                    f"service {owner!r} already uses {key} {account.name!r}; each service needs a {key} of its own",
                )
            owners[key, account.number] = name


def _selector(path: KeyPath, service: Service) -> Iterator[PolicyFault]:
    count = len(account_selectors(service)) + service.kernel
    if count != 1:
        hint = "; for any program and the uplink's own network, use [lan.NAME]" if not count and service.to else ""
        if not count and service.cgroup:
            hint = (
                ": the cgroup has the mark set, but no rule can check it where packets leave; for a unit that runs as "
                'root, add user = "root"'
            )
        yield path, f"a service needs exactly one of 'group', 'user' and 'kernel = true'{hint}"
    for index, net in enumerate(service.to):
        if net.is_loopback or net.is_unspecified:
            yield (*path, "to", index), f"packets to {net} never leave the machine; remove it"
    yield from find_tunnel_faults(path, service)
    if service.sport and not service.kernel:
        yield (
            (*path, "sport"),
            "is only valid with 'kernel = true'; with a group or user, 'ports' restricts the destination ports",
        )
    for index, port in enumerate(service.sport):
        if port.protocol != "udp":
            yield (
                (*path, "sport", index),
                f"the kernel's own sockets use UDP; write 'udp/{port.low}'",
            )


def account_selectors(entry: Service | Lan) -> list[tuple[str, Account]]:
    """Return the accounts that select the sockets of an entry: [("group", ...)] or [("user", ...)]."""
    pairs = [("group", entry.group), ("user", entry.user)]
    return [(key, account) for key, account in pairs if account is not None]


def _marking(policy: Policy) -> Iterator[PolicyFault]:
    for name, service in policy.service.items():
        path = ("service", name)
        for key, method in vocabulary.KEYS_OF_MARKS_VALUE.items():
            if getattr(service, key) and service.marks != method:
                yield (
                    (*path, key),
                    f'needs marks = "{method}", but this service has "{service.marks}"',
                )
        if service.kernel and service.marks != "itself":
            yield (
                (*path, "marks"),
                f'no program opens the kernel\'s own sockets, so "{service.marks}" cannot mark them; '
                'write "itself", and configure the mark where the socket is configured '
                "(FwMark of WireGuard)",
            )
        elif service.unmarked and service.user is None:
            yield (
                (*path, "marks"),
                "ip rules match users, not groups; use 'user' instead, or another marking method",
            )


def _cgroups(policy: Policy) -> Iterator[PolicyFault]:
    """Check that no cgroup is below another: its sockets would get the marks of both services."""
    owners: dict[str, str] = {}  # cgroup -> its service
    parents: dict[str, str] = {}  # cgroup -> a service that has a cgroup below it
    for name, service in policy.service.items():
        if service.marks != "cgroup":
            continue
        cgroup = service_cgroup(name, service)
        path: KeyPath = ("service", name, "cgroup") if service.cgroup else ("service", name)
        if cgroup == SERVICES_CGROUP:
            yield path, f"{SERVICES_CGROUP!r} is the parent of the cgroups of all services; choose another"
        parts = cgroup.split("/")
        above = ["/".join(parts[:end]) for end in range(1, len(parts))]
        conflicts = [parents.get(cgroup), *(owners.get(other) for other in (*above, cgroup))]
        other_service = next(filter(None, conflicts), None)
        if other_service:
            yield (
                path,
                f"{cgroup} is the same as, above or below the cgroup of service {other_service!r}; "
                "each service needs a separate cgroup",
            )
        owners[cgroup] = name
        parents.update(dict.fromkeys(above, name))


def _known_uplinks(policy: Policy) -> Iterator[PolicyFault]:
    sections: Mapping[str, Mapping[str, Service | Forward | Publish | Lan]] = {
        "service": policy.service,
        "forward": policy.forward,
        "publish": policy.publish,
        "lan": policy.lan,
    }
    for section, entries in sections.items():
        for name, entry in entries.items():
            if entry.uplink not in policy.uplink:
                yield (
                    (section, name, "uplink"),
                    f"unknown uplink {entry.uplink!r}{did_you_mean(entry.uplink, policy.uplink)}; "
                    f"known are {', '.join(policy.uplink)}",
                )


_SHORTEST_OWN_NETWORK = {4: 16, 6: 48}  # of a public `to`, so that it is that of an uplink and not the Internet


def _lans(policy: Policy) -> Iterator[PolicyFault]:
    for name, lan in policy.lan.items():
        path = ("lan", name)
        if not lan.to:
            yield (*path, "to"), "needs the uplink's own networks, such as '192.168.1.0/24'"
        for index, network in enumerate(lan.to):
            is_public = not (network.is_multicast or network.is_loopback)
            if not is_local(network) and not (lan.sport and is_public):
                yield (
                    (*path, "to", index),
                    f"{network} is not a private, unique local or link-local network, so packets to it could reach "
                    "any host; use a service, or 'sport' for a server's answers",
                )
            elif not is_local(network) and network.prefixlen < _SHORTEST_OWN_NETWORK[network.version]:
                shortest = _SHORTEST_OWN_NETWORK[network.version]
                yield (*path, "to", index), f"a public network of the uplink has a length of at least {shortest}"
        if lan.group and lan.user:
            yield path, "has 'group' and 'user'; remove one of them"
        if lan.sport and lan.ports:
            yield (*path, "sport"), "excludes 'ports'; make two tables"
        for index, port in enumerate(lan.sport):
            if port.protocol != "udp":
                yield (*path, "sport", index), f"answers to broadcast and multicast are UDP packets; {port} is not UDP"


def is_local(network: Network) -> bool:
    """Return True if no host on the Internet has an address of the network, and no group there."""
    blocks = (*vocabulary.PRIVATE_NETWORKS[network.version], vocabulary.LINK_LOCAL_NETWORK)
    return any(
        network.version == block.version and network.subnet_of(block)  # type: ignore[arg-type]
        for block in map(ip_network, (*blocks, *vocabulary.LOCAL_GROUPS[network.version]))
    )


_CHECKS: tuple[Callable[[Policy], Iterator[PolicyFault]], ...] = (
    _uplink_count,
    _tables,
    _devices,
    _marks,
    _duplicates,
    find_resolver_faults,
    _gateways,
    _addresses,
    _answers,
    _known_uplinks,
    _selectors,
    _marking,
    _cgroups,
    find_shared_tunnels,
    find_resolver_user_faults,
    _lans,
    find_forward_faults,
    find_clat_faults,
)
