"""C-B and C-C: packets that no socket of a process sends: resets, errors, echo replies, neighbour discovery.

Without the policy these replies follow the default route by the mesh: their arrival there is the control.
"""

import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.guarded_lab import (
    OTHER_GID,
    SERVICE_GID,
    Guarded,
    guarded_lab,
    no_wan_routes_in_main,
    wan_routes_in_main,
    watching,
)
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.frames import TCP, UDP, Frame, classify
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
CLOSED, NOWHERE = 8081, {4: "192.0.2.99", 6: "2001:db8:1::99"}


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab() as made, inbound_clients.listening(made.lab.node, 22):
        yield made


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """Lab without a policy, for the controls."""
    with Lab() as lab, inbound_clients.listening(lab.node, 22):
        yield lab


Act = Callable[[Lab], object]


def drain(made: Guarded) -> None:
    made.lab.wan.drain(), made.lab.mesh_sniffer.drain()


def replies(lab: Lab, act: Act, is_reply: Callable[[Frame], bool]) -> tuple[int, int]:
    """Return the number of replies that leave by the WAN, and by the mesh."""
    lab.wan.drain(), lab.mesh_sniffer.drain()
    act(lab)
    lab.wan.wait_for(is_reply, 0.1)
    return sum(map(is_reply, lab.wan.frames())), sum(map(is_reply, lab.mesh_sniffer.frames()))


def by_the_wan_alone(made: Guarded, bare: Lab, act: Act, is_reply: Callable[[Frame], bool]) -> None:
    """Check that all replies leave by the WAN, marked, and that without the policy they leave by the mesh."""
    wan, mesh = replies(bare, act, is_reply)
    assert mesh, "inconclusive: no replies without the policy"
    assert not wan
    with watching(made.lab) as watch:
        wan, mesh = replies(made.lab, act, is_reply)
        assert wan
        assert not mesh
        assert (watch.unmarked, watch.stray) == (0, 0)


def nowhere(made: Guarded, bare: Lab, act: Act, is_reply: Callable[[Frame], bool]) -> None:
    """Check that no reply leaves by any device, and that without the policy there is one."""
    assert replies(bare, act, is_reply)[1], "inconclusive: no replies without the policy"
    with watching(made.lab) as watch:
        assert replies(made.lab, act, is_reply) == (0, 0)
        assert (watch.unmarked, watch.stray) == (0, 0)


@families
def test_C1_reset_of_closed_port_leaves_marked(made: Guarded, bare: Lab, family: int) -> None:
    by_the_wan_alone(
        made,
        bare,
        lambda lab: lab.neighbour.call(inbound_clients.tcp, lab.wan_address(family), CLOSED, b"", 0.1),
        lambda frame: (frame.l4proto, frame.sport) == (TCP, CLOSED),
    )
    assert made.lab.neighbour.call(inbound_clients.tcp, made.lab.wan_address(family), CLOSED) == "ECONNREFUSED"


@families
def test_C2_icmp_error_of_closed_port_leaves_marked(made: Guarded, bare: Lab, family: int) -> None:
    nowhere(
        made,
        bare,
        lambda lab: lab.server.call(inbound_clients.udp, lab.wan_address(family), CLOSED, b"knock", 0.1),
        lambda frame: classify(frame) == "icmp-error",
    )


@families
def test_C2_icmp_error_of_expired_packet_is_dropped(made: Guarded, bare: Lab, family: int) -> None:
    target = {4: "203.0.113.77", 6: "2001:db8:3::77"}[family]

    def through_the_node(lab: Lab) -> None:
        lab.home.ip(f"-{family} route replace {target} via {lab.wan_address(family)} dev br-lan")
        lab.home.call(short_lived, target)
        lab.home.ip(f"-{family} route del {target}")

    nowhere(made, bare, through_the_node, lambda frame: classify(frame) == "icmp-error")


