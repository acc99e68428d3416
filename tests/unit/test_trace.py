"""Trace of one packet: the facts of the kernel tests, as traces of the model."""

from typing import Any

import pytest
from attrs import evolve

from nftpolicy.model.packet import FORWARD, FRAME, KERNEL, TCP, CtInfo, parse_address
from nftpolicy.model.trace import Model
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import Bitwise, Chain, Ct, Dnat, Mangle, Match, Meta, Payload, Table
from nftpolicy.netstate.routing import IpRule, Route, Sysctl
from nftpolicy.netstate.state import NetState
from tests.lab import addresses as at

from .trace_helpers import (
    CLIENT,
    DROP,
    MAIN,
    MARK,
    MESH,
    NOBODY,
    NODE_WAN,
    WAN,
    chain,
    connected,
    default,
    end,
    families,
    inet,
    leaves_by,
    machine,
    packet,
    walk,
)

# The facts of tests/kernel/test_routing_facts.py and test_hooks_facts.py


@pytest.fixture(params=at.FAMILIES, ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return request.param


REMARK = chain("output", (Mangle(MARK, 1),), kind="route", priority=-150)


def state_with_marked_route(family: int) -> NetState:
    """Main leads to the mesh, the mark 1 to the WAN."""
    return machine(
        rules=(IpRule(family, 100, table=100, mark=1, mask=1),),
        routes=(default(MESH, family), default(WAN, family, 100)),
    )


def with_tables(state: NetState, *tables: Table) -> NetState:
    return evolve(state, tables=tables)


def test_K1_L15_output_has_the_old_device_postrouting_the_new(family: int) -> None:
    state = state_with_marked_route(family)
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


def test_unchanged_mark_does_not_reroute(family: int) -> None:
    state = with_tables(
        machine(
            rules=(IpRule(family, 100, table=100, uids=(NOBODY, NOBODY)), IpRule(family, 101, table=101, uids=(0, 0))),
            routes=(default(WAN, family, 100), default(MESH, family, 101)),
        ),
        inet(REMARK),
    )
    assert end(state, packet(family, mark=1)) == WAN
    assert end(state, packet(family, mark=2)) == {4: MESH, 6: WAN}[family]


def test_mark_in_filter_chain_does_not_reroute(family: int) -> None:
    mark = chain("output", (Mangle(MARK, 1),), priority=-150)
    found = walk(with_tables(state_with_marked_route(family), inet(mark)), packet(family))
    assert (found.outcome, found.device, found.mark) == ("leaves", MESH, 1)


@families
def test_K2_bound_ipv4_socket_needs_no_route(family: int) -> None:
    assert end(machine(), packet(family)) == "unroutable"
    assert end(machine(), packet(family, bound=WAN)) == {4: WAN, 6: "unroutable"}[family]


def test_K3_bound_ipv6_socket_needs_a_route() -> None:
    assert end(machine(routes=(default(WAN, 6),)), packet(6, bound=WAN)) == WAN
    assert end(machine(routes=(default(MESH, 6),)), packet(6, bound=WAN)) == "unroutable"


def test_K3_link_local_and_multicast_need_no_own_route() -> None:
    links = tuple(connected(device, 6) for device in ()) + (Route(6, MAIN, "fe80::/64", device=WAN),)
    assert end(machine(routes=links), packet(6, at.HOME_LINK_LOCAL, bound=WAN)) == WAN
    assert end(machine(), packet(6, "ff02::1234", bound=WAN)) == WAN
    for group in ("239.1.2.3", "224.0.0.251", "255.255.255.255"):
        assert end(machine(), packet(4, group, bound=WAN)) == WAN, group
        assert end(machine(), packet(4, group)) == "unroutable", group


def test_K4_L3_frame_passes_only_the_egress_hook(family: int) -> None:
    stop = tuple(chain(hook, (DROP,)) for hook in ("output", "postrouting"))
    frame = packet(family, origin=FRAME, bound=WAN, source=parse_address(NODE_WAN[family]))
    assert end(machine((inet(*stop),)), frame) == WAN
    egress = Table("netdev", "link", (chain("egress", (DROP,), device=WAN),))
    assert end(machine((egress,)), frame) == "dropped"
    elsewhere = Table("netdev", "link", (chain("egress", (DROP,), device=MESH),))
    assert end(machine((elsewhere,)), frame) == WAN


def test_K6_ipv4_reroutes_without_the_uid(family: int) -> None:
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
def test_K7_unreachable_default_does_not_stop_bound_socket(kind: str) -> None:
    state = machine(
        rules=(IpRule(4, 100, "prohibit"),) if kind == "rule" else (),
        routes=(Route(4, MAIN, kind="unreachable"),),
    )
    assert end(state, packet(4)) == "unroutable"
    assert end(state, packet(4, bound=WAN)) == WAN


def state_with_unreachable_rule(family: int) -> NetState:
    return machine(
        rules=(IpRule(family, 100, table=100, mark=1, mask=1), IpRule(family, 200, "unreachable")),
        routes=(default(MESH, family), default(WAN, family, 100)),
    )


def test_L1_bound_ipv4_socket_ignores_ip_rules(family: int) -> None:
    assert end(state_with_unreachable_rule(family), packet(family, mark=1)) == WAN
    assert end(state_with_unreachable_rule(family), packet(family)) == "unroutable"
    assert end(state_with_unreachable_rule(family), packet(family, bound=WAN)) == {4: WAN, 6: "unroutable"}[family]


@pytest.mark.parametrize("source", ["ff12::9", "::1", "::"])
def test_IPv6_packet_from_such_a_source_is_not_forwarded(source: str) -> None:
    target = machine(routes=(default(WAN, 6),))
    arrived = {"origin": FORWARD, "iif": MESH}
    assert end(target, packet(6, "2001:db8:9::9", source=parse_address("2001:db8:3::9"), **arrived)) == WAN
    assert end(target, packet(6, "2001:db8:9::9", source=parse_address(source), **arrived)) == "dropped"


def test_IPv6_group_of_the_node_does_not_leave() -> None:
    for group, outcome in (("ff00::1234", "dropped"), ("ff11::1234", "dropped"), ("ff12::1234", WAN)):
        assert end(machine(), packet(6, group, bound=WAN)) == outcome


def test_L2_bound_multicast_ignores_ip_rules() -> None:
    assert end(state_with_unreachable_rule(4), packet(4, "239.1.2.3", bound=WAN)) == WAN
    assert end(state_with_unreachable_rule(6), packet(6, "ff02::1234", bound=WAN)) == WAN


def test_L5_link_local_needs_a_rule_before_unreachable() -> None:
    links = (Route(6, MAIN, "fe80::/64", device=WAN),)
    state = evolve(state_with_unreachable_rule(6), routes=(*state_with_unreachable_rule(6).routes, *links))
    assert end(state, packet(6, at.HOME_LINK_LOCAL, bound=WAN)) == "unroutable"
    exempt = IpRule(6, 50, table=MAIN, destination="fe80::/10")
    assert end(evolve(state, rules=(*state.rules, exempt)), packet(6, at.HOME_LINK_LOCAL, bound=WAN)) == WAN


HAS_OWNER = Match(Meta("skuid"), "0-4294967294")


def test_L6_kernel_packet_matches_no_user_and_no_negation(family: int) -> None:
    for other in (HAS_OWNER, Match(Meta("skuid"), 4711, "!="), Match(Meta("skgid"), 4711, "!=")):
        state = machine((inet(chain("postrouting", (other, DROP))),), routes=(default(WAN, family),))
        assert end(state, packet(family)) == "dropped"
        assert end(state, packet(family, origin=KERNEL, source=parse_address(NODE_WAN[family]))) == WAN


def test_L7_kernel_reply_is_routed_by_its_mark(family: int) -> None:
    reply = packet(family, origin=KERNEL, source=parse_address(NODE_WAN[family]), protocol=TCP)
    assert end(state_with_marked_route(family), reply) == MESH
    assert end(state_with_marked_route(family), evolve(reply, mark=1)) == WAN


def test_L12_netifd_rules_route_unmarked_packets_to_the_wan() -> None:
    rules = (
        IpRule(4, 10000, table=10, source=f"{NODE_WAN[4]}/32"),
        IpRule(4, 20000, table=10, destination=at.HOME_NET[4]),
        IpRule(4, 90001, table=10, iif="lo"),
    )
    routes = (default(WAN, 4, 10), Route(4, 10, at.HOME_NET[4], device=WAN))
    sourced = packet(4, source=parse_address(NODE_WAN[4]))
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


def test_L16_drop_in_any_chain_is_final(family: int) -> None:
    late = chain("output", (nft.ACCEPT,), priority=100)
    for hook in ("output", "postrouting"):
        state = machine((inet(chain(hook, (DROP,)), late),), routes=(default(WAN, family),))
        assert end(state, packet(family)) == "dropped"


# Further ways


def test_forwarded_packet_passes_its_three_hooks(family: int) -> None:
    state = machine(routes=(default(WAN, family),))
    sent = packet(family, origin=FORWARD, iif=CLIENT, source=parse_address(at.CLIENT_ADDRESS[family]))
    assert end(state, sent) == WAN
    for hook in ("prerouting", "forward", "postrouting"):
        assert end(with_tables(state, inet(chain(hook, (Match(Meta("iifname"), CLIENT), DROP)))), sent) == "dropped"
    for hook in ("output", "input"):
        assert end(with_tables(state, inet(chain(hook, (DROP,)))), sent) == WAN
    to_us = packet(family, at.NODE_CLIENT[family], origin=FORWARD, iif=CLIENT, source=sent.source)
    assert end(state, to_us) == "delivered"
    assert end(with_tables(state, inet(chain("input", (DROP,)))), to_us) == "dropped"


def test_forwarded_packet_is_routed_by_its_prerouting_mark(family: int) -> None:
    mark = chain("prerouting", (Match(Meta("iifname"), CLIENT), Mangle(MARK, 1)), priority=-150)
    state = with_tables(state_with_marked_route(family), inet(mark))
    source = parse_address(at.CLIENT_ADDRESS[family])
    assert end(state, packet(family, origin=FORWARD, iif=CLIENT, source=source)) == WAN
    assert end(state, packet(family)) == MESH


@pytest.mark.parametrize(
    ("family", "sysctl"),
    [(4, f"net/ipv4/conf/{CLIENT}/forwarding"), (6, "net/ipv6/conf/all/forwarding")],
)
def test_packet_is_not_forwarded_with_forwarding_off(family: int, sysctl: str) -> None:
    sent = packet(family, origin=FORWARD, iif=CLIENT, source=parse_address(at.CLIENT_ADDRESS[family]))
    for value, expected in (("1", {WAN}), ("0", {"dropped", "unroutable"})):
        state = machine(routes=(default(WAN, family),), sysctls=(Sysctl(sysctl, value),))
        assert end(state, sent) in expected


def test_dscp_of_a_packet_selects_an_ip_rule(family: int) -> None:
    rule = IpRule(family, 100, table=100, tos=0x10)
    state = machine(rules=(rule,), routes=(default(MESH, family), default(WAN, family, 100)))
    own, other = ("ip", "ip6") if family == 4 else ("ip6", "ip")
    for header, expected in ((own, WAN), (other, MESH)):
        assert end(state, packet(family, fields={(header, "dscp"): 0x10 >> 2})) == expected


def test_frame_by_lo_arrives_at_this_machine(family: int) -> None:
    sent = packet(family, NODE_WAN[family], origin=FRAME, bound="lo", source=parse_address(NODE_WAN[family]))
    state = machine(routes=(default(WAN, family),))
    assert end(state, sent) != "lo"
    seen = chain("prerouting", (Match(Meta("iifname"), "lo"), DROP))
    assert end(with_tables(state, inet(seen)), sent) == "dropped"


IP_FORWARD, CONF4 = "net/ipv4/ip_forward", f"net/ipv4/conf/{CLIENT}/forwarding"
ALL6, FORCED6 = "net/ipv6/conf/all/forwarding", f"net/ipv6/conf/{CLIENT}/force_forwarding"


@pytest.mark.parametrize(
    ("family", "values", "expected"),
    [
        (4, {}, True),
        (4, {IP_FORWARD: "0"}, False),
        (4, {IP_FORWARD: "0", CONF4: "1"}, True),
        (4, {IP_FORWARD: "1", CONF4: "0"}, False),
        (6, {}, True),
        (6, {ALL6: "1", FORCED6: "0"}, True),
        (6, {ALL6: "0"}, False),
        (6, {ALL6: "0", FORCED6: "1"}, True),
    ],
)
def test_forwarding_is_a_setting_of_the_input_device(family: int, values: dict[str, str], expected: bool) -> None:
    state = machine(sysctls=tuple(Sysctl(path, value) for path, value in values.items()))
    assert Model(state).is_forwarding(family, CLIENT) is expected


def redirect_chain(family: int, address: str, priority: int = -100) -> Chain:
    word = {4: "ip", 6: "ip6"}[family]
    return chain("output", (Match(Payload("udp", "dport"), 53), Dnat(word, address, 54)), kind="nat", priority=priority)


def test_dnat_packet_is_rerouted(family: int) -> None:
    state = machine(routes=(default(WAN, family), Route(family, MAIN, at.MESH_NET[family], device=MESH)))
    gateway = at.GATEWAY[family]
    found = walk(with_tables(state, inet(redirect_chain(family, gateway))), packet(family, dport=53))
    assert (found.outcome, found.device, found.destination, found.dport) == ("leaves", MESH, parse_address(gateway), 54)


def test_redirect_at_prerouting_leads_to_the_input_device(family: int) -> None:
    redirect = chain("prerouting", (Match(Payload("udp", "dport"), 53), nft.Redirect(54)), kind="nat", priority=-100)
    state = machine((inet(redirect),), routes=(default(WAN, family),))
    sent = packet(family, origin=FORWARD, iif=CLIENT, source=parse_address(at.CLIENT_ADDRESS[family]), dport=53)
    found = walk(state, sent)
    own = parse_address(at.NODE_CLIENT[family])
    assert (found.outcome, found.destination, found.dport) == ("delivered", own, 54)
    assert end(state, evolve(sent, dport=54)) == WAN


def test_masquerade_takes_an_address_of_the_output_device(family: int) -> None:
    word = {4: "ip", 6: "ip6"}[family]
    masquerade = chain("postrouting", (nft.Masquerade(),), kind="nat", priority=100)
    sent = packet(family, origin=FORWARD, iif=CLIENT, source=parse_address(at.CLIENT_ADDRESS[family]))
    for priority, source in ((0, at.CLIENT_ADDRESS[family]), (200, NODE_WAN[family])):
        drop = chain("postrouting", (Match(Payload(word, "saddr"), source), DROP), priority=priority)
        state = machine((inet(masquerade, drop),), routes=(default(WAN, family),))
        assert end(state, sent) == "dropped"
        kept = chain("postrouting", (Match(Payload(word, "saddr"), source, "!="), DROP), priority=priority)
        assert end(with_tables(state, inet(masquerade, kept)), sent) == WAN


def test_source_without_list_of_devices_is_a_local_address(family: int) -> None:
    """Take no address of a broadcast or of another host for one of this machine."""
    host = Route(family, MAIN, {4: "192.0.2.77/32", 6: "2001:db8:1::77/128"}[family], device=WAN)
    drop = chain("postrouting", (Match(Payload({4: "ip", 6: "ip6"}[family], "saddr"), NODE_WAN[family]), DROP))
    state = evolve(machine((inet(drop),), routes=(default(WAN, family), host)), devices=())
    assert end(state, packet(family)) == "dropped"


@pytest.mark.parametrize(("keys", "expected"), [(("daddr",), WAN), (("daddr", "iif"), "dropped")])
def test_ipv6_address_type_without_device_is_by_route(keys: tuple[str, ...], expected: str) -> None:
    """Take an own address for another one where the ip rules lead away from it (nft_fib6_eval_type)."""
    drop = chain("prerouting", (Match(nft.Fib("type", keys), "local"), DROP))
    sent = packet(6, at.NODE_CLIENT[6], origin=FORWARD, iif=CLIENT, source=parse_address(at.CLIENT_ADDRESS[6]))
    state = machine((inet(drop),), routes=(default(WAN, 6), default(WAN, 6, 100)))
    assert end(state, sent) == "dropped"
    away = evolve(state, rules=(IpRule(6, 0, table=100), IpRule(6, 1, table=255), *state.rules[1:]))
    assert end(away, sent) == expected


def test_nat_translates_only_the_original_direction(family: int) -> None:
    state = machine((inet(redirect_chain(family, at.GATEWAY[family])),), routes=(default(WAN, family),))
    for flow, translated in (
        (CtInfo("new"), True),
        (CtInfo("established"), True),
        (CtInfo("established", "reply"), False),
        (CtInfo("untracked"), False),
    ):
        found = walk(state, packet(family, dport=53, flow=flow))
        assert (found.dport == 54) is translated, flow


def test_nat_chain_runs_at_the_nat_priority(family: int) -> None:
    """Place a filter chain at -50 after a nat chain at 200: the hook of NAT is at -100."""
    after = chain("output", (Match(Payload("udp", "dport"), 54), DROP), priority=-50)
    state = machine((inet(redirect_chain(family, at.GATEWAY[family], 200), after),), routes=(default(WAN, family),))
    assert end(state, packet(family, dport=53)) == "dropped"


def test_nat_chain_without_conntrack_does_nothing(family: int) -> None:
    stop = chain("output", (DROP,), kind="nat", priority=-100)
    state = machine((inet(stop),), routes=(default(WAN, family),))
    assert end(state, packet(family)) == WAN
    reader = chain("input", (Match(Ct("state"), "new"),))
    assert end(with_tables(state, inet(stop, reader)), packet(family)) == "dropped"


@pytest.mark.parametrize(
    "counting",
    [
        {"sets": (nft.Set("s", ("inet_proto",), frozenset({6}), statements=(nft.CtCount(1, True),)),)},
        {"unknown": ('{"set": {"reason": "set s, whose elements have statements: connlimit"}}',)},
    ],
    ids=["known", "unknown"],
)
def test_set_of_connection_counts_may_end_conntrack(family: int, counting: dict[str, Any]) -> None:
    tracked = inet(chain("postrouting", (Match(Ct("mark"), 1, "!="), DROP)))
    own, other = {4: ("ip", "ip6"), 6: ("ip6", "ip")}[family]

    def outcome(*tables: Table) -> str:
        return walk(with_tables(state_with_marked_route(family), tracked, *tables), packet(family)).outcome

    assert outcome() == "dropped"
    assert outcome(Table(other, "counts", **counting)) == "dropped"
    assert outcome(Table(own, "counts", **counting)) == "unknown"


def test_ct_state_is_absent_before_conntrack(family: int) -> None:
    early = chain("output", (Match(Ct("state"), "new"), DROP), priority=-300)
    late = chain("output", (Match(Ct("state"), "new"), DROP), priority=-150)
    for tables, expected in ((inet(early), WAN), (inet(late), "dropped")):
        assert end(machine((tables,), routes=(default(WAN, family),)), packet(family)) == expected


def test_packet_to_local_address_passes_lo_twice(family: int) -> None:
    here = packet(family, at.NODE_MESH[family])
    assert end(machine(), here) == "delivered"
    for hook in ("output", "postrouting", "prerouting", "input"):
        key = "oifname" if hook in ("output", "postrouting") else "iifname"
        assert end(machine((inet(chain(hook, (Match(Meta(key), "lo"), DROP))),)), here) == "dropped", hook
    egress = Table("netdev", "link", (chain("egress", (DROP,), device="lo"),))
    assert end(machine((egress,)), here) == "dropped"


def test_mark_survives_lo_and_owner_does_not(family: int) -> None:
    here = packet(family, at.NODE_MESH[family], mark=5)
    marked, owned = Match(MARK, 5), HAS_OWNER
    assert end(machine((inet(chain("input", (marked, DROP))),)), here) == "dropped"
    assert end(machine((inet(chain("prerouting", (owned, DROP))),)), here) == "delivered"


UNKNOWN = nft.UnknownExpression('{"strange":1}')


def test_unsupported_match_is_unknown_only_if_decisive(family: int) -> None:
    state = machine(routes=(default(WAN, family),))
    strange = Match(UNKNOWN, 1)
    found = walk(with_tables(state, inet(chain("postrouting", (strange, DROP)))), packet(family))
    assert (found.outcome, found.device) == ("unknown", WAN) and found.unsupported
    guarded = inet(chain("postrouting", (strange, nft.ACCEPT)), chain("postrouting", (DROP,), priority=9))
    assert end(with_tables(state, guarded), packet(family)) == "dropped"
    same = inet(chain("postrouting", (strange, nft.ACCEPT)))
    assert end(with_tables(state, same), packet(family)) == WAN


def test_unknown_mark_makes_the_trace_unknown(family: int) -> None:
    marks = chain("postrouting", (Match(UNKNOWN, 1), Mangle(MARK, 1)))
    found = walk(machine((inet(marks),), routes=(default(WAN, family),)), packet(family))
    assert found.outcome == "unknown"


def test_trace_steps_have_every_decision(family: int) -> None:
    state = with_tables(state_with_marked_route(family), inet(REMARK))
    found = walk(state, packet(family))
    kinds = [one.kind for one in found.steps]
    assert kinds[0] == "source" and kinds[-1] == "end" and kinds.index("reroute") > kinds.index("rule")
    assert {"ip-rule", "route", "hook"} <= set(kinds)
    things = [one.subject for one in found.steps]
    assert state.rules[-1] in things and state.routes[-1] in things


def test_mark_bits_are_written_separately(family: int) -> None:
    put = chain("output", (Mangle(MARK, Bitwise(MARK, nft.FULL_MASK, 2)),), kind="route", priority=-150)
    found = walk(with_tables(state_with_marked_route(family), inet(put)), packet(family, mark=1))
    assert (found.device, found.mark) == (WAN, 3)


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (CtInfo(), False),
        (CtInfo(is_confirmed=True), True),
        (CtInfo("established"), True),
        (CtInfo("new", "reply"), True),
        (CtInfo("related"), None),
        (CtInfo("related", is_confirmed=False), False),
    ],
)
def test_earlier_packet_of_a_flow_depends_on_its_state(flow, expected):
    assert flow.has_earlier_packet is expected
