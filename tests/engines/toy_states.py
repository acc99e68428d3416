"""Generated hosts, so small that each packet of their universe can be traced."""

from collections.abc import Iterator, Sequence
from itertools import product

from attrs import evolve, frozen
from hypothesis import strategies as st

from nftpolicy.model.packet import FORWARD, FRAME, KERNEL, SOCKET, TCP, UDP, CtInfo, Packet, parse_address
from nftpolicy.model.trace import LEAVES, UNKNOWN, Model, Trace
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import Bitwise, Chain, Hook, Match, Meta, Payload, Rule, Table
from nftpolicy.netstate.routing import TABLE_MAIN, IpRule, Route
from nftpolicy.netstate.state import NetState
from nftpolicy.proof.spec import Spec, UplinkSpec
from tests import leaking_states
from tests.engines import ruleset_strategies

WAN, LAN = "wan", "lan0"
OWN = {WAN: "192.0.2.2", LAN: "10.0.0.9"}
FAR, NEAR_WAN, NEAR_LAN = "198.51.100.9", "192.0.2.1", "10.0.0.1"
MARK = 1
CLAIM = Spec((UplinkSpec(WAN, (WAN,), MARK, MARK),))
_TABLE = 1


@frozen
class Toy:
    """A state, and the groups of fields that its rules test."""

    state: NetState
    groups: tuple[str, ...]

    def packets(self) -> Iterator[Packet]:
        """Yield every packet that the rules may distinguish, with each possible origin."""
        ports = (53, 80) if "ports" in self.groups else (80,)
        protocols = (UDP, TCP) if "ports" in self.groups else (UDP,)
        hosts = [parse_address(one) for one in (FAR, NEAR_WAN, NEAR_LAN)]
        flows = [CtInfo()]
        if "flow" in self.groups:  # a flow that only the unmarked used has no mark of the uplink's
            flows += [CtInfo("established", way, mark) for way in ("original", "reply") for mark in (0, 2)]
        users = (0, 1000, 2000) if "skuid" in self.groups else (1000,)
        for host, port, protocol, flow in product(hosts, ports, protocols, flows):
            plain = Packet(4, host, protocol=protocol, dport=port, flow=flow)
            for mark, device in product(range(4), (None, WAN, LAN)):
                sent = evolve(plain, mark=mark, bound=device)
                yield from (evolve(sent, uid=user) for user in users)
                yield evolve(sent, origin=KERNEL)
            for device in (WAN, LAN):
                yield evolve(plain, origin=FORWARD, iif=device, source=parse_address("10.0.0.2"))
                if flow == flows[0]:
                    yield from (evolve(plain, origin=FRAME, bound=device, mark=mark, source=1) for mark in range(4))


# --- machines --------------------------------------------------------------------------


@st.composite
def toys(draw, unknown: bool = False):
    """Generate a host with some rules, and sometimes a complete or incomplete guard."""
    groups = tuple(draw(st.sets(st.sampled_from(("ports", "flow", "skuid", "oif", "daddr")), min_size=1, max_size=2)))
    style = ruleset_strategies.Style(groups, 4, writes=draw(st.booleans()), unknown=unknown, most_rules=3)
    policy = st.sampled_from(("accept",) * 7 + ("drop",))
    hooks = [
        Hook("filter", "output", draw(st.sampled_from((-300, 0))), draw(policy)),
        Hook("route", "output", -150, draw(policy)),
        Hook("filter", "prerouting", -150, draw(policy)),
        Hook("filter", "forward", 0, draw(policy)),
        Hook("filter", "postrouting", draw(st.sampled_from((0, 20000))), draw(policy)),
    ]
    chosen = draw(st.lists(st.sampled_from(hooks), max_size=2, unique=True))
    tables = [draw(ruleset_strategies.tables(style, chosen, "own"))] if chosen else []
    if draw(st.integers(0, 3)) == 0:
        tables.append(_translating(draw(st.sampled_from(_TRANSLATIONS))))
    tables += draw(_guard(style))
    tables += draw(_link(style))
    return Toy(NetState(tuple(tables), draw(_rules()), draw(_routes())), groups)


@st.composite
def _routes(draw) -> tuple[Route, ...]:
    found = [*leaking_states.loopback(4), *leaking_states.device(4, WAN, OWN[WAN], "192.0.2.0/24")]
    found += leaking_states.device(4, LAN, OWN[LAN], "10.0.0.0/24")
    main = draw(st.sampled_from((None, LAN, LAN, WAN)))
    if main is not None:
        found.append(leaking_states.default(4, main, {WAN: NEAR_WAN, LAN: NEAR_LAN}[main]))
    if draw(st.integers(0, 3)):
        found.append(leaking_states.default(4, WAN, NEAR_WAN, _TABLE))
    return tuple(found)


