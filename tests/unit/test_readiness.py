"""Decisions of `wait`, as functions of given links, routes, sockets and flows."""

from ipaddress import ip_address, ip_network

import pytest
from attrs import evolve

from nftpolicy.kernel.netlink.conntrack import ConntrackEntry, FlowTuple
from nftpolicy.kernel.netlink.link_state import LinkState
from nftpolicy.kernel.netlink.sock_diag import InetSocket
from nftpolicy.netstate.routing import Nexthop, Route
from nftpolicy.policy.mark import Mark
from nftpolicy.policy.objects import Account, Policy, Port, Service, Uplink
from nftpolicy.runtime.services import readiness

WAN = Uplink(("eth0", "eth1"), Mark(0x500, 0xFF00), 7)
UP = LinkState("eth0", True, True, (ip_address("192.0.2.2"), ip_address("2001:db8::2")))
ROUTE = Route(4, 7, device="eth0", gateway="192.0.2.1")
VPN = Service("wan", group=Account("800", 800))
OWN = frozenset({"192.0.2.2", "203.0.113.5", "127.0.0.1"})
PEER = "198.51.100.1"


def socket(**facts) -> InetSocket:  # type: ignore[no-untyped-def]
    known = {
        "family": 4, "protocol": 17, "state": "close", "local": None, "sport": 4000, "remote": None, "dport": 0,
        "mark": 0x503, "uid": 0, "inode": 9, "cookie": 1,
    }  # fmt: skip
    return InetSocket(**{**known, **facts})


def flow(replied: bool = True, protocol: int = 17, **ends: tuple[str, int, str, int]) -> ConntrackEntry:
    original = FlowTuple(*ends.get("original", ("192.0.2.2", 4000, PEER, 9)))
    reply = ends.get("reply")
    back = (
        FlowTuple(*reply) if reply else FlowTuple(original.destination, original.dport, original.source, original.sport)
    )
    return ConntrackEntry(4, protocol, original, back, 0, b"k", b"n", b"", replied)


@pytest.mark.parametrize(
    ("links", "routes", "problem"),
    [
        ([UP], [ROUTE], []),
        ([UP], [evolve(ROUTE, device=None, gateway=None, nexthops=(Nexthop("ppp0"), Nexthop("eth0")))], []),
        ([UP], [evolve(ROUTE, family=6)], []),
        ([UP, evolve(UP, name="eth1")], [evolve(ROUTE, device="eth1")], []),
        ([], [ROUTE], ["eth0 does not exist", "eth1 does not exist"]),
        ([evolve(UP, is_up=False, has_carrier=False)], [ROUTE], ["eth0 is down", "eth1 does not exist"]),
        ([evolve(UP, has_carrier=False)], [ROUTE], ["eth0 has no carrier", "eth1 does not exist"]),
        ([evolve(UP, addresses=())], [ROUTE], ["eth0 has no address yet", "eth1 does not exist"]),
        *(
            ([UP], routes, ["table 7 has no default route of IPv4 or IPv6 by eth0", "eth1 does not exist"])
            for routes in (
                [],
                [evolve(ROUTE, kind="unreachable", device=None)],
                [evolve(ROUTE, device="eth9")],
                [evolve(ROUTE, destination="198.51.100.0/24")],
            )
        ),
        (
            [evolve(UP, addresses=UP.addresses[:1])],
            [evolve(ROUTE, family=6)],
            ["table 7 has no default route of IPv4 by eth0", "eth1 does not exist"],
        ),
    ],
)
def test_link_problems_of_uplink_are_named(links: list[LinkState], routes: list[Route], problem: list[str]) -> None:
    assert readiness.link_problems(WAN, {one.name: one for one in links}, routes) == problem


TCP = {"protocol": 6, "state": "established", "local": "192.0.2.2", "remote": PEER, "dport": 443}


