# SPDX-License-Identifier: BSD-2-Clause
"""Readers: evaluate the expressions of rules for a packet.

A reader returns a number, or NFT_BREAK where the kernel cannot read a value (the rule then does not
match, negated or not), or NOT_MODELLED.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from attrs import frozen

from ...netstate import nft
from ...netstate.nft.symbols import CT_STATE_BITS, CT_STATUS_BITS, FAMILIES
from ..conntrack import UNTRACKED_TYPES
from ..packet import ETHERTYPES, FORWARD, FRAME, ICMP, ICMPV6, IGMP, L2TP, TCP, TRANSFORMED, UDP
from ..packet_view import PacketView
from . import arp_form
from .datatypes import NFPROTO_NETDEV, data_type, device_number, parse_value
from .field_value import NFT_BREAK, NOT_MODELLED, FieldValue, Sentinel

Reader = Callable[[PacketView], FieldValue]

_IP, _IP6 = ETHERTYPES[4], ETHERTYPES[6]
_WITH_PORTS = {"tcp": TCP, "udp": UDP, "udplite": 136, "sctp": 132, "dccp": 33}
PORTED = frozenset(_WITH_PORTS.values())
_TRANSPORT = {**_WITH_PORTS, "esp": 50, "ah": 51, "comp": 108, "gre": 47}
# icmp, icmpv6 and igmp imply their family (nft adds a match that its listing omits).
_FAMILY_PROTOCOLS = {"icmp": (ICMP, _IP), "icmpv6": (ICMPV6, _IP6), "igmp": (IGMP, _IP)}
_FRAGMENT_OFFSET = 0x1FFF  # IP_OFFSET
_DONT_FRAGMENT = 0x4000
_ARP = 0x0806
_ARPHRD_ETHER = 1  # include/uapi/linux/if_arp.h
_NFPROTOS = {4: FAMILIES["ipv4"], 6: FAMILIES["ipv6"]}
_CONNTRACK_PRIORITY = -200  # NF_IP_PRI_CONNTRACK


@frozen
class HookPoint:
    """The hook point of an expression: family of the table, hook and priority of the base chain."""

    family: str
    hook: str
    priority: int

    @property
    def is_device_hook(self) -> bool:
        """Return True for a device's own hook, ingress or egress."""
        return self.hook in ("ingress", "egress")

    def is_before_conntrack(self, view: PacketView) -> bool:
        """Return True if conntrack has not seen the packet yet.

        Packets that return by lo were seen before.
        """
        if self.hook == "ingress":
            return True
        # (A frame that an AF_PACKET socket sends by lo was not: it arrives there for the first
        # time.)
        returns = view.iif == "lo" and view.origin != FORWARD
        first = self.hook == "output" or (self.hook == "prerouting" and not returns)
        return first and self.priority < _CONNTRACK_PRIORITY


@lru_cache(maxsize=1024)
def reader(expression: nft.Expression, point: HookPoint) -> Reader:
    """Return the reader of an expression at a hook point.

    Concatenations and maps are not supported.
    """
    match expression:
        case nft.Meta(key):
            return _meta(key, point)
        case nft.Ct(key, direction):
            return _ct(key, direction, point)
        case nft.Payload(protocol, name):
            return _payload(protocol, name, point)
        case nft.RawPayload("th", _, _):
            return _raw_transport
        case nft.RawPayload("nh", 0, 24) if point.hook == "egress":
            return lambda view: _known(view.fields.get(("llc", "header"), arp_form.format_bits(view, 0, 24)))
        case nft.RawPayload("nh", offset, length):
            return lambda view: _known(arp_form.format_bits(view, offset, length))
        case nft.Fib(result, keys):
            return _fib(result, keys, point)
        case nft.Bitwise(nft.Payload("ip", "frag-off"), int(keep), int(put)) if not keep & _DONT_FRAGMENT:
            return _bitwise(_fragment, (keep, keep), (put, put))
        case nft.Bitwise(operand, keep, put):
            datatype = data_type(operand)
            return _bitwise(reader(operand, point), parse_value(datatype, keep), parse_value(datatype, put))
        case nft.Binary(op, left, right):
            highest = (1 << data_type(left).bits) - 1
            return _binary(op, reader(left, point), _constant_or(right, point), highest)
        case nft.Option("tcp option", _, field):
            return _tcp_option(NFT_BREAK if field else 0)
        case nft.Option("exthdr", "rt", field):
            # Only a raw socket, or one with IPV6_RTHDR, sends a routing header; no packet that is traced has one.
            return lambda view: NFT_BREAK if field else 0
    return _unsupported


