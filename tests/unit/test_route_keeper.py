"""Route keeper on routes in memory with a clock of the test, and its netlink requests byte by byte."""

import errno
import socket
import struct
from ipaddress import ip_interface
from pathlib import Path
from types import SimpleNamespace

import pytest
from attrs import evolve

from nftpolicy.kernel.netlink import rtnl_decode as messages
from nftpolicy.kernel.netlink.attributes import attribute
from nftpolicy.kernel.netlink.monitor import ChangeSet
from nftpolicy.kernel.netlink.route_mover import KernelRoute, RouteListing
from nftpolicy.netstate.routing import RTPROT_NFTPOLICY, Route
from nftpolicy.policy.load import load
from nftpolicy.runtime.apply.route_placement import UplinkTable, plan_moves
from nftpolicy.runtime.apply.state_dir import StateDir
from nftpolicy.runtime.watch.route_keeper import SETTLE_SECONDS, RouteKeeper, misplaced_routes
from tests.unit.test_watch import POLICY, TOML

DEFAULT = Route(4, 254, gateway="1.2.3.1", device="br-wan", protocol=3)
CONNECTED = Route(4, 254, "1.2.3.0/24", device="br-wan", protocol=2, prefsrc="1.2.3.2")
BY_RA = Route(6, 254, gateway="fe80::1", device="br-wan", metric=1024, protocol=9, expires=1800)
ROUTED = ChangeSet(route_added=True)


def unreachable(network, kind="unreachable"):
    return Route(6 if ":" in network else 4, 254, network, kind, metric=0xFFFFFFFE)


class RouteMemory:
    """Routes of a kernel in memory, with the environment of the route keeper."""

    directory = Path()  # set for each test

    def __init__(self, *routes: Route) -> None:
        self.held, self.at, self.log, self.done = list(routes), 100.0, [], []
        self.refuse: dict[str, int] = {}
        self.known = {"br-wan": ("1.2.3.2/24",)}
        self.routes, self.now = self, lambda: self.at
        self.applier = SimpleNamespace(state_dir=StateDir(self.directory))
        self.too_many: tuple[tuple[str, int], ...] = ()

    def log_event(self, event, facts):
        self.log.append((event, facts))

    def list_routes(self, devices):
        if "by" in self.refuse:
            raise OSError(self.refuse["by"], "refused")
        routes = [KernelRoute(one, b"") for one in self.held if one.device in devices]
        return RouteListing(routes, self.too_many)

    def addresses(self, devices):
        return self.known

    def own_main_routes(self):
        return {
            one.destination: KernelRoute(one, b"")
            for one in self.held
            if (one.table, one.protocol) == (254, RTPROT_NFTPOLICY)
        }

    def add_main_route(self, network, kind, device, prefsrc):
        if code := self.refuse.get("unreachable"):
            return code
        self.held.append(evolve(unreachable(str(network), kind), device=device, prefsrc=prefsrc))
        return 0

    def install(self, kernel_route, table, protocol=None, beside=False):
        if code := self.refuse.get("put"):
            return code
        moved = evolve(kernel_route.route, table=table, onlink=bool(kernel_route.route.gateway))
        self.done.append(("put", kernel_route.route, table))
        self.held = [one for one in self.held if one != moved] + [moved]
        return 0

    def delete(self, kernel_route):
        if code := self.refuse.get("take"):
            return code
        self.done.append(("take", kernel_route.route))
        self.held.remove(kernel_route.route)
        return 0

    def delete_default(self, device, gateway, table):
        ours = [one for one in self.held if (one.device, one.gateway, one.table) == (device, gateway, table)]
        self.held = [one for one in self.held if one not in ours]
        return 0 if ours else errno.ESRCH

    def events(self, name):
        return [facts for event, facts in self.log if event == name]


@pytest.fixture(autouse=True)
def state_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(RouteMemory, "directory", tmp_path)


def started_keeper(memory, policy=POLICY):
    found = RouteKeeper(memory)
    found.set_policy(policy)
    found.process(ChangeSet())
    return found


def test_misplaced_route_is_added_before_its_removal() -> None:
    memory = RouteMemory(DEFAULT)
    started_keeper(memory)
    assert memory.done == [("put", DEFAULT, 1), ("take", DEFAULT)]
    assert memory.events("route-moved") == [{"routes": ["default via 1.2.3.1 dev br-wan table 254 proto 3"], "to": 1}]


