# SPDX-License-Identifier: BSD-2-Clause
"""What of a policy nobody carries out on a router without Python, and what to do instead.

None of it is a leak. The guard is the same, so what lacks its mark is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..policy.errors import Path
from ..policy.objects import Policy, Resolver, Service, Uplink


def undone(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Each as (path of the key, what does not happen and what to do)."""
    for name, service in policy.service.items():
        mark = policy.uplink[service.uplink].mark.value
        yield from ((("service", name, key), words) for key, words in _of_service(service, mark))
    for name, uplink in policy.uplink.items():
        yield from ((("uplink", name, *key), words) for key, words in _of_uplink(uplink))


def library(mark: int) -> str:
    """How a program is started on a router so that libpacketmark marks its sockets."""
    return f"LD_PRELOAD=libpacketmark.so LIBPACKETMARK_MARK={mark}"  # in decimal, as it is read there (atoi(3))


def _of_service(service: Service, mark: int) -> Iterator[tuple[str, str]]:
    if service.marks in ("cgroup", "preload"):
        yield (
            "marks",
            f"nothing on the router marks its sockets, so they are dropped; start it there with {library(mark)}",
        )
    if service.confine:
        yield (
            "confine",
            "nothing on the router keeps it from other marks and devices; the guard still asks whose a mark is",
        )


def _of_uplink(uplink: Uplink) -> Iterator[tuple[Path, str]]:
    if "ra" in uplink.learn:
        yield (
            ("learn",),
            "nothing on the router moves routes into the uplink's table but netifd, which learns them itself",
        )
    if uplink.resolver is not None:
        yield from ((("resolver", key), words) for key, words in _of_resolver(uplink.resolver))


def _of_resolver(resolver: Resolver) -> Iterator[tuple[str, str]]:
    told = {"lease": resolver.lease is not None, "sources": bool(set(resolver.sources) - {"auto", "netifd"})}
    for key in (key for key, is_told in told.items() if is_told):
        yield key, "is not read on the router, where netifd names the servers that the uplink's interfaces learned"
