"""Random states and packets: rules, routes and rulesets that affect each other, and packets at their limits.

Equal seeds give equal states and packets.
"""

from attrs import evolve

from nftpolicy.model.packet import ETHERTYPES, FORWARD, FRAME, SOCKET, TCP, UDP, Packet, address_range, parse_address
from nftpolicy.netstate import nft
from nftpolicy.netstate.routing import TABLE_MAIN, IpRule, Route, Sysctl
from nftpolicy.netstate.state import NetState

from .packet_machine import DEVICES, ECHO, FAMILIES, MARKS, TABLES, own
from .random_rulesets import ALL_NODES, GIDS, HERE_TOO, HOSTS, IPS, NETS, PORTS, UIDS, Rulesets


class Chance(Rulesets):
    """Random choices for one state."""

    # States

    def state(self) -> NetState:
        """Return rules, routes and tables to add to the machine's own, and its sysctls."""
        draw = self._random
        state = NetState(
            tuple(self._tables()),
            tuple(rule for family in FAMILIES for rule in self._rules(family)),
            tuple(route for family in FAMILIES for route in self._routes(family)),
            tuple(self._sysctls()),
        )
        if draw.random() < 0.35:
            return self._with_story(state, *self._marking())
        return self._with_story(state, *self._redirecting()) if draw.random() < 0.4 else state

    def _with_story(self, state: NetState, table: nft.Table, rules: list[IpRule], routes: list[Route]) -> NetState:
        unique_routes = {(one.family, one.table, one.destination, one.metric): one for one in (*state.routes, *routes)}
        tables = [*state.tables, table] if self._random.random() < 0.5 else [table, *state.tables]
        return evolve(state, tables=tuple(tables), rules=(*state.rules, *rules), routes=tuple(unique_routes.values()))

    def _sysctls(self) -> list[Sysctl]:
        draw = self._random
        return [
            *(Sysctl(f"net/ipv{family}/fwmark_reflect", draw.choice("01")) for family in FAMILIES),
            *(Sysctl(f"net/ipv4/conf/{device}/forwarding", draw.choice("1110")) for device in DEVICES),
            *(Sysctl(f"net/ipv4/conf/{device}/rp_filter", draw.choice("000012")) for device in DEVICES),
            Sysctl("net/ipv6/conf/all/forwarding", draw.choice("11110")),
        ]

    def _rules(self, family: int) -> list[IpRule]:
        draw, count = self._random, self._random.randint(0, 5)
        rules = [self._rule(family, 100 + 10 * at, 100 + 10 * count) for at in range(count)]
        if draw.random() < 0.6:  # what most policies have
            mask = draw.choice((1, 3, 7))
            marked = IpRule(family, 95, table=draw.choice(TABLES), mark=draw.randrange(1, mask + 1), mask=mask)
            low = draw.choice(UIDS)
            owned = evolve(marked, priority=90, table=draw.choice(TABLES), uids=(low, draw.choice((low, 65534))))
            rules += [marked, owned] if draw.random() < 0.4 else [marked]
        return rules

    def _rule(self, family: int, priority: int, end: int) -> IpRule:
        draw = self._random
        rule = IpRule(family, priority, table=draw.choice((*TABLES, TABLE_MAIN)))
        kind = draw.random()
        if kind < 0.12:
            rule = evolve(rule, table=0, action=draw.choice(("unreachable", "prohibit", "blackhole", "nop")))
        elif kind < 0.2 and priority + 20 < end:
            rule = evolve(rule, table=0, action="goto", goto=priority + 20)
        elif kind < 0.3:
            rule = evolve(rule, suppress_prefix=draw.choice((0, 16, 24, 48)))
        chosen = draw.sample(range(8), draw.choice((0, 1, 1, 1, 2, 2)))
        for one in chosen:
            if one == 0:
                mask = draw.choice((1, 3, 7, 0xFFFFFFFF))
                rule = evolve(rule, mark=draw.randrange(MARKS) & mask, mask=mask)
            elif one == 1:
                low = draw.choice(UIDS)
                rule = evolve(rule, uids=(low, draw.choice((low, max(low, 1000), 65534))))
            elif one == 2:
                rule = evolve(rule, source=self._net(family))
            elif one == 3:
                rule = evolve(rule, destination=self._net(family))
            elif one == 4:
                rule = evolve(rule, oif=draw.choice(DEVICES))
            elif one == 5:
                rule = evolve(rule, iif=draw.choice((*DEVICES, "lo", "lo")))
            elif one == 6:
                rule = evolve(rule, l4proto=draw.choice((TCP, UDP)), dports=self._ports())
            else:
                rule = evolve(rule, l4proto=draw.choice((TCP, UDP, ECHO[family][0])))
        return evolve(rule, invert=bool(chosen) and draw.random() < 0.2)

    def _routes(self, family: int) -> list[Route]:
        draw, found = self._random, {}
        for table in (*TABLES, TABLE_MAIN):
            if draw.random() < 0.6:
                route = Route(family, table, device=draw.choice(DEVICES), metric=50)
                found[table, route.destination, route.metric] = route
            for _ in range(draw.randint(0, 4)):
                kind = draw.choice(("unicast",) * 6 + ("unreachable", "prohibit", "blackhole", "throw"))
                route = Route(
                    family,
                    table,
                    draw.choice(("default", self._net(family))),
                    kind,
                    device=draw.choice((*DEVICES * 3, "lo")) if kind == "unicast" else "lo" if family == 6 else None,
                    metric=draw.choice((7, 10, 4000)),
                )
                found[table, route.destination, route.metric] = route
        return list(found.values())

    def _net(self, family: int) -> str:
        return self._random.choice(NETS[family])

    # Packets

    def packet(self) -> Packet:
        """Return a packet that a state of this kind may treat in a special way."""
        draw = self._random
        family = draw.choice(FAMILIES)
        origin = draw.choice((SOCKET,) * 7 + (FORWARD,) * 2 + (FRAME,))
        protocol = draw.choice((UDP, UDP, TCP, ECHO[family][0]))
        packet = Packet(
            family,
            self._destination(family),
            protocol=protocol,
            dport=draw.choice(PORTS),
            origin=origin,
            fields={
                (IPS[family], "ttl" if family == 4 else "hoplimit"): 64,
                **(
                    {("icmp" if family == 4 else "icmpv6", "type"): ECHO[family][1]}
                    if protocol not in (TCP, UDP)
                    else {}
                ),
            },
        )
        if protocol not in (TCP, UDP):
            packet = evolve(packet, dport=0, sport=0)
        if origin == FORWARD:
            source = parse_address(draw.choice(HOSTS[family]))
            return evolve(packet, iif=draw.choice(DEVICES), source=source)
        packet = evolve(
            packet, uid=draw.choice(UIDS), gid=draw.choice(GIDS), mark=draw.choice((0, 0, draw.randrange(MARKS)))
        )
        if origin == FRAME:
            source = draw.choice((own(family, "wan"), parse_address(HOSTS[family][0])))
            frame = evolve(packet, bound=draw.choice((*DEVICES, "lo")), source=source, uid=0, gid=0)
            if draw.random() < 0.4:  # its sender says another ethertype than that of the frame
                fields = {**packet.fields, ("ether", "type"): ETHERTYPES[family]}
                frame = evolve(frame, ethertype=draw.choice((0x0806, 0x88B5)), fields=fields)
            return frame
        if protocol not in (TCP, UDP):
            packet = evolve(packet, uid=0)  # who may make a raw socket
        bound = draw.choice((None, None, None, *DEVICES))
        if protocol == UDP and draw.random() < 0.12:
            return self._to_many(evolve(packet, bound=bound))
        source = own(family, draw.choice(DEVICES)) if draw.random() < 0.3 else None
        return evolve(packet, bound=bound, source=source)

    def _destination(self, family: int) -> int:
        draw = self._random
        if draw.random() < 0.12:
            return parse_address(draw.choice(HERE_TOO[family]))
        if draw.random() < 0.5:
            low, high = address_range(self._net(family), family)
            return draw.choice((low + 1, high - 1, low - 1, high + 1) if high > low else (low,))
        return parse_address(draw.choice(HOSTS[family]))

    def _to_many(self, packet: Packet) -> Packet:
        draw, family = self._random, packet.family
        group = draw.choice(ALL_NODES[family])
        if family == 4 and draw.random() < 0.3:
            group = draw.choice(("255.255.255.255", "192.0.2.255"))
        if group.startswith("ff02") and packet.bound is None:
            packet = evolve(packet, bound=draw.choice(DEVICES))
        return evolve(packet, destination=parse_address(group))
