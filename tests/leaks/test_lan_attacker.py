"""C-F: an attacker in the home network, or as the home router."""

import socket
import struct
from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    OTHER_GID,
    SERVICE_GID,
    Guarded,
    gluon,
    guarded_lab,
    run_probes,
    wan_routes_in_main,
    watching,
)
from tests.lab import addresses as at
from tests.lab import inbound_clients, leak_probes, ra_client
from tests.lab.frames import TCP
from tests.lab.packet_senders import Job, packet_of
from tests.lab.topology import Lab

families = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
PLAIN = [probe for probe in leak_probes.matrix() if probe.kind in ("udp", "tcp", "forwarded-udp") and not probe.marked]
PLAIN4 = sorted(str(probe) for probe in PLAIN if probe.family == 4)
PLAIN6 = sorted(str(probe) for probe in PLAIN if probe.family == 6)


def test_F1_dhcp_routes_of_TunnelVision_do_not_leak() -> None:
    attack = f"--dhcp-option=121,0.0.0.0/1,{at.HOME[4]},128.0.0.0/1,{at.HOME[4]}"
    with Lab(wan="main", home_options=[attack]) as lab:
        made = Guarded(lab, gluon(lab))
        lab.node.ip(f"route del default dev {at.WAN}")  # what remains is what the attacker says
        assert "128.0.0.0/1 via 192.0.2.1 dev br-wan" in lab.node.run(["ip", "route"]).stdout, "inconclusive"
        which = [probe for probe in PLAIN if probe.family == 4]
        assert run_probes(lab, which).unmarked() == PLAIN4, "inconclusive"
        made.apply()
        with watching(lab) as watch:
            assert run_probes(lab, which).unmarked() == []
            assert watch.unmarked == 0


def test_F2_router_advertisement_routes_do_not_leak() -> None:
    with guarded_lab() as made:
        made.release()
        made.lab.node.sysctl("net/ipv6/conf/br-wan/accept_ra", 2)
        made.lab.node.sysctl("net/ipv6/conf/br-wan/accept_ra_rt_info_max_plen", 128)
        which = [probe for probe in PLAIN if probe.family == 6]
        made.lab.home.call(ra_client.advertise, "br-lan", (), ("2001:db8:2::/64",), 0)  # more specific than any default
        assert run_probes(made.lab, which).unmarked() == PLAIN6, "inconclusive"
        made.apply()
        with watching(made.lab) as watch:
            assert run_probes(made.lab, which).unmarked() == []
            made.lab.node.ip("-6 route flush proto ra")
            made.lab.home.call(ra_client.advertise, "br-lan", (), ("2001:db8:2::/64",), 0)
            quiet = run_probes(made.lab, which)
            assert quiet.unmarked() == []
            assert len(quiet.mesh) == len(which), "the attack did not even stop them on their way by the mesh"
            assert watch.unmarked == 0


@families
def test_F3_TunnelCrack_LocalNet_does_not_leak(family: int) -> None:
    """TunnelCrack LocalNet: the WAN announces the network of the packets' destination."""
    net = {4: "198.51.100.77/25", 6: "2001:db8:2::77/64"}[family]
    with guarded_lab() as made:
        made.release()
        made.lab.node.ip(f"addr add {net} dev {at.WAN}{' nodad' if family == 6 else ''}")
        made.lab.home.sysctl("net/ipv4/conf/br-lan/proxy_arp", 1)
        made.lab.neighbour.ip(f"addr add {at.SERVER[family]}/{net.split('/')[1]} dev eth0")
        which = [probe for probe in PLAIN if probe.family == family]
        assert run_probes(made.lab, which).unmarked() == {4: PLAIN4, 6: PLAIN6}[family], "inconclusive"
        made.apply()
        made.lab.node.run(["ip", "neigh", "flush", "dev", at.WAN])
        with watching(made.lab) as watch:
            run = run_probes(made.lab, which)
            assert run.unmarked() == []
            assert watch.unmarked == 0
        assert [frame for frame in run.frames if frame.daddr == at.SERVER[family]] == []  # not even asked for


@pytest.fixture(scope="module")
def spoofed() -> Iterator[Guarded]:
    """The DNS of the home gives the victim's address for the VPN server: an address that the node's users contact."""
    lie = f"--host-record={at.VPN},{at.GATEWAY[4]},{at.GATEWAY[6]}"
    with guarded_lab(resolver=True, home_options=[lie]) as made:
        yield made


