"""C-D: packets that the node forwards, beside firewalls that accept them. (D1, D13, D14: test_local_bypass.py)"""

from collections.abc import Iterator

import pytest

from tests.guarded_lab import Guarded, guarded_lab, run_probes, wan_routes_in_main, watching
from tests.lab import addresses as at
from tests.lab import inbound_clients, leak_probes, ra_client

FORWARDED = [probe for probe in leak_probes.matrix() if probe.origin == "client"]
ALL = sorted(map(str, FORWARDED))

DOCKER = """
table ip filter {
    chain FORWARD {
        type filter hook forward priority filter - 10; policy accept;
        accept
    }
    chain OUTPUT {
        type filter hook output priority filter - 10; policy accept;
        accept
    }
    chain POSTROUTING {
        type filter hook postrouting priority filter - 10; policy accept;
        accept
    }
}
table ip6 filter {
    chain FORWARD {
        type filter hook forward priority filter - 10; policy accept;
        accept
    }
    chain POSTROUTING {
        type filter hook postrouting priority 9000; policy accept;
        accept
    }
}
"""
NO_DOCKER = "delete table ip filter\ndelete table ip6 filter\n"
MASQUERADE = """
table inet nat {
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "br-wan" masquerade
    }
}
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    """The WAN's routes in main too, so that forwarded packets want to leave by it."""
    with guarded_lab() as made:
        wan_routes_in_main(made.lab)
        yield made


def test_D5_earlier_accept_of_firewall_does_not_leak(made: Guarded) -> None:
    made.lab.node.nft(DOCKER)
    try:
        with made.off():
            assert run_probes(made.lab, FORWARDED).unmarked() == ALL, "inconclusive"
        with watching(made.lab) as watch:
            assert run_probes(made.lab).unmarked() == []
            assert watch.unmarked == 0
    finally:
        made.lab.node.nft(NO_DOCKER)


@pytest.mark.parametrize("first", ["masquerade", "policy"])
def test_D7_forwarded_packet_with_source_of_node_is_dropped(made: Guarded, first: str) -> None:
    made.release()
    made.lab.node.nft(MASQUERADE)
    try:
        without = run_probes(made.lab, FORWARDED)
        own = {made.lab.wan_address(family) for family in at.FAMILIES}
        seen = {frame.saddr for frame in without.frames if any(sent.matches(frame) for sent in without.wan)}
        assert (without.unmarked(), seen) == (ALL, own), "inconclusive"
        if first == "policy":
            made.lab.node.nft("delete table inet nat")
            made.apply()
            made.lab.node.nft(MASQUERADE)
        else:
            made.apply()
        with watching(made.lab) as watch:
            guarded = run_probes(made.lab)
            assert (guarded.unmarked(), guarded.unexplained(), watch.unmarked) == ([], [], 0)
    finally:
        made.lab.node.nft("delete table inet nat")
        made.apply()


def test_D7_flow_masqueraded_before_policy_is_dropped(made: Guarded) -> None:
    """A flow that connection tracking knew before the policy is not entitled to the uplink."""
    with made.off():
        made.lab.node.nft(MASQUERADE)
        made.lab.client.call(inbound_clients.udp, at.SERVER[4], at.ECHO_PORT)
        with made.lab.client.socket(2, 2) as flow:
            flow.settimeout(2)
            flow.connect((at.SERVER[4], at.ECHO_PORT))
            flow.send(b"before")
            assert flow.recv(100) == b"before", "inconclusive"
            made.apply()
            made.lab.wan.drain()
            flow.send(b"after")
            assert made.lab.wan.wait_for(lambda frame: b"after" in frame.payload, 0.3) is None
    made.lab.node.nft("delete table inet nat")


# Router advertisements that the kernel of the node believes

RIO = "2001:db8:2::/64"


def test_D10_advertised_routes_stay_out_of_main_table() -> None:
    with guarded_lab() as made:
        made.release()
        made.lab.node.sysctl("net/ipv6/conf/br-wan/accept_ra", 2)
        made.lab.node.sysctl("net/ipv6/conf/br-wan/accept_ra_rt_info_max_plen", 128)

        def learned() -> list[str]:
            made.lab.home.call(ra_client.advertise, "br-lan", (), (RIO,))
            lines = made.lab.node.run(["ip", "-6", "route", "show", "table", "main", "proto", "ra"]).stdout
            return sorted(line.split()[0] for line in lines.splitlines())

        def udp6() -> list[str]:
            return run_probes(made.lab, [leak_probes.Probe("udp", 6, marked=False)]).unmarked()

        routes = learned()
        assert {"default", RIO} <= set(routes), "inconclusive"
        assert udp6() == ["udp/ipv6/unmarked"], "inconclusive"
        made.apply()  # with the routes that are there already
        assert udp6() == []
        made.lab.node.ip("-6 route flush proto ra")
        assert {"default", RIO} & set(learned()) == set()
        assert udp6() == []
