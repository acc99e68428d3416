# SPDX-License-Identifier: BSD-2-Clause
"""Small pieces that several chains are written with."""

from __future__ import annotations

from ..netstate.nft import (
    DROP,
    FULL,
    AnonymousSet,
    Bitwise,
    Concat,
    CounterRef,
    Ct,
    Expression,
    Mangle,
    Match,
    Meta,
    Origin,
    Payload,
    Rule,
    Statement,
    Verdict,
    VerdictMap,
)
from ..policy.mark import Mark
from ..policy.objects import Port

PACKET_MARK, FLOW_MARK = Meta("mark"), Ct("mark")
OUT, IN = Meta("oifname"), Meta("iifname")
OWNER, GROUP, TRANSPORT = Meta("skuid"), Meta("skgid"), Meta("l4proto")
TO_PORT = Payload("th", "dport")
TCP_OR_UDP = Match(TRANSPORT, AnonymousSet(frozenset({"tcp", "udp"})))
TO_DNS = Match(TO_PORT, 53)
IS_REPLY = Match(Ct("direction"), "reply")
_FEW = 4  # devices
# True for packets of a socket that a process holds; the test does not match (rather than fail)
# where there is none, as for a RST of the kernel.
HAS_OWNER = Match(OWNER, "0-4294967294")
IS_ESTABLISHED = Match(Ct("state"), "established", "in")


def by_device(key: Expression, entries: list[tuple[str, Verdict]]) -> tuple[Rule, ...]:
    """A verdict for each device. A few comparisons are quicker than a verdict map, many are not."""
    if len(entries) > _FEW:
        return (Rule((VerdictMap(key, frozenset(entries)),)),)
    return tuple(Rule((Match(key, device), verdict)) for device, verdict in entries)


def masked(key: Expression, mask: int) -> Expression:
    """The bits of `mask`, in the shape in which the kernel lists them."""
    return key if mask == FULL else Bitwise(key, keep=mask)


def wears(mark: Mark, key: Expression = PACKET_MARK) -> Match:
    """The packet (or its flow) wears the mark."""
    return Match(masked(key, mark.mask), mark.value)


def put_on(mark: Mark, key: Expression = PACKET_MARK) -> Mangle:
    """Put the mark on and keep foreign bits, in the shape in which the kernel lists it."""
    if mark.mask == FULL:
        return Mangle(key, mark.value)
    return Mangle(key, Bitwise(key, keep=(~mark.mask | mark.value) & FULL, put=mark.value))


def drop(counter: str, *matches: Statement, origin: Origin = ()) -> Rule:
    """Count and drop."""
    return Rule((*matches, CounterRef(counter), DROP), origin=origin)


def ports(port: Port) -> int | str:
    """A port or an interval of ports as nft writes them."""
    return port.low if port.low == port.high else f"{port.low}-{port.high}"


def destination(family: int) -> Concat:
    """Transport, address and port that a packet is for."""
    return Concat((TRANSPORT, Payload("ip" if family == 4 else "ip6", "daddr"), TO_PORT))