@st.composite
def _rules(draw) -> tuple[IpRule, ...]:
    some = (
        leaking_states.lookup(4, 100, _TABLE, mark=MARK, mask=MARK),
        leaking_states.lookup(4, 110, _TABLE, mark=2, mask=3),
        leaking_states.lookup(4, 120, _TABLE, uids=(1000, 1000)),
        leaking_states.lookup(4, 130, _TABLE, source=f"{OWN[WAN]}/32"),
        leaking_states.lookup(4, 140, _TABLE, iif=LAN),
        leaking_states.lookup(4, 150, TABLE_MAIN, suppress_prefix=0),
        IpRule(4, 160, "unreachable", mark=MARK, mask=MARK),
    )
    chosen = draw(st.sets(st.sampled_from(range(len(some))), max_size=3))
    return tuple(
        sorted((*leaking_states.standard_rules(4), *(some[at] for at in chosen)), key=lambda rule: rule.priority)
    )


_UDP = Match(Meta("l4proto"), "udp")
_TRANSLATIONS = (
    (Hook("nat", "output", -100), nft.Dnat("ip", NEAR_WAN)),
    (Hook("nat", "output", -100), nft.Dnat("ip", NEAR_LAN, 53)),
    (Hook("nat", "output", -100), nft.Redirect(53)),
    (Hook("nat", "prerouting", -100), nft.Dnat("ip", NEAR_WAN)),
    (Hook("nat", "postrouting", 100), nft.Masquerade()),
    (Hook("nat", "postrouting", 100), nft.DROP),
)


def _translating(told: tuple[Hook, nft.Statement]) -> Table:
    hook, statement = told
    return Table("ip", "translating", (Chain("all", (Rule((_UDP, statement)),), hook),))


_OUT = Match(Meta("oifname"), WAN)
_MARKED, _UNMARKED = (Match(Bitwise(Meta("mark"), and_mask=MARK), MARK, op) for op in ("==", "!="))


@st.composite
def _guard(draw, style: ruleset_strategies.Style) -> list[Table]:
    """Generate a guard, mostly complete, sometimes with rules before it or with a gap."""
    kind = draw(st.sampled_from(("none", "good", "good", "good", "bound", "user", "early", "nat")))
    if kind == "none":
        return []
    end = {
        "bound": (_OUT, _UNMARKED, Match(Payload("ip", "daddr"), NEAR_LAN, "!="), nft.DROP),
        "user": (_OUT, _UNMARKED, Match(Meta("skuid"), 0, "!="), nft.DROP),
    }.get(kind, (_OUT, _UNMARKED, nft.Counter(), nft.DROP))
    hook = Hook("nat", "postrouting", 300) if kind == "nat" else Hook("filter", "postrouting", 10000)
    before = draw(ruleset_strategies.tables(evolve(style, writes=False, most_rules=2), [hook], "guard", "inet"))
    base, *rest = before.chains
    stray = Rule((Match(Meta("oifname"), nft.AnonymousSet(frozenset((WAN, "lo"))), "!="), _MARKED, nft.DROP))
    ends = (*((stray,) if draw(st.booleans()) else ()), Rule(end))
    rules = (*base.rules, *ends) if kind == "early" else (*ends, *base.rules)
    return [evolve(before, chains=(evolve(base, rules=rules), *rest))]


@st.composite
def _link(draw, style: ruleset_strategies.Style) -> list[Table]:
    """Generate a guard at the link layer, complete or incomplete."""
    kind = draw(st.sampled_from(("none", "good", "good", "chance")))
    if kind == "none":
        return []
    hook = Hook("filter", "egress", 0, "drop" if kind == "good" else "accept", WAN)
    if kind == "good":
        return [Table("netdev", "link", (Chain("wan", (Rule((_MARKED, nft.ACCEPT)),), hook),))]
    narrow = evolve(style, writes=False, groups=tuple(one for one in style.groups if one in ("ports", "daddr", "oif")))
    return [draw(ruleset_strategies.tables(narrow, [hook], "link", "netdev"))]


# --- what leaks ------------------------------------------------------------------------


def entitled(packet: Packet) -> bool:
    """Return True if a packet may use the uplink: its socket set the mark, or it came from there."""
    if packet.origin == FORWARD:
        return packet.iif == WAN
    return packet.mark & MARK == MARK


def may_leak(packet: Packet, walk: Trace) -> str | None:
    """Return "yes" or "maybe" if a packet without entitlement leaves by the uplink; else None."""
    if entitled(packet):
        return None
    if walk.outcome == LEAVES and walk.device == WAN:
        return "yes"
    return "maybe" if walk.outcome == UNKNOWN and walk.device in (WAN, None) else None


def may_stray(packet: Packet, walk: Trace) -> str | None:
    """Return "yes" or "maybe" if a marked packet leaves by another device; else None. Frames do not count."""
    if packet.origin == FRAME or not walk.mark & MARK:
        return None
    if walk.outcome == LEAVES and walk.device != WAN:
        return "yes"
    return "maybe" if walk.outcome == UNKNOWN and walk.device != WAN else None


def walks(toy: Toy, origins: Sequence[str] = (SOCKET, KERNEL, FORWARD, FRAME)) -> Iterator[tuple[Packet, Trace]]:
    """Return all packets with their traces."""
    model = Model(toy.state)
    return ((packet, model.trace(packet)) for packet in toy.packets() if packet.origin in origins)
