# SPDX-License-Identifier: BSD-2-Clause
"""Helpers to build the matches and statements that several chains share."""

from __future__ import annotations

from ..netstate.nft import (
    DROP,
    FULL_MASK,
    AnonymousSet,
    Bitwise,
    Concat,
    CounterRef,
    Ct,
    Expression,
    Fib,
    Mangle,
    Match,
    Meta,
    OriginPath,
    Payload,
    Rule,
    Statement,
    Verdict,
    VerdictMap,
)
from ..policy.mark import Mark
from ..policy.objects import Port

PACKET_MARK, FLOW_MARK = Meta("mark"), Ct("mark")
OUTPUT_DEVICE, INPUT_DEVICE = Meta("oifname"), Meta("iifname")
SOCKET_UID, SOCKET_GID, L4PROTO = Meta("skuid"), Meta("skgid"), Meta("l4proto")
DEST_PORT = Payload("th", "dport")
NFPROTO = Meta("nfproto")
TCP_OR_UDP = Match(L4PROTO, AnonymousSet(frozenset({"tcp", "udp"})))
TO_DNS = Match(DEST_PORT, 53)
IS_ORIGINAL, IS_REPLY = Match(Ct("direction"), "original"), Match(Ct("direction"), "reply")
# The kernel confirms a flow when its first packet has passed all hooks. (`ct state new` matches
# each packet until a reply.)
BEGINS_FLOW = Match(Ct("status"), "confirmed", "!")
# Family -> nft's name of the IP header, and of its addresses as data.
IP_HEADERS = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}
_MAX_COMPARISONS = 4  # devices
# Matches packets of a socket that a process holds. Without a socket, as for a RST of the kernel,
# the expression breaks the rule, so it does not match.
HAS_OWNER = Match(SOCKET_UID, "0-4294967294")
IS_ESTABLISHED, IS_RELATED = Match(Ct("state"), "established", "in"), Match(Ct("state"), "related", "in")
# Packets to these addresses are for this machine.
LOCAL_TYPES = AnonymousSet(frozenset({"local", "broadcast", "multicast", "anycast"}))
IS_LOCAL = Match(Fib("type", ("daddr",)), LOCAL_TYPES)
IS_NOT_LOCAL = Match(Fib("type", ("daddr",)), LOCAL_TYPES, "!=")
HAS_FOREIGN_SOURCE = Match(Fib("type", ("saddr", "oif")), "local", "!=")  # no address of the output device
# Errors about a packet (RFC 792, RFC 4443).
_ICMP_ERRORS = frozenset({"destination-unreachable", "time-exceeded", "parameter-problem"})
ICMP_ERROR = Match(Payload("icmp", "type"), AnonymousSet(_ICMP_ERRORS))
ICMPV6_ERROR = Match(Payload("icmpv6", "type"), AnonymousSet(_ICMP_ERRORS | {"packet-too-big"}))


def device_dispatch(key: Expression, entries: list[tuple[str, Verdict]]) -> tuple[Rule, ...]:
    """Return rules that apply a verdict per device.

    A few comparisons are faster than a verdict map, many are slower.
    """
    if len(entries) > _MAX_COMPARISONS:
        return (Rule((VerdictMap(key, frozenset(entries)),)),)
    return tuple(Rule((Match(key, device), verdict)) for device, verdict in entries)


def and_mask(key: Expression, mask: int) -> Expression:
    """Return `key` & `mask`, in the form in which the kernel lists it."""
    return key if mask == FULL_MASK else Bitwise(key, and_mask=mask)


def has_mark(mark: Mark, key: Expression = PACKET_MARK) -> Match:
    """Return a match for packets that carry the mark (with FLOW_MARK: that belong to a flow with the mark)."""
    return Match(and_mask(key, mark.mask), mark.value)


def lacks_mark(mark: Mark, key: Expression = PACKET_MARK) -> Match:
    """Return a match for packets that do not carry the mark (with FLOW_MARK: whose flow does not)."""
    return Match(and_mask(key, mark.mask), mark.value, "!=")


def set_mark(mark: Mark, key: Expression = PACKET_MARK) -> Mangle:
    """Return a statement that sets the mark and keeps the other bits, as the kernel lists it."""
    if mark.mask == FULL_MASK:
        return Mangle(key, mark.value)
    return Mangle(key, Bitwise(key, and_mask=(~mark.mask | mark.value) & FULL_MASK, or_bits=mark.value))


def count_and_drop(counter: str, *matches: Statement, origin: OriginPath = ()) -> Rule:
    """Return a rule that counts and drops the packets that all `matches` match."""
    return Rule((*matches, CounterRef(counter), DROP), origin=origin)


def port_value(port: Port) -> int | str:
    """Return a port, or an interval of ports in nft syntax."""
    return port.low if port.low == port.high else f"{port.low}-{port.high}"


def transport_destination(family: int) -> Concat:
    """Return the concatenation of transport protocol, destination address and port."""
    return Concat((L4PROTO, Payload(IP_HEADERS[family][0], "daddr"), DEST_PORT))
