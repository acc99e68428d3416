# SPDX-License-Identifier: BSD-2-Clause
"""Self-test from inside a service process: mark of its sockets, confinement, routes, and DNS.

The checks run in that process, with its user and group and in its cgroup, so that they see what its
program will see. No packet leaves the host: routes are looked up only, and dnsmasq answers the DNS
query itself.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address

from attrs import frozen

from ...kernel.cgroup import own_socket_marks
from ...kernel.netlink.rtnetlink import RouteLookups, Rtnetlink
from ...kernel.packet_capture import receive_only_from
from ...netstate.routing import Route
from ...policy.objects import DNS_PORT, Service, Uplink
from .version_query import VERSION_QUERY, is_version_reply

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# Documentation addresses (RFC 5737, RFC 3849): no host has them, so a reply proves the redirect.
UNASSIGNED = {4: "198.51.100.53", 6: "2001:db8:5:3::53"}
_MAX_REPLY = 4096  # bytes
_TRIES, _TIMEOUT = 3, 1.0  # queries, and seconds to wait for the reply to each
# The address family, an address, or a route of it is missing.
_CANNOT_SEND = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH)


@frozen
class SelfTestResult:
    """Result of one check. `passed` is None if there was nothing to check."""

    text: str
    passed: bool | None


def check_marks(uplink: Uplink) -> Iterator[SelfTestResult]:
    """Check for each family that new sockets of this process have the uplink's mark."""
    checked = 0
    for family, domain in FAMILIES.items():
        try:
            marks_by_type = own_socket_marks(domain)
        except OSError as error:
            yield SelfTestResult(f"IPv{family}: no socket can be opened: {error.strerror}", False)
            continue
        checked += len(marks_by_type)
        if not marks_by_type:
            yield SelfTestResult(f"IPv{family}: this kernel has no such sockets", None)
            continue
        passed = all(uplink.mark.matches(mark) for mark in marks_by_type.values())
        mark_text = " and ".join(sorted({f"{mark:#x}" for mark in marks_by_type.values()}))
        wanted = "" if passed else f", and not {uplink.mark}"
        yield SelfTestResult(f"IPv{family}: a new socket has the mark {mark_text}{wanted}", passed)
    if not checked:
        yield SelfTestResult("this kernel supports neither IPv4 nor IPv6", False)


def check_confinement(uplink: Uplink) -> Iterator[SelfTestResult]:
    """Check that sockets of this process cannot be bound to a device that is not the uplink's."""
    devices = ", ".join(uplink.devices)
    for domain in FAMILIES.values():
        with suppress(OSError), socket.socket(domain, socket.SOCK_DGRAM) as sock:
            try:
                # Without confinement this needs no privilege since Linux 5.7.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            except PermissionError:
                yield SelfTestResult(f"confined to {devices}: SO_BINDTODEVICE to another device is refused", True)
            else:
                yield SelfTestResult(f"confined to {devices}: SO_BINDTODEVICE to another device is possible", False)
            return
    yield SelfTestResult("confined: no socket can be opened", False)


def check_routes(uplink: Uplink, service: Service, own: bool) -> Iterator[SelfTestResult]:
    """Check for each family of the uplink's addresses that marked packets are routed by the uplink.

    With `own` the mark is that of a new socket of this process (a service may need none), else the
    policy's. An uplink without any address is a failure: no packet can leave.
    """
    names = ", ".join(uplink.devices)
    devices = [device for device in Rtnetlink().devices() if device.name in uplink.devices]
    addresses = {ip_address(text.partition("/")[0]) for device in devices for text in device.addresses}
    families = {address.version for address in addresses if not address.is_link_local or address.version == 4}
    if not families:
        yield SelfTestResult(f"{names}: no address, so nothing can leave", False)
    with RouteLookups() as lookups:
        for family in FAMILIES:
            if family not in families:
                yield SelfTestResult(f"IPv{family}: {names} has no address", None)
                continue
            allowed = [str(net.network_address) for net in service.to if net.version == family]
            if service.to and not allowed:
                yield SelfTestResult(f"IPv{family}: the policy allows the service no destination", None)
                continue
            to = allowed[0] if allowed else UNASSIGNED[family]
            mark = next(iter(own_socket_marks(FAMILIES[family]).values())) if own else uplink.mark.value
            yield _route_finding(family, to, lookups.get_route(family, to, mark=mark), uplink)


def _route_finding(family: int, to: str, route: Route | int, uplink: Uplink) -> SelfTestResult:
    if isinstance(route, int):
        return SelfTestResult(f"IPv{family}: no route to {to} with the mark: {os.strerror(route)}", False)
    source = f", from {route.prefsrc}" if route.prefsrc else ""
    passed = route.kind == "unicast" and route.device in uplink.devices
    return SelfTestResult(f"IPv{family}: routed by {route.device or route.kind}{source}", passed)


def check_dns(name: str, uplink: Uplink) -> Iterator[SelfTestResult]:
    """Check for each address of the uplink's resolver that DNS queries reach it."""
    if uplink.resolver is None:
        yield SelfTestResult("DNS: the uplink has no resolver", None)
        return
    for listen in uplink.resolver.listen:
        family = listen.address.version
        detail, passed = _query_resolver(family)
        resolver = f"the resolver of uplink {name} ({listen})"
        if passed is None:
            text = f"not tested ({detail})"
        elif passed:
            text = f"queries go to {resolver}"
        else:
            text = f"queries do not reach {resolver}: {detail}"
        yield SelfTestResult(f"IPv{family}: DNS: {text}", passed)


def _query_resolver(family: int) -> tuple[str, bool | None]:
    """Query a server address that no host has.

    Return the outcome, and whether this host replied.
    """
    try:
        with socket.socket(FAMILIES[family], socket.SOCK_DGRAM) as sock:
            receive_only_from(sock, "lo")
            sock.connect((UNASSIGNED[family], DNS_PORT))
            replied = any(_replies(sock) for _ in range(_TRIES))
    except OSError as error:
        if error.errno in _CANNOT_SEND:
            return f"it cannot be sent: {error.strerror}", None
        if error.errno == errno.ECONNREFUSED:
            return "it does not run; start 'nftpolicy resolver'", False
        return error.strerror or str(error), False
    return ("it replied" if replied else "no reply from this host"), replied


def _replies(sock: socket.socket) -> bool:
    """Send the query once; return True if a reply arrived in time."""
    sock.send(VERSION_QUERY)
    end = time.monotonic() + _TIMEOUT
    while select.select([sock], [], [], max(0.0, end - time.monotonic()))[0]:
        if is_version_reply(sock.recv(_MAX_REPLY)):
            return True
    return False
