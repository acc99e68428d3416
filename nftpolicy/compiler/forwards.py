# SPDX-License-Identifier: BSD-2-Clause
"""Forwards and published ports: packets of other machines that may use an uplink.

The device of arrival identifies a packet, since no packet can forge it. Packets get the mark after
destination NAT, so their destination is the one to which they leave, and the guard tests device,
mark and destination once more. A forward marks no flow: a flow with an uplink's mark began at the
uplink, so answers to a forwarded packet are those of a flow without it.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from ..netstate.nft import (
    ACCEPT,
    Chain,
    Concat,
    CounterRef,
    Fib,
    Hook,
    Masquerade,
    Match,
    OriginPath,
    Payload,
    Rule,
    Set,
    SetRef,
    Verdict,
)
from ..policy.mark import Mark
from ..policy.objects import Forward, Network, Policy, Publish, Uplink
from ..policy.scalars import matching_pattern
from . import clat, matches, object_names
from .matches import (
    FLOW_MARK,
    ICMP_ERROR,
    ICMPV6_ERROR,
    INPUT_DEVICE,
    IP_HEADERS,
    IS_LOCAL,
    IS_NOT_LOCAL,
    IS_ORIGINAL,
    IS_RELATED,
    IS_REPLY,
    L4PROTO,
    OUTPUT_DEVICE,
)
from .object_names import object_name
from .service_sets import is_port_range, merge_ports, network_text


def uplink_forwards(policy: Policy, uplink: str) -> dict[str, Forward]:
    """Return the forwards of an uplink."""
    return {name: forward for name, forward in policy.forward.items() if forward.uplink == uplink}


def uplink_publishes(policy: Policy, uplink: str) -> dict[str, Publish]:
    """Return the published ports of an uplink."""
    return {name: publish for name, publish in policy.publish.items() if publish.uplink == uplink}


def forwards_packets(policy: Policy, uplink: str) -> bool:
    """Return True if packets of other machines may use the uplink."""
    return bool(uplink_forwards(policy, uplink) or uplink_publishes(policy, uplink))


def counter_names(policy: Policy, uplink: str) -> tuple[str, ...]:
    """Return the counter names of an uplink's forwards and published ports."""
    names = [_forward_name(uplink, name) for name in uplink_forwards(policy, uplink)]
    return (
        *names,
        *(_publish_name(uplink, name) for name in uplink_publishes(policy, uplink)),
        *((object_name(uplink, "not-forwarded"),) if names else ()),
    )


# --- sets -----------------------------------------------------------------------------------


def forward_sets(policy: Policy) -> tuple[Set, ...]:
    """Return the sets of all forwards and published ports, without those that would be empty."""
    sets = [
        _network_set(_source_set(family), networks, ("forward",))
        for family in IP_HEADERS
        if (networks := _all_sources(policy, family))
    ]
    for uplink in policy.uplink:
        forwards, publishes = uplink_forwards(policy, uplink), uplink_publishes(policy, uplink)
        for name, forward in forwards.items():
            sets += _sets(_forward_name(uplink, name), forward, ("forward", name))
        if forwards:
            devices = _apart(device for forward in forwards.values() for device in forward.devices)
            sets.append(_device_set(_forward_devices(uplink), devices, ("forward",)))
        if publishes:
            devices = frozenset(publish.to for publish in publishes.values())
            sets.append(Set(_publish_devices(uplink), ("ifname",), devices, origin=("publish",)))
    return tuple(sets)


def _forward_name(uplink: str, name: str) -> str:
    return object_name(uplink, "forward", name)


def _publish_name(uplink: str, name: str) -> str:
    return object_name(uplink, "publish", name)


def _forward_devices(uplink: str) -> str:
    """Return the name of the set of devices of an uplink's forwards: "wan.forward-devices"."""
    return object_name(uplink, "forward-devices")


def _publish_devices(uplink: str) -> str:
    return object_name(uplink, "publish-devices")


def _source_set(family: int) -> str:
    """Return the name of the set of all networks in `source`: "forward-sources4"."""
    return f"forward-sources{family}"


