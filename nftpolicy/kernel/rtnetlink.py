# SPDX-License-Identifier: BSD-2-Clause
"""ip rules and routes by rtnetlink: written by pyroute2 behind a typed adapter, read by rtmessages.

pyroute2 ignores keys that it does not know, which would silently widen a rule; so only the
keys that are written here are ever passed, and what was written is read back by the caller.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from types import TracebackType
from typing import Any

from attrs import evolve

from ..netstate.routing import IpRule, Route
from ..netstate.state import Device
from . import rtmessages as messages

# include/uapi/linux/fib_rules.h
_ACTIONS = {"lookup": 1, "goto": 2, "nop": 3, "blackhole": 6, "unreachable": 7, "prohibit": 8}
_VERBS = {"add": "add", "delete": "del", "replace": "replace"}
_GETLINK, _GETADDR, _GETROUTE, GETNEIGH, _GETRULE = 18, 22, 26, 30, 34  # RTM_*
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10  # NLM_F_*
_ERROR, _DONE = 2, 3
_CLONED, _LOOKUP_TABLE, _FIB_MATCH = 0x200, 0x1000, 0x2000  # RTM_F_*
_PROTOCOL_AT, _FLAGS_AT = 5, 8  # in struct rtmsg
_MESSAGE = struct.Struct("=IHHII")
# sizes of ifinfomsg, ifaddrmsg, rtmsg, ndmsg, fib_rule_hdr
_HEAD = {_GETLINK: 16, _GETADDR: 8, _GETROUTE: 12, GETNEIGH: 12, _GETRULE: 12}

Part = tuple[bytes, int, int]  # a buffer, and where a message's body is in it


def _rule_keys(rule: IpRule) -> dict[str, Any]:
    unsupported = (rule.iif, rule.oif, rule.l4proto, rule.sports, rule.dports, rule.source, rule.goto)
    narrowed = (rule.suppress_prefix, rule.suppress_group, *unsupported)
    if any(one is not None for one in narrowed) or rule.tos or rule.invert or rule.l3mdev:
        raise ValueError(f"the compiler writes no such rule: {rule}")
    keys: dict[str, Any] = {
        "family": messages.AF[rule.family],
        "priority": rule.priority,
        "action": _ACTIONS[rule.action],
        "protocol": rule.protocol,
    }
    if rule.action == "lookup":
        keys["table"] = rule.table
    if rule.mask:
        keys |= {"fwmark": rule.mark, "fwmask": rule.mask}
    if rule.destination:
        address, length = rule.destination.split("/")
        keys |= {"dst": address, "dst_len": int(length)}
    if rule.uids:
        keys["uid_range"] = f"{rule.uids[0]}:{rule.uids[1]}"
    return keys


def _route_keys(route: Route, devices: dict[str, int]) -> dict[str, Any]:
    if route.nexthops or route.source or route.tos or route.prefsrc or route.preference != "medium":
        raise ValueError(f"the compiler writes no such route: {route}")
    default = {4: "0.0.0.0/0", 6: "::/0"}[route.family]
    keys: dict[str, Any] = {
        "family": messages.AF[route.family],
        "dst": default if route.destination == "default" else route.destination,
        "table": route.table,
        "type": route.kind,
        "proto": route.protocol,
        "priority": route.metric,
    }
    if route.gateway:
        keys["gateway"] = route.gateway
    if route.device and route.kind == "unicast":
        if route.device not in devices:
            raise OSError(errno.ENODEV, f"there is no device {route.device}")
        keys["oif"] = devices[route.device]
    if route.onlink:
        keys["flags"] = ["onlink"]
    return keys


class Questions:
    """A socket for questions, in the network namespace of the thread that makes it. A context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._number = 0

    def __enter__(self) -> Questions:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def dump(self, kind: int, family: int) -> list[Part]:
        """All objects of a kind. OSError with the kernel's errno."""
        while True:
            found = list(self._parts(kind, bytes((family,)) + bytes(_HEAD[kind] - 1), _DUMP))
            if None not in found:
                return [one for one in found if one is not None]
            # Something changed meanwhile; the kernel says that the list may have holes.

    def ask(self, kind: int, body: bytes) -> Part:
        """The answer to one question. OSError with the kernel's errno."""
        self._send(kind, body, 0)
        answer = self._socket.recv(1 << 16)
        length, got, _, _, _ = _MESSAGE.unpack_from(answer)
        if got == _ERROR:
            _raise(answer, 0)
        return answer, _MESSAGE.size, length

    def _send(self, kind: int, body: bytes, flags: int) -> None:
        self._number += 1
        size = _MESSAGE.size + len(body)
        self._socket.send(_MESSAGE.pack(size, kind, _REQUEST | flags, self._number, 0) + body)

    def _parts(self, kind: int, body: bytes, flags: int) -> Iterator[Part | None]:
        self._send(kind, body, flags)
        while True:
            answer = self._socket.recv(1 << 18)
            at = 0
            while at < len(answer):
                length, got, marks, number, _ = _MESSAGE.unpack_from(answer, at)
                if number == self._number:
                    if marks & _INTERRUPTED:
                        yield None
                    if got in (_ERROR, _DONE):
                        if got == _ERROR:
                            _raise(answer, at)
                        return
                    yield answer, at + _MESSAGE.size, at + length
                at += length + 3 & ~3


def _raise(answer: bytes, at: int) -> None:
    code = -struct.unpack_from("=i", answer, at + _MESSAGE.size)[0]
    if code:
        raise OSError(code, os.strerror(code))


