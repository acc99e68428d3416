"""D10, F1-F3: learned routes end in the uplink's table only, from every source, and nothing leaks meanwhile."""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import SERVICE_GID, Guarded, gluon, run_probes, watching
from tests.lab import addresses as at
from tests.lab import leak_probes, ra_client
from tests.lab.netns import wait_until
from tests.lab.topology import Lab
from tests.leaks.test_race_windows import flooding

pytestmark = pytest.mark.slow

TUNNEL_VISION = f"--dhcp-option=121,0.0.0.0/1,{at.HOME[4]},128.0.0.0/1,{at.HOME[4]}"
HALVES = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}
TABLE = 1
PATIENCE = 10
MARKED = [leak_probes.Probe("udp", family, marked=True) for family in at.FAMILIES]


def policy(lab: Lab) -> str:
    text = gluon(lab)
    assert text.count("table   = 1\n") == 1
    return text.replace("table   = 1\n", 'table   = 1\nlearn   = ["ra"]\n')


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    """A DHCP client that puts all routes into main, and a home whose DHCP server sends TunnelVision's routes."""
    with Lab(wan="main", home_options=[TUNNEL_VISION], groups={"gluon-mesh-vpn": SERVICE_GID}) as lab:
        found = Guarded(lab, policy(lab))
        found.apply()
        yield found


@pytest.fixture
def watched(made: Guarded) -> Iterator[Watched]:
    with Watched(made) as found:
        yield found


def routes(made: Guarded, family: int) -> dict[str, list[str]]:
    """Return table -> routes by the WAN (destination and gateway), without those that the ip rules need
    in main and the kernel's own.
    """
    text = made.lab.node.run(["ip", f"-{family}", "-j", "-N", "route", "show", "table", "all", "dev", at.WAN]).stdout
    found: dict[str, list[str]] = {}
    for one in json.loads(text):
        if str(one.get("table")) != "255" and not one["dst"].startswith(("fe80:", "ff00:", "multicast")):
            found.setdefault(str(one.get("table", 254)), []).append(f"{one['dst']} {one.get('gateway', '-')}")
    return {table: sorted(each) for table, each in found.items()}


def only_in_the_table(made: Guarded, family: int, *destinations: str) -> Callable[[], bool]:
    def check() -> bool:
        found = routes(made, family)
        there = {one.split()[0] for one in found.get(str(TABLE), ())}
        return set(found) == {str(TABLE)} and there >= set(destinations)

    return check


def table(made: Guarded) -> str:
    return made.lab.node.run(["ip", "-N", "route", "show", "table", str(TABLE)]).stdout


def in_order(made: Guarded, family: int, *destinations: str) -> None:
    wait_until(only_in_the_table(made, family, *destinations), PATIENCE, f"order in {routes(made, family)}")


def unmarked(made: Guarded) -> list[str]:
    """Return the unmarked probes that left by the WAN; those by the mesh must arrive, or the routes attracted them."""
    which = [leak_probes.Probe("udp", family, marked=False) for family in at.FAMILIES]
    run = run_probes(made.lab, which)
    assert len(run.mesh) == len(which), "what is not marked goes by the mesh as if nothing had come"
    return run.unmarked()


def marked_by_the_wan(made: Guarded) -> list[str]:
    return sorted(str(sent.probe) for sent in run_probes(made.lab, MARKED).wan)


def test_dhcp_routes_end_in_uplink_table_only(made: Guarded, watched: Watched) -> None:
    lab = made.lab
    with watching(lab) as watch, flooding(lab):
        for _ in range(2):
            lab.wan_down()
            lab.wan_up()  # DHCP puts option 121, the default and the connected route into main
            in_order(made, 4, *HALVES[4], at.HOME_NET[4])
        assert watch.unmarked == 0
    assert any("0.0.0.0/1" in route for one in watched.events("route-moved") for route in one["routes"])
    assert unmarked(made) == []
    assert "udp/ipv4/marked" in marked_by_the_wan(made)


