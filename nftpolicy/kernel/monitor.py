# SPDX-License-Identifier: BSD-2-Clause
"""What the kernel tells of changes: nf_tables, links, addresses, routes, ip rules, sysctls.

Read from raw messages: at 10,000 changes a second there are some microseconds for each. Numbers are those
of include/uapi/linux: netfilter/nf_tables.h, netfilter/nfnetlink.h, rtnetlink.h, if_link.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from attrs import Factory, define, frozen

from ..netstate.routing import IpRule, Route
from . import rtmessages as messages
from .inotify import Files
from .listener import Listener, join

_RCVBUFFORCE = 33
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_NFTABLES = 7  # NFNLGRP_NFTABLES
# RTNLGRP_*: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF, IPV6_NETCONF
_ROUTING = (1, 5, 7, 8, 9, 11, 19, 24, 25)
_BUFFER = 8 << 20  # bytes that the kernel keeps for each of the two sockets, at most
_MOST = 4096  # datagrams that one look takes, so that a storm can't keep the caller from acting

_HEADER = struct.Struct("=IHHII")
_BODY, _REPLACE = 16, 0x100
_UNICAST, _LOCAL = 1, 255  # RTN_UNICAST, RT_TABLE_LOCAL
_NFT = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEWCHAIN, _DELTABLE, _NEWRULE, _DELRULE, _NEWGEN = (_NFT | one for one in (3, 2, 6, 8, 15))
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 16, 17, 20, 21, 24, 25
_NEWRULE_IP, _DELRULE_IP, _NEWNETCONF, _DELNETCONF = 32, 33, 80, 81
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_LINK = struct.Struct("=BxHiII")
_LIVE = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
_BRIDGE = 7  # AF_BRIDGE: the same links, told a second time


@frozen
class Author:
    """Who made a change, as the kernel knows it: a process id (of the machine, not of a container) and a name."""

    name: str = "unknown"
    pid: int | None = None


UNKNOWN = Author()


@define
class News:
    """What has changed since the last look, by others than this process. `bool()` says whether there is anything.

    `gone`: families of our tables that were deleted; `chains`: (family, name) of our chains whose rules or policy
    changed; `ours`: something in our tables changed; `aside`: in our tables beside them; `foreign`: how often
    something in others' tables did. `rules`, `routes`: of ours that were deleted. `ladder`: ip rules of others
    changed. `replaced`: a route took another one's place. `routed`: a route came that leads out. `links`: devices
    came, went, changed name, master or state; `addresses` likewise. `sysctls`: one of those watched was written.
    `files`: in the folder watched. `lost`: the kernel had more to say than it could keep, so that all of this may
    be incomplete.
    """

    gone: set[str] = Factory(set)
    chains: set[tuple[str, str]] = Factory(set)
    ours: bool = False
    aside: bool = False
    foreign: int = 0
    rules: list[IpRule] = Factory(list)
    routes: list[Route] = Factory(list)
    ladder: bool = False
    replaced: bool = False
    routed: bool = False
    links: bool = False
    addresses: bool = False
    sysctls: bool = False
    files: bool = False
    lost: bool = False
    author: Author = UNKNOWN

    def __bool__(self) -> bool:
        return bool(self.damage or self.foreign or self.ladder or self.links or self.addresses or self.files)

    @property
    def damage(self) -> bool:
        """Whether something of ours may be missing."""
        parts = (self.gone, self.ours, self.aside, self.rules, self.routes, self.replaced, self.sysctls, self.lost)
        return any(parts)


class Monitor(Listener):
    """The kernel's own words about one network namespace: that of the thread that makes it.

    `table` is the name of our tables, `aside` of those beside them, `protocol` marks our rules and routes.
    Raises OSError if the kernel refuses.
    """

    def __init__(self, table: str, aside: str, protocol: int) -> None:
        self._ours, self._aside = _table(table), _table(aside)
        self._protocol = protocol
        self._mine: frozenset[int] = frozenset()
        self._links: dict[int, tuple[str, int, int]] = {}
        self._touched = False  # our tables, in a transaction whose end was not read yet
        self._files = Files()
        super().__init__(self._files)
        try:
            self._nft = self._told(_NETLINK_NETFILTER, (_NFTABLES,))
            self._rt = self._told(_NETLINK_ROUTE, _ROUTING)
            self._list_links()
        except BaseException:
            self.close()
            raise

    def _told(self, protocol: int, groups: Iterable[int]) -> socket.socket:
        made = self._open(socket.AF_NETLINK, protocol)
        with suppress(OSError):  # without CAP_NET_ADMIN of the first user namespace the default has to do
            made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
        join(made, groups)
        return made

    def leave_out(self, ports: Collection[int]) -> None:
        """Changes made through these netlink sockets are not told: they are this process's own."""
        self._mine = frozenset(ports)

    def watch_sysctls(self, paths: Iterable[str]) -> None:
        """Tell of writes to these sysctls from now on, and of no others. Those that are not there are left out."""
        self._files.watch_sysctls(paths)

    def watch_folder(self, folder: Path) -> None:
        """Tell when a file is put into the folder or taken out of it."""
        self._files.watch_folder(folder)

    def sysctls(self) -> dict[str, str]:
        """The values of those watched, by path; of those that are there."""
        return self._files.values()

    def read(self) -> News:
        """All that was told meanwhile; never waits."""
        news = News()
        for raw in _datagrams(self._nft, news):
            self._of_nft(raw, news)
        for raw in _datagrams(self._rt, news):
            self._of_routing(raw, news)
        files = self._files.read()
        news.files, news.sysctls = files.folder, news.sysctls or files.sysctls
        if news.lost:
            self._touched = False
            self._list_links()
            news.links = True
        return news

    # --- nf_tables ---

    def _of_nft(self, raw: bytes, news: News) -> None:
        at, end, ours, aside, mine = 0, len(raw), self._ours, self._aside, self._mine
        unpack = _HEADER.unpack_from
        while at + _BODY <= end:
            length, kind, _, _, port = unpack(raw, at)
            if kind == _NEWGEN:
                if self._touched:
                    self._touched = False
                    news.author = _author(raw, at + _BODY + 4, min(at + length, end))
            elif port not in mine:
                if raw.startswith(ours, at + _BODY + 4):
                    self._of_ours(raw, at, min(at + length, end), kind, news)
                elif raw.startswith(aside, at + _BODY + 4):
                    self._touched = news.aside = True
                else:
                    news.foreign += 1
            at += length + 3 & ~3

    def _of_ours(self, raw: bytes, at: int, end: int, kind: int, news: News) -> None:
        self._touched = news.ours = True
        family = _FAMILIES.get(raw[at + _BODY], "")
        if kind == _DELTABLE:
            news.gone.add(family)
        elif kind in (_NEWRULE, _DELRULE, _NEWCHAIN):
            found = dict(messages.attributes(raw, at + _BODY + 4, end))
            name = found.get(3 if kind == _NEWCHAIN else 2, b"")  # NFTA_CHAIN_NAME, NFTA_RULE_CHAIN
            news.chains.add((family, name.rstrip(b"\0").decode(errors="replace")))

    # --- rtnetlink ---

    def _of_routing(self, raw: bytes, news: News) -> None:
        at, end, mine = 0, len(raw), self._mine
        unpack = _HEADER.unpack_from
        while at + _BODY <= end:
            length, kind, flags, _, port = unpack(raw, at)
            body, stop = at + _BODY, at + length
            if kind == _NEWROUTE:
                if port not in mine:
                    news.replaced |= bool(flags & _REPLACE)
                    news.routed |= raw[body + 7] == _UNICAST and raw[body + 4] != _LOCAL
            elif kind == _DELROUTE:
                if raw[body + 5] == self._protocol and port not in mine:
                    news.routes.append(messages.route(raw, body, stop, self._names()))
            elif kind in (_NEWLINK, _DELLINK):
                self._link(raw, body, stop, kind == _DELLINK, news)
            elif kind in (_NEWADDR, _DELADDR):
                news.addresses = True
            elif kind in (_NEWRULE_IP, _DELRULE_IP):
                self._rule(raw, body, stop, kind == _DELRULE_IP, port in mine, news)
            elif kind in (_NEWNETCONF, _DELNETCONF):
                news.sysctls = True
            at += length + 3 & ~3

    def _rule(self, raw: bytes, start: int, end: int, deleted: bool, mine: bool, news: News) -> None:
        if mine:
            return
        rule = messages.rule(raw, start, end)
        if rule.protocol != self._protocol:
            news.ladder = True
        elif deleted:
            news.rules.append(rule)
        else:
            news.ours = True

    def _names(self) -> dict[int, str]:
        return {index: name for index, (name, _, _) in self._links.items()}

    def _link(self, raw: bytes, start: int, end: int, gone: bool, news: News) -> None:
        family, _, index, flags, _ = _LINK.unpack_from(raw, start)
        if family == _BRIDGE:
            return
        if gone:
            news.links |= self._links.pop(index, None) is not None
            return
        found = dict(messages.attributes(raw, start + _LINK.size, end))
        name = found.get(3, b"").rstrip(b"\0").decode("utf-8", "surrogateescape")  # IFLA_IFNAME, IFLA_MASTER
        known = (name, int.from_bytes(found.get(10, b""), "little"), flags & _LIVE)
        if self._links.get(index) != known:
            self._links[index] = known
            news.links = True

    def _list_links(self) -> None:
        from .rtnetlink import Questions

        self._links.clear()
        with Questions() as questions:
            for part in questions.dump(18, socket.AF_UNSPEC):  # RTM_GETLINK
                self._link(*part, False, News())