@families
def test_F4_TunnelCrack_ServerIP_does_not_leak(spoofed: Guarded, family: int) -> None:
    """TunnelCrack ServerIP: no address opens the WAN, so a forged DNS answer opens nothing."""
    lab, victim = spoofed.lab, at.GATEWAY[family]
    answer = lab.resolve(at.VPN, family, "127.0.0.1", gid=SERVICE_GID)
    assert victim in answer, "inconclusive: the lie was not believed"

    def leaves(mark: int, gid: int) -> bool:
        lab.wan.drain()
        lab.node.call(say, victim, mark, gid=gid, keep_caps=True)
        return bool(lab.wan.wait_for(lambda frame: b"for the victim" in frame.payload, 0.3))

    assert leaves(1, SERVICE_GID), "inconclusive: the VPN does not try to reach it"
    assert not leaves(0, OTHER_GID)
    assert not leaves(0, SERVICE_GID)
    with spoofed.off():  # what other VPN clients do when they have the server's address
        route = (
            f"-{family} route add {victim} via {at.HOME[4] if family == 4 else at.HOME_LINK_LOCAL} dev {at.WAN} onlink"
        )
        lab.node.ip(route)
        assert leaves(0, OTHER_GID), "inconclusive"
    assert not leaves(0, OTHER_GID)
    lab.node.ip(route.replace(" add ", " del "))


def say(address: str, mark: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as made:
        if mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        try:
            made.sendto(b"for the victim", (address, 9))
        except OSError:
            return


@families
def test_F5_query_for_other_devices_is_not_answered(family: int) -> None:
    """CVE-2019-14899: a neighbour queries addresses of the mesh and the tunnel, to learn the node's addresses."""
    with guarded_lab() as made:
        address = at.NODE_MESH[family]
        way = made.lab.wan_address(family)
        made.lab.neighbour.ip(f"-{family} route replace {address} via {way} dev eth0")

        def answers() -> list[object]:
            return [
                made.lab.neighbour.call(inbound_clients.ping, address),
                made.lab.neighbour.call(inbound_clients.tcp, address, 9),
            ]

        with made.off():
            made.lab.node.ip(f"-{family} rule add lookup {made.lab.wan_table} priority 400")
            assert answers()[0], "inconclusive"
            made.lab.node.ip(f"-{family} rule del priority 400")
        assert answers() == [False, inbound_clients.NO_ANSWER]
        assert made.counters()["inet/wan.not-local"] > 0
        assert made.lab.neighbour.call(inbound_clients.ping, str(way))  # its own address still answers


def test_F6_strict_rp_filter_keeps_working() -> None:
    with guarded_lab(resolver=True) as made:

        def exchange() -> list[object]:
            address = made.lab.wan_address(4)
            return [
                made.lab.node.call(marked_echo, gid=SERVICE_GID, keep_caps=True),
                made.lab.resolve(at.WHO, 4, "127.0.0.1", gid=SERVICE_GID),
                made.lab.neighbour.call(inbound_clients.ping, address),
            ]

        for which in ("all", "default", at.WAN):
            made.lab.node.sysctl(f"net/ipv4/conf/{which}/rp_filter", 1)
        # A question by ARP has no mark, so a strict node leaves it unanswered unless main leads back.
        made.lab.neighbour.ip(f"neigh replace {made.lab.wan_address(4)} lladdr {at.NODE_WAN_MAC} dev eth0")
        assert exchange() == [b"echo", [at.WHO_AT_HOME[4]], True]
        made.lab.node.sysctl("net/ipv4/conf/all/src_valid_mark", 0)
        assert made.lab.node.call(marked_echo, gid=SERVICE_GID, keep_caps=True) is None, "inconclusive"


def marked_echo() -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
        made.settimeout(0.4)
        made.connect((at.SERVER[4], at.ECHO_PORT))
        made.send(b"echo")
        try:
            return made.recv(100)
        except OSError:
            return None


def test_F7_packet_in_invalid_state_is_dropped() -> None:
    """Resets and acknowledgements without a flow, to and from the node: connection tracking calls them invalid."""
    with guarded_lab() as made:
        wan_routes_in_main(made.lab)
        own = {4: made.lab.wan_address(4)}
        with watching(made.lab) as watch:
            made.lab.wan.drain()
            made.lab.node.call(stray_segment, own, gid=OTHER_GID, keep_caps=True)
            assert made.lab.wan.wait_for(lambda frame: b"out of nothing" in frame.payload, 0.3) is None
            assert watch.unmarked == 0
        with made.off():
            made.lab.node.call(stray_segment, own, gid=OTHER_GID, keep_caps=True)
            assert made.lab.wan.wait_for(lambda frame: b"out of nothing" in frame.payload, 2), "inconclusive"


def stray_segment(sources: dict[int, str]) -> None:
    for flags in (0x10, 0x04, 0x14, 0x11):  # ACK, RST, RST and ACK, FIN and ACK, all "from SSH"
        segment = struct.pack("!HHIIBBHHH", 22, 4711, 1, 1, 5 << 4, flags, 100, 0, 0)
        job = Job(4, b"out of nothing", 0, 0, sources, at.WAN)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            try:
                made.sendto(packet_of(job, at.SERVER, TCP, segment), (at.SERVER[4], 0))
            except OSError:
                continue
