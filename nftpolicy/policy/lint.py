# SPDX-License-Identifier: BSD-2-Clause
"""What a good policy may not mean: each finding is certain from the file alone, or from what else is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .errors import Path
from .mark import Mark
from .objects import Policy, Resolver, Server
from .others import clashing

Warnings = Iterator[tuple[Path, str]]

# Files that the machine's own resolver reads or writes: they name servers of all links.
SYSTEM = (
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/systemd/resolve/stub-resolv.conf",
    "/run/resolvconf/resolv.conf",
    "/run/NetworkManager/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
    "/tmp/resolv.conf",
    "/tmp/resolv.conf.d/resolv.conf.auto",
)


def warnings(policy: Policy, here: frozenset[str] = frozenset()) -> Warnings:
    """Everything that deserves a word, as (path of the key, what to do). `here`: files of others.SIGNS that exist."""
    for check in _CHECKS:
        yield from check(policy)
    yield from _marks(policy, here)


def _marks(policy: Policy, here: frozenset[str]) -> Warnings:
    for name, uplink in policy.uplink.items():
        for other, there in clashing(uplink.mark, here):
            where = "on this machine" if there else "if it ever runs here"
            yield (
                ("uplink", name, "mark"),
                f"{other.name} uses {_listed(other.marks)} ({other.source}) and would be taken for the uplink's, or "
                f"overwrite its mark, {where}; choose other bits",
            )


def _listed(marks: tuple[Mark, ...]) -> str:
    return ", ".join(f"bits {one.mask:#x}" if not one.value else f"{one.value:#x}" for one in marks)


def _resolvers(policy: Policy) -> Warnings:
    for name, uplink in policy.uplink.items():
        if uplink.resolver is None:
            continue
        path: Path = ("uplink", name, "resolver")
        asked = [one for one in policy.service.values() if one.uplink == name and (one.group or one.user)]
        if not asked:
            yield path, "no service with a group or user uses this uplink, so nobody may ask its resolver"
        if uplink.resolver.lease in SYSTEM:
            yield (
                (*path, "lease"),
                f"{uplink.resolver.lease} names the servers of the whole machine, not those of the uplink; "
                "have the uplink's DHCP client write a file of its own",
            )
        if "ra" in uplink.resolver.sources and "ndp" not in uplink.exempt:
            yield (
                (*path, "sources", uplink.resolver.sources.index("ra")),
                "no router can be asked for its advertisement, since the uplink does not exempt 'ndp': servers are "
                "not known until a router speaks of itself",
            )
        for index, server in enumerate(uplink.resolver.servers):
            told = _server(policy, name, server)
            if told:
                yield (*path, "servers", index), told


def _server(policy: Policy, name: str, server: Server) -> str | None:
    """What is wrong with a server of an uplink's resolver."""
    address = server.address
    if address.is_loopback:
        return f"{address} is this machine's own resolver, which asks by other ways; name the uplink's servers"
    if server.zone is not None and server.zone not in policy.uplink[name].devices:
        return f"{server} is on {server.zone}, which is no device of uplink {name!r}"
    for other, uplink in policy.uplink.items():
        places = uplink.resolver.listen if isinstance(uplink.resolver, Resolver) else ()
        if any(one.address == address for one in places):
            return f"{address} is where the resolver of uplink {other!r} listens; name the uplink's servers"
    return None


def _mesh(policy: Policy) -> Warnings:
    for name, uplink in policy.uplink.items():
        for index, word in enumerate(uplink.exempt):
            if word == "vxlan-mesh" and not policy.inside:
                yield (
                    ("uplink", name, "exempt", index),
                    "'inside' names no device, so no mesh device can be used above this; leave the word out, "
                    "or name the mesh's devices",
                )


def _kernels(policy: Policy) -> Warnings:
    for name, service in policy.service.items():
        if service.kernel and not service.sport:
            yield (
                ("service", name, "kernel"),
                "what this machine's own programs send through the tunnel is dropped, since its packets belong to "
                'them; name the port of the kernel\'s socket, such as sport = ["udp/51820"] (ListenPort of WireGuard)',
            )


_CHECKS: tuple[Callable[[Policy], Warnings], ...] = (_resolvers, _mesh, _kernels)