def test_new_router_in_the_same_network_takes_over(made: Guarded, watched: Watched) -> None:
    """The network's route is in the uplink's table, and still the kernel finds the gateway of a route in main."""
    lab = made.lab
    lab.wan_down()
    lab.wan_up()
    in_order(made, 4, *HALVES[4], at.HOME_NET[4])

    def defaults() -> list[str]:
        return [route for route in routes(made, 4).get(str(TABLE), ()) if route.startswith("default")]

    for router in (at.NEIGHBOUR[4], at.HOME[4]):
        lab.node.ip(f"route replace default via {router} dev {at.WAN} metric 10 proto dhcp")
        wait_until(lambda router=router: defaults() == [f"default {router}"], PATIENCE, f"the route by {router}")
        in_order(made, 4, *HALVES[4], at.HOME_NET[4])


def test_control_without_route_keeper_routes_are_in_main(made: Guarded) -> None:
    """Control of these tests: the same machine, with a `watch` that leaves routes unchanged."""
    with Watched(made, "--leave-routes"):
        made.lab.wan_down()
        made.lab.wan_up()
        time.sleep(0.5)
        assert {one.split()[0] for one in routes(made, 4)["254"]} >= {*HALVES[4], at.HOME_NET[4]}
        with pytest.raises(AssertionError, match="as if nothing had come"):
            unmarked(made)  # nothing leaves, but nothing arrives by the mesh either


def test_advertised_routes_end_in_uplink_table_only(made: Guarded, watched: Watched) -> None:
    lab = made.lab

    def attack() -> None:
        lab.home.call(ra_client.advertise, "br-lan", (*HALVES[6], at.HOME_NET[6]), ("::/1", "2001:db8:2::/64"), 1800)

    with watching(lab) as watch, flooding(lab):
        for _ in range(3):  # the kernel looks for its route in main, and makes it there anew each time
            attack()
            in_order(made, 6, "default", *HALVES[6], at.HOME_NET[6], "2001:db8:2::/64")
        assert watch.unmarked == 0
    assert unmarked(made) == []
    assert marked_by_the_wan(made) == sorted(map(str, MARKED))


def expiry(made: Guarded, destination: str) -> int:
    text = made.lab.node.run(["ip", "-6", "-j", "route", "show", destination, "table", str(TABLE)]).stdout
    return next(one["expires"] for one in json.loads(text) if "expires" in one)


def test_advertised_route_keeps_and_renews_lifetime(made: Guarded, watched: Watched) -> None:
    lab = made.lab
    lab.node.ip(f"-6 route flush table {TABLE} proto ra")

    def has_lifetime(seconds: int) -> bool:
        """Return True if the route has the lifetime of an advertisement; the router of the lab may send its own."""
        lab.home.call(ra_client.advertise, "br-lan", (), (), seconds)
        return "default" in str(routes(made, 6)) and seconds - 10 < expiry(made, "default") <= seconds

    for lifetime in (20, 900):
        wait_until(lambda wanted=lifetime: has_lifetime(wanted), PATIENCE, "the lifetime")  # type: ignore[misc]
        in_order(made, 6, "default")


def test_route_of_new_address_ends_in_uplink_table(made: Guarded, watched: Watched) -> None:
    """F3: the kernel's own route. It is in the table at once, and in main until the gateway is added."""
    node = made.lab.node
    net = "198.51.100.0/23"  # of the server that the probes are for; half of it is public, so no private network
    with watching(made.lab) as watch, flooding(made.lab):
        node.ip(f"addr add 198.51.100.77/23 dev {at.WAN}", f"route add 198.18.0.0/15 via 198.51.100.66 dev {at.WAN}")
        wait_until(lambda: f"{net} -" in routes(made, 4).get(str(TABLE), ()), PATIENCE, "a copy")
        in_order(made, 4, net, "198.18.0.0/15")
        assert marked_to(made, "198.51.100.66") == "arp"
        assert unmarked(made) == []
        node.ip(f"addr del 198.51.100.77/23 dev {at.WAN}")
        wait_until(lambda: net not in str(routes(made, 4)), PATIENCE, "the end of the copy")
        assert watch.unmarked == 0
    node.ip(f"route del 198.18.0.0/15 table {TABLE}")
    assert watched.events("route-withdrawn")


