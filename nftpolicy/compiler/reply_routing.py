# SPDX-License-Identifier: BSD-2-Clause
"""Routes of UDP replies on a machine without another route for them.

The kernel looks up a route in the call of the socket, before any hook can give the reply its mark:
without one the call fails. So behind all other rules a packet from an answered port is looked up in
the uplink's table. The guard drops it there if it is no reply.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..netstate.routing import IpRule
from ..policy.objects import Policy, Port, Uplink
from . import object_names

_UDP = 17


def ip_rules(policy: Policy) -> Iterator[IpRule]:
    """Yield the rules that give a UDP packet from an answered port a route if no other rule does."""
    for family in (4, 6):
        for name, uplink in policy.uplink.items():
            for port in answered_udp_ports(uplink):
                yield IpRule(
                    family,
                    object_names.REPLY_RULE_PRIORITY,
                    table=uplink.table,
                    iif="lo",  # packets of this machine; so the kernel dissects no packet that it forwards
                    l4proto=_UDP,
                    sports=(port.low, port.high),
                    origin=("uplink", name, "answer"),
                )


def answered_udp_ports(uplink: Uplink) -> tuple[Port, ...]:
    """Return the UDP ports of the uplink's answers, each once."""
    ports = (answer.port for answer in uplink.answer if answer.port is not None)
    return tuple(dict.fromkeys(port for port in ports if port.protocol == "udp"))