def test_misplaced_route_stays_if_adding_fails() -> None:
    memory = RouteMemory(DEFAULT)
    memory.refuse["put"] = errno.ENETDOWN
    one = started_keeper(memory)
    for _ in range(5):
        memory.at = one.due()
        one.process(ChangeSet())
    assert memory.held == [DEFAULT]
    assert [facts["why"] for facts in memory.events("failed")] == ["Network is down"], "told once, tried again"
    memory.refuse.clear()
    memory.at = one.due()
    one.process(ChangeSet())
    assert [each.table for each in memory.held] == [1]


def test_repair_comes_before_routes_but_not_for_ever() -> None:
    memory = RouteMemory(DEFAULT)
    keeper = RouteKeeper(memory, lambda: True)
    keeper.set_policy(POLICY)
    for turn in range(1, 4):
        assert memory.done == [], turn
        keeper.process(ChangeSet())
        memory.at = keeper.due()
    keeper.process(ChangeSet())
    assert [each.table for each in memory.held] == [1]


def test_failed_route_listing_is_repeated() -> None:
    memory = RouteMemory(DEFAULT)
    memory.refuse["by"] = errno.ENOBUFS
    one = started_keeper(memory)
    assert memory.events("failed")
    memory.refuse.clear()
    memory.at = one.due()
    one.process(ChangeSet())
    assert [each.table for each in memory.held] == [1]


def test_connected_route_is_copied_then_removed_after_settling() -> None:
    memory = RouteMemory(CONNECTED)
    one = started_keeper(memory)
    assert [each.table for each in memory.held] == [254, 1]
    memory.at += SETTLE_SECONDS / 2
    one.process(ROUTED)
    assert [each.table for each in memory.held] == [254, 1]
    assert one.due() == pytest.approx(100 + SETTLE_SECONDS)
    memory.at = one.due()
    one.process(ChangeSet())
    assert [each.table for each in memory.held] == [1]
    assert len(memory.events("route-moved")) == 1


def test_copied_route_is_removed_with_its_address() -> None:
    memory = RouteMemory(evolve(CONNECTED, table=1))
    one = started_keeper(memory)
    assert memory.done == []
    memory.known = {"br-wan": ()}
    memory.at += 1
    one.process(ChangeSet(addresses=True))
    assert memory.held == []
    assert memory.events("route-withdrawn")


def test_copied_route_is_removed_with_its_metric() -> None:
    """As systemd-networkd 252 does when it starts again: the same address, with the metric 0."""
    old = evolve(CONNECTED, metric=1024)
    memory = RouteMemory(evolve(old, table=1))
    other = evolve(old, table=1, prefsrc="1.2.3.3")
    memory.known = {"br-wan": ("1.2.3.2/24", "1.2.3.3/24")}
    memory.held.append(other)
    one = started_keeper(memory)
    assert memory.done == [], "the control: without a new route they stay"
    memory.held.append(CONNECTED)
    memory.at += 1
    one.process(ROUTED)
    assert memory.held == [other, CONNECTED, evolve(CONNECTED, table=1)]
    assert memory.events("route-withdrawn")


def test_present_route_gets_its_new_lifetime() -> None:
    memory = RouteMemory(evolve(BY_RA, table=1, onlink=True), BY_RA)
    started_keeper(memory)
    assert memory.done == [("put", BY_RA, 1), ("take", BY_RA)]
    assert memory.events("route-moved") == [], "nothing new"


def test_gateway_of_the_policy_is_not_replaced() -> None:
    ours = Route(4, 1, gateway="1.2.3.9", device="br-wan", onlink=True)
    memory = RouteMemory(ours, DEFAULT)
    started_keeper(memory)
    assert memory.done == [("take", DEFAULT)]
    assert memory.held == [ours]


def test_route_that_comes_back_each_time_is_left() -> None:
    """As zebra of FRR installs its static routes again when they are deleted."""
    memory = RouteMemory(DEFAULT)
    one = started_keeper(memory)
    for _ in range(2000):  # 20 seconds
        memory.at += 0.01
        if DEFAULT not in memory.held:
            memory.held.append(DEFAULT)
        one.process(ROUTED if memory.at < 110 else ChangeSet())
    assert sum(each[0] == "take" for each in memory.done) == 6
    assert len(memory.events("route-moved")) == 1
    (left,) = memory.events("routes-left")
    assert left["what"] == "default via 1.2.3.1 dev br-wan table 254 proto 3"
    assert DEFAULT in memory.held, "the other program has its route"
    assert evolve(DEFAULT, table=1, onlink=True) in memory.held, "the uplink has its own"
    memory.held = [DEFAULT]  # a copy by the same nexthop object ends with it
    one.process(ROUTED)
    memory.at += 1
    one.process(ChangeSet())
    assert evolve(DEFAULT, table=1, onlink=True) in memory.held and DEFAULT in memory.held
    memory.at = max(one.due(), memory.at)
    one.process(ChangeSet())
    assert DEFAULT not in memory.held, "a new try, which succeeds if the other program has stopped"
    assert len(memory.events("routes-left")) == 1