@pytest.mark.parametrize(
    ("sockets", "flows"),
    [
        ([socket()], [flow()]),
        ([socket(local="192.0.2.2")], [flow()]),
        ([socket()], [flow(original=(PEER, 9, "192.0.2.2", 4000))]),  # the other end began
        ([socket(**TCP)], []),
        ([socket(mark=0), socket()], [flow()]),
    ],
)
def test_service_with_reply_has_no_problem(sockets: list[InetSocket], flows: list[ConntrackEntry]) -> None:
    assert readiness.service_problem(VPN, WAN, sockets, flows, OWN) is None


@pytest.mark.parametrize(
    ("sockets", "flows", "problem"),
    [
        ([], [flow()], "no IP socket"),
        ([socket(mark=0)], [flow()], "none of its 1 sockets has the mark 0x500/0xff00"),
        ([socket(mark=None)], [flow()], "has the mark"),
        ([socket(mark=0x600)], [flow()], "has the mark"),
        ([socket(**{**TCP, "mark": 0})], [], "has the mark"),
        ([socket()], [], "no reply has reached"),
        ([socket()], [flow(replied=False)], "no reply has reached"),
        ([socket()], [flow(protocol=6)], "no reply has reached"),
        ([socket(sport=4001)], [flow()], "no reply has reached"),
        ([socket(local="203.0.113.5")], [flow()], "no reply has reached"),
        ([socket(**{**TCP, "state": "syn-sent"})], [], "no reply has reached"),
        ([socket(**{**TCP, "remote": "127.0.0.1"})], [], "no reply has reached"),
        # A question to the resolver: what comes back is from this machine, whoever was asked.
        (
            [socket()],
            [flow(original=("192.0.2.2", 4000, "198.51.100.53", 53), reply=("127.0.0.1", 54, "192.0.2.2", 4000))],
            "no reply has reached",
        ),
    ],
)  # fmt: skip
def test_service_without_reply_has_a_problem(
    sockets: list[InetSocket], flows: list[ConntrackEntry], problem: str
) -> None:
    assert problem in str(readiness.service_problem(VPN, WAN, sockets, flows, OWN))


def test_kernel_service_is_judged_by_its_flows() -> None:
    tunnel = Service("wan", kernel=True)
    assert readiness.service_problem(tunnel, WAN, [socket(mark=0)], [flow()], OWN) is None
    assert "no reply has reached" in str(readiness.service_problem(tunnel, WAN, [socket(mark=0)], [], OWN))


def test_tunnel_is_judged_by_its_flows() -> None:
    tunnel = Service("wan", kernel=True, to=(ip_network(PEER),), ports=(Port("gre", 0, 0),))
    begun = {"original": (PEER, 0, "192.0.2.2", 0)}  # by the other end
    for answered in (flow(protocol=47), flow(protocol=47, **begun)):
        assert readiness.service_problem(tunnel, WAN, [], [answered], OWN) is None
    others = [flow(), flow(protocol=41), flow(False, 47), flow(protocol=47, original=("192.0.2.2", 0, "192.0.2.9", 0))]
    assert "no reply from its other ends" in str(readiness.service_problem(tunnel, WAN, [], others, OWN))


def test_dns_client_is_an_account_of_a_service() -> None:
    user = Service("wan", user=Account("vpn", 900))
    services = {"wg": Service("wan", kernel=True), "other": Service("lte", group=Account("1", 1)), "vpn": user}
    policy = Policy("p", (), {"wan": WAN}, services)
    assert readiness.dns_client_of(policy, "wan") == ("user", Account("vpn", 900))
    assert readiness.dns_client_of(evolve(policy, service={"wg": services["wg"]}), "wan") is None


def test_wait_repeats_until_ready_or_timeout() -> None:
    left = [["a"], ["b"], []]
    assert readiness.wait_until_ready(lambda: left.pop(0), 10) == []
    assert left == []
    looks: list[int] = []
    assert readiness.wait_until_ready(lambda: looks.append(1) or ["a"], 0) == ["a"]
    assert looks == [1]
    assert readiness.wait_until_ready(lambda: looks.append(1) or ["a"], 0.3) == ["a"]
    assert len(looks) >= 3
