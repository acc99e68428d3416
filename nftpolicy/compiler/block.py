# SPDX-License-Identifier: BSD-2-Clause
"""Block: separate tables that drop the uplinks' packets while the guard is not proved.

They accept only packets that no mark and no foreign rule can widen: the exemptions, and the
replies that the policy allows, so that an administrator can still reach the host.
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
from . import exemptions, forwards, matches, object_names, replies, uplink_addresses
from .compile import HostFacts
from .matches import FLOW_MARK, INPUT_DEVICE, IS_REPLY, OUTPUT_DEVICE
from .object_names import object_name

STOPPED_COUNTER, _STRAY = "stopped", "stray"  # counters
_HOOK = Hook("filter", "postrouting", object_names.BLOCK_PRIORITY, "drop")

_NamedUplink = tuple[str, Uplink]  # prefix of the chains' names, and the uplink


def block_tables(policies: Sequence[Policy], host: HostFacts = HostFacts()) -> tuple[Table, ...]:
    """Return the tables that block the uplinks of the policies.

    A device is blocked if at least one policy has it as an uplink device.
    """
    uplinks = tuple(_uplinks(policies))
    ip_chains = tuple(_ip_chains(policies, uplinks))
    sets = tuple(each for name, uplink in uplinks for each in uplink_addresses.address_sets(name, uplink))
    ip = Table("inet", object_names.BLOCK_TABLE, ip_chains, sets, _counters(STOPPED_COUNTER, _STRAY))
    if not host.has_egress_hook:
        return (ip,)
    link_chains = tuple(_link_chains(uplinks, host))
    return (ip, Table("netdev", object_names.BLOCK_TABLE, link_chains, (), _counters(STOPPED_COUNTER)))


def minimal_block_table(policy: Policy) -> Table:
    """Return a minimal table that replaces the guard: it accepts only packets to lo and devices inside.

    Packets of users without marks and requests to published ports do not go inside either.
    """
    rules = [Rule((Match(OUTPUT_DEVICE, "lo"), ACCEPT))]
    rules += [Rule((match, DROP)) for match in _not_inside([policy])]
    rules += [Rule((matches.has_mark(uplink.mark), DROP)) for uplink in policy.uplink.values()]
    rules += [Rule((Match(OUTPUT_DEVICE, device), ACCEPT)) for device in policy.inside]
    hook = Hook("filter", "postrouting", object_names.GUARD_PRIORITY, "drop")
    return Table("inet", object_names.TABLE, (Chain("block", tuple(rules), hook),))


def _counters(*counter_names: str) -> tuple[NamedCounter, ...]:
    return tuple(NamedCounter(name) for name in counter_names)


def _uplinks(policies: Sequence[Policy]) -> Iterator[_NamedUplink]:
    for number, policy in enumerate(policies):
        for name, uplink in policy.uplink.items():
            prefix = f"{name}.{number}" if number else name
            yield prefix, uplink


def _ip_chains(policies: Sequence[Policy], uplinks: Sequence[_NamedUplink]) -> Iterator[Chain]:
    rules = [Rule((Match(OUTPUT_DEVICE, "lo"), ACCEPT))]
    devices = [(name, device) for name, uplink in uplinks for device in uplink.devices]
    for name, device in devices:
        rules.append(Rule((Match(OUTPUT_DEVICE, device), Verdict("jump", object_name(name, "passes")))))
    for device in dict.fromkeys(device for _, device in devices):
        rules.append(matches.count_and_drop(STOPPED_COUNTER, Match(OUTPUT_DEVICE, device)))
    rules += [matches.count_and_drop(STOPPED_COUNTER, match) for match in _not_inside(policies)]
    # The kernel's membership reports can have arbitrary marks, and may go inside.
    rules += [Rule((*matches, Verdict("goto", "inside"))) for matches in exemptions.report_matches()]
    marks = dict.fromkeys(uplink.mark for _, uplink in uplinks)
    rules += [matches.count_and_drop(_STRAY, matches.has_mark(mark)) for mark in marks]
    inside = dict.fromkeys(device for policy in policies for device in policy.inside)
    to_inside = tuple(Rule((Match(OUTPUT_DEVICE, device), ACCEPT)) for device in inside)
    drop = matches.count_and_drop(STOPPED_COUNTER)
    yield Chain("inside", (*to_inside, drop))
    for policy, (name, uplink) in zip(_policy_of_each_uplink(policies), uplinks, strict=True):
        exempt = _exempt(name, uplink, _stray_drops(policy, uplink))
        sources = map(_uncounted, uplink_addresses.source_rules(name, uplink))
        yield Chain(object_name(name, "passes"), (*sources, *exempt, *_replies(name, uplink)))
        yield from _kernel_chains(name, uplink)
    yield Chain("block", (*rules, *to_inside, drop), _HOOK)


def _not_inside(policies: Sequence[Policy]) -> Iterator[Match]:
    """Yield matches for packets that do not go inside: requests to published ports, packets of users without marks."""
    uplinks = [(policy, name, uplink) for policy in policies for name, uplink in policy.uplink.items()]
    publishing = [uplink for policy, name, uplink in uplinks if forwards.uplink_publishes(policy, name)]
    for device in dict.fromkeys(device for uplink in publishing for device in uplink.devices):
        yield Match(INPUT_DEVICE, device)
    services = [service for policy in policies for service in policy.service.values()]
    for user in dict.fromkeys(service.user for service in services if service.unmarked and service.user):
        yield Match(matches.SOCKET_UID, user.number)


def _policy_of_each_uplink(policies: Sequence[Policy]) -> Iterator[Policy]:
    """Yield the policy of each uplink, in the order of `_uplinks`."""
    return (policy for policy in policies for _ in policy.uplink)


def _stray_drops(policy: Policy, uplink: Uplink) -> list[Rule]:
    """Return rules that drop packets with the mark of another uplink: exemptions are not for them."""
    other_uplinks = (other for other in policy.uplink.values() if other is not uplink)
    return [matches.count_and_drop(_STRAY, matches.has_mark(other.mark)) for other in other_uplinks]


def _kernel_chains(name: str, uplink: Uplink) -> Iterator[Chain]:
    for chain in exemptions.kernel_chains(name, uplink.exempt):
        yield Chain(chain.name, tuple(map(_uncounted, chain.rules)))


def _exempt(name: str, uplink: Uplink, stray_drops: Sequence[Rule] = ()) -> Iterator[Rule]:
    """Yield the exemptions for packets without the mark; membership reports may have any mark."""
    is_unmarked = matches.lacks_mark(uplink.mark)
    reports = exemptions.report_exemptions(uplink.exempt)
    yield from map(_uncounted, exemptions.exemption_rules(name, reports))
    yield from stray_drops
    further_exemptions = tuple(word for word in uplink.exempt if word not in reports)
    for rule in exemptions.exemption_rules(name, further_exemptions):
        yield Rule((is_unmarked, *_uncounted(rule).statements))


def _replies(name: str, uplink: Uplink, *conditions: Statement) -> list[Rule]:
    """Return rules that accept the replies that the policy allows and all `conditions` match.

    Default conditions: replies of connections that came in by the uplink.
    """
    if not conditions:
        has_flow_mark = matches.has_mark(uplink.mark, FLOW_MARK)
        conditions = (IS_REPLY, matches.has_mark(uplink.mark), has_flow_mark)
    allowed = (rule for rule in replies.reply_chain(name, uplink).rules if ACCEPT in rule.statements)
    return [Rule((*conditions, *_uncounted(rule).statements)) for rule in allowed]


def _uncounted(rule: Rule) -> Rule:
    return Rule(tuple(item for item in rule.statements if not isinstance(item, CounterRef)))


def _link_chains(uplinks: Sequence[_NamedUplink], host: HostFacts) -> Iterator[Chain]:
    # Packets that a bridge forwards are not sent by this host; see the guard's link layer.
    bridged = Rule((Match(Meta("pkttype"), "host", "!="), ACCEPT))
    drop = matches.count_and_drop(STOPPED_COUNTER)
    jumps: dict[str, list[Rule]] = {}
    bridge_ports: set[str] = set()
    for name, uplink in uplinks:
        # There is no conntrack at this hook, so the mark stands for the connection, which the IP
        # layer checks.
        replies = _replies(name, uplink, matches.has_mark(uplink.mark))
        packets = Chain(object_name(name, "packets"), (*_exempt(name, uplink), *replies))
        to_packets = exemptions.ip_frame_rules(Verdict("jump", packets.name))
        frames = map(_uncounted, exemptions.frame_rules(name, uplink.exempt))
        is_unmarked = matches.lacks_mark(uplink.mark)
        passes = (Rule((is_unmarked, *rule.statements)) for rule in frames)
        yield Chain(object_name(name, "passes"), (*passes, *to_packets))
        yield packets
        yield from _kernel_chains(name, uplink)
        for device in uplink.devices:
            ports = host.bridge_ports.get(device, ())
            bridge_ports |= set(ports)
            for hooked in (device, *ports):
                jumps.setdefault(hooked, []).append(Rule((Verdict("jump", object_name(name, "passes")),)))
    for device, rules in jumps.items():
        if device not in host.unhookable_devices:
            first = (bridged,) if device in bridge_ports else ()
            hook = Hook("filter", "egress", object_names.BLOCK_PRIORITY, "drop", device)
            yield Chain(object_names.device_chain(device), (*first, *rules, drop), hook)
