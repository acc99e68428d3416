"""F1-F3: routes that come and go: the uplink's table has what the network said last, within a second."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import Guarded
from tests.lab import ra_client
from tests.lab.netns import Namespace, veth, wait_until

WIRED, WIRELESS, LAN = "eth0", "wlan0", "lan"
ADDRESS = {WIRED: "192.168.77.2", WIRELESS: "192.168.77.3"}
ROUTER, OTHER_ROUTER = {4: "192.168.77.1", 6: "fd77::1"}, {4: "192.168.77.254", 6: "fd77::254"}
NETWORK = {4: "192.168.77.0/24", 6: "fd77::/64"}
FAR = {4: "203.0.113.9", 6: "2001:db8:9::9"}
BOTH = sorted(text for device in ADDRESS for text in (f"{NETWORK[4]} {device} -", f"default {device} {ROUTER[4]}"))
PATIENCE = 10
POLICY = f"""
name = "changing"
inside = ["tun*"]
[uplink.wan]
devices = ["{WIRED}", "{WIRELESS}"]
mark = "1/1"
table = 51
exempt = ["arp", "ndp"]
learn = ["ra"]
[service.vpn]
uplink = "wan"
group = 851
marks = "itself"
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Guarded]:
    """A node with two devices in one network."""
    with ExitStack() as stack:
        node, lan = (stack.enter_context(Namespace(name)) for name in ("node", "lan"))
        lan.ip(f"link add {LAN} type bridge", f"link set {LAN} up")
        for device in ADDRESS:
            veth(node, device, lan, f"to-{device}")
            lan.ip(f"link set to-{device} master {LAN}")
        for family, length, option in ((4, 24, ""), (6, 64, " nodad")):
            for router in (ROUTER, OTHER_ROUTER):
                lan.ip(f"-{family} addr add {router[family]}/{length} dev {LAN}{option}")
        found = Guarded(SimpleNamespace(node=node, home=lan), POLICY)  # type: ignore[arg-type]
        found.apply()
        yield found


@pytest.fixture
def made(lab: Guarded) -> Guarded:
    """The node, without addresses and routes by these devices."""
    for device in ADDRESS:
        lab.lab.node.ip(f"link set {device} down", f"addr flush dev {device} scope global", f"link set {device} up")
    return lab


def way(made: Guarded, family: int = 4) -> str:
    """Return the device and the router by which a packet with the mark leaves, "" for none."""
    done = made.lab.node.run(["ip", f"-{family}", "-j", "route", "get", FAR[family], "mark", "1"], check=False)
    found: dict[str, Any] = json.loads(done.stdout)[0] if not done.returncode else {}
    return f"{found['dev']} {found['gateway']}" if "gateway" in found else ""


def entries(made: Guarded, table: str = "51", family: int = 4) -> list[str]:
    """Return device and gateway of the routes in a table that lead somewhere."""
    text = made.lab.node.run(["ip", f"-{family}", "-j", "route", "show", "table", table], check=False).stdout
    routes = [one for one in json.loads(text or "[]") if one.get("type", "unicast") == "unicast"]
    hops = [(route["dst"], hop) for route in routes for hop in route.get("nexthops", [route])]
    links = (WIRED, WIRELESS)
    return sorted(
        f"{to} {hop['dev']} {hop.get('gateway', '-')}" for to, hop in hops if hop["dev"] in links and to != "fe80::/64"
    )


def soon(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, 1, what)


def connect(made: Guarded, device: str) -> None:
    """Give a device an address, and a default route without a metric, as ifupdown does."""
    made.lab.node.ip(
        f"addr add {ADDRESS[device]}/24 dev {device}", f"route append default via {ROUTER[4]} dev {device} proto dhcp"
    )


def test_other_device_stays_when_one_in_the_same_network_leaves(made: Guarded) -> None:
    node = made.lab.node
    with Watched(made):
        connect(made, WIRED)
        connect(made, WIRELESS)
        wait_until(lambda: (entries(made), entries(made, "main")) == (BOTH, []), PATIENCE, "the routes in their table")
        assert way(made) == f"{WIRED} {ROUTER[4]}"
        node.ip(f"link set {WIRED} down")
        soon(lambda: way(made) == f"{WIRELESS} {ROUTER[4]}", "the way by the other device")
        assert entries(made) == [one for one in BOTH if WIRELESS in one]
        node.ip(f"link set {WIRELESS} down")
        soon(lambda: way(made) == "", "the end of both, the control")


def test_release_restores_routes_of_both_devices(made: Guarded) -> None:
    defaults = [one for one in BOTH if "default" in one]
    with Watched(made):
        connect(made, WIRED)
        connect(made, WIRELESS)
        wait_until(lambda: set(defaults) <= set(entries(made)), PATIENCE, "the routes in their table")
    made.release()
    try:
        assert entries(made, "main") == BOTH
        assert way(made) == f"{WIRED} {ROUTER[4]}"
    finally:
        made.apply()


def test_new_router_takes_the_place_of_the_old_one(made: Guarded) -> None:
    """Also that of a nexthop object (ip-nexthop(8))."""
    node = made.lab.node

    def has_one_default(family: int) -> bool:
        main, table = entries(made, "main", family), entries(made, "51", family)
        return ["default" in one for one in (*main, *table)].count(True) == 1 and "default" not in str(main)

    node.ip(f"addr add {ADDRESS[WIRED]}/24 dev {WIRED}", f"-6 addr add fd77::2/64 dev {WIRED} nodad")
    node.ip(f"route add default via {ROUTER[4]} dev {WIRED} metric 100")
    assert way(made) == "", "the control: nothing leads there without the route keeper"
    with Watched(made):
        for family in (4, 6):
            for router in (ROUTER, OTHER_ROUTER, ROUTER):
                node.ip(f"-{family} route replace default via {router[family]} dev {WIRED} metric 100 proto dhcp")
                soon(lambda at=f"{WIRED} {router[family]}", family=family: way(made, family) == at, "the new router")
                soon(lambda family=family: has_one_default(family), "no other default route")
        node.ip(f"nexthop add id 7 via {ROUTER[4]} dev {WIRED}", "route add default nhid 7 metric 50")
        soon(lambda: "nhid 7" in node.run(["ip", "route", "show", "table", "51"]).stdout, "the route in the table")
        node.ip(f"nexthop replace id 7 via {OTHER_ROUTER[4]} dev {WIRED}")
        soon(lambda: way(made) == f"{WIRED} {OTHER_ROUTER[4]}", "the other router")
        node.ip("nexthop del id 7")
        soon(lambda: way(made) == f"{WIRED} {ROUTER[4]}", "the route of before")


def test_default_route_of_withdrawn_router_is_deleted(made: Guarded) -> None:
    """RFC 4861: a lifetime of 0. The kernel looks for the route in table main only."""

    def advertise(lifetime: int) -> None:
        made.lab.home.call(ra_client.advertise, LAN, (), (), lifetime)

    def routers() -> list[str]:
        return [one for one in entries(made, "51", 6) if "default" in one]

    with Watched(made) as watched:
        advertise(1800)
        soon(lambda: len(routers()) == 2, "the default route by each device")
        assert way(made, 6)
        advertise(0)
        soon(lambda: not routers(), "their end")
        assert way(made, 6) == ""
        assert watched.events("route-withdrawn")
        advertise(1800)
        soon(lambda: len(routers()) == 2, "the routes again")
    advertise(0)
    assert len(routers()) == 2, "the control: without the route keeper they stay"
