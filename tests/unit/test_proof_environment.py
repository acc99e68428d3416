"""Assumed environment of a proof: what a compiled state is completed with, and which devices are tried."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.routing import IpRule, Nexthop, Route
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.scalars import parse_answer
from nftpolicy.proof.answer_cases import answer_assumptions
from nftpolicy.proof.assumptions import add_assumed_environment, restrict_to_present
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.spec import Spec, UplinkSpec
from tests.unit.proved_policy import POLICY, SPEC, STATE

NO_ADDRESSES = "addresses on each device, and routes inside, as a machine has them (the state names none)"
WAN_ROUTE, LTE_ROUTE = (
    f"a default route by {device} in table {table} (it has none now)" for device, table in (("wan", 7), ("lte", 8))
)
# As a machine with these devices and the resolver's address on lo has them (`ip route show table all`).
IPV4 = (
    Route(4, 255, "127.0.0.0/8", "local", device="lo", protocol=2),
    *(
        Route(4, 255, f"{address}/32", "local", device=device, protocol=2)
        for address, device in (
            ("192.0.2.2", "wan"),
            ("192.0.2.18", "lte"),
            ("192.0.2.34", "lan"),
            ("192.0.2.54", "lo"),
        )
    ),
    Route(4, 254, "default", device="lan", metric=512, protocol=3),
)
IPV6 = (
    Route(6, 255, "::1/128", "local", device="lo", protocol=2),
    *(
        route
        for number, device in enumerate(("wan", "lte", "lan"))
        for route in (
            Route(6, 255, ("2001:db8:77::2", "2001:db8:77::100:2", "2001:db8:77::200:2")[number] + "/128", "local",
                  device=device, protocol=2),
            Route(6, 255, f"fe80::a00:27ff:fe00:{number + 2}/128", "local", device=device, protocol=2),
            Route(6, 255, "ff00::/8", "multicast", device=device, metric=256, protocol=2),
            Route(6, 254, "fe80::/64", device=device, metric=256, protocol=2),
        )
    ),
    Route(6, 254, "default", device="lan", metric=512, protocol=3),
)  # fmt: skip
UPLINKS = tuple(
    Route(family, table, "default", device=device, metric=512, protocol=3)
    for table, device in ((7, "wan"), (8, "lte"))
    for family in (4, 6)
)


def test_compiled_state_gets_addresses_and_routes() -> None:
    state, assumptions = add_assumed_environment(STATE, SPEC)
    assert state.routes == (*STATE.routes, *IPV4, *IPV6, *UPLINKS)
    assert assumptions == (NO_ADDRESSES, WAN_ROUTE, LTE_ROUTE)
    assert state.tables == STATE.tables


def test_compiled_state_gets_the_rules_of_the_kernel() -> None:
    state, _ = add_assumed_environment(STATE, SPEC)
    kernel = [(rule.family, rule.priority, rule.action, rule.table) for rule in state.rules if rule.protocol == 2]
    assert kernel == [
        (4, 0, "lookup", 255), (4, 32766, "lookup", 254), (4, 32767, "lookup", 253),
        (6, 0, "lookup", 255), (6, 32766, "lookup", 254),
    ]  # fmt: skip
    assert [rule for rule in state.rules if rule.protocol != 2] == list(STATE.rules)
    assert list(state.rules) == sorted(state.rules, key=lambda rule: (rule.family, rule.priority))


def test_state_with_addresses_gets_uplink_routes_only() -> None:
    real = evolve(STATE, routes=(*STATE.routes, *IPV4, *IPV6))
    state, assumptions = add_assumed_environment(real, SPEC)
    assert state.routes == (*real.routes, *UPLINKS)
    assert (state.rules, assumptions) == (STATE.rules, (WAN_ROUTE, LTE_ROUTE))


def test_state_keeps_uplink_tables_without_assumed_routes() -> None:
    real = evolve(STATE, routes=(*STATE.routes, *IPV4, *IPV6))
    assert add_assumed_environment(real, SPEC, uplink_routes=False) == (real, ())


def test_state_with_all_routes_stays_the_same() -> None:
    real = evolve(STATE, routes=(*STATE.routes, *IPV4, *IPV6, *UPLINKS))
    assert add_assumed_environment(real, SPEC) == (real, ())


@pytest.mark.parametrize(
    "change", [{"kind": "unreachable"}, {"table": 9}, {"destination": "10.0.0.0/8"}, {"family": 6}], ids=str
)
def test_another_route_is_no_default_route_of_the_uplink(change: dict[str, object]) -> None:
    routes = [evolve(route, **change) if route.table == 7 and route.family == 4 else route for route in UPLINKS]
    real = evolve(STATE, routes=(*STATE.routes, *IPV4, *IPV6, *routes))
    assert add_assumed_environment(real, SPEC)[1] == (WAN_ROUTE,)


def test_rules_of_a_family_that_looks_up_table_local_stay() -> None:
    local = IpRule(4, 0, table=255, protocol=2)
    state, _ = add_assumed_environment(evolve(STATE, rules=(local, *STATE.rules)), SPEC)
    assert {rule.family for rule in state.rules if rule.priority == 32766} == {6}
    marked = evolve(local, mark=1, mask=1)
    state, _ = add_assumed_environment(evolve(STATE, rules=(marked, *STATE.rules)), SPEC)
    assert {rule.family for rule in state.rules if rule.priority == 32766} == {4, 6}


def test_each_device_of_an_uplink_gets_a_default_route() -> None:
    uplink = UplinkSpec("wan", ("wan0", "wan1"), 1, 1, 7)
    state, assumptions = add_assumed_environment(NetState(), Spec((uplink, evolve(uplink, name="x", table=None))))
    found = [route for route in state.routes if route.table == 7 and route.family == 4]
    assert [(route.device, route.metric) for route in found] == [("wan0", 512), ("wan1", 513)]
    assert assumptions == (NO_ADDRESSES, "a default route by wan0 in table 7 (it has none now)")
    assert not [route for route in state.routes if route.table == 254 and route.destination == "default"]


def test_pattern_of_inside_devices_gets_a_device_that_matches() -> None:
    state, _ = add_assumed_environment(NetState(), Spec((), ("lan*",)))
    (default,) = (route for route in state.routes if route.destination == "default" and route.family == 4)
    assert default.device is not None
    assert default.device.startswith("lan") and default.device != "lan*"


# Devices

UPLINK = UplinkSpec("wan", ("wan0", "wan1"), 1, 1, 7, ports=("port0", "port1"))


def present(spec: Spec, *devices: Device) -> tuple[Spec, list[str]]:
    found, notes = restrict_to_present(NetState(devices=devices), spec)
    return found, list(notes)


def test_state_without_devices_restricts_nothing() -> None:
    assert present(Spec((UPLINK,), ("lan",))) == (Spec((UPLINK,), ("lan",)), [])


def test_device_inside_that_no_route_names_is_left_out() -> None:
    spec = Spec((UPLINK,), ("lan*", "tun*", "wg0"))
    hops = (Nexthop("tun3"), Nexthop("wan0"))
    routes = (Route(4, 255, "192.0.2.1/32", "local", device="lan7"), Route(6, 254, "default", nexthops=hops))
    found, notes = restrict_to_present(NetState(routes=routes), spec)
    assert found == evolve(spec, inside=("lan*", "tun*"))
    assert list(notes) == ["no packet was tried by wg0: no route names such a device"]


def test_absent_and_stopped_devices_are_left_out_and_named() -> None:
    spec = Spec((UPLINK, evolve(UPLINK, name="lte", devices=("lte",))), ("lan*", "guest", "dmz"))
    devices = [Device(name) for name in ("lo", "wan0", "port1", "lan1", "lan2", "guest")]
    found, notes = present(spec, *devices, Device("wan1", up=False), Device("port0", up=False), Device("guest2"))
    assert found == Spec((evolve(UPLINK, devices=("wan0",), ports=("port1",)),), ("lan1", "guest"))
    assert notes == [
        "no packet was tried by wan1: the device does not exist or is down",
        "no packet was tried by lte: the device does not exist or is down",
        "no packet was tried by dmz: no such device is up",
    ]


# Replies of UDP servers

ANSWERING = evolve(
    POLICY, uplink=POLICY.uplink | {"wan": evolve(POLICY.uplink["wan"], answer=(parse_answer("udp/5000"),))}
)
DEVICES = tuple(
    Device(name, addresses) for name, addresses in (("lo", ()), ("wan", ("192.0.2.2/28",)), ("lan", ("192.0.2.34/28",)))
)


@pytest.mark.parametrize(
    ("devices", "routes", "end"),
    [
        ((), IPV4, "where a route leads them inside"),
        (DEVICES, IPV4[:-1], "true now of one that is bound to no address and selects none: "
         "to 198.51.100.9 by wan from 192.0.2.2"),
        (DEVICES, IPV4, "false now of one that is bound to no address and selects none: "
         "to 198.51.100.9 by lan from 192.0.2.34"),
        (DEVICES, (*IPV4[:-1], Route(4, 254, "default", "unreachable")), "false now of one that is bound to no "
         "address and selects none: to 198.51.100.9 no route"),
        (DEVICES, (*IPV4[:1], *IPV4[2:]), "where a route leads them inside"),  # no address on wan
    ],
)  # fmt: skip
def test_assumption_about_udp_servers_has_the_way_now(devices, routes, end) -> None:
    compiled = compile_policy(ANSWERING)
    state = evolve(compiled, routes=(*compiled.routes, *routes, *IPV6[:1], *UPLINKS), devices=devices)
    rules = tuple(IpRule(4, priority, table=table, protocol=2) for priority, table in ((0, 255), (32766, 254)))
    state = evolve(state, rules=tuple(sorted((*state.rules, *rules), key=lambda rule: rule.priority)))
    context = ProofContext(state, ["wan"], [0xFF])
    (assumption,) = answer_assumptions(context, build_spec(ANSWERING))
    assert assumption.startswith("the server of answer udp/5000 of uplink wan sends its UDP replies from the address")
    assert assumption.endswith(end)
