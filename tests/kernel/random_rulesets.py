"""Random rulesets of few addresses, ports, owners and marks, so that two rules often match the same packets."""

import random
from collections.abc import Callable
from ipaddress import ip_address

from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import (
    AnonymousSet,
    Bitwise,
    Chain,
    Concat,
    Ct,
    Hook,
    Mangle,
    Match,
    Meta,
    Payload,
    Rule,
    SetRef,
)
from nftpolicy.netstate.routing import TABLE_MAIN, IpRule, Route

from .packet_machine import DEVICES, FAMILIES, MARKS, TABLES

NETS = {  # nested, so that the longest prefix matters; the links' own are among them
    4: ("192.0.2.0/24", "203.0.113.0/24", "198.18.0.0/15", "198.18.0.0/16", "198.18.1.0/24", "198.18.1.1/32"),
    6: ("2001:db8:1::/64", "2001:db8:3::/64", "2001:db8:8::/47", "2001:db8:8::/48", "2001:db8:8:1::/64",
        "2001:db8:8:1::1/128"),
}  # fmt: skip
HOSTS = {
    4: ("192.0.2.9", "203.0.113.9", "198.18.9.9", "198.18.1.1", "198.18.1.2", "198.19.0.1", "100.64.0.1"),
    6: ("2001:db8:1::9", "2001:db8:3::9", "2001:db8:8:9::9", "2001:db8:8:1::1", "2001:db8:8:1::2", "2001:db8:9::1",
        "2001:db8:64::1"),
}  # fmt: skip
HERE_TOO = {4: ("127.0.0.1", "192.0.2.2", "203.0.113.2"), 6: ("::1", "2001:db8:1::2", "2001:db8:3::2")}
ALL_NODES = {4: ("239.1.2.3", "224.0.0.99"), 6: ("ff05::99", "ff02::99")}
UIDS, GIDS, PORTS = (0, 1000, 1001, 65534), (0, 100, 800), (9, 53, 54, 500)
IPS = {4: "ip", 6: "ip6"}
GUARD = Hook("filter", "postrouting", 0)
SETS = (
    nft.Set("ports", ("inet_service",), frozenset({"9-53", 500}), frozenset({"interval"})),
    nft.Set("nets4", ("ipv4_addr",), frozenset({NETS[4][0], NETS[4][4], HOSTS[4][6]}), frozenset({"interval"})),
    nft.Set("nets6", ("ipv6_addr",), frozenset({NETS[6][0], NETS[6][4], HOSTS[6][6]}), frozenset({"interval"})),
)