def _unsupported(view: PacketView) -> FieldValue:
    return NOT_MODELLED


def _tcp_option(absent: FieldValue) -> Reader:
    """Return a reader; a test for existence does not end the rule of another packet (nft_exthdr_tcp_eval)."""
    return lambda view: (
        NOT_MODELLED if view.protocol == TCP and _is_ip(view) and not _is_later_fragment(view) else absent
    )


def _raw_transport(view: PacketView) -> FieldValue:
    return NOT_MODELLED if _is_ip(view) and not _is_later_fragment(view) else NFT_BREAK


def _known(value: int | None) -> FieldValue:
    return NOT_MODELLED if value is None else value


def _is_ip(view: PacketView) -> bool:
    return view.ethertype is None or view.ethertype in (_IP, _IP6)


def _fragment(view: PacketView) -> FieldValue:
    """Return the field frag-off without the bit "don't fragment", which senders and sysctls decide."""
    return view.fields.get(("ip", "frag-off"), 0) if view.protocol_number == _IP else NFT_BREAK


def _is_later_fragment(view: PacketView) -> bool:
    return bool(view.fields.get(("ip", "frag-off"), 0) & _FRAGMENT_OFFSET)


def _device(point: HookPoint, side: str) -> Reader:
    if point.is_device_hook and side != ("i" if point.hook == "ingress" else "o"):
        return lambda view: 0  # a device's own hook has no other device
    if side == "i":
        return lambda view: device_number(view.iif or "")
    return lambda view: device_number(view.oif or "")


def _meta(key: str, point: HookPoint) -> Reader:
    match key:
        case "mark":
            return lambda view: view.mark
        case "iifname" | "iif" | "oifname" | "oif":
            return _device(point, key[0])
        case "skuid":
            return lambda view: NFT_BREAK if view.uid is None else view.uid
        case "skgid":
            return lambda view: NFT_BREAK if view.gid is None else view.gid
        case "l4proto":
            return lambda view: view.protocol if _is_ip(view) else NFT_BREAK
        case "protocol":
            return lambda view: view.protocol_number
        case "nfproto" if point.family == "netdev":
            return lambda view: NFPROTO_NETDEV
        case "nfproto":
            return lambda view: _NFPROTOS[view.family]
        case "pkttype":
            return lambda view: view.fields.get(("meta", "pkttype"), NOT_MODELLED if view.iif else 0)
        case "oiftype" if point.hook == "egress":
            return _device_type
        case "cgroup":
            return lambda view: NFT_BREAK if view.uid is None else NOT_MODELLED
        case "nftrace":
            return lambda view: 0
        case "length" if point.hook == "egress":  # with the link header
            return lambda view: _known(arp_form.frame_length(view))
        case "length" if not point.is_device_hook:
            return lambda view: view.fields.get(("meta", "length"), NOT_MODELLED)
    return _unsupported


def _device_type(view: PacketView) -> FieldValue:
    known = view.link_types.get(view.oif or "", _ARPHRD_ETHER)
    return view.fields.get(("meta", "oiftype"), known)


