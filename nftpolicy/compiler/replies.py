# SPDX-License-Identifier: BSD-2-Clause
"""Replies: mark packets that arrive by an uplink, so that their replies leave by the same uplink.

A flow that begins at an uplink gets the uplink's mark, and so do the packets that arrive by the
uplink, except those of flows that began elsewhere: they may be forged, and must not move the flow.
`fwmark_reflect`, `tcp_fwmark_accept` and the restore chain copy the mark to the replies. Replies
that the policy does not allow are counted and dropped at the uplink instead of being sent inside.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..netstate.nft import (
    ACCEPT,
    Chain,
    CounterRef,
    Fib,
    Hook,
    Match,
    OriginPath,
    Payload,
    Rule,
    Set,
    SetRef,
    Statement,
    Verdict,
)
from ..policy.mark import Mark
from ..policy.objects import Answer, Policy, Uplink
from . import clat, forwards, matches, object_names, uplink_addresses, wildcard_replies
from .matches import FLOW_MARK, INPUT_DEVICE, IP_HEADERS, OUTPUT_DEVICE
from .object_names import object_name
from .service_sets import merge_networks, network_text


def arrival_chains(policy: Policy) -> tuple[Chain, ...]:
    """Return the chains that mark packets and flows from uplinks, and clear these marks on all others."""
    entries = [
        (device, Verdict("goto", object_name(name, "arrival")))
        for name, uplink in policy.uplink.items()
        for device in uplink.devices
    ]
    mark_bits = 0
    for uplink in policy.uplink.values():
        mark_bits |= uplink.mark.mask
    no_mark = Mark(0, mark_bits)
    rules = (
        *matches.device_dispatch(INPUT_DEVICE, [*entries, ("lo", ACCEPT)]),
        Rule((matches.lacks_mark(no_mark), matches.set_mark(no_mark))),
        # A flow that a conntrack helper expects inherits the mark of its master.
        Rule((matches.BEGINS_FLOW, matches.lacks_mark(no_mark, FLOW_MARK), matches.set_mark(no_mark, FLOW_MARK))),
    )
    base = Chain("arrival", rules, Hook("filter", "prerouting", object_names.ARRIVAL_PRIORITY))
    arrivals = (
        chain
        for name, uplink in policy.uplink.items()
        for chain in (_uplink_arrival(name, policy, no_mark), uplink_addresses.destination_chain(name, uplink))
    )
    return (base, *arrivals)


def _uplink_arrival(name: str, policy: Policy, no_mark: Mark) -> Chain:
    uplink = policy.uplink[name]
    origin = ("uplink", name, "answer")
    began_elsewhere = matches.lacks_mark(uplink.mark, FLOW_MARK)
    flow_mark = matches.set_mark(Mark(uplink.mark.value, no_mark.mask), FLOW_MARK)
    rules = (
        *_dhcp_replies(uplink, origin),
        *forwards.answer_rules(name, policy, no_mark),
        *clat.arrival_rules(name, uplink),
        *uplink_addresses.destination_rules(name),
        *wildcard_replies.arrival_rules(name, uplink),
        Rule((matches.IS_ORIGINAL, matches.BEGINS_FLOW, flow_mark), origin=origin),
        Rule((matches.IS_ORIGINAL, began_elsewhere, matches.set_mark(no_mark), ACCEPT), origin=origin),
        *forwards.request_rules(name, policy, no_mark),
        Rule((matches.set_mark(uplink.mark),), origin=origin),
    )
    return Chain(object_name(name, "arrival"), rules, origin=origin)


def _dhcp_replies(uplink: Uplink, origin: OriginPath) -> tuple[Rule, ...]:
    """Return the rule that marks DHCP replies for an address that no device has yet.

    With br_netfilter, frames by a bridge pass this hook before the client's AF_PACKET socket gets them.
    """
    if not {"dhcpv4", "dhcpv4-unicast"} & set(uplink.exempt):
        return ()
    is_reply = (
        Match(Fib("type", ("daddr",)), "unicast"),
        Match(Payload("udp", "sport"), 67),
        Match(Payload("udp", "dport"), 68),
    )
    return (Rule((*is_reply, matches.set_mark(uplink.mark), ACCEPT), origin=origin),)


def restore_chain(policy: Policy) -> Chain:
    """Return the chain that marks replies of sockets without a mark (UDP, older than the policy).

    Where no reply may leave, it drops them instead of the guard: a rule that gives replies the mark of
    their flow cannot be proved beside a foreign rule that marks flows, such as wg-quick's.

    The chain is of type route: the kernel routes the packet again. Its source address is already
    right, since a reply has the destination address of the request as its source.
    """
    errors = tuple(forwards.error_rules(policy))
    ends = (ACCEPT,) if errors else ()  # an error in a flow that began at the uplink is no error of a forward
    rules = []
    for name, uplink in policy.uplink.items():
        origin = ("uplink", name, "answer")
        of_flow = (matches.IS_REPLY, matches.has_mark(uplink.mark, FLOW_MARK))
        if errors or _may_reply(name, policy):
            rules.append(Rule((*of_flow, matches.set_mark(uplink.mark), *ends), origin=origin))
        else:
            leaves = (matches.lacks_mark(uplink.mark), Match(OUTPUT_DEVICE, "lo", "!="))
            rules.append(matches.count_and_drop(object_name(name, "unanswered"), *of_flow, *leaves, origin=origin))
    return Chain("restore", (*rules, *errors), Hook("route", "output", object_names.RESTORE_PRIORITY))


def _may_reply(name: str, policy: Policy) -> bool:
    """Return True if packets that were sent without the mark may leave in flows that began at the uplink."""
    unmarked = any(service.uplink == name and service.unmarked for service in policy.service.values())
    return unmarked or bool(policy.uplink[name].answer)


def _reply_matches(uplink: str, answer: Answer) -> list[tuple[Statement, ...]]:
    if answer.port is None:
        by_family = {4: Match(Payload("icmp", "type"), "echo-reply"), 6: Match(Payload("icmpv6", "type"), "echo-reply")}
        if not answer.source:
            return [(match,) for match in by_family.values()]
    else:
        from_port = Match(Payload(answer.port.protocol, "sport"), matches.port_value(answer.port))
        if not answer.source:
            return [(from_port,)]
        by_family = {4: from_port, 6: from_port}
    return [
        (by_family[family], Match(Payload(IP_HEADERS[family][0], "daddr"), SetRef(_source_set(uplink, answer, family))))
        for family in by_family
        if any(network.version == family for network in answer.source)
    ]


def source_sets(name: str, uplink: Uplink) -> Iterator[Set]:
    """Yield the sets of the networks that an answer is for: "wan.answer4.ssh", "wan.answer6.tcp-8080"."""
    for answer in uplink.answer:
        for family, (_, data_type) in IP_HEADERS.items():
            networks = merge_networks([network for network in answer.source if network.version == family])
            elements = frozenset(map(network_text, networks))
            if elements:
                flags, origin = frozenset({"interval"}), ("uplink", name, "answer")
                yield Set(_source_set(name, answer, family), (data_type,), elements, flags, origin=origin)


def _source_set(uplink: str, answer: Answer, family: int) -> str:
    return object_name(uplink, f"answer{family}", answer.name.replace("/", "-"))


def _reset_matches(name: str, uplink: Uplink) -> list[tuple[Statement, ...]]:
    """Return the matches for RSTs: to the networks of all TCP answers, or to any if one of these is for any."""
    reset = Match(Payload("tcp", "flags"), "rst", "&")
    of_tcp = [answer for answer in uplink.answer if answer.port is not None and answer.port.protocol == "tcp"]
    if not all(answer.source for answer in of_tcp):
        return [(reset,)]
    return [(reset, is_addressed) for answer in of_tcp for _, is_addressed in _reply_matches(name, answer)]


def counter_name(uplink: str, answer: Answer) -> str:
    """Return the counter name of an answer: "wan.answer.ssh", "wan.answer.tcp-8080"."""
    return object_name(uplink, "answer", answer.name.replace("/", "-"))


def refuses_closed_ports(uplink: Uplink) -> bool:
    """Return True if RSTs of closed TCP ports may leave: the uplink answers at least one TCP port."""
    return any(answer.port is not None and answer.port.protocol == "tcp" for answer in uplink.answer)


def counter_names(name: str, uplink: Uplink) -> tuple[str, ...]:
    """Return the counter names of an uplink's answers."""
    reset = (object_name(name, "answer", "reset"),) if refuses_closed_ports(uplink) else ()
    return (*(counter_name(name, answer) for answer in uplink.answer), *reset)


def reply_chain(name: str, uplink: Uplink) -> Chain:
    """Return the chain "wan.answers": accept the replies that the policy allows, drop all others."""
    origin = ("uplink", name, "answer")
    rules = [
        Rule((*matches, CounterRef(counter_name(name, answer)), ACCEPT), origin=origin)
        for answer in uplink.answer
        for matches in _reply_matches(name, answer)
    ]
    if refuses_closed_ports(uplink):
        counter = CounterRef(object_name(name, "answer", "reset"))
        rules += [Rule((*tests, counter, ACCEPT), origin=origin) for tests in _reset_matches(name, uplink)]
    rules.append(matches.count_and_drop(object_name(name, "unanswered"), origin=origin))
    return Chain(object_name(name, "answers"), tuple(rules), origin=origin)