def _all_sources(policy: Policy, family: int) -> list[Network]:
    every = tuple(network for forward in policy.forward.values() for network in forward.source)
    return Forward("", (), every).networks("source", family)


def _apart(devices: Iterator[str]) -> frozenset[str]:
    """Return the devices and patterns without those that another pattern covers."""
    names = frozenset(devices)
    return frozenset(name for name in names if matching_pattern(name, names - {name}) is None)


def _device_set(name: str, devices: frozenset[str], origin: OriginPath) -> Set:
    return Set(name, ("ifname",), devices, frozenset({"interval"}), origin=origin)


def _network_set(name: str, networks: list[Network], origin: OriginPath) -> Set:
    kind = IP_HEADERS[networks[0].version][1]
    texts = frozenset(map(network_text, networks))
    return Set(name, (kind,), texts, frozenset({"interval"}), origin=origin)


def _sets(prefix: str, forward: Forward, origin: OriginPath) -> Iterator[Set]:
    yield _device_set(object_name(prefix, "from"), frozenset(forward.devices), origin)
    for key in ("source", "to"):
        for family in forward.families:
            if networks := forward.networks(key, family):
                yield _network_set(object_name(prefix, f"{key}{family}"), networks, origin)
    if forward.ports:
        ports = merge_ports(forward.ports)
        flags = frozenset({"interval"}) if any(map(is_port_range, ports)) else frozenset[str]()
        elements = frozenset((port.protocol, matches.port_value(port)) for port in ports)
        yield Set(object_name(prefix, "ports"), ("inet_proto", "inet_service"), elements, flags, origin=origin)


# --- matches --------------------------------------------------------------------------------


def _tests(prefix: str, forward: Forward, keys: tuple[str, ...], reply: bool = False) -> Iterator[tuple[Match, ...]]:
    """Yield the tests of a forward's packets by `keys`, of "source", "to" and "ports"; any suffices.

    `reply`: the tests of the answers to these packets.
    """
    fields = {"source": "daddr" if reply else "saddr", "to": "saddr" if reply else "daddr"}
    port = Concat((L4PROTO, Payload("th", "sport" if reply else "dport")))
    ports = (Match(port, SetRef(object_name(prefix, "ports"))),) if forward.ports and "ports" in keys else ()
    alternatives: dict[tuple[Match, ...], None] = {}
    for family in forward.families:
        addresses = tuple(
            Match(Payload(IP_HEADERS[family][0], fields[key]), SetRef(object_name(prefix, f"{key}{family}")))
            for key in ("source", "to")
            if key in keys and getattr(forward, key)
        )
        is_single = len(forward.families) == 1 and not addresses
        is_family = (Match(matches.NFPROTO, _FAMILY_NAMES[family]),) if is_single else ()
        alternatives[(*is_family, *addresses, *ports)] = None
    yield from alternatives


_FAMILY_NAMES = {4: "ipv4", 6: "ipv6"}
_ALL_KEYS = ("source", "to", "ports")


def _arrives_for(prefix: str) -> Match:
    return Match(INPUT_DEVICE, SetRef(object_name(prefix, "from")))


# --- prerouting -----------------------------------------------------------------------------


def forward_chains(policy: Policy) -> tuple[Chain, ...]:
    """Return the chains that mark forwarded packets, and take the mark from answers to them."""
    if not (policy.forward or policy.publish):
        return ()
    used = {name: uplink for name, uplink in policy.uplink.items() if forwards_packets(policy, name)}
    entries = [
        (device, Verdict("goto", object_name(name, "inward")))
        for name, uplink in used.items()
        for device in uplink.devices
    ]
    rules = [*matches.device_dispatch(INPUT_DEVICE, entries), *_publish_replies(policy), Rule((IS_LOCAL, ACCEPT))]
    for family, (protocol, _) in IP_HEADERS.items():
        if _all_sources(policy, family):
            between = Match(Payload(protocol, "daddr"), SetRef(_source_set(family)))
            rules.append(Rule((between, ACCEPT), origin=("forward",)))
    for name, forward in policy.forward.items():
        prefix, mark = _forward_name(forward.uplink, name), policy.uplink[forward.uplink].mark
        for tests in _tests(prefix, forward, _ALL_KEYS):
            marks = (matches.set_mark(mark), ACCEPT)
            rules.append(Rule((_arrives_for(prefix), IS_ORIGINAL, *tests, *marks), origin=("forward", name)))
    base = Chain("forward", tuple(rules), Hook("filter", "prerouting", object_names.FORWARD_PRIORITY))
    inward = (_inward_chain(name, uplink, policy) for name, uplink in used.items())
    return (base, *inward, *_masquerade_chain(policy))


