# SPDX-License-Identifier: BSD-2-Clause
"""What the expressions of rules read from a packet.

A reader gives a number, or BREAKS where the kernel finds nothing to read (the rule then does not
match, negated or not), or UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from attrs import frozen

from ..netstate import nft
from .packet import ETHERTYPES, FORWARD, FRAME, ICMP, ICMPV6, IGMP, TCP, UDP
from .view import View
from .words import NFPROTO_NETDEV, STATES, STATUS, kind, name_number, parse


class Nothing:
    """A value that is not one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


BREAKS: Final = Nothing("breaks")
UNKNOWN: Final = Nothing("unknown")
Found = int | Nothing
Read = Callable[[View], Found]

_IP, _IP6 = ETHERTYPES[4], ETHERTYPES[6]
_WITH_PORTS = {"tcp": TCP, "udp": UDP, "udplite": 136, "sctp": 132, "dccp": 33}
_PORTED = frozenset(_WITH_PORTS.values())
_TRANSPORT = {**_WITH_PORTS, "esp": 50, "ah": 51, "comp": 108, "gre": 47}
# icmp, icmpv6 and igmp bring their family along (nft adds the match that the listing leaves out).
_OF_FAMILY = {"icmp": (ICMP, _IP), "icmpv6": (ICMPV6, _IP6), "igmp": (IGMP, _IP)}
_FRAGMENT_OFFSET = 0x1FFF
# Multicast listeners, routers and neighbours: what tracking leaves alone (nf_conntrack_proto_icmpv6.c).
_NEIGHBOURLY = frozenset({130, 131, 132, 133, 134, 135, 136, 143})


@frozen
class Place:
    """Where an expression stands: the family of the table, and the hook and priority of the base chain."""

    family: str
    hook: str
    priority: int

    @property
    def is_link(self) -> bool:
        """Whether this is a device's own hook, ingress or egress."""
        return self.hook in ("ingress", "egress")

    def is_before_tracking(self, view: View) -> bool:
        """Whether connection tracking comes later. What lo brings back has been seen already."""
        if self.hook == "ingress":
            return True
        # (What a packet socket puts on lo has not: it arrives there for the first time.)
        returns = view.iif == "lo" and view.origin != FORWARD
        first = self.hook == "output" or (self.hook == "prerouting" and not returns)
        return first and self.priority < -200


@lru_cache(maxsize=1024)
def reader(expression: nft.Expression, place: Place) -> Read:
    """What reads the expression at a place. Concatenations and maps are not for here."""
    match expression:
        case nft.Meta(key):
            return _meta(key, place)
        case nft.Ct(key, direction):
            return _ct(key, direction, place)
        case nft.Payload(protocol, name):
            return _payload(protocol, name, place)
        case nft.RawPayload("th", _, _):
            return lambda view: UNKNOWN if _is_ip(view) and not _is_later_fragment(view) else BREAKS
        case nft.Fib(result, keys):
            return _fib(result, keys)
        case nft.Bitwise(of, keep, put):
            return _bitwise(reader(of, place), parse(kind(of), keep), parse(kind(of), put))
        case nft.Binary(op, left, right):
            return _binary(op, reader(left, place), _constant_or(right, place), (1 << kind(left).bits) - 1)
        case nft.Option("tcp option", _, _):
            return lambda view: UNKNOWN if view.protocol == TCP and _is_ip(view) else BREAKS
    return _unknown


def _unknown(view: View) -> Found:
    return UNKNOWN


def _is_ip(view: View) -> bool:
    return view.ethertype is None or view.ethertype in (_IP, _IP6)


def _is_later_fragment(view: View) -> bool:
    return bool(view.fields.get(("ip", "frag-off"), 0) & _FRAGMENT_OFFSET)


def _device(place: Place, side: str) -> Read:
    if place.is_link and side != ("i" if place.hook == "ingress" else "o"):
        return lambda view: 0  # a device's own hooks know no other device
    if side == "i":
        return lambda view: name_number(view.iif or "")
    return lambda view: name_number(view.oif or "")


def _meta(key: str, place: Place) -> Read:
    match key:
        case "mark":
            return lambda view: view.mark
        case "iifname" | "iif" | "oifname" | "oif":
            return _device(place, key[0])
        case "skuid":
            return lambda view: BREAKS if view.uid is None else view.uid
        case "skgid":
            return lambda view: BREAKS if view.gid is None else view.gid
        case "l4proto":
            return lambda view: view.protocol if _is_ip(view) else BREAKS
        case "protocol":
            return lambda view: view.protocol_number
        case "nfproto" if place.family == "netdev":
            return lambda view: NFPROTO_NETDEV
        case "nfproto":
            return lambda view: {4: 2, 6: 10}[view.family]
        case "pkttype":
            return lambda view: view.fields.get(("meta", "pkttype"), UNKNOWN if view.iif else 0)
        case "cgroup":
            return lambda view: BREAKS if view.uid is None else UNKNOWN
        case "nftrace":
            return lambda view: 0
        case "length":
            return lambda view: view.fields.get(("meta", "length"), UNKNOWN)
    return _unknown


