"""A flood of unmarked UDP beside the words of servers in the uplink's own network: only what a word names leaves."""

import contextlib
import itertools
import socket
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.guarded_lab import OTHER_GID, SERVICE_GID, Guarded, gluon
from tests.lab import addresses as at
from tests.lab.topology import Lab

USER = 1000
NODE = {4: ("192.168.77.2/24", "1.2.3.2/24"), 6: ("fd77::2/64", "2a00:1:2::2/64")}
PRIVATE, PUBLIC = {4: "192.168.77.1", 6: "fd77::1"}, {4: "1.2.3.1", 6: "2a00:1:2::1"}
BROADCAST, LINK_LOCAL = "255.255.255.255", at.HOME_LINK_LOCAL
GROUPS = ("239.255.255.250", "239.254.0.1", "224.0.0.251", "ff02::c", "ff02::1:2", "ff05::2", "ff0e::1")
DESTINATIONS = (
    *PRIVATE.values(),
    *PUBLIC.values(),
    *at.HOME.values(),
    *at.SERVER.values(),
    LINK_LOCAL,
    BROADCAST,
    *GROUPS,
)
OF_LAN = (PRIVATE[4], *PUBLIC.values(), BROADCAST, "239.255.255.250", "ff02::c", "ff02::1:2")
VRRP, VRRP_GROUPS = 112, ("224.0.0.18", "ff02::12")
DHCP, DHCP6, DISCOVERY, EXCLUSIVE, DNS = 67, 547, 3702, 5000, 53
SOURCE_PORTS = (DHCP, DHCP6, 137, DISCOVERY, EXCLUSIVE, 40000)
PORTS = (9, DNS, 67, 68, 69, 137, 546, 547, 3702, 40001)
WORDS = f"""
[lan.discovery]
uplink = "wan"
to = ["192.168.77.0/24", "1.2.3.0/24", "2a00:1:2::/64", "{BROADCAST}", "239.255.0.0/16", "ff02::/16"]
sport = ["udp/{DISCOVERY}"]
user = {USER}

[lan.vrrp]
uplink = "wan"
to = ["224.0.0.18", "ff02::12"]
user = "root"
"""


def flood(sports: tuple[int, ...]) -> None:
    """Send one datagram from each port to each destination and port; the payload names it."""
    for sport, destination in itertools.product(sports, DESTINATIONS):
        is_six = ":" in destination
        scope = destination == BROADCAST or destination in (*GROUPS, LINK_LOCAL)
        with socket.socket(socket.AF_INET6 if is_six else socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.bind(("", sport))
            if scope:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
            for dport in PORTS:
                token = b"flood" + struct.pack("!HH", sport, dport)
                with contextlib.suppress(OSError):
                    sender.sendto(token, (destination, dport))


def announce() -> None:
    """Send a packet of VRRP to each destination."""
    for destination in (*VRRP_GROUPS, *DESTINATIONS):
        domain = socket.AF_INET6 if ":" in destination else socket.AF_INET
        with socket.socket(domain, socket.SOCK_RAW, VRRP) as sender, contextlib.suppress(OSError):
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
            sender.sendto(b"flood" + struct.pack("!HH", VRRP, 0), (destination, 0))


def is_named(uid: int, destination: str, sport: int, dport: int) -> str | None:
    """Return the word that names a packet, written a second time and by hand."""
    if (sport, dport) == (DHCP, 68) and ":" not in destination and destination not in GROUPS:
        return "dhcpv4-server"
    if (sport, dport) == (DHCP6, 546) and destination == LINK_LOCAL:
        return "dhcpv6-server"
    if (sport, dport) == (VRRP, 0):
        return "vrrp" if destination in VRRP_GROUPS else None
    return "lan" if uid == USER and sport == DISCOVERY and dport != DNS and destination in OF_LAN else None


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with Lab(wan="main", groups={"gluon-mesh-vpn": SERVICE_GID}) as lab:
        for family in at.FAMILIES:
            for address in NODE[family]:
                lab.node.ip(f"addr add {address} dev {at.WAN}" + " nodad" * (family == 6))
            for host in (PRIVATE[family], PUBLIC[family], at.HOME[family]):
                lab.node.ip(f"-{family} neigh replace {host} lladdr {at.HOME_MAC} dev {at.WAN} nud permanent")
        lab.node.ip(f"-6 neigh replace {LINK_LOCAL} lladdr {at.HOME_MAC} dev {at.WAN} nud permanent")
        lab.node.sysctl("net/ipv4/ip_unprivileged_port_start", 0)
        text = gluon(lab)
        assert text.count('["arp"') == text.count('"ping"]') == 1
        text = text.replace('["arp"', '["dhcpv4-server", "dhcpv6-server", "arp"')
        text = text.replace('"ping"]', f'"ping", {{ name = "udp/{EXCLUSIVE}", exclusive = true }}]')
        yield Guarded(lab, text + WORDS)


def floods(made: Guarded) -> Counter[tuple[int, str, int, int]]:
    """Return the packets that reach the home: user, destination, ports."""
    found: Counter[tuple[int, str, int, int]] = Counter()
    for uid in (0, USER):
        made.lab.wan.drain()
        made.lab.node.call(flood, SOURCE_PORTS, uid=uid, gid=OTHER_GID)
        if not uid:
            made.lab.node.call(announce, gid=OTHER_GID)
        made.lab.wan.wait_for(lambda _: False, 0.3)
        for frame in made.lab.wan.frames():
            if frame.payload.startswith(b"flood"):
                found[uid, str(frame.daddr), *struct.unpack("!HH", frame.payload[5:9])] += 1
    return found


def test_words_of_servers_let_only_their_packets_leave(made: Guarded) -> None:
    made.apply()
    left = floods(made)
    assert [packet for packet in left if is_named(*packet) is None] == []
    assert {is_named(*packet) for packet in left} == {"dhcpv4-server", "dhcpv6-server", "lan", "vrrp"}
    assert {destination for uid, destination, sport, _ in left if sport == DISCOVERY} == set(OF_LAN)
    made.release()
    others = [packet for packet in floods(made) if is_named(*packet) is None]
    assert (0, PRIVATE[4], VRRP, 0) in others
    assert len({destination for _, destination, _, _ in others}) > 10, "inconclusive: not sent without the policy"