def _frame_type(view: PacketView) -> FieldValue:
    """Return the frame's own ethertype at egress.

    It is not readable on a device without link header, and in a frame of an AF_PACKET socket with
    PACKET_QDISC_BYPASS (nft_payload_eval: skb_mac_header_was_set).
    """
    if _device_type(view) != _ARPHRD_ETHER or not view.fields.get(("ether", "readable"), 1):
        return NFT_BREAK
    return view.fields.get(("ether", "type"), view.protocol_number)


def _ct(key: str, direction: str | None, point: HookPoint) -> Reader:
    def state(view: PacketView) -> FieldValue:
        is_exempt = view.ct_state == "untracked" or _has_untracked_type(view)
        if view.notrack or (is_exempt and not point.is_before_conntrack(view)):
            return CT_STATE_BITS["untracked"]
        return CT_STATE_BITS["invalid"] if is_untracked(view, point) else CT_STATE_BITS[view.ct_state]

    if key == "state":
        return state
    values: dict[str, Reader] = {
        "mark": lambda view: view.ct_mark,
        "direction": lambda view: int(view.ct_direction == "reply"),
        "l3proto": lambda view: _NFPROTOS[view.family],
        "protocol": lambda view: view.protocol,
    }
    original: dict[str, Reader] = {
        "ip saddr": lambda view: view.source,
        "ip6 saddr": lambda view: view.source,
        "ip daddr": lambda view: view.destination,
        "ip6 daddr": lambda view: view.destination,
        "proto-src": lambda view: view.sport,
        "proto-dst": lambda view: view.dport,
    }
    if key in values and direction is None:
        read = values[key]
    elif key in original and direction == "original":
        read = _original_tuple(key, original[key])
    else:
        read = _unsupported
    return lambda view: NFT_BREAK if is_untracked(view, point) else read(view)


def _original_tuple(key: str, read_packet: Reader) -> Reader:
    """Return a reader of the original tuple; until NAT, the first packet contains its values."""

    def read(view: PacketView) -> FieldValue:
        family = {"ip": 4, "ip6": 6}.get(key.split()[0], view.family)
        if family != view.family:
            return NFT_BREAK
        is_translated = view.dnat or view.snat
        is_first = view.ct_state == "new" and view.ct_direction == "original"
        return read_packet(view) if is_first and not is_translated else NOT_MODELLED

    return read


def is_untracked(view: PacketView, point: HookPoint) -> bool:
    """Return True if the packet has no connection at this hook point."""
    if point.is_before_conntrack(view) or view.notrack or view.origin == FRAME:
        return True
    return view.ct_state in ("untracked", "invalid") or _has_untracked_type(view)


def _has_untracked_type(view: PacketView) -> bool:
    if view.protocol != ICMPV6 or view.family != 6:
        return False
    return view.header_field("icmpv6", "type") in UNTRACKED_TYPES


def known_status_bits(view: PacketView) -> int:
    """Return the bits of `ct status` that a trace determines.

    Postrouting confirms the flow of a packet that then returns by lo.
    """
    is_known = view.is_confirmed is not None and (view.iif != "lo" or view.is_confirmed)
    return CT_STATUS_BITS["snat"] | CT_STATUS_BITS["dnat"] | (CT_STATUS_BITS["confirmed"] if is_known else 0)