class Rulesets:
    """Tables, chains and rules."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._names = 0
        self._called: list[Chain] = []

    def _ports(self) -> tuple[int, int]:
        low, high = sorted(self._random.choices(PORTS, k=2))
        return low, high

    def _tables(self) -> list[nft.Table]:
        draw = self._random
        tables = [
            self._table(family) for family in ("inet", "ip", "ip6") if draw.random() < (0.8, 0.25)[family != "inet"]
        ]
        egress = [
            self._chain("netdev", Hook("filter", "egress", draw.choice((0, 10)), self._policy(), device))
            for device in (*DEVICES, "lo")
            if draw.random() < 0.2
        ]
        return [*tables, nft.Table("netdev", "link", tuple(egress), SETS)] if egress else tables

    def _table(self, family: str) -> nft.Table:
        draw = self._random
        hooks = [
            (0.35, Hook("filter", "prerouting", draw.choice((-300, -150, -50)), self._policy())),
            (0.2, Hook("nat", "prerouting", draw.choice((-100, 50)))),
            (0.6, Hook("route", "output", draw.choice((-150, -110, 10)), self._policy())),
            (0.35, Hook("filter", "output", draw.choice((-300, -150, 0, 20)), self._policy())),
            (0.3, Hook("nat", "output", draw.choice((-100, 50)))),
            (0.2, Hook("filter", "input", 0, self._policy())),
            (0.3, Hook("filter", "forward", 0, self._policy())),
            (0.5, Hook("filter", "postrouting", draw.choice((-150, 0, 300)), self._policy())),
            (0.2, Hook("nat", "postrouting", draw.choice((100, -50)))),
        ]
        self._called = []
        chains = [self._chain(family, hook) for chance, hook in hooks if draw.random() < chance]
        return nft.Table(family, "own", (*self._called, *chains), SETS)

    def _policy(self) -> str:
        return "drop" if self._random.random() < 0.06 else "accept"

    def _chain(self, family: str, hook: Hook) -> Chain:
        self._names += 1
        rules = tuple(self._line(family, hook) for _ in range(self._random.randint(1, 4)))
        return Chain(f"{hook.hook}-{self._names}", rules, hook)

    def _line(self, family: str, hook: Hook, calls: bool = True) -> Rule:
        draw = self._random
        version = {"ip": 4, "ip6": 6}.get(family) or draw.choice(FAMILIES)
        matches = [one(version, hook) for one in self._kinds_of_match(hook)]
        if family == "inet" and draw.random() < 0.1:
            matches.append(Match(Meta("nfproto"), {4: "ipv4", 6: "ipv6"}[version]))
        if hook.hook in ("output", "postrouting") and hook.type == "filter" and draw.random() < 0.35:
            return self._guard(version)
        if calls and hook.hook != "egress" and draw.random() < 0.12:
            return Rule((*matches, self._call(family, hook)))
        return Rule((*matches, *self._action(version, hook)))

    def _guard(self, family: int) -> Rule:
        """Return rules that stop packets at a device, or after a redirect."""
        draw = self._random
        if draw.random() < 0.3:
            return Rule((Match(Payload(draw.choice(("tcp", "udp")), "dport"), draw.choice(PORTS)), nft.DROP))
        device = Match(Meta("oifname"), draw.choice(DEVICES), draw.choice(("==", "==", "!=")))
        return Rule((device, *draw.choice(((), (self._by_mark(family, GUARD),))), nft.DROP))

    def _call(self, family: str, hook: Hook) -> nft.Statement:
        """Return a call of another chain, by a verdict or a verdict map."""
        draw = self._random
        self._names += 1
        name = f"called-{self._names}"
        rules = [self._line(family, hook, calls=False) for _ in range(draw.randint(1, 2))]
        if draw.random() < 0.3:
            rules.insert(draw.randrange(2), Rule((self._by_mark(4, hook), nft.Verdict("return"))))
        self._called.append(Chain(name, tuple(rules)))
        there = nft.Verdict(draw.choice(("jump", "goto")), name)
        if draw.random() < 0.5:
            return there
        low, high = sorted(draw.sample(range(MARKS), 2))
        other = draw.choice((nft.ACCEPT, nft.DROP, nft.Verdict("return")))
        return nft.VerdictMap(Meta("mark"), frozenset({(low, there), (high, other)}))

    def _kinds_of_match(self, hook: Hook) -> list[Callable[[int, Hook], nft.Statement]]:
        """Return kinds of matches that do not contradict each other."""
        draw = self._random
        layer = draw.choice((self._by_port, self._by_port, self._by_protocol))
        kinds = [self._by_mark, self._by_address, self._by_owner, self._by_port if hook.type == "nat" else layer]
        if hook.hook != "egress":
            kinds += [self._by_device, self._by_flow]
        return draw.sample(kinds, draw.choice((0, 1, 1, 2, 2, 3)))

    def _by_mark(self, family: int, hook: Hook) -> nft.Statement:
        draw = self._random
        op = draw.choice(("==", "==", "!="))
        if draw.random() < 0.5:
            mask = draw.choice((1, 2, 3, 6))
            return Match(Bitwise(Meta("mark"), mask), draw.randrange(MARKS) & mask, op)
        if draw.random() < 0.3:
            return Match(Meta("mark"), AnonymousSet(frozenset(draw.sample(range(MARKS), 3))), op)
        return Match(Meta("mark"), draw.randrange(MARKS), op)

    def _by_address(self, family: int, hook: Hook) -> nft.Statement:
        draw = self._random
        if draw.random() < 0.1:
            types = frozenset(draw.sample(("local", "unicast", "broadcast", "multicast"), 2))
            return Match(nft.Fib("type", ("daddr",)), AnonymousSet(types), draw.choice(("==", "!=")))
        which = Payload(IPS[family], draw.choice(("daddr", "daddr", "saddr")))
        if draw.random() < 0.15:
            return Match(which, SetRef(f"nets{family}"), draw.choice(("==", "!=")))
        nets = [one.removesuffix({4: "/32", 6: "/128"}[family]) for one in NETS[family]]
        host = draw.choice((*HOSTS[family], *HERE_TOO[family]))
        return Match(which, draw.choice((draw.choice(nets), host)), draw.choice(("==", "==", "!=")))

    def _by_port(self, family: int, hook: Hook) -> nft.Statement:
        draw = self._random
        low, high = self._ports()
        if draw.random() < 0.1:
            return Match(Payload(draw.choice(("tcp", "udp")), "dport"), SetRef("ports"), draw.choice(("==", "!=")))
        value = draw.choice((low, f"{low}-{high}" if low < high else low, AnonymousSet(frozenset((low, high)))))
        layer = draw.choice(("tcp", "udp"))
        if draw.random() < 0.2:
            kinds = frozenset((draw.choice(("tcp", "udp")), draw.choice(PORTS)) for _ in range(2))
            return Match(Concat((Meta("l4proto"), Payload("th", "dport"))), AnonymousSet(kinds))
        return Match(Payload(layer, "dport"), value, draw.choice(("==", "!=")))

    def _by_owner(self, family: int, hook: Hook) -> nft.Statement:
        draw = self._random
        key, values = draw.choice((("skuid", UIDS), ("skgid", GIDS)))
        low, high = sorted(draw.choices(values, k=2))
        value = draw.choice((low, f"{low}-{high}" if low < high else low, AnonymousSet(frozenset((low, high)))))
        return Match(Meta(key), value, draw.choice(("==", "==", "!=")))

    def _by_protocol(self, family: int, hook: Hook) -> nft.Statement:
        draw = self._random
        name = draw.choice(("tcp", "udp", {4: "icmp", 6: "ipv6-icmp"}[family]))
        if hook.hook == "egress" and draw.random() < 0.5:
            return draw.choice(
                (
                    Match(Meta("protocol"), draw.choice(("ip", "ip6", "arp")), draw.choice(("==", "!="))),
                    Match(Payload("ether", "type"), draw.choice((0x0800, 0x86DD)), draw.choice(("==", "!="))),
                    Match(Meta("pkttype"), "host", draw.choice(("==", "!="))),
                )
            )
        return draw.choice(
            (
                Match(Meta("l4proto"), name, draw.choice(("==", "!="))),
                Match(Meta("l4proto"), AnonymousSet(frozenset(("tcp", name)))),
                Match(Payload({4: "icmp", 6: "icmpv6"}[family], "type"), "echo-request"),
            )
        )

    def _by_device(self, family: int, hook: Hook) -> nft.Statement:
        draw = self._random
        ends = {"prerouting": ("iifname",), "input": ("iifname",), "output": ("oifname",)}
        key = draw.choice(ends.get(hook.hook, ("oifname", "oifname", "iifname")))
        name = draw.choice((*DEVICES, "lo", "m*"))
        several = AnonymousSet(frozenset(draw.sample((*DEVICES, "lo"), 2)))
        return Match(Meta(key), draw.choice((name, several)), draw.choice(("==", "==", "!=")))

    def _by_flow(self, family: int, hook: Hook) -> nft.Statement:
        draw = self._random
        return draw.choice(
            (
                Match(Ct("state"), draw.choice(("new", "established", "invalid")), draw.choice(("in", "!="))),
                Match(Ct("direction"), draw.choice(("original", "reply"))),
                Match(Ct("mark"), draw.randrange(2), draw.choice(("==", "!="))),
                Match(Bitwise(Ct("mark"), 1), 1),
            )
        )

    def _action(self, family: int, hook: Hook) -> tuple[nft.Statement, ...]:
        draw = self._random
        if hook.type == "nat" and draw.random() < 0.75:
            return (Match(Meta("l4proto"), AnonymousSet(frozenset(("tcp", "udp")))), self._translation(family, hook))
        kind = draw.random()
        if kind < 0.45 and hook.hook != "egress":
            return (self._write(), *draw.choice(((), (), (nft.ACCEPT,))))
        if kind < 0.48 and hook.hook in ("prerouting", "output") and hook.priority < -200:
            return (nft.Notrack(),)
        if kind < 0.52 and hook.hook in ("input", "forward", "output") and hook.type != "nat":
            return (nft.Reject(),)
        return (nft.ACCEPT,) if kind < 0.7 else (nft.DROP,)

    def _translation(self, family: int, hook: Hook) -> nft.Statement:
        draw = self._random
        host = draw.choice((*HOSTS[family], *HERE_TOO[family]))
        if hook.hook == "postrouting":
            return draw.choice((nft.Masquerade(), nft.Snat(IPS[family], HERE_TOO[family][1])))
        if draw.random() < 0.2:
            return nft.Redirect(draw.choice(PORTS))
        if hook.hook == "prerouting" and ip_address(host).is_loopback:
            host = HOSTS[family][0]
        return nft.Dnat(IPS[family], host, draw.choice(PORTS))

    def _write(self) -> nft.Statement:
        draw, mark = self._random, Meta("mark")
        return draw.choice(
            (
                Mangle(mark, draw.randrange(MARKS)),
                Mangle(mark, draw.randrange(MARKS)),
                Mangle(mark, Bitwise(mark, nft.FULL_MASK, draw.randrange(1, MARKS))),
                Mangle(mark, Bitwise(mark, nft.FULL_MASK ^ draw.randrange(1, MARKS))),
                Mangle(mark, Bitwise(mark, nft.FULL_MASK ^ 3, 1)),
                Mangle(Ct("mark"), draw.randrange(2)),
                Mangle(Ct("mark"), mark),
                Mangle(mark, Ct("mark")),
                Mangle(mark, nft.Lookup(Meta("skuid"), frozenset({(0, 3), (1000, 5)}))),
            )
        )

    # What belongs together

    def _marking(self) -> tuple[nft.Table, list[IpRule], list[Route]]:
        """Packets are marked on their way out, which leads them elsewhere; some owners' yet elsewhere."""
        draw, mark = self._random, self._random.randrange(1, MARKS)
        uid = draw.choice(UIDS)
        rules, routes = [], []
        for family in FAMILIES:
            rules += [
                IpRule(family, 91, table=100, mark=mark, mask=7, uids=(uid, uid)),
                IpRule(family, 92, table=101, mark=mark, mask=7),
            ]
            devices = draw.sample(DEVICES, 3)
            routes += [
                Route(family, table, device=device, metric=5)
                for table, device in zip((*TABLES, TABLE_MAIN), devices, strict=True)
            ]
        first = Hook("route", "output", -150)
        match = draw.choice(((), (self._by_owner(4, first),), (self._by_mark(4, first),)))
        marking = Chain("marking", (Rule((*match, Mangle(Meta("mark"), mark))),), first)
        guards = [
            Chain(f"guard-{at}", (self._guard(4),), Hook("filter", hook, 0))
            for at, hook in enumerate(("output", "postrouting"))
            if draw.random() < 0.4
        ]
        return nft.Table("inet", "story", (marking, *guards)), rules, routes

    def _redirecting(self) -> tuple[nft.Table, list[IpRule], list[Route]]:
        """Flows get another destination, and chains before and behind that look at it."""
        draw = self._random
        families = draw.choice((FAMILIES, (4,), (6,)))
        port, old = draw.choice(PORTS), draw.choice(PORTS)
        with_ports = Match(Meta("l4proto"), AnonymousSet(frozenset(("tcp", "udp"))))
        turn = tuple(
            Rule(
                (
                    with_ports,
                    *draw.choice(((), (Match(Payload("th", "dport"), old),))),
                    nft.Dnat(IPS[family], draw.choice((*HOSTS[family], *HERE_TOO[family])), port),
                )
            )
            for family in families
        )
        looks = Chain(
            "looks",
            (Rule((with_ports, Match(Payload("th", "dport"), port, draw.choice(("==", "!="))), nft.DROP)),),
            Hook("filter", "output", draw.choice((-150, 0))),
        )
        last = Rule((Match(Payload("udp", "dport"), draw.choice(PORTS)), nft.DROP))
        turned = Chain("turns", (*turn, last), Hook("nat", "output", draw.choice((-190, -100, 50, 50))))
        routes = [Route(family, TABLE_MAIN, device=draw.choice(DEVICES), metric=5) for family in FAMILIES]
        return nft.Table("inet", "story", (turned, looks)), [], routes