def marked_to(made: Guarded, address: str) -> str:
    """Return the form of a marked packet to this neighbour on the WAN: "arp", or "" for none."""
    made.lab.wan.drain()
    made.lab.node.call(send, address, 1, gid=SERVICE_GID, keep_caps=True)
    asked = made.lab.wan.wait_for(lambda frame: frame.ethertype == 0x0806 and frame.daddr == address, 1)
    return "arp" if asked else ""


def send(address: str, mark: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        made.sendto(b"to a neighbour", (address, 9))


def test_route_keeper_against_other_program_backs_off(made: Guarded, watched: Watched) -> None:
    node = made.lab.node
    route = f"192.88.99.0/24 via {at.HOME[4]} dev {at.WAN} onlink"
    before = watched.resources()
    for number in range(50):
        node.ip(f"route replace {route}")
        time.sleep(0.02 if number else 1)
    watched.wait_for("conflict")
    in_order(made, 4, "192.88.99.0/24")
    assert watched.resources().cpu - before.cpu < 2
    moved = [one for one in watched.events("route-moved") if "192.88.99.0" in str(one)]
    assert len(moved) == 1, "it is reported once, and then as a conflict"
    node.ip(f"route del 192.88.99.0/24 table {TABLE}")


def test_route_keeper_leaves_foreign_routes(made: Guarded, watched: Watched) -> None:
    node = made.lab.node
    others = [f"192.88.97.0/24 via {at.GATEWAY[4]} dev {at.MESH}", "unreachable 192.88.98.0/24"]
    mixed = f"192.88.96.0/24 nexthop via {at.HOME[4]} dev {at.WAN} onlink nexthop via {at.GATEWAY[4]} dev {at.MESH}"
    several = f"192.88.95.0/24 nexthop via 192.0.2.7 dev {at.WAN} onlink nexthop via {at.HOME[4]} dev {at.WAN} onlink"
    elsewhere = f"192.88.94.0/24 via {at.HOME[4]} dev {at.WAN} table 77 onlink mtu 1400 proto 99"
    node.ip(*(f"route add {one}" for one in (*others, mixed, several, elsewhere)))
    wait_until(lambda: all(f"192.88.{one}.0/24" in table(made) for one in (94, 95)), PATIENCE, "two routes moved")
    time.sleep(0.3)
    main = node.run(["ip", "route", "show", "table", "main"]).stdout
    assert [one in main for one in ("192.88.97.0", "192.88.98.0", "192.88.96.0", "192.88.95.0")] == [True] * 3 + [False]
    assert node.run(["ip", "route", "show", "table", "77"], check=False).stdout == ""
    line = next(one for one in table(made).splitlines() if one.startswith("192.88.94.0"))
    assert "proto 99" in line
    assert "mtu 1400" in line
    assert "192.88.96.0" in watched.wait_for("failed")["what"]
    assert "192.88.96.0" in made.nftpolicy("status").stderr
    node.ip(*(f"route del {one.split()[0]}" for one in (others[0], mixed)), "route del unreachable 192.88.98.0/24")
    node.ip(*(f"route del 192.88.{one}.0/24 table {TABLE}" for one in (94, 95)))


def test_status_names_misplaced_routes(made: Guarded) -> None:
    made.lab.node.ip(f"route add 192.88.93.0/24 via {at.HOME[4]} dev {at.WAN} onlink")
    said = made.nftpolicy("status", check=False)
    assert "192.88.93.0/24 via 192.0.2.1 dev br-wan" in said.stderr
    status: dict[str, Any] = json.loads(made.nftpolicy("status", "--json", check=False).stdout)
    assert any("192.88.93.0/24" in one for one in status["strays"])
    with Watched(made):  # what is there when it begins is moved too
        in_order(made, 4, "192.88.93.0/24")
    assert "192.88.93.0" not in made.nftpolicy("status", check=False).stderr
    made.lab.node.ip(f"route del 192.88.93.0/24 table {TABLE}")
