# SPDX-License-Identifier: BSD-2-Clause
"""What connection tracking knows of flows, and how it forgets one (linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

import errno
import socket
import struct

from attrs import frozen

from .interface import Unavailable
from .netlink import Channel
from .rtmessages import AF, attribute, attributes

_NETLINK_NETFILTER = 12
_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_DELETE = 1 << 8 | 2
_REQUEST, _ERROR = 0x1, 2
_NESTED = 0x8000
_ORIGINAL, _REPLY, _STATUS, _MARK, _ID, _ZONE, _MARK_MASK = 1, 2, 3, 8, 12, 18, 21  # CTA_*
_IP, _PROTOCOL = 1, 2  # CTA_TUPLE_*
_SEEN_REPLY = 0x2  # IPS_SEEN_REPLY
_HEADER = struct.Struct("=IHHII")
_NUMBER = struct.Struct("!I")


@frozen
class Tracked:
    """A flow: its `state` ("new" until there was a reply), the direction of the packets asked about, its mark."""

    state: str
    direction: str
    mark: int


@frozen
class Ends:
    """Where the packets of one direction come from and go to. The ports are 0 where there are none."""

    source: str
    sport: int
    destination: str
    dport: int


@frozen
class Flow:
    """An entry of the table. `original` is the direction of its first packet; `key`, `number` and `zone`
    are how the kernel knows it. `replied`: packets went both ways."""

    family: int
    protocol: int
    original: Ends
    reply: Ends
    mark: int
    key: bytes
    number: bytes
    zone: bytes = b""
    replied: bool = False

    def __str__(self) -> str:
        name = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6"}.get(self.protocol, f"protocol {self.protocol}")
        return f"{name} {self.original.source} to {self.original.destination}, port {self.original.dport}"


class Conntrack:
    """A channel to connection tracking, in the network namespace of the thread that makes it. A context manager.

    Raises Unavailable where the kernel has none.
    """

    def __init__(self) -> None:
        try:
            self._channel = Channel(_NETLINK_NETFILTER)
        except OSError as error:
            raise Unavailable(f"this kernel lists no flows ({error.strerror})") from None

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.__exit__(None, None, None)

    def flows(self, value: int, mask: int) -> list[Flow]:
        """The flows of both families whose mark and `mask` is `value`. Raises Unavailable."""
        wanted = attribute(_MARK, _NUMBER.pack(value)) + attribute(_MARK_MASK, _NUMBER.pack(mask))
        try:
            parts = self._channel.dump(_GET, bytes(4) + wanted)
        except OSError as error:
            raise Unavailable(
                f"this kernel does not list its flows ({error.strerror}): this needs root and CONFIG_NF_CT_NETLINK"
            ) from None
        # Kernels differ in what they filter by, so it is done here once more.
        return [one for part in parts if (one := flow(*part)) and one.mark & mask == value]

    def forget(self, one: Flow) -> bool:
        """Delete one entry; False if it is gone, or is another one by now. OSError with the kernel's errno."""
        if not one.key or not one.number:
            raise ValueError("a flow needs its ends and its number: without the first the kernel deletes all of them")
        zone = attribute(_ZONE, one.zone) if one.zone else b""
        named = attribute(_ORIGINAL | _NESTED, one.key) + attribute(_ID, one.number) + zone
        code = self._channel.do(_DELETE, struct.pack("=BBH", AF[one.family], 0, 0) + named)
        if code not in (0, errno.ENOENT):
            raise OSError(code, f"{one} can't be forgotten: {errno.errorcode.get(code, code)}")
        return not code


def flow(raw: bytes, start: int, end: int) -> Flow | None:
    """The value of the message whose struct nfgenmsg begins at `start`; None if it is of another family than IP."""
    family = {socket.AF_INET: 4, socket.AF_INET6: 6}.get(raw[start])
    found = dict(attributes(raw, start + 4, end))
    key = found.get(_ORIGINAL, b"")
    if family is None or not key or _ID not in found:
        return None
    return Flow(
        family,
        _flat(key).get((_PROTOCOL, 1), b"\0")[0],
        _ends(family, key),
        _ends(family, found.get(_REPLY, b"")),
        int.from_bytes(found.get(_MARK, b""), "big"),
        key,
        found[_ID],
        found.get(_ZONE, b""),
        bool(int.from_bytes(found.get(_STATUS, b""), "big") & _SEEN_REPLY),
    )


def _ends(family: int, raw: bytes) -> Ends:
    known = _flat(raw)
    first = 1 if family == 4 else 3
    source, destination = (
        socket.inet_ntop(AF[family], known[_IP, kind]) if (_IP, kind) in known else "" for kind in (first, first + 1)
    )
    sport, dport = (int.from_bytes(known.get((_PROTOCOL, kind), b""), "big") for kind in (2, 3))
    return Ends(source, sport, destination, dport)


def tracked(family: int, protocol: int, source: str, sport: int, destination: str, dport: int) -> Tracked | None:
    """The flow of packets with these ends, in the namespace of this thread; None if there is none, or none is known."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as channel:
            mine = _tuple(family, protocol, source, sport, destination, dport)
            body = struct.pack("=BBH", AF[family], 0, 0) + attribute(_ORIGINAL | _NESTED, mine)
            channel.send(_HEADER.pack(_HEADER.size + len(body), _GET, _REQUEST, 1, 0) + body)
            answer = channel.recv(1 << 16)
    except OSError:
        return None  # a kernel without it
    length, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind == _ERROR:
        return None
    found = dict(attributes(answer, _HEADER.size + 4, length))
    # The kernel finds a flow by the addresses of either direction.
    original = _same(found.get(_ORIGINAL, b""), mine)
    replied = int.from_bytes(found.get(_STATUS, b""), "big") & _SEEN_REPLY
    state = "established" if replied or not original else "new"
    return Tracked(state, "original" if original else "reply", int.from_bytes(found.get(_MARK, b""), "big"))


def _tuple(family: int, protocol: int, source: str, sport: int, destination: str, dport: int) -> bytes:
    first = 1 if family == 4 else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the destination's is the next
    ends = b"".join(
        attribute(first + index, socket.inet_pton(AF[family], end)) for index, end in enumerate((source, destination))
    )
    ports = attribute(2, struct.pack("!H", sport)) + attribute(3, struct.pack("!H", dport))
    return attribute(_IP | _NESTED, ends) + attribute(_PROTOCOL | _NESTED, attribute(1, bytes((protocol,))) + ports)


def _same(one: bytes, other: bytes) -> bool:
    """Whether two tuples have the same addresses and ports; zones and the like are not compared."""
    return _flat(one) == _flat(other)


def _flat(raw: bytes) -> dict[tuple[int, int], bytes]:
    return {
        (outer, inner): value
        for outer, nested in attributes(raw, 0, len(raw))
        if outer in (_IP, _PROTOCOL)
        for inner, value in attributes(nested, 0, len(nested))
    }