def _publish_replies(policy: Policy) -> Iterator[Rule]:
    for name, uplink in policy.uplink.items():
        if uplink_publishes(policy, name):
            arrives = Match(INPUT_DEVICE, SetRef(_publish_devices(name)))
            flow = matches.has_mark(uplink.mark, FLOW_MARK)
            yield Rule((arrives, IS_REPLY, flow, matches.set_mark(uplink.mark), ACCEPT), origin=("publish",))


def _inward_chain(name: str, uplink: Uplink, policy: Policy) -> Chain:
    """Return the chain of packets that arrive by the uplink, after destination NAT.

    They are routed by table main: answers to forwarded packets, and errors about packets of a
    published port.
    """
    clear = matches.set_mark(Mark(0, uplink.mark.mask))
    in_flow, in_other_flow = matches.has_mark(uplink.mark, FLOW_MARK), matches.lacks_mark(uplink.mark, FLOW_MARK)
    rules = [*clat.inward_rules(name, uplink)]
    rules.append(Rule((IS_NOT_LOCAL, IS_REPLY, in_other_flow, clear), origin=("forward",)))
    if uplink_publishes(policy, name):
        rules.append(Rule((IS_NOT_LOCAL, IS_RELATED, in_flow, clear), origin=("publish",)))
    return Chain(object_name(name, "inward"), tuple(rules))


def answer_rules(name: str, policy: Policy, no_mark: Mark) -> Iterator[Rule]:
    """Yield the rules that let answers to forwarded packets without NAT arrive by an uplink.

    Their destination is not of this machine. The tests of the forward, reversed, keep packets of
    other flows of the same hosts out, which only a host in the uplink's network can have forged.
    """
    for key, forward in uplink_forwards(policy, name).items():
        if forward.masquerade or not forward.source:
            continue
        prefix = _forward_name(name, key)
        other_flow = matches.lacks_mark(policy.uplink[name].mark, FLOW_MARK)
        passes = (matches.set_mark(no_mark), ACCEPT)
        for tests in _tests(prefix, forward, _ALL_KEYS, reply=True):
            yield Rule((IS_REPLY, other_flow, *tests, *passes), origin=("forward", key))
        for tests in _tests(prefix, forward, ("source",), reply=True):
            yield Rule((IS_REPLY, other_flow, IS_RELATED, *tests, *passes), origin=("forward", key))


def request_rules(name: str, policy: Policy, no_mark: Mark) -> Iterator[Rule]:
    """Yield the rules by which requests to published ports keep no mark: table main leads to their device."""
    for key, publish in uplink_publishes(policy, name).items():
        port = Match(Payload(publish.port.protocol, "dport"), matches.port_value(publish.port))
        yield Rule((IS_ORIGINAL, port, matches.set_mark(no_mark), ACCEPT), origin=("publish", key))


def error_rules(policy: Policy) -> Iterator[Rule]:
    """Yield the rules that take the mark from the kernel's errors about forwarded packets.

    The kernel copies the mark of the packet to the error (fwmark_reflect), which would leave by the
    uplink. (Connection tracking does not know the error, if NAT translates the packet.)
    """
    for name, uplink in policy.uplink.items():
        if forwards_packets(policy, name):
            for error in (ICMP_ERROR, ICMPV6_ERROR):
                marked = (error, matches.has_mark(uplink.mark))
                # A process that sends an error itself, with the mark, keeps it.
                yield Rule((*marked, matches.HAS_OWNER, ACCEPT), origin=("uplink", name))
                yield Rule((*marked, matches.set_mark(Mark(0, uplink.mark.mask))), origin=("uplink", name))