def short_lived(address: str) -> None:
    """Send a datagram with a hop limit that ends at the next router."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        made.sendto(b"one hop", (address, CLOSED))


@families
def test_C3_echo_reply_leaves_marked(made: Guarded, bare: Lab, family: int) -> None:
    by_the_wan_alone(
        made,
        bare,
        lambda lab: lab.neighbour.call(inbound_clients.ping, lab.wan_address(family), 0.2),
        lambda frame: classify(frame) == "echo-reply",
    )
    assert made.lab.neighbour.call(inbound_clients.ping, made.lab.wan_address(family))


@families
def test_C4_syn_cookie_leaves_marked(made: Guarded, family: int) -> None:
    made.lab.node.sysctl("net.ipv4.tcp_syncookies", 2)
    try:
        with watching(made.lab) as watch:
            drain(made)
            for space in (made.lab.neighbour, made.lab.server):
                assert space.call(inbound_clients.tcp, made.lab.wan_address(family), 22, b"x" * 3000) == b"x" * 3000
            assert (watch.unmarked, watch.stray) == (0, 0)
        assert [frame for frame in made.lab.mesh_sniffer.frames() if frame.sport == 22] == []
        sent = made.lab.node.run(["cat", "/proc/net/netstat"]).stdout.splitlines()
        names, values = (line.split() for line in sent if line.startswith("TcpExt"))
        assert int(values[names.index("SyncookiesRecv")]) >= 2, "inconclusive: no cookie was used"
    finally:
        made.lab.node.sysctl("net.ipv4.tcp_syncookies", 1)


def close_early(address: str, mark: int) -> int:
    """Connect to the echo service, send, and close before the answer arrives; return the local port."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as made:
        if mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        made.settimeout(2)
        made.connect((address, at.ECHO_PORT))
        made.sendall(b"data that is on its way")
        return int(made.getsockname()[1])


def with_peer(port: int) -> list[str]:
    """Return the lines of /proc/net/tcp* of connections with this remote port."""
    found = []
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}") as table:  # noqa: PTH123 - of the calling process
            found += [line for line in table.readlines()[1:] if line.split()[2].endswith(f":{port:04X}")]
    return found


@families
def test_C5_orphan_and_time_wait_packets_leave_marked(made: Guarded, family: int) -> None:
    before = made.counters()
    with watching(made.lab) as watch:
        drain(made)
        port = made.lab.node.call(close_early, at.SERVER[family], 1, gid=SERVICE_GID, keep_caps=True)
        wait_until(lambda: not made.lab.server.call(with_peer, port), 3, "the end of the connection at the server")
        assert (watch.unmarked, watch.stray) == (0, 0)
    sent = [frame for frame in made.lab.wan.frames() if frame.sport == port]
    assert len(sent) >= 5  # SYN, ACK, data, FIN, and what came when the socket was gone
    assert [frame for frame in made.lab.mesh_sniffer.frames() if frame.sport == port] == []
    after = made.counters()
    assert {name for name in before if after[name] > before[name]} <= {"netdev/wan.exempt.arp", *ND}


ND = {f"{layer}/wan.exempt.{word}" for layer in ("inet", "netdev") for word in ("ndp", "mld", "igmp")}


@families
@pytest.mark.parametrize("asker", ["neighbour", "server"])
def test_C7_listener_reply_with_mesh_default_leaves_by_wan(made: Guarded, bare: Lab, family: int, asker: str) -> None:
    def connect(lab: Lab) -> bytes | str:
        answer: bytes | str = getattr(lab, asker).call(inbound_clients.tcp, lab.wan_address(family), 22, b"hello", 0.2)
        return answer

    by_the_wan_alone(made, bare, connect, lambda frame: (frame.l4proto, frame.sport) == (TCP, 22))
    assert connect(made.lab) == b"hello"


def test_C8_arp_for_other_devices_is_not_answered(made: Guarded, bare: Lab) -> None:
    def stray_answers(lab: Lab) -> bool:
        lab.wan.drain()
        lab.neighbour.call(who_has, at.NODE_CLIENT[4])
        return bool(lab.wan.wait_for(lambda frame: frame.saddr == at.NODE_CLIENT[4], 0.3))

    assert stray_answers(bare), "inconclusive"
    assert not stray_answers(made.lab)
    made.lab.neighbour.call(who_has, made.lab.wan_address(4))
    assert made.lab.wan.wait_for(lambda frame: classify(frame) == "arp", 2), "inconclusive: ARP is not answered"


def who_has(address: str) -> None:
    """Ask the home's network for an address, as arping does."""
    mac = bytes.fromhex(at.NEIGHBOUR_MAC.replace(":", ""))
    sender, target = socket.inet_aton(at.NEIGHBOUR[4]), socket.inet_aton(address)
    question = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + sender + bytes(6) + target
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        made.sendto(b"\xff" * 6 + mac + struct.pack("!H", 0x0806) + question, ("eth0", 0x0806))


def bound(payload: bytes) -> None:
    """Send to an absent neighbour by the device, so that neighbour discovery would come first."""
    for family, address in NOWHERE.items():
        with socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
            try:
                made.sendto(payload, (address, CLOSED))
            except OSError:
                continue


