"""Which notifications about routes and addresses reach the monitor of `watch`, by filters in the kernel."""

import errno
import subprocess
import time
from collections.abc import Iterator

import pytest

from nftpolicy.kernel.netlink.monitor import ChangeSet, Monitor, own_netlink_ports
from nftpolicy.kernel.netlink.route_mover import MAX_ROUTES, RouteMover
from tests.lab.netns import Namespace

pytestmark = pytest.mark.kernel

# Command -> the fields of the change set that it sets.
COMMANDS = {
    "ip route add 198.51.100.0/24 dev d0": {"route_added"},
    "ip route replace 198.51.100.0/24 dev d0 src 192.0.2.2": {"route_added", "route_replaced"},
    "ip route del 198.51.100.0/24": set(),
    "ip route add 198.51.100.0/24 dev d0 proto 78": {"route_added"},
    "ip route del 198.51.100.0/24 proto 78": {"deleted_routes"},
    "ip route add unreachable 198.51.100.0/24": set(),
    "ip route add 203.0.113.0/24 dev d0 table local": set(),
    "ip -6 route add 2001:db8::/64 dev d0": {"route_added"},
    "ip addr add 192.0.2.3/32 dev d0": {"addresses"},
    "ip addr del 192.0.2.3/32 dev d0": {"addresses"},
    "ip rule add pref 7 table 3": {"foreign_rules_changed"},
}


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    with Namespace("news") as found:
        found.ip(
            "link add d0 type veth peer name d1", "link set d0 up", "link set d1 up", "addr add 192.0.2.2/24 dev d0"
        )
        yield found


def fields(changes: ChangeSet) -> set[str]:
    return {name for name in ChangeSet.__slots__ if not name.startswith("_") and getattr(changes, name, None)} - {
        "origin"
    }


def observe_commands() -> list[set[str]]:
    """Run the commands in this namespace; return what the monitor reports after each."""
    observed = []
    with Monitor("nftpolicy", "nftpolicy-block", 78) as monitor:
        time.sleep(0.5)
        for command in COMMANDS:
            monitor.read()
            subprocess.run(command.split(), check=True)
            observed.append(fields(monitor.read()))
    return observed


def test_monitor_reports_damage_and_new_routes(space: Namespace) -> None:
    observed = dict(zip(COMMANDS, space.call(observe_commands), strict=True))
    assert observed == COMMANDS


def move_a_route() -> list[bool]:
    """Move a route to another table, unknown to the monitor and then known to it; return what it reports."""
    subprocess.run(["ip", "route", "add", "198.51.101.0/24", "dev", "d0"], check=True)
    mover, reported = RouteMover(), []
    route = next(one for one in mover.list_routes(["d0"]).routes if one.route.destination == "198.51.101.0/24")
    with Monitor("nftpolicy", "nftpolicy-block", 78) as monitor:
        for table in (9, 10):
            assert mover.install(route, table) == 0
            reported.append(monitor.read().route_added)
            monitor.ignore_ports(own_netlink_ports())
    return reported


def test_monitor_ignores_own_routes(space: Namespace) -> None:
    assert space.call(move_a_route) == [True, False]


def list_many_routes() -> tuple[int, tuple[tuple[str, int], ...], bool]:
    lines = "".join(f"route add 2001:db8:1:{number:x}::/64 dev d0\n" for number in range(MAX_ROUTES + 50))
    subprocess.run(["ip", "-6", "-batch", "-"], input=lines.encode(), check=True)
    mover = RouteMover()
    listing = mover.list_routes(["d0", "gone"])
    changed = mover.delete(listing.routes[0]) in (0, errno.ESRCH)
    return len(listing.routes), listing.too_many, changed


def test_listing_leaves_out_too_many_routes(space: Namespace) -> None:
    number, too_many, usable = space.call(list_many_routes)
    assert 0 < number < 20, "those of the other family"
    assert too_many == (("d0", 6),)
    assert usable