def _datagrams(channel: socket.socket, news: News) -> Iterator[bytes]:
    """What is there to be read, up to a bound."""
    receive = channel.recv
    for _ in range(_MOST):
        try:
            yield receive(1 << 17)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            news.lost = True


def _table(name: str) -> bytes:
    """How messages about something in the tables of that name go on behind struct nfgenmsg: NFTA_*_TABLE is 1."""
    raw = name.encode() + b"\0"
    return struct.pack("=HH", 4 + len(raw), 1) + raw


def _author(raw: bytes, start: int, end: int) -> Author:
    found = dict(messages.attributes(raw, start, end))  # NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME
    if 2 not in found:
        return UNKNOWN
    name = found.get(3, b"").rstrip(b"\0").decode(errors="replace")
    return Author(name or UNKNOWN.name, int.from_bytes(found[2], "big"))


def own_ports() -> frozenset[int]:
    """The addresses of all netlink sockets of this process, whoever opened them."""
    found = set()
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            number = os.dup(int(entry.name))
            try:
                one = socket.socket(fileno=number)
            except OSError:
                os.close(number)
                raise
            with one:
                if one.family == socket.AF_NETLINK:
                    found.add(one.getsockname()[0])
    return frozenset(found - {0})


def sent(devices: Collection[str]) -> int:
    """Packets that these devices have sent so far, of those that are there (proc_pid_net(5))."""
    total = 0
    with open("/proc/thread-self/net/dev", "rb") as file:  # noqa: PTH123 - a third quicker
        for line in file:
            name, colon, numbers = line.partition(b":")
            if colon and name.strip().decode("utf-8", "surrogateescape") in devices:
                total += int(numbers.split()[9])
    return total


def counted(table: str) -> dict[str, int]:
    """Packets of the named counters in the tables of that name, of all families together. OSError with its errno."""
    from .netlink import Channel

    found: dict[str, int] = {}
    body = struct.pack("=BBH", 0, 0, 0) + messages.attribute(1, table.encode() + b"\0")
    body += messages.attribute(3, struct.pack("!I", 1))  # NFTA_OBJ_TYPE: NFT_OBJECT_COUNTER
    with Channel(_NETLINK_NETFILTER) as channel:
        for raw, start, end in channel.dump(_NFT | 19, body):  # NFT_MSG_GETOBJ
            parts = dict(messages.attributes(raw, start + 4, end))
            data = parts.get(4, b"")
            name = parts.get(2, b"").rstrip(b"\0").decode(errors="replace")
            packets = dict(messages.attributes(data, 0, len(data))).get(2, b"")  # NFTA_COUNTER_PACKETS
            found[name] = found.get(name, 0) + int.from_bytes(packets, "big")
    return found