def _masquerade_chain(policy: Policy) -> Iterator[Chain]:
    rules = [
        Rule((_arrives_for(prefix), *tests, matches.has_mark(mark), Masquerade()), origin=("forward", name))
        for name, forward in policy.forward.items()
        if forward.masquerade
        for prefix, mark in [(_forward_name(forward.uplink, name), policy.uplink[forward.uplink].mark)]
        for tests in _tests(prefix, forward, _ALL_KEYS)
    ]
    if rules:
        yield Chain("forward-nat", tuple(rules), Hook("nat", "postrouting", object_names.MASQUERADE_PRIORITY))


# --- guard ----------------------------------------------------------------------------------


def entitled_publish_rules(name: str, policy: Policy) -> Iterator[Rule]:
    """Yield the rules that let replies of published ports leave by their uplink."""
    for key, publish in uplink_publishes(policy, name).items():
        tests = (
            Match(INPUT_DEVICE, publish.to),
            IS_REPLY,
            matches.has_mark(policy.uplink[name].mark, FLOW_MARK),
            Match(Payload(publish.port.protocol, "sport"), matches.port_value(publish.port)),
        )
        yield Rule((*tests, CounterRef(_publish_name(name, key)), ACCEPT), origin=("publish", key))


def arrival_matches(name: str, policy: Policy) -> tuple[Match, ...]:
    """Return the matches for packets that arrived by a device of an uplink's forwards or published ports."""
    sets = (
        *([_forward_devices(name)] if uplink_forwards(policy, name) else []),
        *([_publish_devices(name)] if uplink_publishes(policy, name) else []),
    )
    return tuple(Match(INPUT_DEVICE, SetRef(set_name)) for set_name in sets)


def entitled_forward_rules(name: str, policy: Policy) -> Iterator[Rule]:
    """Yield the rules that let forwarded packets leave by their uplink, and drop all others of these devices.

    A flow that NAT translated to the address of another device, such as one that began before the
    policy, does not leave; with `masquerade`, nor does a packet that NAT does not translate.
    """
    forwards = uplink_forwards(policy, name)
    if not forwards:
        return
    of_forward = Match(INPUT_DEVICE, SetRef(_forward_devices(name)))
    is_own, is_of_uplink = Match(Fib("type", ("saddr",)), "local"), Match(Fib("type", ("saddr", "oif")), "local")
    drop = object_name(name, "not-forwarded")
    yield matches.count_and_drop(drop, of_forward, is_own, evolve(is_of_uplink, op="!="), origin=("forward",))
    for key, forward in forwards.items():
        prefix = _forward_name(name, key)
        translated: tuple[Match, ...] = (is_of_uplink,) if forward.masquerade else ()
        for tests in _tests(prefix, forward, ("to", "ports")):
            tests = (_arrives_for(prefix), IS_ORIGINAL, *tests, *translated)
            yield Rule((*tests, CounterRef(prefix), ACCEPT), origin=("forward", key))
    yield matches.count_and_drop(drop, of_forward, origin=("forward",))


def inside_rules(policy: Policy) -> Iterator[Rule]:
    """Yield the rules that drop requests to published ports that leave by another device than theirs.

    (A packet that a tunnel device sends itself has that device as its input device, but no flow with the mark.)
    """
    for name, uplink in policy.uplink.items():
        if uplink_publishes(policy, name):
            request = (IS_ORIGINAL, matches.has_mark(uplink.mark, FLOW_MARK))
            elsewhere = Match(OUTPUT_DEVICE, SetRef(_publish_devices(name)), "!=")
            drop = object_name(name, "not-local")
            for device in uplink.devices:
                arrives = Match(INPUT_DEVICE, device)
                yield matches.count_and_drop(drop, arrives, *request, elsewhere, origin=("publish",))