class RtNetlink:
    """Rules, routes and links of the namespace that the calling thread is in."""

    @cached_property
    def _changes(self) -> Any:
        from pyroute2 import IPRoute  # slow to import, and only a change needs it

        return IPRoute()

    def rules(self, family: int) -> list[IpRule]:
        """All ip rules of a family, in order."""
        with Questions() as questions:
            return [messages.rule(*part) for part in questions.dump(_GETRULE, messages.AF[family])]

    def routes(self, family: int, protocol: int | None = None) -> list[Route]:
        """The routes of a family over all tables; of one protocol, or all."""
        with Questions() as questions:
            names = {index: device.name for index, _, device in _links(questions)}
            return [
                messages.route(raw, start, end, names)
                for raw, start, end in questions.dump(_GETROUTE, messages.AF[family])
                if protocol in (None, raw[start + _PROTOCOL_AT])
                and not _CLONED & struct.unpack_from("=I", raw, start + _FLAGS_AT)[0]
            ]

    def devices(self) -> list[Device]:
        """All devices with their addresses."""
        with Questions() as questions:
            links = _links(questions)
            addresses: dict[int, list[str]] = {}
            for part in questions.dump(_GETADDR, socket.AF_UNSPEC):
                index, address = messages.address(*part)
                addresses.setdefault(index, []).append(address)
        names = {index: device.name for index, _, device in links}
        return [
            evolve(device, addresses=tuple(addresses.get(index, ())), master=names.get(master or 0))
            for index, master, device in links
        ]

    @staticmethod
    def indexes_and_addresses() -> tuple[dict[int, str], frozenset[str]]:
        """The names of all devices by index, and all addresses of this machine, without their lengths."""
        with Questions() as questions:
            names = {index: device.name for index, _, device in _links(questions)}
            dumped = questions.dump(_GETADDR, socket.AF_UNSPEC)
        return names, frozenset(messages.address(*part)[1].partition("/")[0] for part in dumped)

    def change_rule(self, verb: str, rule: IpRule) -> None:
        """Add or delete; OSError with the kernel's errno."""
        self._acked(self._changes.rule, _VERBS[verb], _rule_keys(rule))

    def change_route(self, verb: str, route: Route) -> None:
        """Add, delete or replace; OSError with the kernel's errno."""
        devices = self._indexes() if route.device and route.kind == "unicast" else {}
        self._acked(self._changes.route, _VERBS[verb], _route_keys(route, devices))

    def names(self) -> set[str]:
        """The names of all network devices."""
        return set(self._indexes())

    def bridge_ports(self, devices: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Bridge -> ports, for those of `devices` that are bridges."""
        with Questions() as questions:
            links = _links(questions)
        bridges = {device.name: index for index, _, device in links if device.kind == "bridge"}
        return {
            name: tuple(sorted(port.name for _, master, port in links if master == bridges[name]))
            for name in devices
            if name in bridges
        }

    @staticmethod
    def _indexes() -> dict[str, int]:
        with Questions() as questions:
            return {device.name: index for index, _, device in _links(questions)}

    @staticmethod
    def _acked(function: Any, verb: str, keys: dict[str, Any]) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            function(verb, **keys)
        except NetlinkError as error:
            raise OSError(error.code, str(error.args[1] if len(error.args) > 1 else error)) from None


def _links(questions: Questions) -> list[tuple[int, int | None, Device]]:
    return [messages.link(*part) for part in questions.dump(_GETLINK, socket.AF_UNSPEC)]


class Lookups:
    """RTM_GETROUTE, as `ip route get` does it, in the namespace of the thread that makes it. A context manager."""

    def __init__(self) -> None:
        self._questions = Questions()
        self._names = {index: device.name for index, _, device in _links(self._questions)}
        self._indexes = {name: index for index, name in self._names.items()}

    def __enter__(self) -> Lookups:
        return self

    def __exit__(self, *error: Any) -> None:
        self._questions.__exit__(*error)

    def getroute(
        self,
        family: int,
        destination: str,
        source: str | None = None,
        mark: int = 0,
        iif: str | None = None,
        oif: str | None = None,
        uid: int | None = None,
        protocol: int = 0,
        sport: int = 0,
        dport: int = 0,
        tos: int = 0,
        match: bool = False,
    ) -> Route | int:
        """The route of a packet, or the errno of its refusal. `match`: the route as it stands in its table.

        With `iif` it is a packet that comes in there; it has no owner.
        """
        af = messages.AF[family]
        parts: list[tuple[int, bytes]] = [(1, socket.inet_pton(af, destination))]
        parts += [(2, socket.inet_pton(af, source))] if source else []
        parts += [(kind, struct.pack("=I", self._indexes[name])) for kind, name in ((3, iif), (4, oif)) if name]
        parts += [(16, struct.pack("=I", mark))] if mark else []
        parts += [(25, struct.pack("=I", uid))] if uid is not None else []
        parts += [(27, bytes((protocol,)))] if protocol else []
        parts += [(kind, struct.pack("!H", port)) for kind, port in ((28, sport), (29, dport)) if port]
        width = 32 if family == 4 else 128
        flags = _LOOKUP_TABLE | (_FIB_MATCH if match else 0)
        head = struct.pack("=BBBBBBBBI", af, width, width if source else 0, tos, 0, 0, 0, 0, flags)
        try:
            answer = self._questions.ask(_GETROUTE, head + b"".join(messages.attribute(*one) for one in parts))
        except OSError as error:
            return error.errno or errno.EIO
        return messages.route(*answer, self._names)
