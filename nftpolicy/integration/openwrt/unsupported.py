# SPDX-License-Identifier: BSD-2-Clause
"""Policy features that the OpenWrt export does not support, with the replacement for each.

None of them is a leak: the guard is the same, so packets without a mark are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...policy.objects import Policy, Resolver, Service, Uplink
from ...policy.toml_positions import KeyPath

_NO_FILTER = "and the uplink has no flush filter, which cannot test them"


def unsupported_features(policy: Policy) -> Iterator[tuple[KeyPath, str]]:
    """Yield (path of the key, consequence and replacement) for each unsupported feature."""
    for name, service in policy.service.items():
        mark = policy.uplink[service.uplink].mark.value
        yield from ((("service", name, key), text) for key, text in _service_features(service, mark))
    for name in policy.lan:
        yield (
            ("lan", name),
            "the routes of the uplink's own network are in its table on the router, so packets without the mark do not "
            f"get there, {_NO_FILTER}; give the program a service",
        )
    for name, uplink in policy.uplink.items():
        yield from ((("uplink", name, *key), text) for key, text in _uplink_features(uplink))


def preload_environment(mark: int) -> str:
    """Return the environment that makes libpacketmark mark a program's sockets on a router."""
    return f"LD_PRELOAD=libpacketmark.so LIBPACKETMARK_MARK={mark}"  # in decimal, since it is parsed by atoi(3)


def _service_features(service: Service, mark: int) -> Iterator[tuple[str, str]]:
    if service.marks in ("cgroup", "preload"):
        yield (
            "marks",
            "no program on the router marks its sockets, so they are dropped; "
            f"start it with {preload_environment(mark)}, as gluon-nftpolicy starts wgpeerselector and tunneldigger",
        )
    if service.confine:
        yield (
            "confine",
            "no program on the router confines it to its mark and devices; the guard still checks the owner of a mark",
        )


def _uplink_features(uplink: Uplink) -> Iterator[tuple[KeyPath, str]]:
    if "ra" in uplink.learn:
        yield (
            ("learn",),
            "only netifd moves routes to the uplink's table on the router, and it learns them itself",
        )
    if uplink.clat is not None:
        yield (
            ("clat",),
            "netifd puts the IPv4 route of its translator into table main on the router, so packets with the mark do "
            f"not get there, {_NO_FILTER}; give the service the IPv6 addresses of its servers",
        )
    if uplink.resolver is not None:
        yield from ((("resolver", key), text) for key, text in _resolver_features(uplink.resolver))


def _resolver_features(resolver: Resolver) -> Iterator[tuple[str, str]]:
    is_set = {"lease": resolver.lease is not None, "sources": bool(set(resolver.sources) - {"auto", "netifd"})}
    for key in (key for key, value in is_set.items() if value):
        yield key, "is not read on the router, where netifd provides the servers that the uplink's interfaces learned"
    if resolver.uses_tls:
        yield (
            "servers",
            "has tls://, which dnsmasq cannot query: no resolver runs on the router; name servers without TLS",
        )
