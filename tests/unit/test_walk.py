"""The walk of one packet: the facts of the kernel tests said as walks, and the shipped policy against every leak."""

from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.packet import FORWARD, FRAME, ICMP, ICMPV6, IGMP, KERNEL, TCP, UDP, Flow, Packet, number
from nftpolicy.model.walk import Model, Walk
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import Bitwise, Chain, Ct, Dnat, Hook, Mangle, Match, Meta, Payload, Rule, Table
from nftpolicy.netstate.routing import IpRule, Route, Sysctl
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.load import load
from tests.lab import addresses as at
from tests.lab.probes import CONNECTED_IN_MAIN, DEFAULT_IN_MAIN, KINDS, NOTHING

WAN, MESH, CLIENT = at.WAN, at.MESH, at.CLIENT
NODE_WAN = {4: "192.0.2.2", 6: "2001:db8:1::2"}
LOCAL, MAIN = 255, 254
NOBODY, SERVICE = 65534, 800
families = pytest.mark.parametrize("family", at.FAMILIES)

OWNED = {
    "lo": ("127.0.0.1/8", "::1/128"),
    WAN: ("192.0.2.2/24", "2001:db8:1::2/64", "fe80::2/64"),
    MESH: ("203.0.113.2/25", "2001:db8:3::2/64", "fe80::3/64"),
    CLIENT: ("203.0.113.129/25", "2001:db8:4::1/64", "fe80::4/64"),
}


def addresses(address: str, device: str) -> list[Route]:
    """The kernel's local routes of an address."""
    one = ip_interface(address)
    length = one.max_prefixlen
    found = [Route(one.version, LOCAL, f"{one.ip}/{length}", "local", device=device)]
    if one.version == 6:
        return [*found, Route(6, LOCAL, "ff00::/8", "multicast", device=device)]
    kind = "local" if device == "lo" else "broadcast"
    where = str(one.network) if device == "lo" else f"{one.network.broadcast_address}/{length}"
    return [*found, Route(4, LOCAL, where, kind, device=device)]


def machine(
    tables: tuple[Table, ...] = (),
    rules: tuple[IpRule, ...] = (),
    routes: tuple[Route, ...] = (),
    sysctls: tuple[Sysctl, ...] = (),
) -> NetState:
    """The node of the lab, with no route but to itself and those given."""
    local = tuple(route for device, owned in OWNED.items() for one in owned for route in addresses(one, device))
    base = tuple(
        IpRule(family, priority, table=table)
        for family in at.FAMILIES
        for priority, table in ((0, LOCAL), (32766, MAIN))
    )
    devices = tuple(Device(name, owned) for name, owned in OWNED.items())
    return NetState(tables, (*base, *rules), (*local, *routes), sysctls, devices)


def default(device: str, family: int, table: int = MAIN) -> Route:
    return Route(family, table, device=device)


def connected(device: str, family: int, table: int = MAIN) -> Route:
    owned = next(one for one in OWNED[device] if ip_interface(one).version == family)
    return Route(family, table, str(ip_network(owned, strict=False)), device=device)


def packet(family: int, to: str | None = None, **others: object) -> Packet:
    """An unmarked UDP packet of nobody to the server."""
    destination = number(to or at.SERVER[family])
    return Packet(family, destination, **{"uid": NOBODY, "gid": NOBODY, **others})


def walk(state: NetState, sent: Packet) -> Walk:
    return Model(state).walk(sent)


def end(state: NetState, sent: Packet) -> str:
    """The outcome, or the device that it leaves by."""
    found = walk(state, sent)
    return found.device if found.outcome == "leaves" else found.outcome


def chain(
    hook: str, *rules: tuple[nft.Statement, ...], kind: str = "filter", priority: int = 0, **others: str
) -> Chain:
    name = f"{kind}-{hook}-{priority}"
    return Chain(name, tuple(Rule(one) for one in rules), Hook(kind, hook, priority, **others))


def inet(*chains: Chain) -> Table:
    return Table("inet", "foreign", chains)


MARK = Meta("mark")
DROP = nft.DROP


def leaves_by(device: str) -> Match:
    return Match(Meta("oifname"), device)


# The facts of tests/kernel/test_routing_facts.py and test_hooks_facts.py


