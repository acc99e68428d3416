# SPDX-License-Identifier: BSD-2-Clause
"""Answers: what arrives by an uplink is marked on arrival, so that its replies find their way back.

Every packet from an uplink wears its mark, and so does its flow; `fwmark_reflect`,
`tcp_fwmark_accept` and the restore chain carry the mark over to whatever replies. The replies
that the policy does not answer are dropped at the uplink and counted, rather than sent into the mesh.
"""

from __future__ import annotations

from ..netstate.nft import (
    ACCEPT,
    FULL,
    AnonymousSet,
    Bitwise,
    Chain,
    CounterRef,
    Ct,
    Fib,
    Hook,
    Mangle,
    Match,
    Payload,
    Rule,
    Statement,
    Verdict,
)
from ..policy.objects import Answer, Policy, Uplink
from . import names, phrases
from .names import of
from .phrases import FLOW_MARK, IN, PACKET_MARK

_MINE = AnonymousSet(frozenset({"local", "broadcast", "multicast", "anycast"}))


def arrival(policy: Policy) -> tuple[Chain, ...]:
    """Mark what comes from uplinks; take our marks off what comes from anywhere else."""
    entries = [
        (device, Verdict("goto", of(name, "arrival")))
        for name, uplink in policy.uplink.items()
        for device in uplink.devices
    ]
    bits = 0
    for uplink in policy.uplink.values():
        bits |= uplink.mark.mask
    worn = Match(phrases.masked(PACKET_MARK, bits), 0, "!=")
    clean = 0 if bits == FULL else Bitwise(PACKET_MARK, keep=~bits & FULL)
    rules = (
        *phrases.by_device(IN, [*entries, ("lo", ACCEPT)]),
        Rule((worn, Mangle(PACKET_MARK, clean))),
    )
    base = Chain("arrival", rules, Hook("filter", "prerouting", names.ARRIVAL))
    return (base, *(_from(name, uplink) for name, uplink in policy.uplink.items()))


def _from(name: str, uplink: Uplink) -> Chain:
    origin = ("uplink", name, "answer")
    unmarked = Match(phrases.masked(FLOW_MARK, uplink.mark.mask), uplink.mark.value, "!=")
    rules = (
        # What is for an address of another device must not even be told that it is here (CVE-2019-14899).
        phrases.drop(of(name, "not-mine"), Match(Fib("type", ("daddr", "iif")), _MINE, "!="), origin=origin),
        Rule((phrases.put_on(uplink.mark),), origin=origin),
        Rule((Match(Ct("direction"), "original"), unmarked, phrases.put_on(uplink.mark, FLOW_MARK)), origin=origin),
    )
    return Chain(of(name, "arrival"), rules, origin=origin)


def restore(policy: Policy) -> Chain:
    """Replies whose socket does not carry the mark (UDP, sockets older than the policy) get it back.

    The chain is of type route: the kernel routes the packet again. Its source address is right
    already, since a reply carries the address that was asked.
    """
    rules = tuple(
        Rule(
            (phrases.IS_REPLY, phrases.wears(uplink.mark, FLOW_MARK), phrases.put_on(uplink.mark)),
            origin=("uplink", name, "answer"),
        )
        for name, uplink in policy.uplink.items()
    )
    return Chain("restore", rules, Hook("route", "output", names.RESTORE))


def _replies(answer: Answer) -> list[tuple[Statement, ...]]:
    if answer.port is None:
        return [
            (Match(Payload("icmp", "type"), "echo-reply"),),
            (Match(Payload("icmpv6", "type"), "echo-reply"),),
        ]
    return [(Match(Payload(answer.port.protocol, "sport"), phrases.ports(answer.port)),)]


def counter(uplink: str, answer: Answer) -> str:
    """The counter of one answer: "wan.answer.ssh", "wan.answer.tcp-8080"."""
    return of(uplink, "answer", answer.name.replace("/", "-"))


def resets(uplink: Uplink) -> bool:
    """Whether closed TCP ports are refused: yes where any TCP port is answered."""
    return any(answer.port and answer.port.protocol == "tcp" for answer in uplink.answer)


def counters(name: str, uplink: Uplink) -> tuple[str, ...]:
    """All counters of an uplink's answers."""
    reset = (of(name, "answer", "reset"),) if resets(uplink) else ()
    return (*(counter(name, answer) for answer in uplink.answer), *reset)


def chain(name: str, uplink: Uplink) -> Chain:
    """The chain "wan.answers": replies that may leave."""
    origin = ("uplink", name, "answer")
    rules = [
        Rule((*matches, CounterRef(counter(name, answer)), ACCEPT), origin=origin)
        for answer in uplink.answer
        for matches in _replies(answer)
    ]
    if resets(uplink):
        reset = Match(Payload("tcp", "flags"), "rst", "&")
        rules.append(Rule((reset, CounterRef(of(name, "answer", "reset")), ACCEPT), origin=origin))
    rules.append(phrases.drop(of(name, "unanswered"), origin=origin))
    return Chain(of(name, "answers"), tuple(rules), origin=origin)
