"""What leaves by the WAN has an address of the WAN as its source, after all NAT, or one that the policy names."""

import errno
import json
import socket
from collections.abc import Iterator

import pytest

from tests.guarded_lab import SERVICE_GID, Guarded, gluon, guarded_lab, no_wan_routes_in_main, wan_routes_in_main
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.frames import ICMPV6
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])
SECRET = b"from another address"
COUNTER = "inet/wan.foreign-source"


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab() as made:
        yield made


@pytest.fixture(scope="module")
def known() -> Iterator[Guarded]:
    """The WAN's network knows the addresses of the client network."""
    with guarded_lab(with_addresses) as known:
        for family in at.FAMILIES:
            via = known.lab.wan_address(family)
            known.lab.neighbour.ip(f"-{family} route replace {at.NODE_CLIENT[family]} via {via} dev eth0")
        yield known


def with_addresses(lab: Lab) -> str:
    text, key = gluon(lab), "[uplink.wan]\n"
    assert text.count(key) == 1
    return text.replace(key, f'{key}addresses = ["{at.CLIENT_NET[4]}", "{at.CLIENT_NET[6]}"]\n')


def send(family: int, source: str, mark: int = 1) -> str:
    """Send a datagram to the server by the WAN; return the name of the errno, or an empty text."""
    with socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
        try:
            if source:
                made.bind((source, 0))
            made.sendto(SECRET, (at.SERVER[family], 9))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return ""


def sources_seen(made: Guarded, family: int, source: str, mark: int = 1) -> set[str]:
    """Send as the service; return the sources of the datagrams on the WAN."""
    made.lab.wan.drain()
    made.lab.node.call(send, family, source, mark, gid=SERVICE_GID, keep_caps=True)
    made.lab.wan.wait_for(lambda frame: SECRET in frame.payload, 0.4)
    return {frame.saddr for frame in made.lab.wan.frames() if SECRET in frame.payload}


@families
def test_source_of_another_device_does_not_leave(made: Guarded, family: int) -> None:
    own, counted = str(made.lab.wan_address(family)), made.counters()[COUNTER]
    for other in (at.NODE_MESH[family], at.NODE_CLIENT[family]):
        assert sources_seen(made, family, other) == set()
    assert made.counters()[COUNTER] == counted + 2
    assert sources_seen(made, family, own) == sources_seen(made, family, "") == {own}, "the control"
    with made.off():
        wan_routes_in_main(made.lab)
        assert sources_seen(made, family, at.NODE_MESH[family], 0) == {at.NODE_MESH[family]}, "inconclusive"
        no_wan_routes_in_main(made.lab)


def test_kernel_has_no_address_of_the_wan_to_choose(made: Guarded) -> None:
    """IPv6 takes an address of another device then: renumbering, or before the first advertisement."""
    address = f"{made.lab.wan_address(6)}/64 dev {at.WAN}"
    made.lab.node.ip(f"-6 addr del {address}")
    try:
        counted = made.counters()[COUNTER]
        assert sources_seen(made, 6, "") == set()
        assert made.counters()[COUNTER] == counted + 1
        assert "no address" in made.nftpolicy("verify", "--live", "/run/lab/policy.toml", check=False).stdout
    finally:
        made.lab.node.ip(f"-6 addr add {address} nodad")


def test_source_is_judged_after_nat(made: Guarded) -> None:
    table = "table inet masked {\n chain late {\n type nat hook postrouting priority srcnat;\n MASQUERADE\n }\n}\n"
    made.lab.node.nft(table.replace("MASQUERADE", f'oifname "{at.WAN}" masquerade'))
    try:
        for family in at.FAMILIES:
            assert sources_seen(made, family, at.NODE_CLIENT[family]) == {made.lab.wan_address(family)}
    finally:
        made.lab.node.nft("delete table inet masked\n")
    for family in at.FAMILIES:
        assert sources_seen(made, family, at.NODE_CLIENT[family]) == set(), "the control"


def test_duplicate_address_detection_leaves(made: Guarded) -> None:
    made.lab.node.sysctl(f"net/ipv6/conf/{at.WAN}/dad_transmits", 1)
    made.lab.node.sysctl(f"net/ipv6/conf/{at.WAN}/accept_dad", 1)
    made.lab.wan.drain()
    made.lab.node.ip(f"-6 addr add 2001:db8:1::77/64 dev {at.WAN}")
    try:
        assert made.lab.wan.wait_for(lambda frame: (frame.saddr, frame.l4proto) == ("::", ICMPV6), 5)
        shown = ["ip", "-6", "addr", "show", "dev", at.WAN, "tentative"]
        wait_until(lambda: not made.lab.node.run(shown).stdout, 5, "an address without a duplicate")
    finally:
        made.lab.node.ip(f"-6 addr del 2001:db8:1::77/64 dev {at.WAN}")


@families
def test_addresses_of_the_policy_are_reached_and_used(known: Guarded, made: Guarded, family: int) -> None:
    assert known.lab.neighbour.call(inbound_clients.ping, at.NODE_CLIENT[family])
    assert sources_seen(known, family, at.NODE_CLIENT[family]) == {at.NODE_CLIENT[family]}
    assert sources_seen(known, family, at.NODE_MESH[family]) == set()
    via = made.lab.wan_address(family)
    made.lab.neighbour.ip(f"-{family} route replace {at.NODE_CLIENT[family]} via {via} dev eth0")
    assert not made.lab.neighbour.call(inbound_clients.ping, at.NODE_CLIENT[family]), "the control"
    refused = {"uplink": "wan", "address": at.NODE_CLIENT[family], "by": [at.NEIGHBOUR[family]]}
    assert refused in json.loads(made.nftpolicy("status", "--json").stdout)["asked_addresses"]


@families
def test_hosts_in_addresses_of_the_policy_are_not_reached(known: Guarded, family: int) -> None:
    client = at.CLIENT_ADDRESS[family]
    known.lab.neighbour.ip(f"-{family} route replace {client} via {known.lab.wan_address(family)} dev eth0")
    known.lab.node.sysctl("net/ipv4/ip_forward", 1), known.lab.node.sysctl("net/ipv6/conf/all/forwarding", 1)
    counted = known.counters()["inet/wan.not-local"]
    assert not known.lab.neighbour.call(inbound_clients.ping, client)
    assert known.counters()["inet/wan.not-local"] > counted


def test_anycast_of_another_device_is_not_answered(made: Guarded) -> None:
    """The address of all routers of a subnet (RFC 4291 2.6.1), of the client network."""
    anycast = at.CLIENT_NET[6].partition("/")[0]
    made.lab.node.sysctl("net/ipv6/conf/all/forwarding", 1)
    made.lab.neighbour.ip(f"-6 route replace {anycast} via {made.lab.wan_address(6)} dev eth0")
    assert not made.lab.neighbour.call(inbound_clients.ping, anycast)
    with made.off():
        made.lab.node.ip(f"-6 rule add lookup {made.lab.wan_table} priority 400")
        assert made.lab.neighbour.call(inbound_clients.ping, anycast), "inconclusive"
        made.lab.node.ip("-6 rule del priority 400")
