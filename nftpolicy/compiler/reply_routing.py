# SPDX-License-Identifier: BSD-2-Clause
"""Routes by the uplink for packets without its mark: of UDP replies, and of sockets bound to a device.

The kernel looks up the route of a UDP reply in the call of the socket, before any hook can give it
its mark: without one the call fails. So behind all other rules a packet from an answered port is
looked up in the uplink's table. So is what a DHCP client that is not bound to the device (dhclient)
sends to its server, since the network's route is not in main. With several uplinks, it is first looked
up among the networks of each: the default route of one uplink must not get the replies to the
neighbours of another.

Packets of sockets that are bound to a device of the uplink are looked up there first. So is the
gateway of a new route by that device (fib_check_nh): a DHCP client that gets another router in the
same network could not add its route otherwise, since the route of the network is in that table.

The guard judges all these packets as any others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import evolve

from ..netstate.routing import TABLE_MAIN, IpRule
from ..policy.objects import Policy, Port, Uplink
from . import object_names

_UDP = 17
# Of a route that is no network: a default route, or a part of one that VPN clients and DHCP options use in its place
# (0.0.0.0/1; OpenVPN's redirect-gateway: 2000::/3, fc00::/7).
_LONGEST_DEFAULT = 7
_MAX_PORT = 65534  # an ip rule cannot select port 65535 (fib_rule_port_range_valid, include/net/fib_rules.h)


def ip_rules(policy: Policy) -> Iterator[IpRule]:
    """Yield all rules of this module, each once: answers of one port can have several sources, and ranges one end."""
    # Those to all hosts first: the kernel takes a narrower rule for one of them (fib4_rule_compare).
    exclusive_rules = sorted(_exclusive_rules(policy), key=lambda rule: rule.destination is not None)
    yield from dict.fromkeys((*_device_rules(policy), *exclusive_rules, *_port_rules(policy)))


def _port_rules(policy: Policy) -> Iterator[IpRule]:
    """Yield the rules that give a UDP packet from an answered port a route if no other rule does."""
    names = uplinks_with_unmarked_udp(policy)
    for family in (4, 6):
        for name in names:
            uplink = policy.uplink[name]
            of_any_port = IpRule(
                family,
                object_names.REPLY_RULE_PRIORITY,
                table=uplink.table,
                iif="lo",  # packets of this machine; so the kernel dissects no packet that it forwards
                origin=("uplink", name, "answer"),
            )
            to_dhcp_server = evolve(
                of_any_port, l4proto=_UDP, sports=(68, 68), dports=(67, 67), origin=("uplink", name, "exempt")
            )
            of_dhcp = (to_dhcp_server,) if renews_by_unicast(uplink) else ()  # in both families alike
            for rule in (*rules_of_ports(of_any_port, answered_udp_ports(uplink)), *of_dhcp):
                yield rule
                if len(names) > 1:
                    priority = object_names.NETWORK_RULE_PRIORITY
                    yield evolve(rule, priority=priority, suppress_prefix=_LONGEST_DEFAULT)


def _exclusive_rules(policy: Policy) -> Iterator[IpRule]:
    """Yield the rules for packets from the ports that an uplink answers alone.

    They come before the rules of other programs: networks of table main, then the uplink's table. So its default
    route takes the place of those inside.
    """
    for family in (4, 6):
        for name, uplink in policy.uplink.items():
            origin = ("uplink", name, "answer")
            for answer in uplink.answer:
                ports = (answer.port,) if answer.exclusive and answer.port is not None else ()
                nets = [network for network in answer.source if network.version == family]
                hosts = [str(network) if network.prefixlen else None for network in nets]
                for destination in hosts if answer.source else (None,):
                    in_main = IpRule(
                        family,
                        object_names.EXCLUSIVE_NETWORK_PRIORITY,
                        table=TABLE_MAIN,
                        destination=destination,
                        iif="lo",
                        suppress_prefix=_LONGEST_DEFAULT,
                        origin=origin,
                    )
                    priority = object_names.EXCLUSIVE_RULE_PRIORITY
                    for rule in rules_of_ports(in_main, ports):
                        yield rule
                        yield evolve(rule, priority=priority, table=uplink.table, suppress_prefix=None)


def rules_of_ports(rule: IpRule, ports: Iterable[Port]) -> Iterator[IpRule]:
    """Yield a rule for the UDP packets from each of the ports."""
    for port in ports:
        if port.low <= _MAX_PORT:
            yield evolve(rule, l4proto=_UDP, sports=(port.low, min(port.high, _MAX_PORT)))


def _device_rules(policy: Policy) -> Iterator[IpRule]:
    """Yield the rules for packets of sockets that are bound to a device of an uplink."""
    for family in (4, 6):
        for name, uplink in policy.uplink.items():
            for device in uplink.devices:
                priority = object_names.DEVICE_RULE_PRIORITY
                yield IpRule(family, priority, table=uplink.table, oif=device, origin=("uplink", name, "devices"))


def uplinks_with_unmarked_udp(policy: Policy) -> list[str]:
    """Return the names of the uplinks that answer UDP ports, or whose DHCP client renews by unicast."""
    return [name for name, uplink in policy.uplink.items() if answered_udp_ports(uplink) or renews_by_unicast(uplink)]


def renews_by_unicast(uplink: Uplink) -> bool:
    """Return True if the uplink's DHCP client may send to its server alone."""
    return "dhcpv4-unicast" in uplink.exempt


def answered_udp_ports(uplink: Uplink) -> tuple[Port, ...]:
    """Return the UDP ports of the uplink's answers, each once."""
    ports = (answer.port for answer in uplink.answer if answer.port is not None)
    return tuple(dict.fromkeys(port for port in ports if port.protocol == "udp"))
