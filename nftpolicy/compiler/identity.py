# SPDX-License-Identifier: BSD-2-Clause
"""Who may wear an uplink's mark: the chain that packets pass which are about to leave with it.

It runs in postrouting behind the guard's test of the mark, so the device is the real one.
"""

from __future__ import annotations

from ..netstate.nft import ACCEPT, Chain, Match, Rule, Verdict
from ..policy.objects import Uplink
from . import exemptions, phrases
from .members import Members, lookups
from .names import of
from .phrases import OWNER, TCP_OR_UDP, TO_DNS, TRANSPORT


def chain(name: str, uplink: Uplink, mine: Members, names: bool) -> Chain:
    """The chain "wan.identity": accept whose mark it is, drop the rest. `names`: some uplink has a resolver."""
    origin = ("uplink", name, "mark")
    # A port of the kernel's is anybody's, also that of a service whose names come from another uplink's resolver.
    asks = uplink.resolver or (names and mine.sports)
    rules = [Rule((TO_DNS, Verdict("jump", "names")), origin=origin)] if asks else []
    rules += [Rule((match, ACCEPT), origin=("uplink", name)) for match in lookups(name, mine)]
    if uplink.resolver:
        its_user = Match(OWNER, uplink.resolver.user.number)
        rules.append(Rule((its_user, TCP_OR_UDP, TO_DNS, ACCEPT), origin=("uplink", name, "resolver")))
    rules.append(
        Rule(
            (phrases.IS_REPLY, phrases.wears(uplink.mark, phrases.FLOW_MARK), Verdict("goto", of(name, "answers"))),
            origin=origin,
        )
    )
    rules += exemptions.rules(name, exemptions.reports_of(uplink.exempt), "inet")
    rules.append(phrases.drop(of(name, "unentitled"), phrases.HAS_OWNER, origin=origin))
    # From here on: packets without an owner, of the kernel's own sockets or of sockets that a
    # process has closed, whose earlier packets passed above.
    if mine.kernel:
        rules.append(Rule((Match(TRANSPORT, "udp"), ACCEPT), origin=("service", mine.kernel[0], "kernel")))
    rules.append(Rule((phrases.IS_ESTABLISHED, ACCEPT), origin=origin))
    rules.append(phrases.drop(of(name, "unentitled"), origin=origin))
    return Chain(of(name, "identity"), tuple(rules), origin=origin)