def test_route_that_comes_back_seldom_is_moved_each_time() -> None:
    memory = RouteMemory(DEFAULT)
    one = started_keeper(memory)
    for _ in range(20):
        memory.at += 10
        memory.held.append(DEFAULT)
        one.process(ROUTED)
        assert DEFAULT not in memory.held
    assert memory.events("routes-left") == []


@pytest.mark.parametrize("policy", [None, POLICY])
def test_keeper_without_policy_or_access_does_nothing(policy) -> None:
    memory = RouteMemory(DEFAULT)
    if policy is not None:
        memory.routes = None
    one = RouteKeeper(memory)
    one.set_policy(policy)
    one.process(ROUTED)
    assert (one.due(), memory.done) == (None, [])


def test_route_to_network_of_lan_is_not_misplaced() -> None:
    policy = load(TOML + b'[lan.nas]\nuplink = "wan"\nto = ["192.168.7.0/25"]\n')[0]
    route = evolve(CONNECTED, destination="192.168.7.0/24", prefsrc="192.168.7.2")
    beside = evolve(route, destination="192.168.8.0/24", prefsrc=None)
    assert misplaced_routes(RouteMemory(route, beside), policy) == ("192.168.8.0/24 dev br-wan table 254 proto 2",)


def test_misplaced_routes_are_named() -> None:
    assert misplaced_routes(RouteMemory(DEFAULT, evolve(DEFAULT, table=1)), POLICY) == (
        "default via 1.2.3.1 dev br-wan table 254 proto 3",
    )


# Requests


def kernel_route(af, *attributes, scope=0, flags=0, table=254, protocol=9):
    head = struct.pack("=BBBBBBBBI", af, 0, 0, 0, table, protocol, scope, 1, flags)
    raw = head + b"".join(attribute(*one) for one in attributes)
    return KernelRoute(messages.decode_route(raw, 0, len(raw), {3: "br-wan"}), raw)


def parts(raw):
    return list(messages.attributes(raw, 12, len(raw)))


OIF, GATEWAY = (4, struct.pack("=I", 3)), (5, socket.inet_pton(socket.AF_INET6, "fe80::1"))


def test_request_copies_all_but_kernel_attributes() -> None:
    told = struct.pack("=IIiIIIII", 0, 0, 179900, 0, 0, 0, 0, 0)
    one = kernel_route(
        socket.AF_INET6, OIF, GATEWAY, (6, b"\0\4\0\0"), (8, b"metrics!"), (12, told), (20, b"\1"), (99, b"?")
    )
    assert one.route.expires == 1799
    raw = one.request(1, expires=one.route.expires)
    assert dict(parts(raw)) == {
        4: OIF[1], 5: GATEWAY[1], 6: b"\0\4\0\0", 8: b"metrics!", 20: b"\1", 99: b"?",
        15: struct.pack("=I", 1), 23: struct.pack("=I", 1799),
    }  # fmt: skip
    there = messages.decode_route(raw, 0, len(raw), {3: "br-wan"})
    assert (there.table, there.gateway, there.onlink, there.protocol) == (1, "fe80::1", True, 9)
    assert messages.decode_route(one.request(300, 4), 0, len(one.request(300, 4)), {}).protocol == 4


def test_request_without_gateway_has_no_state_flags() -> None:
    one = kernel_route(socket.AF_INET, OIF, scope=253, flags=0x1 | 0x10 | 0x4000)
    there = messages.decode_route(one.request(1), 0, len(one.request(1)), {3: "br-wan"})
    assert (there.onlink, there.dead, there.linkdown, there.scope) == (False, False, False, "link")


def test_request_with_nexthops_has_no_state_flags() -> None:
    gateway = attribute(5, socket.inet_aton("1.2.3.1"))
    hops = struct.pack("=HBBi", 8 + len(gateway), 0x1 | 0x10, 1, 3) + gateway + struct.pack("=HBBi", 8, 0x10, 0, 3)
    one = kernel_route(socket.AF_INET, (9, hops))
    raw = one.request(1)
    there = messages.decode_route(raw, 0, len(raw), {3: "br-wan"}).nexthops
    assert [(hop.gateway, hop.onlink, hop.weight, hop.dead, hop.linkdown) for hop in there] == [
        ("1.2.3.1", True, 2, False, False),
        (None, False, 1, False, False),
    ]