def test_C9_dropped_packet_sends_no_neighbour_query(made: Guarded) -> None:
    target6 = socket.inet_pton(socket.AF_INET6, NOWHERE[6])

    def asked() -> set[str]:
        made.lab.node.run(["ip", "neigh", "flush", "dev", at.WAN])
        drain(made)
        made.lab.node.call(bound, b"")
        made.lab.wan.wait_for(lambda _: False, 0.3)
        frames = made.lab.wan.frames()
        arp = {"arp" for one in frames if classify(one) == "arp" and one.daddr == NOWHERE[4]}
        return arp | {"ndp" for one in frames if classify(one) == "ndp" and one.payload.startswith(target6)}

    with made.off():
        wan_routes_in_main(made.lab)
        assert asked() == {"arp", "ndp"}, "inconclusive"
    try:
        assert asked() == set()
    finally:
        no_wan_routes_in_main(made.lab)


# C10: what is exempt, and what only looks like it

ALL_NODES, ALL_MLD, ALL_ROUTERS, DHCP_SERVERS = "ff02::1", "ff02::16", "ff02::2", "ff02::1:2"
GROUP = "239.1.2.3"


def icmpv6(kind: int, hops: int, target: str = ALL_NODES, code: int = 0) -> Callable[[bytes], None]:
    def send(payload: bytes) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
            made.sendto(bytes([kind, code]) + bytes(6) + payload, (target, 0, 0, socket.if_nametoindex(at.WAN)))

    return send


def igmp(ttl: int, target: str, kind: int = 0x22) -> Callable[[bytes], None]:
    def send(payload: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            made.sendto(bytes([kind]) + bytes(7) + payload, (target, 0))

    return send


def header(source: str, target: str, sport: int, dport: int) -> Callable[[bytes], None]:
    """Return a sender of a raw packet: by the home router, to the address in its own header."""

    def send(payload: bytes) -> None:
        ends = socket.inet_aton(source) + socket.inet_aton(target)
        start = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, socket.IPPROTO_UDP, 0) + ends
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
            made.sendto(start + struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload, (at.SERVER[4], 0))

    return send


def ports(
    source: int, target: int, address: str, kind: int = socket.SOCK_DGRAM, sender: str | None = None
) -> Callable[[bytes], None]:
    def send(payload: bytes) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, at.WAN.encode())
            made.bind((sender or "", source))
            scope = (0, socket.if_nametoindex(at.WAN)) if family == socket.AF_INET6 else ()
            made.sendto(payload, (address, target, *scope))

    return send


EXEMPT = {
    "DHCPv4 client": ports(68, 67, "255.255.255.255"),
    "DHCPv6 client": ports(546, 547, DHCP_SERVERS),
    "router solicitation": icmpv6(133, 255, ALL_ROUTERS),
    "neighbour solicitation": icmpv6(135, 255, "ff02::1:ff00:50"),
    "neighbour solicitation to one": icmpv6(135, 255, at.HOME_LINK_LOCAL),
    "neighbour advertisement": icmpv6(136, 255),
    "neighbour advertisement to one": icmpv6(136, 255, at.HOME_LINK_LOCAL),
    "MLD report": icmpv6(131, 1),
    "MLD done": icmpv6(132, 1, ALL_ROUTERS),
    "MLDv2 report": icmpv6(143, 1, ALL_MLD),
    "IGMPv3 report": igmp(1, "224.0.0.22"),
    "IGMPv2 report": igmp(1, GROUP, 0x16),
    "IGMPv2 leave": igmp(1, "224.0.0.2", 0x17),
}
LOOKALIKES = {
    "DHCPv4 client with the address of another": header(at.NEIGHBOUR[4], "255.255.255.255", 68, 67),
    "DHCPv4 server": ports(67, 68, "255.255.255.255"),
    "from another port to DHCPv4": ports(6868, 67, "255.255.255.255"),
    "DHCPv4 client to another port": ports(68, 53, at.HOME[4]),
    "DHCPv4 client to its server": ports(68, 67, at.HOME[4]),
    "DHCPv4 client to all of a network": ports(68, 67, at.HOME_BROADCAST),
    "DHCPv4 client to a group": ports(68, 67, GROUP),
    "DHCPv6 client to one": ports(546, 547, at.HOME_LINK_LOCAL),
    "DHCPv6 client to all nodes": ports(546, 547, ALL_NODES),
    "the ports of DHCPv4 in IPv6": ports(68, 67, ALL_NODES),
    "the ports of DHCPv6 in IPv4": ports(546, 547, "255.255.255.255"),
    "DHCPv6 server": ports(547, 546, ALL_NODES),
    "DHCPv6 client to another port": ports(546, 53, DHCP_SERVERS),
    "router advertisement": icmpv6(134, 255),
    "redirect": icmpv6(137, 255),
    "neighbour solicitation from afar": icmpv6(135, 64),
    "router solicitation from afar": icmpv6(133, 254, ALL_ROUTERS),
    "neighbour advertisement to another group": icmpv6(136, 255, "ff02::fb"),
    "neighbour advertisement to a site": icmpv6(136, 255, "ff05::1"),
    "neighbour solicitation with a code": icmpv6(135, 255, "ff02::1:ff00:50", 1),
    "MLD query": icmpv6(130, 1),
    "MLD report for afar": icmpv6(131, 64),
    "MLD report with a far group": icmpv6(143, 1, "ff05::16"),
    "MLD report to one": icmpv6(143, 1, at.HOME_LINK_LOCAL),
    "MLDv2 report to all nodes": icmpv6(143, 1),
    "MLD done to all nodes": icmpv6(132, 1),
    "echo request": icmpv6(128, 255),
    "ICMPv6 of no known type": icmpv6(200, 255),
    "IGMP for afar": igmp(64, "224.0.0.22"),
    "IGMP to one": igmp(1, at.HOME[4]),
    "IGMP query": igmp(1, "224.0.0.1", 0x11),
    "IGMPv3 report to another group": igmp(1, GROUP),
    "IGMPv2 leave to another group": igmp(1, GROUP, 0x17),
    "IGMP of no known type": igmp(1, "224.0.0.22", 0x30),
}


