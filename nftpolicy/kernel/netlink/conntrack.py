# SPDX-License-Identifier: BSD-2-Clause
"""Entries of connection tracking: list, look up and delete them (conntrack(8)).

The messages are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import socket
import struct

from attrs import frozen

from ..errors import DumpInterrupted, Unavailable
from . import constants as nl
from .attributes import attribute, attributes, ip_text, netfilter_header, network_integer
from .socket import NetlinkSocket

_VERSIONS: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 6}
_SOURCE_AND_DESTINATION = {4: (nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST), 6: (nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST)}
_PROTOCOL_NAMES = {
    socket.IPPROTO_TCP: "tcp",
    socket.IPPROTO_UDP: "udp",
    socket.IPPROTO_ICMP: "icmp",
    socket.IPPROTO_ICMPV6: "icmpv6",
}
_PORT = struct.Struct("!H")
_MARK = struct.Struct("!I")


# Family, protocol, then source, source port, destination and destination port of its first packet.
FlowAddresses = tuple[int, int, str, int, str, int]


@frozen
class FlowState:
    """State of the flow of one packet.

    `state` is "new" until there was a reply, then "established". `direction` ("original", "reply")
    is the one of the packet. `mark` is the conntrack mark.
    """

    state: str
    direction: str
    mark: int


@frozen
class FlowTuple:
    """Source and destination of the packets of one direction.

    Ports are 0 in protocols without ports.
    """

    source: str
    sport: int
    destination: str
    dport: int


@frozen
class ConntrackEntry:
    """A conntrack entry.

    `original` is the direction of its first packet. `key`, `number` and `zone` identify it to the
    kernel. `has_reply`: packets were seen in both directions.
    """

    family: int
    protocol: int
    original: FlowTuple
    reply: FlowTuple
    mark: int
    key: bytes
    number: bytes
    zone: bytes = b""
    has_reply: bool = False

    def __str__(self) -> str:
        name = _PROTOCOL_NAMES.get(self.protocol, f"protocol {self.protocol}")
        return f"{name} {self.original.source} to {self.original.destination}, port {self.original.dport}"


class Conntrack:
    """Access to connection tracking, in the network namespace of the calling thread.

    A context manager.

    Raises Unavailable if the kernel has no connection tracking.
    """

    def __init__(self) -> None:
        try:
            self._netlink = NetlinkSocket(nl.NETLINK_NETFILTER)
        except OSError as error:
            raise Unavailable(f"this kernel lists no flows ({error.strerror})") from None

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def flows(self, value: int, mask: int) -> list[ConntrackEntry]:
        """Return the flows of both families with `value` as conntrack mark & mask.

        Raises Unavailable.
        """
        mark_filter = attribute(nl.CTA_MARK, _MARK.pack(value)) + attribute(nl.CTA_MARK_MASK, _MARK.pack(mask))
        try:
            messages = self._netlink.dump(nl.IPCTNL_MSG_CT_GET, netfilter_header() + mark_filter)
        except DumpInterrupted:
            raise
        except OSError as error:
            raise Unavailable(
                f"this kernel does not list its flows ({error.strerror}): this needs root and CONFIG_NF_CT_NETLINK"
            ) from None
        # Some kernels ignore the filter, so the marks are compared once more.
        entries = (decode_entry(*message) for message in messages)
        return [entry for entry in entries if entry is not None and entry.mark & mask == value]

    def mark_flow(self, flow: FlowAddresses, value: int, mask: int) -> bool:
        """Set the bits `mask` of a flow's conntrack mark to `value`.

        Return False if no flow began with these addresses and ports. Raises OSError.
        """
        state = find_flow(*flow)
        if state is None or state.direction != "original":
            return False
        family, wanted = flow[0], _encode_tuple(*flow)
        body = netfilter_header(nl.ADDRESS_FAMILY[family]) + attribute(nl.CTA_TUPLE_ORIG | nl.NLA_F_NESTED, wanted)
        body += attribute(nl.CTA_MARK, _MARK.pack(value)) + attribute(nl.CTA_MARK_MASK, _MARK.pack(mask))
        code = self._netlink.change(nl.IPCTNL_MSG_CT_NEW, body)
        if code not in (0, errno.ENOENT):
            raise OSError(code, f"cannot mark a flow: {errno.errorcode.get(code, code)}")
        return not code

    def delete_flow(self, entry: ConntrackEntry) -> bool:
        """Delete one entry; return False if it has gone or has been replaced. Raises OSError."""
        if not entry.key or not entry.number:
            raise ValueError("a flow to delete needs key and number: without the key the kernel deletes all of them")
        identity = attribute(nl.CTA_TUPLE_ORIG | nl.NLA_F_NESTED, entry.key) + attribute(nl.CTA_ID, entry.number)
        if entry.zone:
            identity += attribute(nl.CTA_ZONE, entry.zone)
        header = netfilter_header(nl.ADDRESS_FAMILY[entry.family])
        code = self._netlink.change(nl.IPCTNL_MSG_CT_DELETE, header + identity)
        if code not in (0, errno.ENOENT):
            raise OSError(code, f"cannot delete the conntrack entry {entry}: {errno.errorcode.get(code, code)}")
        return not code


def decode_entry(raw: bytes, start: int, end: int) -> ConntrackEntry | None:
    """Return the entry of a message with its struct nfgenmsg at `start`; None unless it is IP."""
    family = _VERSIONS.get(raw[start])
    values = dict(attributes(raw, start + nl.NFGENMSG.size, end))
    key = values.get(nl.CTA_TUPLE_ORIG, b"")
    if family is None or not key or nl.CTA_ID not in values:
        return None
    return ConntrackEntry(
        family,
        _flattened(key).get((nl.CTA_TUPLE_PROTO, nl.CTA_PROTO_NUM), b"\0")[0],
        _decode_tuple(family, key),
        _decode_tuple(family, values.get(nl.CTA_TUPLE_REPLY, b"")),
        network_integer(values.get(nl.CTA_MARK)),
        key,
        values[nl.CTA_ID],
        values.get(nl.CTA_ZONE, b""),
        bool(network_integer(values.get(nl.CTA_STATUS)) & nl.IPS_SEEN_REPLY),
    )


def _decode_tuple(family: int, raw: bytes) -> FlowTuple:
    parts = _flattened(raw)
    source, destination = (
        ip_text(parts[nl.CTA_TUPLE_IP, kind]) if (nl.CTA_TUPLE_IP, kind) in parts else ""
        for kind in _SOURCE_AND_DESTINATION[family]
    )
    sport = network_integer(parts.get((nl.CTA_TUPLE_PROTO, nl.CTA_PROTO_SRC_PORT)))
    dport = network_integer(parts.get((nl.CTA_TUPLE_PROTO, nl.CTA_PROTO_DST_PORT)))
    return FlowTuple(source, sport, destination, dport)


def find_flow(family: int, protocol: int, source: str, sport: int, destination: str, dport: int) -> FlowState | None:
    """Return the state of the flow of packets with these addresses and ports.

    The network namespace is that of the calling thread. None if there is no such flow, or the
    kernel has no connection tracking.
    """
    wanted = _encode_tuple(family, protocol, source, sport, destination, dport)
    body = netfilter_header(nl.ADDRESS_FAMILY[family]) + attribute(nl.CTA_TUPLE_ORIG | nl.NLA_F_NESTED, wanted)
    try:
        with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
            raw, start, end = netlink.query(nl.IPCTNL_MSG_CT_GET, body)
    except OSError:
        return None
    values = dict(attributes(raw, start + nl.NFGENMSG.size, end))
    # The kernel finds an entry by the addresses of either direction.
    is_original = _flattened(values.get(nl.CTA_TUPLE_ORIG, b"")) == _flattened(wanted)
    replied = network_integer(values.get(nl.CTA_STATUS)) & nl.IPS_SEEN_REPLY
    state = "established" if replied or not is_original else "new"
    return FlowState(state, "original" if is_original else "reply", network_integer(values.get(nl.CTA_MARK)))


def _encode_tuple(family: int, protocol: int, source: str, sport: int, destination: str, dport: int) -> bytes:
    addresses = b"".join(
        attribute(kind, socket.inet_pton(nl.ADDRESS_FAMILY[family], address))
        for kind, address in zip(_SOURCE_AND_DESTINATION[family], (source, destination), strict=True)
    )
    numbers = attribute(nl.CTA_PROTO_NUM, bytes((protocol,)))
    numbers += attribute(nl.CTA_PROTO_SRC_PORT, _PORT.pack(sport))
    numbers += attribute(nl.CTA_PROTO_DST_PORT, _PORT.pack(dport))
    encoded = attribute(nl.CTA_TUPLE_IP | nl.NLA_F_NESTED, addresses)
    return encoded + attribute(nl.CTA_TUPLE_PROTO | nl.NLA_F_NESTED, numbers)


def _flattened(raw: bytes) -> dict[tuple[int, int], bytes]:
    """Return addresses and ports of a tuple by (outer type, inner type). Zones are left out."""
    return {
        (outer, inner): value
        for outer, part in attributes(raw, 0, len(raw))
        if outer in (nl.CTA_TUPLE_IP, nl.CTA_TUPLE_PROTO)
        for inner, value in attributes(part, 0, len(part))
    }
