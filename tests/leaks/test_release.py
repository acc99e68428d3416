"""Release puts back the routes that `watch` moved, so that the machine is online at once; and says what comes next."""

import re
from collections.abc import Iterator

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import SERVICE_GID, Guarded, gluon, run_probes
from tests.lab import addresses as at
from tests.lab import leak_probes, ra_client
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

pytestmark = pytest.mark.slow

PATIENCE = 10
STATIC = "192.0.2.77"
UNMARKED = [leak_probes.Probe("udp", family, marked=False) for family in at.FAMILIES]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A node whose DHCP client puts the routes of the WAN into main, and whose kernel believes advertisements."""
    with Lab(wan="main", groups={"gluon-mesh-vpn": SERVICE_GID}) as made:
        made.node.sysctl(f"net/ipv6/conf/{at.WAN}/accept_ra", 2)
        made.node.sysctl(f"net/ipv6/conf/{at.WAN}/accept_ra_rt_info_max_plen", 64)
        yield made


def wan_routes(lab: Lab, family: int, table: str = "main") -> list[str]:
    """Return the routes by the WAN in a table, with all attributes but lifetimes; without the link-local ones."""
    text = lab.node.run(["ip", f"-{family}", "-N", "-d", "route", "show", "table", table, "dev", at.WAN], check=False)
    lines = (re.sub(r" expires \d+sec| hoplimit 64", "", line).strip() for line in text.stdout.splitlines())
    return sorted(line for line in lines if " fe80::/64 " not in line)


def forwarded_by_wan(lab: Lab) -> list[str]:
    return sorted(str(sent.probe) for sent in run_probes(lab, UNMARKED).wan)


def move_all(made: Guarded, *words: str) -> None:
    """Let watch move all routes of the WAN out of main."""
    with Watched(made, *words):
        wait_until(lambda: not wan_routes(made.lab, 4) + wan_routes(made.lab, 6), PATIENCE, "the moves")


def advertise(lab: Lab, lifetime: int = 1800) -> None:
    lab.home.call(ra_client.advertise, "br-lan", (at.HOME_NET[6],), ("2001:db8:2::/64",), lifetime)


def test_release_puts_back_routes_of_dhcp_and_ra(lab: Lab) -> None:
    lab.node.ip("-6 route flush proto boot dev " + at.WAN)
    advertise(lab)
    wait_until(lambda: "proto 9" in str(wan_routes(lab, 6)), PATIENCE, "a learned default route")
    before = {family: wan_routes(lab, family) for family in at.FAMILIES}
    assert len(before[4]) >= 2, "inconclusive"
    assert forwarded_by_wan(lab) == sorted(map(str, UNMARKED)), "inconclusive: unmarked packets leave without a policy"
    made = Guarded(lab, gluon(lab))
    made.apply()
    move_all(made)
    assert forwarded_by_wan(lab) == []
    done = made.nftpolicy("release")
    assert wan_routes(lab, 4) == before[4]
    # The kernel's default route has to be its own again; the ioctl for that knows no protocol, the next advertisement does.
    after, earlier = (
        [re.sub("(default .*)proto 9 ", r"\1proto 3 ", line) for line in lines]
        for lines in (wan_routes(lab, 6), before[6])
    )
    assert after == earlier
    assert wan_routes(lab, 4, "1") + wan_routes(lab, 6, "1") == []
    assert forwarded_by_wan(lab) == sorted(map(str, UNMARKED))
    assert "route put back: default via 192.0.2.1 dev br-wan" in done.stdout
    assert "the uplinks are open now" in done.stdout
    again = made.nftpolicy("release").stdout
    assert "nothing to release" in again
    assert "put back" not in again
    assert wan_routes(lab, 4) == before[4]


def test_advertisement_after_release_renews_and_withdraws(lab: Lab) -> None:
    """The control is the same with a route that `ip` added: the kernel then ignores the rest of the advertisement."""

    def renews() -> bool:
        lab.node.ip(f"-6 route flush {at.HOME_NET[6]} dev {at.WAN}")
        advertise(lab, 900)
        return bool([line for line in wan_routes(lab, 6) if at.HOME_NET[6] in line])

    advertise(lab)
    made = Guarded(lab, gluon(lab))
    made.apply()
    move_all(made)
    made.nftpolicy("release")
    wait_until(renews, PATIENCE, "the prefix of the advertisement")
    advertise(lab, 0)
    wait_until(lambda: "default" not in str(wan_routes(lab, 6)), PATIENCE, "the withdrawal")
    lab.node.ip(f"-6 route append default via {at.HOME_LINK_LOCAL} dev {at.WAN} proto ra metric 1024")
    assert not renews(), "the control: the kernel takes all of it"
    lab.node.ip(f"-6 route del default proto ra dev {at.WAN}")
    advertise(lab)


@pytest.mark.parametrize("gateways", ["", f'gateways = ["{at.HOME[4]}"]\n'])
def test_release_of_static_host_restores_all_attributes(lab: Lab, gateways: str) -> None:
    lab.wan_down()
    lab.node.ip(f"addr flush dev {at.WAN}", f"link set {at.WAN} up", f"addr add {STATIC}/24 dev {at.WAN}")
    lab.node.ip(
        f"route add default via {at.HOME[4]} dev {at.WAN} proto static metric 5 src {STATIC} mtu 1400",
        f"route add 198.18.0.0/15 dev {at.WAN} scope link proto 99",
        f"route add 192.88.99.0/24 via 198.18.0.7 dev {at.WAN} onlink",
        f"route add 192.88.98.0/24 nexthop via {at.HOME[4]} dev {at.WAN} nexthop via 192.0.2.5 dev {at.WAN} weight 3",
    )
    before = wan_routes(lab, 4)
    try:
        made = Guarded(lab, gluon(lab).replace("table   = 1\n", f"table   = 1\n{gateways}"))
        made.apply()
        move_all(made)
        move_all(made)  # another watch knows them too
        made.file.write_text("not a policy")
        done = made.nftpolicy("release")
        assert wan_routes(lab, 4) == before, done.stdout + done.stderr
        assert "udp/ipv4/unmarked" in forwarded_by_wan(lab)
    finally:
        lab.node.ip(f"addr flush dev {at.WAN}")
        lab.wan_down()
        lab.wan_up()


def test_release_under_watch_leaves_routes_in_main(lab: Lab) -> None:
    made = Guarded(lab, gluon(lab))
    before = wan_routes(lab, 4)
    made.apply()
    with Watched(made) as watched:
        wait_until(lambda: not wan_routes(lab, 4), PATIENCE, "routes moved")
        done = made.nftpolicy("release")
        assert wan_routes(lab, 4) == before
        watched.wait_for("released")
        assert forwarded_by_wan(lab) == sorted(map(str, UNMARKED))
        assert wan_routes(lab, 4) == before, "watch has taken them again"
        assert "the uplinks are open now" in done.stdout
        made.apply()
        wait_until(lambda: not wan_routes(lab, 4), PATIENCE, "routes moved again")
    made.nftpolicy("release")


def test_withdrawn_route_is_not_put_back(lab: Lab) -> None:
    made = Guarded(lab, gluon(lab))
    lab.node.ip(f"addr add 198.51.100.77/25 dev {at.WAN}")
    made.apply()
    with Watched(made):
        wait_until(lambda: not wan_routes(lab, 4), PATIENCE, "routes moved")
        lab.node.ip(f"addr del 198.51.100.77/25 dev {at.WAN}")
        wait_until(lambda: "198.51.100" not in str(wan_routes(lab, 4, "1")), PATIENCE, "the end of the copy")
    made.nftpolicy("release")
    assert "198.51.100" not in str(wan_routes(lab, 4))
    assert "default" in str(wan_routes(lab, 4))


def test_release_ends_a_trial(lab: Lab) -> None:
    made = Guarded(lab, gluon(lab))
    made.nftpolicy("apply", "--confirm", "600", "/run/lab/policy.toml")
    done = made.nftpolicy("release")
    assert "its trial has ended" in done.stderr
    assert forwarded_by_wan(lab) == sorted(map(str, UNMARKED))
    assert "no policy is waiting" in made.nftpolicy("confirm", check=False).stderr
