# SPDX-License-Identifier: BSD-2-Clause
"""The guard: the last word on what leaves, at the IP layer and at the link layer.

IP layer: postrouting, the only hook that shows the device by which a packet really leaves
(in the output hook a re-routed packet still shows the old one). Link layer: netdev egress,
where AF_PACKET frames pass too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..netstate.nft import ACCEPT, Chain, Hook, Match, Meta, Rule, Set, SetRef, Verdict
from ..policy.objects import Policy, Uplink
from . import dns, exemptions, names, phrases
from .members import Members, is_unmarked
from .names import of
from .phrases import OUT, TO_DNS


def inside_set(policy: Policy) -> Set:
    """The devices that are not uplinks, wildcards and all."""
    return Set("inside", ("ifname",), frozenset(policy.inside), frozenset({"interval"}), origin=("inside",))


def chains(policy: Policy, who: Mapping[str, Members]) -> tuple[Chain, ...]:
    """The IP layer. Order of the tests: uplinks by name, lo, devices inside, all others dropped."""
    devices = [
        (device, Verdict("goto", of(name, "guard")))
        for name, uplink in policy.uplink.items()
        for device in uplink.devices
    ]
    rules = list(phrases.by_device(OUT, [*devices, ("lo", Verdict("goto", "loopback"))]))
    if policy.inside:
        rules.append(Rule((Match(OUT, SetRef("inside")), Verdict("goto", "inside")), origin=("inside",)))
    rules.append(phrases.drop(names.UNKNOWN_DEVICE, origin=("inside",)))
    base = Chain("guard", tuple(rules), Hook("filter", "postrouting", names.GUARD, "drop"))
    strays = (_stray_chain(name) for name in policy.uplink)
    uplinks = (_uplink(name, uplink, policy, who[name]) for name, uplink in policy.uplink.items())
    return (base, _loopback(policy), _inside(policy, who), *strays, *uplinks)


def _names(policy: Policy) -> tuple[Rule, ...]:
    return (Rule((TO_DNS, Verdict("jump", "names"))),) if dns.resolvers(policy) else ()


def _loopback(policy: Policy) -> Chain:
    return Chain("loopback", (*dns.to_resolvers(policy), *_names(policy), Rule((ACCEPT,))))


def _strays(policy: Policy, but: str) -> tuple[Rule, ...]:
    """Drop packets that wear the mark of an uplink other than `but`."""
    return tuple(
        phrases.drop(of(name, "stray"), phrases.wears(uplink.mark), origin=("uplink", name, "mark"))
        for name, uplink in policy.uplink.items()
        if name != but
    )


def _inside(policy: Policy, who: Mapping[str, Members]) -> Chain:
    strays = tuple(
        Rule((phrases.wears(uplink.mark), Verdict("goto", of(name, "stray"))), origin=("uplink", name, "mark"))
        for name, uplink in policy.uplink.items()
    )
    # Who needs no mark has no mark to be known by: all that such a user sends is the uplink's.
    users = tuple(
        phrases.drop(of(name, "stray"), match, origin=("uplink", name))
        for name, mine in who.items()
        for match in is_unmarked(name, mine)
    )
    return Chain("inside", (*users, *strays, *_names(policy), Rule((ACCEPT,))), origin=("inside",))


def _stray_chain(name: str) -> Chain:
    """What wears the mark and is on its way to a device inside. Reports of the kernel may go there."""
    origin = ("uplink", name, "mark")
    reports = tuple(Rule((*matches, ACCEPT), origin=origin) for matches in exemptions.reports())
    return Chain(of(name, "stray"), (*reports, phrases.drop(of(name, "stray"), origin=origin)), origin=origin)


def _dressed(name: str, uplink: Uplink, mine: Members) -> Iterator[Rule]:
    """Packets of users without marks get the uplink's here, where no route is chosen any more, for the link guard;
    where they may send is asked as of all others."""
    for match in is_unmarked(name, mine):
        put_on, judged = phrases.put_on(uplink.mark), Verdict("goto", of(name, "identity"))
        yield Rule((match, put_on, judged), origin=("uplink", name))


def _uplink(name: str, uplink: Uplink, policy: Policy, mine: Members) -> Chain:
    marked = Rule((phrases.wears(uplink.mark), Verdict("goto", of(name, "identity"))), origin=("uplink", name, "mark"))
    reports = exemptions.rules(name, exemptions.reports_of(uplink.exempt), "inet")
    others = tuple(word for word in uplink.exempt if word not in exemptions.REPORTS)
    return Chain(
        of(name, "guard"),
        (
            marked,
            *reports,
            *_strays(policy, name),
            *exemptions.rules(name, others, "inet"),
            *_dressed(name, uplink, mine),
            phrases.drop(of(name, "dropped"), origin=("uplink", name)),
        ),
        origin=("uplink", name),
    )


def link_chains(
    policy: Policy, ports: Mapping[str, Sequence[str]], unhooked: frozenset[str] = frozenset()
) -> tuple[Chain, ...]:
    """The link layer: a base chain for each uplink device and for each port of one that is a bridge."""
    chains = (chain for name, uplink in policy.uplink.items() for chain in _link(name, uplink, ports))
    return tuple(chain for chain in chains if not (chain.hook and chain.hook.device in unhooked))


def _link(name: str, uplink: Uplink, ports: Mapping[str, Sequence[str]]) -> list[Chain]:
    origin = ("uplink", name, "devices")
    marked = Rule((phrases.wears(uplink.mark), ACCEPT), origin=("uplink", name, "mark"))
    exempt = exemptions.rules(name, uplink.exempt, "netdev")
    shared = Chain(
        of(name, "link"), (*exempt, phrases.drop(of(name, "dropped"), origin=("uplink", name))), origin=origin
    )
    onward = Rule((Verdict("goto", of(name, "link")),), origin=origin)
    # What a bridge passes on keeps the type that it was received with; what this machine sends has
    # none, which reads as "host". (meta iif does not tell: it is 0 for both at this hook.)
    bridged = Rule((Match(Meta("pkttype"), "host", "!="), ACCEPT), origin=origin)
    own = [_base(device, (marked, onward), origin) for device in uplink.devices]
    carried = [
        _base(port, (marked, bridged, onward), origin) for device in uplink.devices for port in ports.get(device, ())
    ]
    return [shared, *own, *carried]


def _base(device: str, rules: tuple[Rule, ...], origin: tuple[str, ...]) -> Chain:
    # "@", which a device's name can have, is no letter of an nft name; "/" is, and no device has it.
    name = "device-" + device.replace("@", "/")
    return Chain(name, rules, Hook("filter", "egress", names.GUARD, "drop", device), origin=origin)