def _payload(protocol: str, name: str, point: HookPoint) -> Reader:
    field = (protocol, name)
    if protocol == TRANSFORMED:
        return lambda view: view.fields.get(field, NFT_BREAK)
    if protocol in ("ip", "ip6"):
        return _header(protocol, name)
    if protocol == "th" or protocol in _TRANSPORT:
        wanted = _TRANSPORT.get(protocol)

        def transport(view: PacketView) -> FieldValue:
            if not _is_ip(view) or _is_later_fragment(view):
                return NFT_BREAK
            if wanted is not None and view.protocol != wanted:
                return NFT_BREAK
            if name in ("sport", "dport") and view.protocol in (*PORTED, L2TP):
                return view.sport if name == "sport" else view.dport
            return _field(view, protocol, name)

        return transport
    if protocol in _FAMILY_PROTOCOLS:
        number, ethertype = _FAMILY_PROTOCOLS[protocol]

        def control(view: PacketView) -> FieldValue:
            is_other = view.protocol != number or view.protocol_number != ethertype
            return NFT_BREAK if is_other or _is_later_fragment(view) else _field(view, protocol, name)

        return control
    if protocol == "arp":
        return lambda view: view.fields.get(field, NOT_MODELLED) if view.protocol_number == _ARP else NFT_BREAK
    if field == ("ether", "type") and point.hook == "egress":
        return _frame_type
    if protocol in ("ether", "vlan"):
        # A sent packet has no link header before it reaches its device.
        def link(view: PacketView) -> FieldValue:
            if not view.iif and not point.is_device_hook:
                return NFT_BREAK
            return view.fields.get(field, NOT_MODELLED)

        return link
    return _unsupported


def _field(view: PacketView, protocol: str, name: str) -> FieldValue:
    value = view.header_field(protocol, name)
    return NOT_MODELLED if value is None else value


def _header(protocol: str, name: str) -> Reader:
    ethertype = _IP if protocol == "ip" else _IP6
    own: dict[str, Reader] = {
        "saddr": lambda view: NOT_MODELLED if view.snat and view.new_source is None else view.source,
        "daddr": lambda view: NOT_MODELLED if view.is_redirected else view.destination,
        "protocol": lambda view: view.protocol,
        "version": lambda view: view.family,
        "nexthdr": lambda view: view.fields.get(("ip6", "nexthdr"), view.protocol),
    }

    def other(view: PacketView) -> FieldValue:
        return _field(view, protocol, name)

    read = own.get(name, other)
    return lambda view: read(view) if view.protocol_number == ethertype else NFT_BREAK


def _fib(result: str, keys: tuple[str, ...], point: HookPoint) -> Reader:
    is_reverse_path = result in ("oif", "oifname") and point.hook == "prerouting"

    def read(view: PacketView) -> FieldValue:
        if is_reverse_path and view.iif == "lo":
            return device_number("lo")  # nft_fib_can_skip
        name = view.fib(result, keys, view) if view.fib is not None else None
        return NOT_MODELLED if name is None else device_number(name)

    return read


def _bitwise(read: Reader, kept_bits: tuple[int, int] | None, set_bits: tuple[int, int] | None) -> Reader:
    if kept_bits is None or set_bits is None or kept_bits[0] != kept_bits[1] or set_bits[0] != set_bits[1]:
        return _unsupported
    mask, bits = kept_bits[0], set_bits[0]
    keeps_all = mask == nft.FULL_MASK  # also of a value with more bits

    def masked(view: PacketView) -> FieldValue:
        value = read(view)
        if isinstance(value, Sentinel):
            return value
        return (value if keeps_all else value & mask) | bits

    return masked


def _constant_or(item: nft.Expression | nft.Value, point: HookPoint) -> Reader:
    if isinstance(item, int):
        return lambda view: item
    return _unsupported if isinstance(item, str) else reader(item, point)


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "&": lambda left, right: left & right,
    "|": lambda left, right: left | right,
    "^": lambda left, right: left ^ right,
    "<<": lambda left, right: left << right,
    ">>": lambda left, right: left >> right,
}


def _binary(op: str, left: Reader, right: Reader, highest: int) -> Reader:
    """Return the reader of an operation on registers.

    The kernel computes in words. Of a shorter value, what reads the result decides if it has the bits above.
    """
    combine, is_word = _OPERATIONS[op], highest >= nft.FULL_MASK

    def read(view: PacketView) -> FieldValue:
        first, second = left(view), right(view)
        if isinstance(first, Sentinel):
            return first
        if isinstance(second, Sentinel):
            return second
        result = combine(first, second)
        return result & highest if is_word or result <= highest else NOT_MODELLED

    return read
