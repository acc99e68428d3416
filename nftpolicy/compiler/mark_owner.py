# SPDX-License-Identifier: BSD-2-Clause
"""Mark owners: the chain that checks which packets may leave with an uplink's mark.

It runs in postrouting after the guard's test of the mark, so the output device is final.
"""

from __future__ import annotations

from ..netstate.nft import ACCEPT, Chain, Match, Rule, Verdict
from ..policy.objects import Policy, Uplink
from . import dns, exemptions, forwards, matches, tunnels
from .matches import L4PROTO, TO_DNS
from .object_names import object_name
from .service_sets import ServiceSets, entitlement_matches


def mark_owner_chain(name: str, uplink: Uplink, services: ServiceSets, policy: Policy) -> Chain:
    """Return the chain "wan.mark-owner": accept packets entitled to the mark, drop all others."""
    origin = ("uplink", name, "mark")
    rules = [Rule((*match, ACCEPT), origin=("uplink", name)) for match in tunnels.tunnel_matches(name, policy)]
    # Any process may send from a port of a kernel socket, including the processes of a service
    # of another uplink, which has its own resolver.
    if uplink.resolver or (services.sports and dns.uplinks_with_resolver(policy)):
        rules.append(Rule((TO_DNS, Verdict("jump", "dns")), origin=origin))
    rules += [Rule((*match, ACCEPT), origin=("uplink", name)) for match in entitlement_matches(name, services)]
    if uplink.resolver:
        rules += dns.entitled_resolver_rules(name, uplink.resolver)
    has_flow_mark = matches.has_mark(uplink.mark, matches.FLOW_MARK)
    to_replies = Verdict("goto", object_name(name, "answers"))
    rules += forwards.entitled_publish_rules(name, policy)
    rules.append(Rule((matches.IS_REPLY, has_flow_mark, to_replies), origin=origin))
    rules += exemptions.exemption_rules(name, exemptions.report_exemptions(uplink.exempt))
    rules.append(matches.count_and_drop(object_name(name, "unentitled"), matches.HAS_OWNER, origin=origin))
    rules += forwards.entitled_forward_rules(name, policy)
    # Remaining packets have no socket owner: they are of the kernel's own sockets, or of sockets
    # that a process has closed; the earlier packets of these passed above. A reply of the kernel to
    # a packet of a flow that began inside carries the mark too, if the packet arrived by the uplink.
    if services.kernel:
        origin_key = ("service", services.kernel[0], "kernel")
        rules.append(Rule((Match(L4PROTO, "udp"), ACCEPT), origin=origin_key))
    rules += [Rule((*match, ACCEPT), origin=("uplink", name)) for match in tunnels.tcp_matches(name, policy)]
    rules.append(Rule((matches.IS_ORIGINAL, matches.IS_ESTABLISHED, ACCEPT), origin=origin))
    rules.append(matches.count_and_drop(object_name(name, "unentitled"), origin=origin))
    return Chain(object_name(name, "mark-owner"), tuple(rules), origin=origin)
