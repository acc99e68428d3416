# SPDX-License-Identifier: BSD-2-Clause
"""How nft writes the values of each field, and how high they go.

Numbers of protocols, types and states are those of the kernel's headers: include/uapi/linux/in.h,
icmp.h, icmpv6.h, if_ether.h, if_packet.h, netfilter/nf_conntrack_common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache

from ..netstate.nft import FULL, PROTOCOLS, Value
from .box import Box, Ranges, only, ranges
from .packet import interval

STATES = {"new": 0, "established": 1, "related": 2, "invalid": 3, "untracked": 4}
DIRECTIONS = {"original": 0, "reply": 1}
PKTTYPES = {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3}
ETHERTYPE_NAMES = {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD, "vlan": 0x8100, "8021q": 0x8100, "8021ad": 0x88A8}
PROTOCOL_NAMES = {
    **{name: number for number, name in PROTOCOLS.items()},
    "icmpv6": 58, "ah": 51, "udplite": 136, "dccp": 33, "comp": 108, "ipip": 4, "ipv6": 41, "ospf": 89, "vrrp": 112,
    "pim": 103, "ip": 0, "hopopt": 0,
}  # fmt: skip
ICMP_TYPES = {
    "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
    "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12,
    "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15, "info-reply": 16,
    "address-mask-request": 17, "address-mask-reply": 18,
}  # fmt: skip
ICMPV6_TYPES = {
    "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
    "echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
    "mld-listener-done": 132, "mld-listener-reduction": 132, "nd-router-solicit": 133, "nd-router-advert": 134,
    "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137, "router-renumbering": 138,
    "ind-neighbor-solicit": 141, "ind-neighbor-advert": 142, "mld2-listener-report": 143,
}  # fmt: skip
TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")
NFPROTOS = {"ipv4": 4, "ipv6": 6}

TOPS = {
    "socket": 1, "uid": FULL - 1, "gid": FULL - 1, "protocol": 255, "sport": 0xFFFF, "dport": 0xFFFF, "fragment": 1,
    "ethertype": 0xFFFF, "nfproto": 15, "pkttype": 7, "ttl": 255, "icmp.type": 255, "icmp.code": 255,
    "icmpv6.type": 255, "icmpv6.code": 255, "length": 0xFFFF, "igmp.type": 255,
    "ct.state": len(STATES) - 1, "ct.direction": 1, **{f"tcp.{flag}": 1 for flag in TCP_FLAGS},
}  # fmt: skip

Parse = Callable[[Value], Ranges | None]


def number(value: Value) -> Ranges | None:
    """A number, or "LOW-HIGH"."""
    if isinstance(value, int):
        return only(value)
    low, dash, high = value.partition("-")
    try:
        return ranges([(int(low, 0), int(high, 0) if dash else int(low, 0))])
    except ValueError:
        return None


def _named(names: Mapping[str, int]) -> Parse:
    def parse(value: Value) -> Ranges | None:
        if isinstance(value, str) and value in names:
            return only(names[value])
        return number(value)

    return parse


def _listed(names: Mapping[str, int]) -> Parse:
    """Values that nft lists with commas."""

    def parse(value: Value) -> Ranges | None:
        words = value.split(",") if isinstance(value, str) else [value]
        found = [names.get(word) if isinstance(word, str) else None for word in words]
        return None if None in found else only(*(one for one in found if one is not None))

    return parse


states, directions = _listed(STATES), _named(DIRECTIONS)


@cache
def addresses(family: int) -> Parse:
    """Addresses, prefixes and ranges of a family."""

    def parse(value: Value) -> Ranges | None:
        if not isinstance(value, str):
            return None
        try:
            return (interval(value, family),)
        except ValueError:
            return None

    return parse


_SOCKET: Box = {"socket": only(1)}
_IP: Box = {"nfproto": only(4, 6)}

# What meta reads: field, how values are written, what must hold to read it.
META: dict[str, tuple[str, Parse, Box]] = {
    "skuid": ("uid", number, _SOCKET),
    "skgid": ("gid", number, _SOCKET),
    "l4proto": ("protocol", _named(PROTOCOL_NAMES), _IP),
    "nfproto": ("nfproto", _named(NFPROTOS), {}),
    "protocol": ("ethertype", _named(ETHERTYPE_NAMES), {}),
    "pkttype": ("pkttype", _named(PKTTYPES), {}),
}


def _transport(*protocols: str) -> Box:
    first: Box = {"fragment": only(0), **_IP}
    return {**first, "protocol": only(*(PROTOCOL_NAMES[name] for name in protocols))} if protocols else first


_V4, _V6 = {"nfproto": only(4)}, {"nfproto": only(6)}
PAYLOAD: dict[tuple[str, str], tuple[str, Parse, Box]] = {
    ("ip", "protocol"): ("protocol", _named(PROTOCOL_NAMES), _V4),
    ("ip", "ttl"): ("ttl", number, _V4),
    ("ip6", "hoplimit"): ("ttl", number, _V6),
    ("icmp", "type"): ("icmp.type", _named(ICMP_TYPES), {**_transport("icmp"), **_V4}),
    ("icmp", "code"): ("icmp.code", number, {**_transport("icmp"), **_V4}),
    ("icmpv6", "type"): ("icmpv6.type", _named(ICMPV6_TYPES), {**_transport("icmpv6"), **_V6}),
    ("icmpv6", "code"): ("icmpv6.code", number, {**_transport("icmpv6"), **_V6}),
    ("th", "sport"): ("sport", number, _transport()),
    ("th", "dport"): ("dport", number, _transport()),
    **{
        (protocol, port): (port, number, _transport(protocol))
        for protocol in ("tcp", "udp", "udplite", "sctp", "dccp")
        for port in ("sport", "dport")
    },
}


# --- devices ---------------------------------------------------------------------------


def device_classes(names: Iterable[str]) -> list[str]:
    """Representatives of all devices that no name or pattern tells apart: index 0 is none, "~" ends the
    name of one that only a pattern matches, "~" alone is every other device."""
    found = {f"{name[:-1]}~" if name.endswith("*") else name for name in names if name}
    return ["", *sorted(found - {"~"}), "~"]


def device_ranges(classes: list[str], name: str) -> Ranges:
    """The classes of a name or a pattern; of all other devices for a name that is in no class."""
    if name.endswith("*"):
        return ranges((at, at) for at, one in enumerate(classes) if at and one.startswith(name[:-1]))
    if name in classes:
        return only(classes.index(name))
    longest = max((one for one in classes[1:] if one.endswith("~") and name.startswith(one[:-1])), key=len)
    return only(classes.index(longest))


def representative(one: str) -> str:
    """A name that a device of the class may have."""
    return one.replace("~", "9" if len(one) > 1 else "other0") if one.endswith("~") else one