def test_request_with_nexthop_object_names_only_the_object() -> None:
    raw = kernel_route(socket.AF_INET6, OIF, GATEWAY, (30, struct.pack("=I", 7))).request(1)
    assert dict(parts(raw)).keys() == {30, 15}


def test_routes_beyond_the_limit_stay_with_one_log_line() -> None:
    memory = RouteMemory(DEFAULT)
    memory.too_many = (("br-wan", 6),)
    keeper = started_keeper(memory)
    assert memory.done == [("put", DEFAULT, 1), ("take", DEFAULT)], "the other family is placed"
    for _ in range(5):
        memory.at += 2
        keeper.process(ChangeSet(route_added=True))
    assert [facts["what"] for facts in memory.events("routes-left")] == ["IPv6 routes over br-wan"]


def test_moves_of_one_turn_are_limited() -> None:
    routes = [evolve(DEFAULT, destination=f"198.51.100.{number}/32", gateway="1.2.3.1") for number in range(150)]
    memory = RouteMemory(*routes)
    keeper = started_keeper(memory)
    first = len(memory.done)
    assert 0 < first <= 2 * 64
    for _ in range(20):
        memory.at += 2
        keeper.process(ChangeSet())
    assert all(route.table == 1 for route in memory.held)


def test_private_networks_are_unreachable_before_routes_move() -> None:
    connected = evolve(CONNECTED, destination="192.168.7.0/24", prefsrc="192.168.7.2")
    memory = RouteMemory(connected)
    memory.known = {"br-wan": ("192.168.7.2/24", "fd77::2/64", "fe80::2/64", "2a00:1::2/64", "10.0.0.9/32")}
    keeper = started_keeper(memory)
    assert memory.held == [
        connected,
        unreachable("192.168.7.0/24"),
        unreachable("fd77::/64"),
        evolve(connected, table=1),
    ]
    assert memory.events("private-networks") == [{"closed": ["192.168.7.0/24", "fd77::/64"]}]
    memory.known = {"br-wan": ("fd77::2/64",)}
    memory.at += 5
    keeper.process(ChangeSet(addresses=True))
    assert [one.destination for one in memory.held if one.kind == "unreachable"] == ["fd77::/64"]


@pytest.mark.parametrize(
    ("address", "is_private"),
    [
        ("100.100.1.2/10", True),
        ("192.0.0.2/29", True),
        ("192.0.2.2/24", True),
        ("198.19.0.2/16", True),
        ("198.51.100.2/24", True),
        ("203.0.113.2/24", True),
        ("240.0.0.2/24", True),
        ("64:ff9b:1::2/64", True),
        ("2001:db8:1::2/64", True),
        ("3fff::2/48", True),
        ("fec0::2/64", True),
        ("100.128.0.2/24", False),
        ("192.0.2.2/23", False),
        ("192.0.3.2/24", False),
        ("192.88.99.2/24", False),
        ("198.20.0.2/16", False),
        ("64:ff9b::2/96", False),
        ("2001:db9::2/64", False),
        ("2002:102:304::2/48", False),
    ],
)
def test_network_that_is_not_global_is_private(address, is_private) -> None:
    memory = RouteMemory()
    memory.known = {"br-wan": (address,)}
    started_keeper(memory)
    assert memory.held == [unreachable(str(ip_interface(address).network))] * is_private


@pytest.mark.parametrize(
    ("more", "closed"),
    [
        ('[lan.nas]\nuplink = "wan"\nto = ["192.168.0.0/16", "fd77::5"]\n', ["10.0.0.0/8"]),
        ("mdns", []),
        ("ssdp", []),
    ],
)
def test_network_of_lan_stays_reachable_in_main(more, closed) -> None:
    connected = evolve(CONNECTED, destination="192.168.7.0/24", prefsrc="192.168.7.2")
    memory = RouteMemory(connected)
    memory.known = {"br-wan": ("192.168.7.2/24", "192.168.7.3/24", "fd77::2/64", "10.1.2.3/8")}
    text = TOML + more.encode() if "[" in more else TOML.replace(b'["arp"', f'["{more}", "arp"'.encode())
    assert text != TOML
    started_keeper(memory, load(text)[0])
    own = {one.destination: (one.kind, one.device) for one in memory.held if one.protocol == RTPROT_NFTPOLICY}
    assert {name for name, route in own.items() if route == ("unicast", "br-wan")} == set(own) - set(closed)
    assert [own[name] for name in closed] == [("unreachable", None)] * len(closed)
    assert set(own) == {"192.168.7.0/24", "fd77::/64", "10.0.0.0/8"}
    sources = {one.destination: one.prefsrc for one in memory.held if one.protocol == RTPROT_NFTPOLICY}
    assert (sources["192.168.7.0/24"], sources["fd77::/64"]) == ("192.168.7.2", None)
    (event,) = memory.events("private-networks")
    assert (event.get("closed", []), len(event["reachable"])) == (closed, 3 - len(closed))