# With routes by the WAN in the main table.
FROM_AFAR = {
    "DHCPv4 client to a far server": ports(68, 67, at.SERVER[4]),
    "DHCPv4 client to an address in its own header": header(at.NEIGHBOUR[4], "203.0.113.99", 68, 67),
    "DHCPv4 client from another address": header("203.0.113.98", "203.0.113.99", 68, 67),
    "neighbour advertisement to a far address": icmpv6(136, 255, at.SERVER[6]),
    "neighbour solicitation to a far address": icmpv6(135, 255, at.SERVER[6]),
    "neighbour advertisement to a neighbour's global address": icmpv6(136, 255, at.HOME[6]),
    "router solicitation to a far address": icmpv6(133, 255, at.SERVER[6]),
}


def arrivals(lab: Lab, senders: dict[str, Callable[[bytes], None]]) -> set[str]:
    """Return the packets that arrive at the home, from a process without the service's group."""
    payloads = {name: f"[{name}]".encode().ljust(40, b".") for name in senders}

    def send_all() -> list[str]:
        errors = []
        for name, send in senders.items():
            try:
                send(payloads[name])
            except OSError as error:
                errors.append(f"{name}: {error}")
        return errors

    lab.wan.drain()
    lab.node.call(send_all, uid=65534, gid=OTHER_GID, keep_caps=True)
    lab.wan.wait_for(lambda _: False, 0.3)
    frames = lab.wan.frames()
    return {name for name in senders if any(payloads[name].rstrip(b".") in frame.payload for frame in frames)}


def test_C10_exempt_packets_leave_and_are_counted(made: Guarded) -> None:
    before = made.counters()
    assert set(EXEMPT) - arrivals(made.lab, EXEMPT) == set()
    after = made.counters()
    risen = {name.split(".")[-1] for name in before if after[name] > before[name] and "exempt" in name}
    assert risen >= {"dhcpv4", "dhcpv6", "ndp", "mld", "igmp"}


def test_C10_C11_lookalikes_of_exempt_packets_are_dropped(made: Guarded, bare: Lab) -> None:
    assert set(LOOKALIKES) - arrivals(bare, LOOKALIKES) == set(), "inconclusive"
    assert arrivals(made.lab, LOOKALIKES) == set()


def test_C10_exempt_packets_for_afar_are_dropped(made: Guarded) -> None:
    with made.off():
        wan_routes_in_main(made.lab)
        assert set(FROM_AFAR) - arrivals(made.lab, FROM_AFAR) == set(), "inconclusive"
    try:
        assert arrivals(made.lab, FROM_AFAR) == set()
    finally:
        no_wan_routes_in_main(made.lab)


def test_C10_kernel_advertises_itself_to_global_address(made: Guarded) -> None:
    """A neighbour that uses its global address solicits from it (RFC 4861 7.2.2), and is answered there."""
    made.lab.neighbour.run(["ip", "-6", "neigh", "flush", "all"])
    drain(made)
    assert made.lab.neighbour.call(inbound_clients.ping, made.lab.wan_address(6))
    assert made.lab.wan.wait_for(
        lambda frame: (classify(frame), frame.icmp_type, frame.daddr) == ("ndp", 136, at.NEIGHBOUR[6]), 3
    )


