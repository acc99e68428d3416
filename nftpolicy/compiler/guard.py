# SPDX-License-Identifier: BSD-2-Clause
"""Guard: the last filter of leaving packets, at the IP layer and at the link layer.

IP layer: postrouting, the only hook with the final output device (in the output hook a rerouted
packet still has the old one). Link layer: netdev egress, which AF_PACKET frames pass too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve

from ..netstate.nft import ACCEPT, Chain, Hook, Match, Meta, Rule, Set, SetRef, Verdict
from ..policy.objects import Policy, Uplink
from . import clat, dns, exemptions, forwards, lans, matches, object_names, tunnels, uplink_addresses, wildcard_replies
from .exemptions import kernel_chains
from .matches import OUTPUT_DEVICE, TO_DNS
from .object_names import object_name
from .service_sets import ServiceSets, unmarked_user_matches


def inside_set(policy: Policy) -> Set:
    """Return the set of devices and device patterns of `inside`."""
    return Set("inside", ("ifname",), frozenset(policy.inside), frozenset({"interval"}), origin=("inside",))


def guard_chains(policy: Policy, services: Mapping[str, ServiceSets]) -> tuple[Chain, ...]:
    """Return the chains of the IP layer.

    Order of the tests: uplink devices, lo, devices inside; packets to other devices are dropped.
    """
    devices = [
        (device, clat.guard_entry(name, uplink, device))
        for name, uplink in policy.uplink.items()
        for device in uplink.devices
    ]
    rules = list(matches.device_dispatch(OUTPUT_DEVICE, [*devices, ("lo", Verdict("goto", "loopback"))]))
    if policy.inside:
        rules.append(Rule((Match(OUTPUT_DEVICE, SetRef("inside")), Verdict("goto", "inside")), origin=("inside",)))
    rules.append(matches.count_and_drop(object_names.UNNAMED_DEVICE, origin=("inside",)))
    base = Chain("guard", tuple(rules), Hook("filter", "postrouting", object_names.GUARD_PRIORITY, "drop"))
    stray_chains = (_stray_chain(name) for name in policy.uplink)
    uplinks = (_uplink(name, uplink, policy, services[name]) for name, uplink in policy.uplink.items())
    clats = (_clat(name, uplink, policy, services[name]) for name, uplink in policy.uplink.items() if uplink.clat)
    by_kernel = (chain for name, uplink in policy.uplink.items() for chain in kernel_chains(name, uplink.exempt))
    return (base, _loopback(policy), _inside(policy, services), *stray_chains, *uplinks, *clats, *by_kernel)


def _dns_jump(policy: Policy) -> tuple[Rule, ...]:
    return (Rule((TO_DNS, Verdict("jump", "dns"))),) if dns.uplinks_with_resolver(policy) else ()


def _loopback(policy: Policy) -> Chain:
    return Chain("loopback", (*dns.resolver_dispatch_rules(policy), *_dns_jump(policy), Rule((ACCEPT,))))


def _stray_drops(policy: Policy, own: str) -> tuple[Rule, ...]:
    """Return rules that drop packets with the mark of an uplink other than `own`."""
    return tuple(
        matches.count_and_drop(
            object_name(name, "stray"), matches.has_mark(uplink.mark), origin=("uplink", name, "mark")
        )
        for name, uplink in policy.uplink.items()
        if name != own
    )


def _inside(policy: Policy, services: Mapping[str, ServiceSets]) -> Chain:
    strays = tuple(
        Rule(
            (matches.has_mark(uplink.mark), Verdict("goto", object_name(name, "stray"))),
            origin=("uplink", name, "mark"),
        )
        for name, uplink in policy.uplink.items()
    )
    # Packets of users without marks cannot be identified by a mark: all of them belong to the
    # uplink.
    users = tuple(
        matches.count_and_drop(object_name(name, "stray"), match, origin=("uplink", name))
        for name, uplink_services in services.items()
        for match in unmarked_user_matches(name, uplink_services)
    )
    rules = (*forwards.inside_rules(policy), *users, *strays, *wildcard_replies.inside_drops(policy))
    return Chain("inside", (*rules, *_dns_jump(policy), Rule((ACCEPT,))), origin=("inside",))


def _stray_chain(name: str) -> Chain:
    """Return the chain for marked packets to devices inside: only membership reports may pass."""
    origin = ("uplink", name, "mark")
    reports = tuple(Rule((*matches, ACCEPT), origin=origin) for matches in exemptions.report_matches())
    return Chain(
        object_name(name, "stray"),
        (*reports, matches.count_and_drop(object_name(name, "stray"), origin=origin)),
        origin=origin,
    )


def _mark_unmarked_users(name: str, uplink: Uplink, services: ServiceSets) -> Iterator[Rule]:
    """Yield rules that mark packets of users without marks, for the link guard.

    No route is chosen after this hook. The chain of mark owners then checks their destinations.
    """
    for match in unmarked_user_matches(name, services):
        check = Verdict("goto", object_name(name, "mark-owner"))
        yield Rule((match, matches.set_mark(uplink.mark), check), origin=("uplink", name))


def _uplink(name: str, uplink: Uplink, policy: Policy, services: ServiceSets) -> Chain:
    check = Verdict("goto", object_name(name, "mark-owner"))
    marked = Rule((matches.has_mark(uplink.mark), check), origin=("uplink", name, "mark"))
    reports = exemptions.exemption_rules(name, exemptions.report_exemptions(uplink.exempt))
    further_exemptions = tuple(word for word in uplink.exempt if word not in exemptions.MEMBERSHIP_REPORTS)
    return Chain(
        object_name(name, "guard"),
        (
            *tunnels.ipsec_rules(name, policy),
            *clat.network_guard_rules(name, uplink),
            *uplink_addresses.source_rules(name, uplink, forwards.arrival_matches(name, policy)),
            marked,
            *reports,
            *_stray_drops(policy, name),
            *exemptions.exemption_rules(name, further_exemptions),
            *lans.rules(policy, name),
            *_mark_unmarked_users(name, uplink, services),
            matches.count_and_drop(object_name(name, "dropped"), origin=("uplink", name)),
        ),
        origin=("uplink", name),
    )


def _clat(name: str, uplink: Uplink, policy: Policy, services: ServiceSets) -> Chain:
    """Return the chain for packets that leave by the device of a CLAT: no exemption lets one pass."""
    origin = ("uplink", name, "clat")
    to_owners = Rule((matches.has_mark(uplink.mark), Verdict("goto", object_name(name, "mark-owner"))), origin=origin)
    rules = (
        *tunnels.ipsec_rules(name, policy, (4,)),
        *clat.device_guard_rules(name, uplink),
        *uplink_addresses.source_rules(name, uplink, forwards.arrival_matches(name, policy), (4,)),
        to_owners,
        *_stray_drops(policy, name),
        *_mark_unmarked_users(name, uplink, services),
        matches.count_and_drop(object_name(name, "dropped"), origin=origin),
    )
    return Chain(object_name(name, "clat"), rules, origin=origin)


def link_chains(
    policy: Policy, ports: Mapping[str, Sequence[str]], unhooked: frozenset[str] = frozenset()
) -> tuple[Chain, ...]:
    """Return the chains of the link layer: a base chain per uplink device and per port of one."""
    chains = (chain for name in policy.uplink for chain in _link(name, policy, ports))
    return tuple(chain for chain in chains if not (chain.hook and chain.hook.device in unhooked))


def _link(name: str, policy: Policy, ports: Mapping[str, Sequence[str]]) -> list[Chain]:
    uplink = policy.uplink[name]
    origin = ("uplink", name, "devices")
    marked = Rule((matches.has_mark(uplink.mark), ACCEPT), origin=("uplink", name, "mark"))
    drop = matches.count_and_drop(object_name(name, "dropped"), origin=("uplink", name))
    protocols = {*exemptions.exempt_protocols(uplink.exempt), *lans.protocols(policy, name)}
    to_packets = exemptions.ip_frame_rules(
        Verdict("goto", object_name(name, "packets")),
        tuple(protocol for protocol in exemptions.IP_PROTOCOLS if protocol in protocols),
    )
    frames = (*exemptions.frame_rules(name, uplink.exempt), *(evolve(rule, origin=origin) for rule in to_packets))
    packets = (*exemptions.exemption_rules(name, uplink.exempt), *lans.rules(policy, name, is_link=True), drop)
    shared = (
        Chain(object_name(name, "link"), (*frames, drop), origin=origin),
        *([Chain(object_name(name, "packets"), packets, origin=origin)] if to_packets else []),
        *kernel_chains(name, uplink.exempt),
    )
    onward = Rule((Verdict("goto", object_name(name, "link")),), origin=origin)
    # A packet that a bridge forwards keeps the pkttype of its arrival; a packet that this machine
    # sends has none, which reads as "host". (meta iif is 0 for both at this hook.)
    bridged = Rule((Match(Meta("pkttype"), "host", "!="), ACCEPT), origin=origin)
    own = [_base(device, (marked, onward), origin) for device in uplink.network_devices]
    own += [_base(uplink.clat.device, (marked, drop), origin)] if uplink.clat else []
    bridge_ports = [port for device in uplink.devices for port in ports.get(device, ())]
    bpdus = exemptions.bpdu_rules(name) if uplink.stp else ()
    of_ports = [_base(port, (marked, bridged, *bpdus, onward), origin) for port in bridge_ports]
    return [*shared, *own, *of_ports]


def _base(device: str, rules: tuple[Rule, ...], origin: tuple[str, ...]) -> Chain:
    hook = Hook("filter", "egress", object_names.GUARD_PRIORITY, "drop", device)
    return Chain(object_names.device_chain(device), rules, hook, origin=origin)
