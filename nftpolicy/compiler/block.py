# SPDX-License-Identifier: BSD-2-Clause
"""The block: tables of their own that stop the uplinks, for as long as nobody can vouch for the guard.

They let pass what no mark and no rule of others can widen: the exemptions, and replies that the policy
answers, so that whoever has to repair the machine can still reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..netstate.nft import (
    ACCEPT,
    DROP,
    Chain,
    CounterRef,
    Hook,
    Match,
    Meta,
    NamedCounter,
    Rule,
    Statement,
    Table,
    Verdict,
)
from ..policy.objects import Policy, Uplink
from . import answers, exemptions, names, phrases
from .compile import Machine
from .names import of
from .phrases import FLOW_MARK, IS_REPLY, OUT, PACKET_MARK

STOPPED, STRAY = "stopped", "stray"  # the counters
_HOOK = Hook("filter", "postrouting", names.BLOCK, "drop")

_Named = tuple[str, Uplink]  # what its chains are called after, and the uplink


def block(policies: Sequence[Policy], machine: Machine = Machine()) -> tuple[Table, ...]:
    """The tables that stop the uplinks of all these policies. A device that one of them calls an uplink is one."""
    uplinks = tuple(_uplinks(policies))
    ip = Table("inet", names.BLOCK_TABLE, tuple(_ip(policies, uplinks)), (), _counters(STOPPED, STRAY))
    if not machine.link_guard:
        return (ip,)
    return (ip, Table("netdev", names.BLOCK_TABLE, tuple(_link(uplinks, machine)), (), _counters(STOPPED)))


def least(policy: Policy) -> Table:
    """The least that nft can say: all stops but what goes to lo or a device inside. It takes the guard's place."""
    rules = [Rule((Match(OUT, "lo"), ACCEPT))]
    rules += [Rule((phrases.wears(uplink.mark), DROP)) for uplink in policy.uplink.values()]
    rules += [Rule((Match(OUT, device), ACCEPT)) for device in policy.inside]
    hook = Hook("filter", "postrouting", names.GUARD, "drop")
    return Table("inet", names.TABLE, (Chain("block", tuple(rules), hook),))


def _counters(*which: str) -> tuple[NamedCounter, ...]:
    return tuple(NamedCounter(one) for one in which)


def _uplinks(policies: Sequence[Policy]) -> Iterator[_Named]:
    for number, policy in enumerate(policies):
        for name, uplink in policy.uplink.items():
            yield (name if not number else f"{name}.{number}"), uplink


def _ip(policies: Sequence[Policy], uplinks: Sequence[_Named]) -> Iterator[Chain]:
    rules = [Rule((Match(OUT, "lo"), ACCEPT))]
    named = [(name, device) for name, one in uplinks for device in one.devices]
    rules += [Rule((Match(OUT, device), Verdict("jump", of(name, "passes")))) for name, device in named]
    rules += [phrases.drop(STOPPED, Match(OUT, device)) for device in dict.fromkeys(device for _, device in named)]
    # Reports of the kernel wear marks by accident, and may go inside.
    rules += [Rule((*matches, Verdict("goto", "inside"))) for matches in exemptions.reports()]
    marks = dict.fromkeys(one.mark for _, one in uplinks)
    rules += [phrases.drop(STRAY, phrases.wears(mark)) for mark in marks]
    inside = dict.fromkeys(device for policy in policies for device in policy.inside)
    to_inside = tuple(Rule((Match(OUT, device), ACCEPT)) for device in inside)
    drop = phrases.drop(STOPPED)
    yield Chain("inside", (*to_inside, drop))
    for policy, (name, one) in zip(_policies(policies), uplinks, strict=True):
        yield Chain(of(name, "passes"), (*_exempt(name, one, "inet", _strays(policy, one)), *_replies(name, one)))
    yield Chain("block", (*rules, *to_inside, drop), _HOOK)


def _policies(policies: Sequence[Policy]) -> Iterator[Policy]:
    """The policy of each uplink, in the order of `_uplinks`."""
    return (policy for policy in policies for _ in policy.uplink)


def _strays(policy: Policy, uplink: Uplink) -> list[Rule]:
    """Drop what wears the mark of another uplink of the policy: no exemption of this one is for it."""
    return [phrases.drop(STRAY, phrases.wears(one.mark)) for one in policy.uplink.values() if one is not uplink]


def _exempt(name: str, uplink: Uplink, family: str, strays: Sequence[Rule] = ()) -> Iterator[Rule]:
    """The exemptions, for packets without the mark; reports of the kernel may wear any by accident."""
    bare = Match(phrases.masked(PACKET_MARK, uplink.mark.mask), uplink.mark.value, "!=")
    reports = exemptions.reports_of(uplink.exempt)
    yield from map(_uncounted, exemptions.rules(name, reports, family))
    yield from strays
    for rule in exemptions.rules(name, tuple(word for word in uplink.exempt if word not in reports), family):
        yield Rule((bare, *_uncounted(rule).statements))


def _replies(name: str, uplink: Uplink, *first: Statement) -> list[Rule]:
    """What `first` matches and the policy answers; without `first`, in connections that came in by the uplink."""
    first = first or (IS_REPLY, phrases.wears(uplink.mark), phrases.wears(uplink.mark, FLOW_MARK))
    answered = (rule for rule in answers.chain(name, uplink).rules if ACCEPT in rule.statements)
    return [Rule((*first, *_uncounted(rule).statements)) for rule in answered]


def _uncounted(rule: Rule) -> Rule:
    return Rule(tuple(one for one in rule.statements if not isinstance(one, CounterRef)))


def _link(uplinks: Sequence[_Named], machine: Machine) -> Iterator[Chain]:
    # What a bridge passes on is not of this machine; see the guard's link layer.
    bridged = Rule((Match(Meta("pkttype"), "host", "!="), ACCEPT))
    drop = phrases.drop(STOPPED)
    jumps: dict[str, list[Rule]] = {}
    ports: set[str] = set()
    for name, one in uplinks:
        # There are no connections at this hook, so that the mark stands for them: the chain above knows them.
        passes = (*_exempt(name, one, "netdev"), *_replies(name, one, phrases.wears(one.mark)))
        yield Chain(of(name, "passes"), passes)
        for device in one.devices:
            carried = machine.ports.get(device, ())
            ports |= set(carried)
            for each in (device, *carried):
                jumps.setdefault(each, []).append(Rule((Verdict("jump", of(name, "passes")),)))
    for device, rules in jumps.items():
        if device not in machine.unhooked:
            first = (bridged,) if device in ports else ()
            hook = Hook("filter", "egress", names.BLOCK, "drop", device)
            yield Chain("device-" + device.replace("@", "/"), (*first, *rules, drop), hook)