def test_C10_unicast_of_dhcp_leaves_if_exempt(made: Guarded) -> None:
    unicast = {"DHCPv4 client to its server": ports(68, 67, at.HOME[4])}
    others = {
        "to a group": ports(68, 67, GROUP),
        "to another port": ports(68, 53, at.HOME[4]),
        "from another port": ports(6868, 67, at.HOME[4]),
    }
    text = made.file.read_text()
    made.file.write_text(text.replace('"dhcpv4"', '"dhcpv4", "dhcpv4-unicast"'))
    made.apply()
    try:
        assert arrivals(made.lab, {**unicast, **others}) == set(unicast)
    finally:
        made.file.write_text(text)
        made.apply()


@families
def test_C10_membership_reports_of_kernel_leave(made: Guarded, family: int) -> None:
    drain(made)
    made.lab.node.call(join, family)
    word = {4: "igmp", 6: "mld"}[family]
    assert made.lab.wan.wait_for(lambda frame: classify(frame) == word, 3)


def join(family: int) -> None:
    number = socket.if_nametoindex(at.WAN)
    with socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_DGRAM) as made:
        if family == 4:
            request = socket.inet_aton(GROUP) + bytes(4) + struct.pack("=i", number)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        else:
            request = socket.inet_pton(socket.AF_INET6, "ff02::4711") + struct.pack("=i", number)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)


# C-B

NO_TRACKING = """
table inet foreign {
    chain raw {
        type filter hook prerouting priority -300; policy accept;
        notrack
    }
    chain out {
        type filter hook output priority -300; policy accept;
        notrack
    }
}
"""


@families
def test_C7_untracked_replies_do_not_leave_by_mesh(made: Guarded, bare: Lab, family: int) -> None:
    """The kernel itself reflects the mark (fwmark_reflect, tcp_fwmark_accept)."""

    def stray_answers(lab: Lab) -> set[str]:
        lab.wan.drain(), lab.mesh_sniffer.drain()
        lab.node.nft(NO_TRACKING)
        knock_everywhere(lab, family)
        lab.node.nft("delete table inet foreign")
        return words(lab.mesh_sniffer.frames())

    assert stray_answers(bare) == ANSWERS, "inconclusive"
    with watching(made.lab) as watch:
        assert stray_answers(made.lab) == set()
        assert words(made.lab.wan.frames()) == set()
        assert (watch.unmarked, watch.stray) == (0, 0)


ANSWERS = {f"tcp {CLOSED}", "tcp 22", "icmp-error", "echo-reply"}


def knock_everywhere(lab: Lab, family: int) -> None:
    for knock, port in ((inbound_clients.tcp, CLOSED), (inbound_clients.tcp, 22), (inbound_clients.udp, CLOSED)):
        lab.neighbour.call(knock, lab.wan_address(family), port, b"", 0.1)
    lab.neighbour.call(inbound_clients.ping, lab.wan_address(family), 0.1)


def words(frames: list[Frame]) -> set[str]:
    """Return the kinds of the frames (TCP with its source port), without those that a link sends by itself."""
    ports = {f"tcp {frame.sport}" for frame in frames if frame.l4proto == TCP}
    return ports | {classify(frame) for frame in frames if frame.l4proto not in (TCP, UDP)} - IGNORED


@families
def test_B13_packets_without_owner_and_mark_are_dropped(made: Guarded, family: int) -> None:
    """No sysctl and no connection tracking restores the mark here. The guard checks no owner."""
    wan_routes_in_main(made.lab)
    for key in ("net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect", "net.ipv4.tcp_fwmark_accept"):
        made.lab.node.sysctl(key, 0)
    made.lab.node.nft(NO_TRACKING)

    def stray_answers() -> set[str]:
        drain(made)
        knock_everywhere(made.lab, family)
        return words(made.lab.wan.frames())

    try:
        before = made.counters()["inet/wan.dropped"]
        with watching(made.lab) as watch:
            assert stray_answers() == set()
            assert (watch.unmarked, watch.stray) == (0, 0)
        assert made.counters()["inet/wan.dropped"] >= before + 4
        made.release()
        assert stray_answers() == ANSWERS, "inconclusive"
    finally:
        made.lab.node.nft("delete table inet foreign")
        no_wan_routes_in_main(made.lab)
        made.apply()


IGNORED = {"arp", "ndp", "mld", "igmp", "dhcpv4"}
