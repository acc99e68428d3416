# SPDX-License-Identifier: BSD-2-Clause
"""What connection tracking knows of one flow (include/uapi/linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

import socket
import struct

from attrs import frozen

from .rtmessages import AF, attribute, attributes

_NETLINK_NETFILTER = 12
_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_REQUEST, _ERROR = 0x1, 2
_NESTED = 0x8000
_ORIGINAL, _STATUS, _MARK = 1, 3, 8  # CTA_*
_IP, _PROTOCOL = 1, 2  # CTA_TUPLE_*
_SEEN_REPLY = 0x2  # IPS_SEEN_REPLY
_HEADER = struct.Struct("=IHHII")


@frozen
class Tracked:
    """A flow: its `state` ("new" until there was a reply), the direction of the packets asked about, its mark."""

    state: str
    direction: str
    mark: int


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
