# SPDX-License-Identifier: BSD-2-Clause
"""Warnings about valid policies. Each is certain from the file, or from installed software."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .known_marks import conflicting_users
from .mark import Mark
from .objects import DNS_PORT, Policy, Port, Resolver, Server
from .toml_positions import KeyPath
from .vocabulary import UNSUPPORTED_ANSWERS

_TFTP = Port("udp", 69, 69)
PolicyWarning = tuple[KeyPath, str]  # key path, and what to do

# Files that the system resolver reads or writes: they contain the servers of all links.
SYSTEM_RESOLV_FILES = (
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/systemd/resolve/stub-resolv.conf",
    "/run/resolvconf/resolv.conf",
    "/run/NetworkManager/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
    "/tmp/resolv.conf",
    "/tmp/resolv.conf.d/resolv.conf.auto",
)


def find_warnings(policy: Policy, present: frozenset[str] = frozenset()) -> Iterator[PolicyWarning]:
    """Yield all warnings as (key path, what to do).

    `present`: the files of known_marks.MARK_USER_FILES that exist on this machine.
    """
    for check in _CHECKS:
        yield from check(policy)
    yield from _mark_conflicts(policy, present)


def _mark_conflicts(policy: Policy, present: frozenset[str]) -> Iterator[PolicyWarning]:
    for name, uplink in policy.uplink.items():
        kernel = any(service.uplink == name and service.kernel for service in policy.service.values())
        for user, installed in conflicting_users(uplink.mark, present):
            if kernel and uplink.mark in user.marks:
                continue  # its tunnel is the service
            condition = "is installed on this machine" if installed else "would conflict if installed"
            yield (
                ("uplink", name, "mark"),
                f"{user.name} {condition}: it uses {_describe_marks(user.marks)} ({user.source}), so its packets "
                "may match the uplink's mark, or it may overwrite that mark; choose other bits",
            )


def _describe_marks(marks: tuple[Mark, ...]) -> str:
    return ", ".join(f"{mark.value:#x}" if mark.value else f"bits {mark.mask:#x}" for mark in marks)


def _resolvers(policy: Policy) -> Iterator[PolicyWarning]:
    for name, uplink in policy.uplink.items():
        if uplink.resolver is None:
            continue
        path: KeyPath = ("uplink", name, "resolver")
        if not any(service.uplink == name and (service.group or service.user) for service in policy.service.values()):
            yield (
                path,
                "no service with a group or user uses this uplink, so no process may query its resolver; "
                "add one, or remove the resolver",
            )
        if uplink.resolver.lease in SYSTEM_RESOLV_FILES:
            yield (
                (*path, "lease"),
                f"{uplink.resolver.lease} contains the servers of all links, not only those of the uplink; "
                "have the uplink's DHCP client write a file of its own",
            )
        if "ra" in uplink.resolver.sources and "ndp" not in uplink.exempt:
            yield (
                (*path, "sources", uplink.resolver.sources.index("ra")),
                "no router solicitation can be sent, since the uplink does not exempt 'ndp': no servers are known "
                "until a router sends an unsolicited advertisement",
            )
        lists: list[tuple[KeyPath, tuple[Server, ...]]] = [((*path, "servers"), uplink.resolver.servers)]
        lists += [((*path, "domains", domain), servers) for domain, servers in uplink.resolver.domains.items()]
        for list_path, servers in lists:
            for index, server in enumerate(servers):
                problem = _server_problem(policy, name, server)
                if problem:
                    yield (*list_path, index), problem


def _server_problem(policy: Policy, name: str, server: Server) -> str | None:
    """Return why a server of an uplink's resolver cannot work, or None."""
    address = server.address
    if address.is_loopback:
        return f"{address} is a resolver of this machine, which does not use the uplink; name the uplink's servers"
    if server.zone is not None and server.zone not in policy.uplink[name].devices:
        return f"{server}: {server.zone} is not a device of uplink {name!r}"
    for other, uplink in policy.uplink.items():
        listening = uplink.resolver.listen if isinstance(uplink.resolver, Resolver) else ()
        if any(listen.address == address for listen in listening):
            return f"the resolver of uplink {other!r} listens on {address}; name the uplink's servers"
    return None


def _mesh_exemptions(policy: Policy) -> Iterator[PolicyWarning]:
    for name, uplink in policy.uplink.items():
        for index, word in enumerate(uplink.exempt):
            if word == "vxlan-mesh" and not policy.inside:
                yield (
                    ("uplink", name, "exempt", index),
                    "'inside' names no device, so no mesh device can use VXLAN on this uplink; "
                    "remove 'vxlan-mesh', or name the mesh's devices",
                )


def _kernel_services(policy: Policy) -> Iterator[PolicyWarning]:
    for name, service in policy.service.items():
        if service.kernel and not service.sport and not service.ports:
            yield (
                ("service", name, "kernel"),
                "packets that local programs send through the tunnel are dropped, since the kernel attributes them "
                "to those programs; name the port of the kernel's socket, such as "
                'sport = ["udp/51820"] (ListenPort of WireGuard)',
            )


def _forwards(policy: Policy) -> Iterator[PolicyWarning]:
    for name, forward in policy.forward.items():
        if not forward.source and not forward.masquerade:
            yield (
                ("forward", name),
                "answers arrive only if another program translates the source address; add masquerade = true, "
                "or 'source' if the uplink's router knows these networks",
            )
        if not forward.source and not forward.to:
            yield (
                ("forward", name),
                "packets to other networks inside go to the uplink too; name the networks behind these devices "
                "in 'source'",
            )


def _lans(policy: Policy) -> Iterator[PolicyWarning]:
    for name, lan in policy.lan.items():
        for index, port in enumerate(lan.ports):
            if port.low <= DNS_PORT <= port.high:
                yield (
                    ("lan", name, "ports", index),
                    "lets programs query the name server of the uplink's network, which learns the names that they "
                    "look up; leave port 53 out",
                )


def _answers(policy: Policy) -> Iterator[PolicyWarning]:
    for name, uplink in policy.uplink.items():
        for index, answer in enumerate(uplink.answer):
            if answer.port is not None and answer.port == _TFTP:
                yield ("uplink", name, "answer", index), UNSUPPORTED_ANSWERS["tftp"]


_CHECKS: tuple[Callable[[Policy], Iterator[PolicyWarning]], ...] = (
    _resolvers,
    _mesh_exemptions,
    _kernel_services,
    _forwards,
    _lans,
    _answers,
)