@pytest.fixture(params=at.FAMILIES, ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return request.param


REMARK = chain("output", (Mangle(MARK, 1),), kind="route", priority=-150)


def marked_to_the_wan(family: int) -> NetState:
    """Main leads to the mesh, the mark 1 to the WAN."""
    return machine(
        rules=(IpRule(family, 100, table=100, mark=1, mask=1),),
        routes=(default(MESH, family), default(WAN, family, 100)),
    )


def with_tables(state: NetState, *tables: Table) -> NetState:
    return evolve(state, tables=tables)


def test_K1_L15_later_output_chains_see_the_old_device_and_postrouting_the_new(family: int) -> None:
    state = marked_to_the_wan(family)
    assert end(state, packet(family)) == MESH
    assert end(with_tables(state, inet(REMARK)), packet(family)) == WAN
    for hook, device, expected in (
        ("output", WAN, WAN),
        ("output", MESH, "dropped"),
        ("postrouting", WAN, "dropped"),
        ("postrouting", MESH, WAN),
    ):
        guard = chain(hook, (leaves_by(device), DROP))
        assert end(with_tables(state, inet(REMARK, guard)), packet(family)) == expected, (hook, device)


def test_a_mark_set_to_what_it_is_leads_nowhere_else(family: int) -> None:
    state = with_tables(
        machine(
            rules=(IpRule(family, 100, table=100, uids=(NOBODY, NOBODY)), IpRule(family, 101, table=101, uids=(0, 0))),
            routes=(default(WAN, family, 100), default(MESH, family, 101)),
        ),
        inet(REMARK),
    )
    assert end(state, packet(family, mark=1)) == WAN
    assert end(state, packet(family, mark=2)) == {4: MESH, 6: WAN}[family]


def test_a_filter_chain_that_marks_does_not_reroute(family: int) -> None:
    mark = chain("output", (Mangle(MARK, 1),), priority=-150)
    found = walk(with_tables(marked_to_the_wan(family), inet(mark)), packet(family))
    assert (found.outcome, found.device, found.mark) == ("leaves", MESH, 1)


@families
def test_K2_an_ipv4_socket_that_names_the_device_needs_no_route(family: int) -> None:
    assert end(machine(), packet(family)) == "unroutable"
    assert end(machine(), packet(family, bound=WAN)) == {4: WAN, 6: "unroutable"}[family]


def test_K3_an_ipv6_socket_that_names_the_device_leaves_with_a_route() -> None:
    assert end(machine(routes=(default(WAN, 6),)), packet(6, bound=WAN)) == WAN
    assert end(machine(routes=(default(MESH, 6),)), packet(6, bound=WAN)) == "unroutable"


def test_K3_link_local_multicast_and_broadcast_need_no_route_of_ours() -> None:
    links = tuple(connected(device, 6) for device in ()) + (Route(6, MAIN, "fe80::/64", device=WAN),)
    assert end(machine(routes=links), packet(6, at.HOME_LINK_LOCAL, bound=WAN)) == WAN
    assert end(machine(), packet(6, "ff02::1234", bound=WAN)) == WAN
    for group in ("239.1.2.3", "224.0.0.251", "255.255.255.255"):
        assert end(machine(), packet(4, group, bound=WAN)) == WAN, group
        assert end(machine(), packet(4, group)) == "unroutable", group


def test_K4_L3_only_egress_sees_a_frame(family: int) -> None:
    stop = tuple(chain(hook, (DROP,)) for hook in ("output", "postrouting"))
    frame = packet(family, origin=FRAME, bound=WAN, source=number(NODE_WAN[family]))
    assert end(machine((inet(*stop),)), frame) == WAN
    egress = Table("netdev", "link", (chain("egress", (DROP,), device=WAN),))
    assert end(machine((egress,)), frame) == "dropped"
    elsewhere = Table("netdev", "link", (chain("egress", (DROP,), device=MESH),))
    assert end(machine((elsewhere,)), frame) == WAN


def test_K6_ipv4_forgets_the_uid_when_it_routes_again(family: int) -> None:
    state = machine(
        rules=(
            IpRule(family, 100, table=101, mark=1, mask=1, uids=(NOBODY, NOBODY)),
            IpRule(family, 101, table=102, mark=1, mask=1, uids=(0, 0)),
            IpRule(family, 102, "unreachable", mark=1, mask=1),
        ),
        routes=(default(WAN, family, 101), default(MESH, family, 102), default(CLIENT, family)),
    )
    assert end(state, packet(family, mark=1)) == WAN
    assert end(with_tables(state, inet(REMARK)), packet(family)) == {4: MESH, 6: WAN}[family]


@pytest.mark.parametrize("kind", ["rule", "route"])
def test_K7_an_unreachable_default_is_no_kill_switch(kind: str) -> None:
    state = machine(
        rules=(IpRule(4, 100, "prohibit"),) if kind == "rule" else (),
        routes=(Route(4, MAIN, kind="unreachable"),),
    )
    assert end(state, packet(4)) == "unroutable"
    assert end(state, packet(4, bound=WAN)) == WAN


def stopped(family: int) -> NetState:
    return machine(
        rules=(IpRule(family, 100, table=100, mark=1, mask=1), IpRule(family, 200, "unreachable")),
        routes=(default(MESH, family), default(WAN, family, 100)),
    )


def test_L1_a_socket_that_names_the_device_ignores_the_rules_in_ipv4(family: int) -> None:
    assert end(stopped(family), packet(family, mark=1)) == WAN
    assert end(stopped(family), packet(family)) == "unroutable"
    assert end(stopped(family), packet(family, bound=WAN)) == {4: WAN, 6: "unroutable"}[family]


def test_L2_multicast_by_device_ignores_the_rules() -> None:
    assert end(stopped(4), packet(4, "239.1.2.3", bound=WAN)) == WAN
    assert end(stopped(6), packet(6, "ff02::1234", bound=WAN)) == WAN


def test_L5_link_local_needs_a_rule_before_the_stop() -> None:
    links = (Route(6, MAIN, "fe80::/64", device=WAN),)
    state = evolve(stopped(6), routes=(*stopped(6).routes, *links))
    assert end(state, packet(6, at.HOME_LINK_LOCAL, bound=WAN)) == "unroutable"
    exempt = IpRule(6, 50, table=MAIN, destination="fe80::/10")
    assert end(evolve(state, rules=(*state.rules, exempt)), packet(6, at.HOME_LINK_LOCAL, bound=WAN)) == WAN


OWNED_BY_SOMEBODY = Match(Meta("skuid"), "0-4294967294")


def test_L6_what_the_kernel_answers_matches_neither_a_user_nor_its_negation(family: int) -> None:
    for other in (OWNED_BY_SOMEBODY, Match(Meta("skuid"), 4711, "!="), Match(Meta("skgid"), 4711, "!=")):
        state = machine((inet(chain("postrouting", (other, DROP))),), routes=(default(WAN, family),))
        assert end(state, packet(family)) == "dropped"
        assert end(state, packet(family, origin=KERNEL, source=number(NODE_WAN[family]))) == WAN


def test_L7_a_reply_goes_where_its_mark_leads(family: int) -> None:
    reply = packet(family, origin=KERNEL, source=number(NODE_WAN[family]), protocol=TCP)
    assert end(marked_to_the_wan(family), reply) == MESH
    assert end(marked_to_the_wan(family), evolve(reply, mark=1)) == WAN


def test_L12_netifds_rules_let_unmarked_traffic_fall_to_the_wan() -> None:
    rules = (
        IpRule(4, 10000, table=10, source=f"{NODE_WAN[4]}/32"),
        IpRule(4, 20000, table=10, destination=at.HOME_NET[4]),
        IpRule(4, 90001, table=10, iif="lo"),
    )
    routes = (default(WAN, 4, 10), Route(4, 10, at.HOME_NET[4], device=WAN))
    sourced = packet(4, source=number(NODE_WAN[4]))
    assert end(machine(rules=rules, routes=routes), packet(4)) == WAN
    state = machine(rules=rules, routes=(*routes, default(MESH, 4)))
    assert (end(state, packet(4)), end(state, sourced)) == (MESH, WAN)
    stops = (
        IpRule(4, 2, table=MAIN, mark=1, mask=1, invert=True),
        IpRule(4, 3, "unreachable", mark=1, mask=1, invert=True),
    )
    state = machine(rules=(*rules, *stops), routes=routes)
    assert end(state, packet(4)) == end(state, sourced) == "unroutable"
    assert end(state, packet(4, bound=WAN)) == WAN


def test_L16_a_drop_anywhere_is_final(family: int) -> None:
    late = chain("output", (nft.ACCEPT,), priority=100)
    for hook in ("output", "postrouting"):
        state = machine((inet(chain(hook, (DROP,)), late),), routes=(default(WAN, family),))
        assert end(state, packet(family)) == "dropped"


# Further ways


def test_a_forwarded_packet_passes_prerouting_forward_and_postrouting(family: int) -> None:
    state = machine(routes=(default(WAN, family),))
    sent = packet(family, origin=FORWARD, iif=CLIENT, source=number(at.CLIENT_ADDRESS[family]))
    assert end(state, sent) == WAN
    for hook in ("prerouting", "forward", "postrouting"):
        assert end(with_tables(state, inet(chain(hook, (Match(Meta("iifname"), CLIENT), DROP)))), sent) == "dropped"
    for hook in ("output", "input"):
        assert end(with_tables(state, inet(chain(hook, (DROP,)))), sent) == WAN
    to_us = packet(family, at.NODE_CLIENT[family], origin=FORWARD, iif=CLIENT, source=sent.source)
    assert end(state, to_us) == "delivered"
    assert end(with_tables(state, inet(chain("input", (DROP,)))), to_us) == "dropped"


def test_a_mark_of_arrival_leads_a_forwarded_packet(family: int) -> None:
    mark = chain("prerouting", (Match(Meta("iifname"), CLIENT), Mangle(MARK, 1)), priority=-150)
    state = with_tables(marked_to_the_wan(family), inet(mark))
    source = number(at.CLIENT_ADDRESS[family])
    assert end(state, packet(family, origin=FORWARD, iif=CLIENT, source=source)) == WAN
    assert end(state, packet(family)) == MESH


@pytest.mark.parametrize(
    ("family", "sysctl"),
    [(4, f"net/ipv4/conf/{CLIENT}/forwarding"), (6, "net/ipv6/conf/all/forwarding")],
)
def test_nothing_is_passed_on_with_forwarding_off(family: int, sysctl: str) -> None:
    sent = packet(family, origin=FORWARD, iif=CLIENT, source=number(at.CLIENT_ADDRESS[family]))
    for value, expected in (("1", {WAN}), ("0", {"dropped", "unroutable"})):
        state = machine(routes=(default(WAN, family),), sysctls=(Sysctl(sysctl, value),))
        assert end(state, sent) in expected


def redirected(family: int, address: str, priority: int = -100) -> Chain:
    word = {4: "ip", 6: "ip6"}[family]
    return chain("output", (Match(Payload("udp", "dport"), 53), Dnat(word, address, 54)), kind="nat", priority=priority)


def test_a_packet_with_a_new_destination_is_routed_again(family: int) -> None:
    state = machine(routes=(default(WAN, family), Route(family, MAIN, at.MESH_NET[family], device=MESH)))
    gateway = at.GATEWAY[family]
    found = walk(with_tables(state, inet(redirected(family, gateway))), packet(family, dport=53))
    assert (found.outcome, found.device, found.destination, found.dport) == ("leaves", MESH, number(gateway), 54)


def test_only_a_flows_own_direction_is_translated(family: int) -> None:
    state = machine((inet(redirected(family, at.GATEWAY[family])),), routes=(default(WAN, family),))
    for flow, translated in (
        (Flow("new"), True),
        (Flow("established"), True),
        (Flow("established", "reply"), False),
        (Flow("untracked"), False),
    ):
        found = walk(state, packet(family, dport=53, flow=flow))
        assert (found.dport == 54) is translated, flow


def test_nat_chains_are_asked_at_one_place_whatever_their_priority(family: int) -> None:
    """A filter chain at -50 is behind a nat chain at 200: the hook of NAT is at -100."""
    after = chain("output", (Match(Payload("udp", "dport"), 54), DROP), priority=-50)
    state = machine((inet(redirected(family, at.GATEWAY[family], 200), after),), routes=(default(WAN, family),))
    assert end(state, packet(family, dport=53)) == "dropped"


def test_a_nat_chain_does_nothing_where_no_connection_is_tracked(family: int) -> None:
    stop = chain("output", (DROP,), kind="nat", priority=-100)
    state = machine((inet(stop),), routes=(default(WAN, family),))
    assert end(state, packet(family)) == WAN
    reader = chain("input", (Match(Ct("state"), "new"),))
    assert end(with_tables(state, inet(stop, reader)), packet(family)) == "dropped"


def test_connection_tracking_is_not_asked_before_it_has_seen_the_packet(family: int) -> None:
    early = chain("output", (Match(Ct("state"), "new"), DROP), priority=-300)
    late = chain("output", (Match(Ct("state"), "new"), DROP), priority=-150)
    for tables, expected in ((inet(early), WAN), (inet(late), "dropped")):
        assert end(machine((tables,), routes=(default(WAN, family),)), packet(family)) == expected


def test_what_is_sent_to_this_machine_passes_lo_twice(family: int) -> None:
    here = packet(family, at.NODE_MESH[family])
    assert end(machine(), here) == "delivered"
    for hook in ("output", "postrouting", "prerouting", "input"):
        key = "oifname" if hook in ("output", "postrouting") else "iifname"
        assert end(machine((inet(chain(hook, (Match(Meta(key), "lo"), DROP))),)), here) == "dropped", hook
    egress = Table("netdev", "link", (chain("egress", (DROP,), device="lo"),))
    assert end(machine((egress,)), here) == "dropped"


def test_the_mark_survives_lo_and_the_owner_does_not(family: int) -> None:
    here = packet(family, at.NODE_MESH[family], mark=5)
    marked, owned = Match(MARK, 5), OWNED_BY_SOMEBODY
    assert end(machine((inet(chain("input", (marked, DROP))),)), here) == "dropped"
    assert end(machine((inet(chain("prerouting", (owned, DROP))),)), here) == "delivered"


UNKNOWN = nft.UnknownExpression('{"strange":1}')


def test_what_is_not_understood_is_unknown_only_where_it_matters(family: int) -> None:
    state = machine(routes=(default(WAN, family),))
    strange = Match(UNKNOWN, 1)
    found = walk(with_tables(state, inet(chain("postrouting", (strange, DROP)))), packet(family))
    assert (found.outcome, found.device) == ("unknown", WAN) and found.doubts
    guarded = inet(chain("postrouting", (strange, nft.ACCEPT)), chain("postrouting", (DROP,), priority=9))
    assert end(with_tables(state, guarded), packet(family)) == "dropped"
    same = inet(chain("postrouting", (strange, nft.ACCEPT)))
    assert end(with_tables(state, same), packet(family)) == WAN


def test_a_mark_that_is_not_known_makes_the_walk_unknown(family: int) -> None:
    marks = chain("postrouting", (Match(UNKNOWN, 1), Mangle(MARK, 1)))
    found = walk(machine((inet(marks),), routes=(default(WAN, family),)), packet(family))
    assert found.outcome == "unknown"


def test_every_decision_is_told(family: int) -> None:
    state = with_tables(marked_to_the_wan(family), inet(REMARK))
    found = walk(state, packet(family))
    kinds = [one.kind for one in found.decisions]
    assert kinds[0] == "source" and kinds[-1] == "end" and kinds.index("reroute") > kinds.index("rule")
    assert {"ip-rule", "route", "hook"} <= set(kinds)
    things = [one.thing for one in found.decisions]
    assert state.rules[-1] in things and state.routes[-1] in things


# The shipped policy

GLUON = (Path(__file__).parents[2] / "rulesets" / "gluon-fastd.toml").read_bytes()


def guarded(*routes: Route) -> NetState:
    """The node with the shipped policy, its WAN routes in the policy's table as DHCP and RA bring them."""
    wanted = compile_policy(load(GLUON)[0])
    plain = machine()
    uplink = tuple(one for family in at.FAMILIES for one in (default(WAN, family, 1), connected(WAN, family, 1)))
    mesh = tuple(one for family in at.FAMILIES for one in (default(MESH, family), connected(MESH, family)))
    links = tuple(Route(6, MAIN, "fe80::/64", device=device) for device in (WAN, MESH, CLIENT))
    return evolve(
        plain,
        tables=wanted.tables,
        rules=(*plain.rules, *wanted.rules),
        routes=(*plain.routes, *wanted.routes, *uplink, *mesh, *links, *routes),
        sysctls=wanted.sysctls,
    )


def hostile(family: int) -> tuple[Route, ...]:
    """The WAN's routes in the main table, where they win."""
    routes = (default(WAN, family), connected(WAN, family))
    return tuple(evolve(one, metric=0) for one in routes)


HOME = number(at.NEIGHBOUR[4])


def probe(kind: str, family: int) -> Packet:
    """The packet of a kind of probe, unmarked and of nobody."""
    on_wan = number(NODE_WAN[family]) if family else None
    neighbour = at.NEIGHBOUR[family] if family else at.NEIGHBOUR[4]
    client = {"origin": FORWARD, "iif": CLIENT, "source": number(at.CLIENT_ADDRESS[family]) if family else None}
    frame = {"origin": FRAME, "bound": WAN, "source": on_wan}
    icmp = {
        "protocol": {4: ICMP, 6: ICMPV6}[family or 4],
        "fields": {({4: "icmp", 6: "icmpv6"}[family or 4], "type"): {4: 8, 6: 128}[family or 4]},
    }
    group = {4: "239.1.2.3", 6: "ff05::1234"}[family or 4]
    link = {4: "224.0.0.251", 6: "ff02::1234"}[family or 4]
    made: dict[str, tuple[str | None, dict[str, object]]] = {
        "udp": (None, {}),
        "udp-connected": (None, {}),
        "udp-source": (None, {"source": on_wan}),
        "udp-source-pktinfo": (None, {"source": on_wan}),
        "udp-fragments": (None, {}),
        "udp-mapped": (None, {}),
        "udplite": (None, {"protocol": 136}),
        "tcp": (None, {"protocol": TCP}),
        "ping": (None, icmp),
        "ping-raw": (None, icmp),
        "raw-protocol": (None, {"protocol": 253, "sport": 0, "dport": 0}),
        "raw-header": (None, {"source": on_wan}),
        "udp-bound": (neighbour, {"bound": WAN}),
        "tcp-bound": (neighbour, {"bound": WAN, "protocol": TCP}),
        "udp-pktinfo": (neighbour, {"bound": WAN}),
        "udp-unicast-if": (neighbour, {"bound": WAN}),
        "udp-dontroute": (neighbour, {}),
        "multicast-site": (group, {"bound": WAN}),
        "multicast-link": (link, {"bound": WAN}),
        "multicast-scope": (link, {"bound": WAN}),
        "unicast-scope": (at.HOME_LINK_LOCAL, {"bound": WAN}),
        "broadcast-limited": ("255.255.255.255", {"bound": WAN}),
        "broadcast-directed": (at.HOME_BROADCAST, {"bound": WAN}),
        "packet": (neighbour, frame),
        "packet-bypass": (neighbour, frame),
        "packet-port": (neighbour, frame),
        "packet-private": (neighbour, {**frame, "ethertype": 0x88B5}),
        "forwarded-udp": (None, client),
        "forwarded-tcp": (None, {**client, "protocol": TCP}),
    }
    to, others = made[kind]
    return packet(family or 4, to or at.SERVER[family or 4], **others)


PROBES = [(kind, family) for kind, made in KINDS.items() for family in made.needs]


@pytest.mark.parametrize(("kind", "family"), PROBES)
def test_no_unmarked_probe_leaves_by_the_uplink(kind: str, family: int) -> None:
    """It leaves where nothing guards, given the routes that the lab found it to need; under the policy it does not."""
    sent = probe(kind, family)
    needs = KINDS[kind].needs[family]
    routes = {
        NOTHING: (),
        CONNECTED_IN_MAIN: (connected(WAN, family or 4),),
        DEFAULT_IN_MAIN: (default(WAN, family or 4),),
    }[needs]
    links = (Route(6, MAIN, "fe80::/64", device=WAN),)
    assert end(machine(routes=(*routes, *links)), sent) == WAN, "the control"
    for state in (guarded(), guarded(*hostile(family or 4))):
        assert end(state, sent) != WAN and walk(state, sent).outcome != "unknown"


@pytest.mark.parametrize(
    ("kind", "family"), [(kind, family) for kind, family in PROBES if KINDS[kind].origin == "node"]
)
def test_every_marked_probe_of_the_service_leaves_by_the_uplink(kind: str, family: int) -> None:
    sent = evolve(probe(kind, family), mark=1, gid=SERVICE)
    assert end(guarded(), sent) == WAN


def test_a_mark_without_the_services_group_does_not_leave(family: int) -> None:
    sent = packet(family, mark=1)
    assert end(guarded(), sent) == "dropped"
    assert end(guarded(), evolve(sent, gid=SERVICE)) == WAN


RESOLVER = {4: "127.0.0.1", 6: "::1"}


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_a_services_question_to_any_server_reaches_the_resolver(family: int, protocol: int) -> None:
    somewhere = {4: "9.9.9.9", 6: "2620:fe::9"}[family]
    sent = packet(family, somewhere, dport=53, protocol=protocol, gid=SERVICE, mark=1)
    found = walk(guarded(), sent)
    assert (found.outcome, found.destination, found.dport) == ("delivered", number(RESOLVER[family]), 54)
    other = walk(guarded(), evolve(sent, gid=NOBODY, mark=0))
    assert (other.outcome, other.device, other.dport) == ("leaves", MESH, 53)


def test_nobody_else_asks_the_resolver(family: int) -> None:
    direct = packet(family, RESOLVER[family], dport=54)
    assert end(guarded(), direct) == "dropped"
    assert end(guarded(), evolve(direct, gid=SERVICE)) == "delivered"


def test_the_resolvers_own_questions_leave_by_the_uplink(family: int) -> None:
    asked = packet(family, at.HOME[family], dport=53, mark=1)
    assert end(guarded(), asked) == WAN
    assert end(guarded(), evolve(asked, dport=9)) == "dropped"


def test_what_is_marked_does_not_stray_into_the_mesh(family: int) -> None:
    sent = packet(family, at.GATEWAY[family], mark=1, gid=SERVICE, bound=MESH)
    assert end(guarded(), sent) in ("dropped", "unroutable")
    assert end(guarded(), evolve(sent, mark=0)) == MESH


def test_arrivals_from_the_uplink_are_marked_and_passed_on_by_nobody(family: int) -> None:
    to_us = packet(family, NODE_WAN[family], origin=FORWARD, iif=WAN, source=number(at.HOME[family]))
    found = walk(guarded(), to_us)
    assert (found.outcome, found.mark) == ("delivered", 1)
    assert end(guarded(), evolve(to_us, destination=number(at.SERVER[family]))) == "dropped"


@pytest.mark.parametrize(("sport", "expected"), [(22, WAN), (23, "dropped")])
def test_answers_leave_if_the_policy_gives_them(family: int, sport: int, expected: str) -> None:
    flow = Flow("established", "reply", 1)
    fields = {("tcp", "flags"): 0x10}
    reply = packet(family, at.HOME[family], protocol=TCP, sport=sport, uid=0, gid=0, flow=flow, fields=fields)
    assert end(guarded(), reply) == expected


def test_exempt_packets_of_the_kernel_leave_unmarked() -> None:
    report = packet(
        4, "224.0.0.22", origin=KERNEL, protocol=IGMP, bound=WAN, source=number(NODE_WAN[4]), fields={("ip", "ttl"): 1}
    )
    assert end(guarded(), report) == WAN
    assert end(guarded(), evolve(report, fields={("ip", "ttl"): 2})) == "dropped"
    fields = {("icmpv6", "type"): 135, ("ip6", "hoplimit"): 255}
    question = packet(
        6, "ff02::1:ff00:50", origin=KERNEL, protocol=ICMPV6, bound=WAN, source=number(NODE_WAN[6]), fields=fields,
        flow=Flow("untracked"),
    )  # fmt: skip
    assert end(guarded(), question) == WAN
    assert end(guarded(), evolve(question, fields={**fields, ("ip6", "hoplimit"): 64})) == "dropped"


def test_an_unnamed_device_counts_as_an_uplink(family: int) -> None:
    state = guarded(Route(family, MAIN, at.SERVER_NET[family], device="usb0"))
    assert end(state, packet(family)) == "dropped"


def test_bits_of_marks_are_written_one_by_one(family: int) -> None:
    put = chain("output", (Mangle(MARK, Bitwise(MARK, nft.FULL, 2)),), kind="route", priority=-150)
    found = walk(with_tables(marked_to_the_wan(family), inet(put)), packet(family, mark=1))
    assert (found.device, found.mark) == (WAN, 3)
