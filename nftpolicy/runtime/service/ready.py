# SPDX-License-Identifier: BSD-2-Clause
"""Whether an uplink can be used, and whether a service uses it: what is still missing, in words.

What decides is pure and is told what there is; `World` asks this machine.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from attrs import frozen

from ...kernel.closing import Running
from ...kernel.conntrack import Flow
from ...kernel.interface import Unavailable
from ...kernel.links import Link, links
from ...kernel.rtnetlink import RtNetlink
from ...kernel.sock_diag import TCP, UDP, Listed
from ...netstate.routing import Route
from ...policy.objects import Account, Listen, Policy, Service, Uplink
from ..resolver.engine import servers_file

EVERY = 0.2  # seconds between two looks, where the kernel does not tell of a change
_SETTLE = 0.05  # seconds after a message, so that many of them are one look
_PATIENCE = 0.5  # seconds for the resolver's answer
# version.bind, class CHAOS, type TXT: who answers it asks nobody for that (RFC 4892).
_QUESTION = struct.pack("!6H", 0x7761, 0x0100, 1, 0, 0, 0) + b"\7version\4bind\0" + struct.pack("!2H", 16, 3)

Ids = tuple[str, Account]  # ("group" or "user", who)


def of_links(uplink: Uplink, found: Mapping[str, Link], routes: Iterable[Route]) -> list[str]:
    """Why no packet can leave by an uplink, as far as devices, addresses and routes go; [] if one can.

    One device with all it needs in one family is enough. `routes` are those of the uplink's table.
    """
    ways = [one for one in routes if one.destination == "default" and one.kind == "unicast"]
    faults = []
    for device in uplink.devices:
        link = found.get(device)
        if link is None:
            faults.append(f"{device} is not there")
        elif not link.carrier:
            faults.append(f"{device} has no carrier" if link.up else f"{device} is down")
        elif not link.addresses:
            faults.append(f"{device} has no address yet")
        else:
            families = {address.version for address in link.addresses}
            if any(one.family in families and any(hop.device == device for hop in one.ways) for one in ways):
                return []
            named = " or ".join(f"IPv{family}" for family in sorted(families))
            faults.append(f"table {uplink.table} has no default route of {named} by {device}")
    return faults


def of_service(
    service: Service, uplink: Uplink, mine: Sequence[Listed], flows: Iterable[Flow], own: frozenset[str]
) -> str | None:
    """What keeps a service from being in touch by its uplink, or None if nothing does.

    `mine` are its sockets; `own` are the addresses of this machine, `flows` those that are tracked.
    """
    if not mine:
        return "it has no IP socket yet that can receive"
    marked = list(mine)
    if not service.kernel:  # whose sockets have none: the packets wear it
        marked = [one for one in mine if one.mark is not None and uplink.mark.worn_by(one.mark)]
    if not marked:
        return f"none of its {len(mine)} sockets wears the mark {uplink.mark}"
    away = [one for one in flows if one.replied and not _stays(one, own)]
    if any(_established(one, own) or any(_carries(one, flow) for flow in away) for one in marked):
        return None
    return "nothing has come back to its sockets yet"


def _established(one: Listed, own: frozenset[str]) -> bool:
    return one.protocol == TCP and one.state == "established" and one.remote is not None and not _here(one.remote, own)


def _carries(one: Listed, flow: Flow) -> bool:
    """Whether a flow is that of a socket: it began it, or it answered."""
    return (one.family, one.protocol) == (flow.family, flow.protocol) and any(
        one.sport == ends.sport and one.local in (None, ends.source) for ends in (flow.original, flow.reply)
    )


def _stays(flow: Flow, own: frozenset[str]) -> bool:
    """Whether both ends are on this machine, as those of a question to the resolver are."""
    return all(_here(end.source, own) for end in (flow.original, flow.reply))


def _here(address: str, own: frozenset[str]) -> bool:
    return address in own or ip_address(address).is_loopback


def asker(policy: Policy, uplink: str) -> Ids | None:
    """Who may ask the resolver of an uplink: the first service that has a group or user."""
    for service in policy.service.values():
        if service.uplink == uplink:
            for kind, account in (("group", service.group), ("user", service.user)):
                if account is not None:
                    return kind, account
    return None


@frozen
class World:
    """What is asked of this machine. `guarded` says whether guard and ladder of the policy are in force; `folder` is
    that of the state."""

    policy: Policy
    guarded: Callable[[], bool]
    folder: Path

    def of_uplink(self, name: str) -> list[str]:
        """What an uplink still lacks, each as a sentence; [] if it is ready."""
        uplink = self.policy.uplink[name]
        kernel = RtNetlink()
        routes = [one for family in (4, 6) for one in kernel.routes(family) if one.table == uplink.table]
        faults = of_links(uplink, links(uplink.devices), routes)
        if not self.guarded():
            faults.append(f"{self.policy.name} is not in force: 'nftpolicy status' says what is missing")
        if not faults and uplink.resolver is not None:
            faults += self._of_resolver(name, uplink)
        return [f"uplink {name}: {fault}" for fault in faults]

    def _of_resolver(self, name: str, uplink: Uplink) -> Iterator[str]:
        resolver = uplink.resolver
        who = asker(self.policy, name)
        if resolver is None or who is None:  # nobody asks it, so nobody waits for it
            return
        if not any(_answers(listen, who) for listen in resolver.listen):
            named = " and ".join(map(str, resolver.listen))
            yield f"its resolver does not answer on {named}: 'nftpolicy resolver' runs it"
        elif _without_servers(servers_file(self.folder, name)):
            yield "its resolver knows no server yet"

    def of_service(self, name: str) -> list[str]:
        """What a service still lacks; [] if it is in touch."""
        service = self.policy.service[name]
        uplink = self.policy.uplink[service.uplink]
        with Running() as running:
            own = frozenset(one for addresses in running.addresses().values() for one in addresses)
            sockets = [one for one in running.sockets() if one.remote is None or not _here(one.remote, own)]
            mine = _of(service, sockets, running.groups)
            fault = of_service(service, uplink, mine, running.flows(0, 0), own)
        return [] if fault is None else [f"service {name}: {fault}"]


def _of(
    service: Service, sockets: Iterable[Listed], groups: Callable[[Iterable[int]], Mapping[int, int]]
) -> list[Listed]:
    held = [one for one in sockets if one.inode]
    if service.kernel:
        # The kernel's own have inodes, too, and nobody who holds them.
        udp = [one for one in held if one.protocol == UDP and not one.uid]
        known = groups(one.inode for one in udp)
        return [one for one in udp if one.inode not in known]
    if service.user is not None:
        return [one for one in held if one.uid == service.user.number]
    assert service.group is not None
    known = groups(one.inode for one in held)
    return [one for one in held if known.get(one.inode) == service.group.number]


def _without_servers(file: Path) -> bool:
    """Whether a running resolver has written down that there is none."""
    try:
        return not file.read_text().strip()
    except OSError:
        return False  # it is not run by us, and only it knows


def _answers(listen: Listen, who: Ids) -> bool:
    """Whether a resolver answers a member of a service."""
    family = socket.AF_INET6 if listen.address.version == 6 else socket.AF_INET
    try:
        with _acting_as(who), socket.socket(family, socket.SOCK_DGRAM) as one:
            one.settimeout(_PATIENCE)
            one.connect((str(listen.address), listen.port))
            one.send(_QUESTION)
            return one.recv(512)[:2] == _QUESTION[:2]
    except OSError:
        return False


@contextmanager
def _acting_as(who: Ids) -> Iterator[None]:
    """Within this, sockets that are opened have the group or user as their owner."""
    kind, account = who
    change, before = (os.setegid, os.getegid()) if kind == "group" else (os.seteuid, os.geteuid())
    try:
        change(account.number)
    except OSError as error:
        raise Unavailable(f"{kind} {account.name} can't be taken on ({error.strerror}): this needs root") from None
    try:
        yield
    finally:
        change(before)


def wait(
    look: Callable[[], list[str]], seconds: float, descriptors: Sequence[int] = (), read: Callable[[], object] = int
) -> list[str]:
    """Look until nothing is missing, or for so many seconds; what is missing then.

    The next look comes when a descriptor can be read (`read` empties them), and otherwise after EVERY, or twice the
    time that one takes.
    """
    end = time.monotonic() + seconds
    while True:
        start = time.monotonic()
        missing = look()
        now = time.monotonic()
        left = end - now
        if not missing or left <= 0:
            return missing
        if select.select(descriptors, [], [], min(max(EVERY, 2 * (now - start)), left))[0]:
            time.sleep(min(_SETTLE, left))
            with suppress(OSError):
                read()
