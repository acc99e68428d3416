# SPDX-License-Identifier: BSD-2-Clause
"""What a process of a service finds when it looks around: the mark of its sockets, its way out, its names.

All of it runs in that process, with its ids and in its cgroup, so that what is found is what its program will find.
Nothing leaves the machine: routes are only asked for, and the question to the resolver is one that dnsmasq
answers by itself.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address

from attrs import frozen

from ...kernel.cgroup import own_sockets
from ...kernel.rtnetlink import Lookups, RtNetlink
from ...kernel.tap import only_from
from ...netstate.routing import Route
from ...policy.objects import Service, Uplink

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# Documentation addresses (RFC 5737, RFC 3849): nobody's, so that only a redirect brings an answer.
SOMEWHERE = {4: "198.51.100.53", 6: "2001:db8:5:3::53"}
_DNS = 53
# version.bind, class CHAOS, type TXT: who answers it says what it is itself, and asks nobody.
_QUESTION = struct.pack("!6H", 0x6E70, 0x0100, 1, 0, 0, 0) + b"\7version\4bind\0" + struct.pack("!2H", 16, 3)
_TRIES, _PATIENCE = 3, 1.0  # questions, and seconds to wait for the answer to each
# The family, an address, or a route of it is not there.
_NO_WAY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH)


@frozen
class Finding:
    """One thing that was looked at: `good` is None where there was nothing to look at."""

    text: str
    good: bool | None


def marks(uplink: Uplink) -> Iterator[Finding]:
    """For each family, whether the sockets of this process wear the uplink's mark."""
    seen = 0
    for family, domain in FAMILIES.items():
        try:
            worn = own_sockets(domain)
        except OSError as error:
            yield Finding(f"IPv{family}: no socket can be opened: {error.strerror}", False)
            continue
        seen += len(worn)
        if not worn:
            yield Finding(f"IPv{family}: this kernel has no such sockets", None)
            continue
        bare = [mark for mark in worn.values() if not uplink.mark.worn_by(mark)]
        found = " and ".join(sorted({f"{mark:#x}" for mark in worn.values()}))
        said = f"a new socket has the mark {found}" + (f", and not {uplink.mark}" if bare else "")
        yield Finding(f"IPv{family}: {said}", not bare)
    if not seen:
        yield Finding("there is neither IPv4 nor IPv6 here", False)


def confined(uplink: Uplink) -> Iterator[Finding]:
    """Whether the sockets of this process may name a device that is not the uplink's."""
    for domain in FAMILIES.values():
        with suppress(OSError), socket.socket(domain, socket.SOCK_DGRAM) as one:
            try:
                # Anybody may otherwise, since Linux 5.7.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            except PermissionError:
                yield Finding(f"confined to {', '.join(uplink.devices)}: another device is refused", True)
            else:
                yield Finding(f"confined to {', '.join(uplink.devices)}: another device is taken", False)
            return
    yield Finding("confined: no socket can be opened", False)


def routes(uplink: Uplink, service: Service, own: bool) -> Iterator[Finding]:
    """For each family in which the uplink has an address, where the kernel sends what is marked.

    With `own` the mark is that of a socket of this process (which may need none), else the policy's. If the uplink
    has no address at all, nothing can leave, and that is a fault.
    """
    devices = [one for one in RtNetlink().devices() if one.name in uplink.devices]
    held = {ip_address(text.partition("/")[0]) for one in devices for text in one.addresses}
    families = {one.version for one in held if not one.is_link_local or one.version == 4}
    if not families:
        yield Finding(f"{', '.join(uplink.devices)}: no address, so nothing can leave", False)
    with Lookups() as lookups:
        for family in FAMILIES:
            if family not in families:
                yield Finding(f"IPv{family}: {', '.join(uplink.devices)} has no address", None)
                continue
            to = next((str(net.network_address) for net in service.to if net.version == family), SOMEWHERE[family])
            if service.to and to == SOMEWHERE[family]:
                yield Finding(f"IPv{family}: the policy lets the service send nowhere", None)
                continue
            mark = next(iter(own_sockets(FAMILIES[family]).values())) if own else uplink.mark.value
            yield _route(family, to, lookups.getroute(family, to, mark=mark), uplink)


def _route(family: int, to: str, found: Route | int, uplink: Uplink) -> Finding:
    if isinstance(found, int):
        return Finding(f"IPv{family}: no route to {to} with the mark: {os.strerror(found)}", False)
    source = f", from {found.prefsrc}" if found.prefsrc else ""
    good = found.kind == "unicast" and found.device in uplink.devices
    return Finding(f"IPv{family}: routed by {found.device or found.kind}{source}", good)


def names(name: str, uplink: Uplink) -> Iterator[Finding]:
    """For each family in which the uplink's resolver listens, whether a question to port 53 of anybody reaches it."""
    if uplink.resolver is None:
        yield Finding("names: the uplink has no resolver", None)
        return
    for listen in uplink.resolver.listen:
        family = listen.address.version
        said, good = _asked(family)
        where = f"the resolver of uplink {name} ({listen})"
        words = {None: f"not tried ({said})", True: f"asked of {where}", False: f"do not reach {where}: {said}"}
        yield Finding(f"IPv{family}: names: {words[good]}", good)


def _asked(family: int) -> tuple[str, bool | None]:
    """Ask a server that is nobody; what came of it, and whether somebody on this machine answered."""
    try:
        with socket.socket(FAMILIES[family], socket.SOCK_DGRAM) as one:
            only_from(one, "lo")
            one.connect((SOMEWHERE[family], _DNS))
            answered = any(_answer(one) for _ in range(_TRIES))
    except OSError as error:
        if error.errno in _NO_WAY:
            return f"it can't be sent: {error.strerror}", None
        if error.errno == errno.ECONNREFUSED:
            return "it does not run; start 'nftpolicy resolver'", False
        return error.strerror or str(error), False
    return ("it answers" if answered else "no answer of this machine"), answered


def _answer(one: socket.socket) -> bool:
    """Send the question once; whether an answer came."""
    one.send(_QUESTION)
    end = time.monotonic() + _PATIENCE
    while select.select([one], [], [], max(0.0, end - time.monotonic()))[0]:
        message = one.recv(4096)
        if message[:2] == _QUESTION[:2] and len(message) >= 12 and message[2] & 0x80:
            return True
    return False
