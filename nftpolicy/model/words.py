# SPDX-License-Identifier: BSD-2-Clause
"""nft's words for values, by what an expression reads, as the numbers that the kernel compares.

Names of devices are numbers too, as in the kernel: sixteen bytes, and a wildcard is a range of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from attrs import frozen

from ..netstate import nft
from .packet import interval
from .values import ETHERTYPE_NAMES, ICMP_TYPES, ICMPV6_TYPES, PKTTYPES, PROTOCOL_NAMES, TCP_FLAGS

Interval = tuple[int, int]

# As `ct state` has them: a bit each (include/uapi/linux/netfilter/nf_conntrack_common.h).
STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
STATUS = {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32, "dying": 512}
NFPROTO = {"ipv4": 2, "ipv6": 10}
NFPROTO_NETDEV = 5
_NAME = 16  # IFNAMSIZ

_ICMP_CODES = {
    "net-unreachable": 0, "host-unreachable": 1, "prot-unreachable": 2, "port-unreachable": 3, "frag-needed": 4,
    "net-prohibited": 9, "host-prohibited": 10, "admin-prohibited": 13,
}  # fmt: skip
_ICMPV6_CODES = {
    "no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4, "policy-fail": 5,
    "reject-route": 6,
}  # fmt: skip
_IGMP_TYPES = {
    "membership-query": 0x11, "membership-report-v1": 0x12, "membership-report-v2": 0x16,
    "membership-report-v3": 0x22, "leave-group": 0x17,
}  # fmt: skip
_DSCP = {
    **{f"cs{number}": number * 8 for number in range(8)}, "df": 0, "be": 0, "ef": 46, "lephb": 1, "va": 44,
    **{f"af{high}{low}": high * 8 + low * 2 for high in range(1, 5) for low in range(1, 4)},
}  # fmt: skip


@frozen(eq=False)
class Kind:
    """What values of an expression look like. `flags`: its words are bits that can be combined."""

    name: str
    bits: int = 32
    words: Mapping[str, int] = {}
    flags: bool = False


_NUMBER, _PORT = Kind("number"), Kind("port", 16)
DEVICE, ADDRESS = Kind("device", 8 * _NAME), {4: Kind("address4", 32), 6: Kind("address6", 128)}
_META = {
    "l4proto": Kind("protocol", 8, PROTOCOL_NAMES),
    "nfproto": Kind("family", 8, NFPROTO),
    "protocol": Kind("ethertype", 16, ETHERTYPE_NAMES),
    "pkttype": Kind("pkttype", 8, PKTTYPES),
    **dict.fromkeys(("iif", "oif", "iifname", "oifname", "ibrname", "obrname", "iifkind", "oifkind"), DEVICE),
}
_CT = {
    "state": Kind("state", 32, STATES, flags=True),
    "status": Kind("status", 32, STATUS, flags=True),
    "direction": Kind("direction", 8, {"original": 0, "reply": 1}),
    "l3proto": Kind("family", 8, NFPROTO),
    "protocol": _META["l4proto"],
    "proto-src": _PORT,
    "proto-dst": _PORT,
    **{f"ip {name}": ADDRESS[4] for name in ("saddr", "daddr")},
    **{f"ip6 {name}": ADDRESS[6] for name in ("saddr", "daddr")},
}
_PAYLOAD = {
    ("tcp", "flags"): Kind("flags", 8, {name: 1 << at for at, name in enumerate(TCP_FLAGS)}, flags=True),
    ("icmp", "type"): Kind("type", 8, ICMP_TYPES),
    ("icmp", "code"): Kind("code", 8, _ICMP_CODES),
    ("icmpv6", "type"): Kind("type", 8, ICMPV6_TYPES),
    ("icmpv6", "code"): Kind("code", 8, _ICMPV6_CODES),
    ("igmp", "type"): Kind("type", 8, _IGMP_TYPES),
    ("ether", "type"): _META["protocol"],
    ("vlan", "type"): _META["protocol"],
    ("ip", "protocol"): _META["l4proto"],
    ("ip6", "nexthdr"): _META["l4proto"],
    ("arp", "operation"): Kind("operation", 16, {"request": 1, "reply": 2}),
    **{(of, name): ADDRESS[4 if of == "ip" else 6] for of in ("ip", "ip6") for name in ("saddr", "daddr")},
    **{(of, "dscp"): Kind("dscp", 6, _DSCP) for of in ("ip", "ip6")},
    **{(of, "ecn"): Kind("ecn", 2, {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}) for of in ("ip", "ip6")},
}


def kind(expression: nft.Expression) -> Kind:
    """What the values of one expression (not a concatenation) look like."""
    match expression:
        case nft.Meta(key):
            return _META.get(key, _NUMBER)
        case nft.Ct(key):
            return _CT.get(key, _NUMBER)
        case nft.Payload(protocol, name):
            known = _PAYLOAD.get((protocol, name))
            return known or (_PORT if name in ("sport", "dport") else _NUMBER)
        case nft.Fib():
            return DEVICE  # names of types are compared as those of devices are
        case nft.RawPayload(_, _, length):
            return Kind("raw", length)
        case nft.Bitwise(of) | nft.Binary(_, of):
            return kind(of)
    return _NUMBER


def kinds(expression: nft.Expression) -> tuple[Kind, ...]:
    """The same for each part."""
    if isinstance(expression, nft.Concat):
        return tuple(one for part in expression.parts for one in kinds(part))
    return (kind(expression),)


@lru_cache(maxsize=1 << 12)
def name_number(name: str) -> int:
    """The number of a device's name."""
    return int.from_bytes(name.encode(errors="replace")[:_NAME].ljust(_NAME, b"\0"), "big")


def _names(pattern: str) -> Interval:
    if pattern.endswith("\\*"):
        pattern = pattern[:-2] + "*"
    elif pattern.endswith("*"):
        prefix = pattern[:-1].encode(errors="replace")[:_NAME]
        return int.from_bytes(prefix.ljust(_NAME, b"\0"), "big"), int.from_bytes(prefix.ljust(_NAME, b"\xff"), "big")
    return name_number(pattern), name_number(pattern)


def parse(of: Kind, value: nft.Value) -> Interval | None:
    """The numbers that a value stands for, or None if it is not understood."""
    if isinstance(value, int):
        return value, value
    if of is DEVICE:
        return _names(value)
    if of is ADDRESS[4] or of is ADDRESS[6]:
        try:
            return interval(value, 4 if of is ADDRESS[4] else 6)
        except ValueError:
            return None
    whole = _number(of, value)
    if whole is not None:
        return whole, whole
    # Words have dashes of their own, so each dash may be the one between the ends.
    for at in (at for at, sign in enumerate(value) if sign == "-"):
        low, high = _number(of, value[:at]), _number(of, value[at + 1 :])
        if low is not None and high is not None:
            return low, high
    return None


def _number(of: Kind, word: str) -> int | None:
    if word in of.words:
        return of.words[word]
    if of.flags and "," in word:
        bits = [of.words.get(one) for one in word.split(",")]
        return None if None in bits else sum({one for one in bits if one is not None})
    try:
        return int(word, 0)
    except ValueError:
        return None