def test_public_network_within_lan_is_reachable() -> None:
    text = '[lan.names]\nuplink = "wan"\nto = ["1.2.0.0/16"]\nsport = ["udp/137"]\n'
    memory = RouteMemory()
    memory.known = {"br-wan": ("1.2.3.2/24", "1.2.0.2/15", "1.4.0.2/24", "fe80::2/64")}
    started_keeper(memory, load(TOML + text.encode())[0])
    assert [(one.destination, one.kind, one.device) for one in memory.held] == [("1.2.3.0/24", "unicast", "br-wan")]


def test_deleted_unreachable_route_is_added_again() -> None:
    memory = RouteMemory()
    memory.known = {"br-wan": ("10.1.2.3/8",)}
    keeper = started_keeper(memory)
    memory.held.clear()
    memory.at += 1
    keeper.process(ChangeSet(deleted_routes=[unreachable("10.0.0.0/8")]))
    assert memory.held == [unreachable("10.0.0.0/8")]


def test_refused_unreachable_route_is_logged_once() -> None:
    memory = RouteMemory()
    memory.known = {"br-wan": ("10.1.2.3/8",)}
    memory.refuse["unreachable"] = errno.ENOBUFS
    keeper = started_keeper(memory)
    for _ in range(3):
        memory.at = keeper.due()
        keeper.process(ChangeSet())
    assert [facts["what"] for facts in memory.events("failed")] == ["unreachable 10.0.0.0/8"]


RESOLVER = b"""[uplink.wan.resolver]
listen = ["127.0.0.1:54"]
servers = ["1.2.3.53"]
[service.vpn]"""


@pytest.mark.parametrize(
    "text", [TOML.replace(b'["ssh"]', b'["ssh", "udp/5555"]'), TOML.replace(b"[service.vpn]", RESOLVER)]
)
def test_network_with_unmarked_flows_is_left_to_later_rules(text) -> None:
    memory = RouteMemory()
    memory.known = {"br-wan": ("10.1.2.3/8",)}
    keeper = RouteKeeper(memory)
    keeper.set_policy(load(text)[0])
    keeper.process(ChangeSet())
    assert memory.held == [unreachable("10.0.0.0/8", "throw")]
    keeper.set_policy(POLICY)
    memory.at += 1
    keeper.process(ChangeSet())
    assert memory.held == [unreachable("10.0.0.0/8")]


def test_routes_of_two_devices_stay_beside_each_other() -> None:
    targets = dict.fromkeys(("eth0", "wlan0"), UplinkTable("wan", 1))
    wired, wireless = (evolve(DEFAULT, device=device) for device in targets)
    in_table = evolve(wired, table=1)
    for present in ((wired, wireless), (in_table, wireless)):
        *_, moved = plan_moves(targets, present, {}).misplaced
        assert (moved.has_sibling, moved.superseded) == (True, ())
    (moved,) = plan_moves(targets, (in_table, evolve(wired, gateway="1.2.3.254")), {}).misplaced
    assert (moved.has_sibling, moved.superseded) == (False, (in_table,))


def test_advertised_router_supersedes_no_other() -> None:
    other = evolve(BY_RA, gateway="fe80::2")
    (moved,) = plan_moves({"br-wan": UplinkTable("wan", 1)}, (evolve(BY_RA, table=1), other), {}).misplaced
    assert moved.superseded == ()


def test_default_route_of_withdrawn_router_is_deleted() -> None:
    in_table = evolve(BY_RA, table=1)
    memory = RouteMemory(in_table)
    one = started_keeper(memory)
    memory.at += 1
    one.process(ChangeSet(withdrawn_routers={("br-wan", "fe80::2"), ("bat0", "fe80::1")}))
    assert memory.held == [in_table]
    memory.at += 1
    one.process(ChangeSet(withdrawn_routers={("br-wan", "fe80::1")}))
    assert memory.held == []
    (event,) = memory.events("route-withdrawn")
    assert event == {"routes": ["default via fe80::1 dev br-wan table 1"], "why": "its router has withdrawn it"}
