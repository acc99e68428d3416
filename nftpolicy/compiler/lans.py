# SPDX-License-Identifier: BSD-2-Clause
"""Packets to an uplink's own network that leave without its mark: the tables `lan` of a policy.

An ip rule looks them up in table main before the rules of tunnels do, where only the connected routes
count: a default route by the uplink carries none of them. The guard tests owner, destination and ports,
and that no other machine sent the packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import product

from ..netstate.nft import ACCEPT, CounterRef, Element, Expression, Match, Meta, Payload, Rule, Set
from ..netstate.routing import TABLE_MAIN, IpRule
from ..policy.objects import Lan, Network, Policy
from ..policy.validate import account_selectors
from . import matches, object_names, service_sets
from .object_names import object_name
from .reply_routing import rules_of_ports

_FROM_THIS_MACHINE = Match(Meta("iif"), 0)
_FAMILIES = (4, 6)
_BROADCAST = IPv4Address("255.255.255.255")
# The name server of the network would learn all names that programs look up, so DNS needs to be named.
_WITH_PORTS: tuple[tuple[Match, ...], ...] = ((),)
_WITHOUT_PORTS = (
    (Match(matches.L4PROTO, matches.TCP_OR_UDP.right, "!="),),
    (matches.TCP_OR_UDP, Match(matches.DEST_PORT, 53, "!=")),
)


def uplink_lans(policy: Policy, uplink: str) -> dict[str, Lan]:
    """Return the `lan` tables of an uplink."""
    return {name: lan for name, lan in policy.lan.items() if lan.uplink == uplink}


def counter_names(policy: Policy, uplink: str) -> tuple[str, ...]:
    """Return the counters of an uplink's own network: "wan.lan.nas"."""
    return tuple(object_name(uplink, "lan", name) for name in uplink_lans(policy, uplink))


def protocols(policy: Policy, uplink: str) -> tuple[str, ...]:
    """Return the IP protocols of these packets, of "ip" and "ip6"."""
    versions = {network.version for lan in uplink_lans(policy, uplink).values() for network in lan.to}
    return tuple(matches.IP_HEADERS[version][0] for version in _FAMILIES if version in versions)


def sets(policy: Policy, uplink: str) -> tuple[Set, ...]:
    """Return the set of each table and family, such as "wan.lan.nas4": owner, network and port, as far as given."""
    return tuple(
        Set(
            object_name(uplink, "lan", f"{name}{family}"),
            tuple(data_type for _, data_type in _columns(lan, family)),
            frozenset(_elements(lan, networks)),
            frozenset({"interval"}),
            origin=("lan", name),
        )
        for name, lan in uplink_lans(policy, uplink).items()
        for family, networks in _networks_by_family(lan)
    )


def rules(policy: Policy, uplink: str, is_link: bool = False) -> Iterator[Rule]:
    """Yield the rules that accept these packets. A device's own hook (`is_link`) has no input device."""
    for name, lan in uplink_lans(policy, uplink).items():
        for family, _ in _networks_by_family(lan):
            test = service_sets.match_in_set(_columns(lan, family), object_name(uplink, "lan", f"{name}{family}"))
            passes = (CounterRef(object_name(uplink, "lan", name)), ACCEPT)
            for kind in _kinds(lan):
                yield Rule((*(() if is_link else (_FROM_THIS_MACHINE,)), test, *kind, *passes), origin=("lan", name))


def _kinds(lan: Lan) -> tuple[tuple[Match, ...], ...]:
    """Return the tests of the transport header beside the set; any suffices."""
    if lan.sport:
        from_port = Match(Payload("udp", "sport"), service_sets.any_port(lan.sport))
        return ((from_port, Match(Payload("udp", "dport"), 53, "!=")),)
    return _WITH_PORTS if lan.ports else _WITHOUT_PORTS


def ip_rules(policy: Policy) -> Iterator[IpRule]:
    """Yield the rules that look up these packets in table main, without its default routes; each once."""
    rules_of_all = (rule for name, lan in policy.lan.items() for rule in _ip_rules(name, lan))
    yield from dict.fromkeys(rules_of_all)


def _ip_rules(name: str, lan: Lan) -> Iterator[IpRule]:
    uids = (lan.user.number, lan.user.number) if lan.user else None  # no rule matches a group
    for family, networks in _networks_by_family(lan):
        for network in networks:
            # Packets to a group, and to link-local addresses of IPv6, are sent by a device, whatever the route.
            is_by_device = network.is_multicast or network.network_address == _BROADCAST
            if not is_by_device and (family == 4 or not network.is_link_local):
                rule = IpRule(
                    family,
                    object_names.LAN_RULE_PRIORITY,
                    table=TABLE_MAIN,
                    destination=str(network),
                    iif="lo",  # packets of this machine
                    uids=uids,
                    suppress_prefix=0,
                    origin=("lan", name),
                )
                yield from rules_of_ports(rule, lan.sport) if lan.sport else (rule,)


def _networks_by_family(lan: Lan) -> Iterator[tuple[int, list[Network]]]:
    for family in _FAMILIES:
        networks = service_sets.merge_networks([network for network in lan.to if network.version == family])
        if networks:
            yield family, networks


def _columns(lan: Lan, family: int) -> tuple[tuple[Expression, str], ...]:
    header, data_type = matches.IP_HEADERS[family]
    owner = tuple(service_sets.ACCOUNT_KEYS[key] for key, _ in account_selectors(lan))
    return (*owner, (Payload(header, "daddr"), data_type), *(service_sets.PORT_COLUMNS if lan.ports else ()))


def _elements(lan: Lan, networks: list[Network]) -> Iterator[Element]:
    owner = tuple(account.number for _, account in account_selectors(lan))
    ports: list[tuple[int | str, ...]] = [
        (each.protocol, matches.port_value(each)) for each in service_sets.merge_ports(lan.ports)
    ]
    for network, port in product(networks, ports or [()]):
        row = (*owner, service_sets.network_text(network), *port)
        yield row[0] if len(row) == 1 else row