def _ct(key: str, direction: str | None, place: Place) -> Read:
    def state(view: View) -> Found:
        left_out = view.ct_state == "untracked" or _is_neighbourly(view)
        if view.notrack or (left_out and not place.is_before_tracking(view)):
            return STATES["untracked"]
        return STATES["invalid"] if is_untracked(view, place) else STATES[view.ct_state]

    if key == "state":
        return state
    values: dict[str, Read] = {
        "mark": lambda view: view.ct_mark,
        "direction": lambda view: int(view.ct_direction == "reply"),
        "l3proto": lambda view: {4: 2, 6: 10}[view.family],
        "protocol": lambda view: view.protocol,
    }
    original: dict[str, Read] = {
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
        # As long as nothing was translated the packet shows what its flow began with.
        known = original[key]

        def read(view: View) -> Found:
            clean = view.ct_state == "new" and view.ct_direction == "original" and not (view.dnat or view.snat)
            of = {"ip": 4, "ip6": 6}.get(key.split()[0], view.family)
            return BREAKS if of != view.family else known(view) if clean else UNKNOWN
    else:
        read = _unknown
    return lambda view: BREAKS if is_untracked(view, place) else read(view)


def is_untracked(view: View, place: Place) -> bool:
    """Whether no connection belongs to the packet here."""
    if place.is_before_tracking(view) or view.notrack or view.origin == FRAME:
        return True
    return view.ct_state in ("untracked", "invalid") or _is_neighbourly(view)


def _is_neighbourly(view: View) -> bool:
    return view.protocol == ICMPV6 and view.family == 6 and view.header("icmpv6", "type") in _NEIGHBOURLY


def status_known() -> int:
    """The bits of `ct status` that a walk knows."""
    return STATUS["snat"] | STATUS["dnat"]


def _payload(protocol: str, name: str, place: Place) -> Read:
    field = (protocol, name)
    if protocol in ("ip", "ip6"):
        return _header(protocol, name)
    if protocol == "th" or protocol in _TRANSPORT:
        wanted = _TRANSPORT.get(protocol)

        def transport(view: View) -> Found:
            if not _is_ip(view) or (wanted is not None and view.protocol != wanted) or _is_later_fragment(view):
                return BREAKS
            if name in ("sport", "dport") and view.protocol in _PORTED:
                return view.sport if name == "sport" else view.dport
            return _field(view, protocol, name)

        return transport
    if protocol in _OF_FAMILY:
        number, ethertype = _OF_FAMILY[protocol]

        def control(view: View) -> Found:
            is_other = view.protocol != number or view.protocol_number != ethertype
            return BREAKS if is_other or _is_later_fragment(view) else _field(view, protocol, name)

        return control
    if protocol == "arp":
        return lambda view: view.fields.get(field, UNKNOWN) if view.protocol_number == 0x0806 else BREAKS
    if protocol in ("ether", "vlan"):
        # What this machine sends has no link header before it comes to its device.
        return lambda view: BREAKS if not view.iif and not place.is_link else view.fields.get(field, UNKNOWN)
    return _unknown


def _field(view: View, protocol: str, name: str) -> Found:
    value = view.header(protocol, name)
    return UNKNOWN if value is None else value


def _header(protocol: str, name: str) -> Read:
    ethertype = _IP if protocol == "ip" else _IP6
    own: dict[str, Read] = {
        "saddr": lambda view: UNKNOWN if view.snat and view.new_source is None else view.source,
        "daddr": lambda view: UNKNOWN if view.redirected else view.destination,
        "protocol": lambda view: view.protocol,
        "version": lambda view: view.family,
        "nexthdr": lambda view: view.fields.get(("ip6", "nexthdr"), view.protocol),
    }
    read = own.get(name, lambda view: _field(view, protocol, name))
    return lambda view: read(view) if view.protocol_number == ethertype else BREAKS


def _fib(result: str, keys: tuple[str, ...]) -> Read:
    def read(view: View) -> Found:
        answer = view.fib(result, keys, view) if view.fib is not None else None
        return UNKNOWN if answer is None else name_number(answer)

    return read


def _bitwise(read: Read, keep: tuple[int, int] | None, put: tuple[int, int] | None) -> Read:
    if keep is None or put is None or keep[0] != keep[1] or put[0] != put[1]:
        return _unknown
    mask, bits = keep[0], put[0]
    if mask == nft.FULL:  # all bits of whatever is read

        def filled(view: View) -> Found:
            value = read(view)
            return value if isinstance(value, Nothing) else value | bits

        return filled

    def masked(view: View) -> Found:
        value = read(view)
        return value if isinstance(value, Nothing) else value & mask | bits

    return masked


def _constant_or(item: nft.Expression | nft.Value, place: Place) -> Read:
    if isinstance(item, int):
        return lambda view: item
    return _unknown if isinstance(item, str) else reader(item, place)


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "&": lambda left, right: left & right,
    "|": lambda left, right: left | right,
    "^": lambda left, right: left ^ right,
    "<<": lambda left, right: left << right,
    ">>": lambda left, right: left >> right,
}


def _binary(op: str, left: Read, right: Read, top: int) -> Read:
    combine = _OPERATIONS[op]

    def read(view: View) -> Found:
        one, other = left(view), right(view)
        if isinstance(one, Nothing):
            return one
        return other if isinstance(other, Nothing) else combine(one, other) & top

    return read


__all__ = ["BREAKS", "UNKNOWN", "Found", "Nothing", "Place", "Read", "is_untracked", "reader", "status_known"]
