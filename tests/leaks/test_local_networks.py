"""Words for the uplink's own network: `lan`, multicast DNS and SSDP. A default route leads into the mesh."""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import OTHER_GID, POLICY, SERVICE_GID, Guarded, gluon, run_probes
from tests.lab import addresses as at
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

NAS = {4: "192.168.77.1", 6: "fd77::1"}
NODE = {4: "192.168.77.2", 6: "fd77::2"}
LENGTH = {4: 24, 6: 64}
FAR = {4: "10.77.0.9", 6: "fd99::9"}  # of `to`, and by a default route only
USER, OTHER_USER = 1000, 1001
DNS, MDNS, SSDP = 53, 5353, 1900
GROUPS = {(4, MDNS): "224.0.0.251", (6, MDNS): "ff02::fb", (4, SSDP): "239.255.255.250", (6, SSDP): "ff02::c"}
LAN = """
[lan.all]
uplink = "wan"
to = ["192.168.77.0/24", "10.0.0.0/8", "fd00::/8"]
"""
LAN_OF_USER = f"""
[lan.files]
uplink = "wan"
to = ["192.168.77.0/24", "fd77::/64"]
user = {USER}
ports = ["tcp/445", "udp/137-139"]
"""
NETBIOS, LLMNR, LLMNR_GROUP = 137, 5355, "ff02::1:3"
BROADCAST, DISCOVERY = "255.255.255.255", 3702
PUBLIC = {4: ("1.2.3.0/24", "1.2.3.2", "1.2.3.1"), 6: ("2a00:1:2::/64", "2a00:1:2::2", "2a00:1:2::1")}
LAN_OF_SERVER = f"""
[lan.discovery]
uplink = "wan"
to = ["1.2.3.0/24", "2a00:1:2::/64", "{BROADCAST}", "239.255.0.0/16", "ff02::/16"]
sport = ["udp/{DISCOVERY}"]
"""
LAN_OF_ANSWERS = f"""
[lan.names]
uplink = "wan"
to = ["192.168.77.0/24", "fe80::/10"]
sport = ["udp/{NETBIOS}", "udp/{LLMNR}"]
"""
MASQUERADE = f"""
table inet test-masquerade {{
    chain post {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{at.WAN}" masquerade
    }}
}}
"""


@dataclass(frozen=True)
class Sent:
    """A datagram of the node: `error` is the errno of the call, 0 without one."""

    token: bytes
    error: int


def send(destination: str, dport: int, sport: int, device: str | None) -> Sent:
    """Send a datagram; to a group, by a device."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    token = os.urandom(8)
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.bind(("", sport))
        index = socket.if_nametoindex(device) if device else 0
        if destination == BROADCAST and device:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        elif device and family == socket.AF_INET:
            sender.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), index)
            )
        try:
            sender.sendto(token, (destination, dport) if family == socket.AF_INET else (destination, dport, 0, index))
        except OSError as error:
            return Sent(token, error.errno or errno.EIO)
    return Sent(token, 0)


def greet(host: str, port: int) -> str:
    """Return the greeting of a TCP server, or the name of the error."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect((host, port))
            return client.recv(16).decode()
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "timeout")


def serve(port: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("::", port))
        server.listen()
        while True:
            accepted, _ = server.accept()
            accepted.send(b"hello")
            accepted.close()


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with Lab(wan="main", groups={"gluon-mesh-vpn": SERVICE_GID}) as lab:
        for family in at.FAMILIES:
            flag = " nodad" if family == 6 else ""
            lab.node.ip(f"addr add {NODE[family]}/{LENGTH[family]} dev {at.WAN}{flag}")
            lab.home.ip(f"addr add {NAS[family]}/{LENGTH[family]} dev br-lan{flag}")
        for port in (445, 8080):
            lab.home.spawn(serve, port)
        yield Guarded(lab, "")


def apply(made: Guarded, more: str = "", words: str = "") -> None:
    text = gluon(made.lab)
    assert text.count('["arp"') == 1
    made.file.write_text(text.replace('["arp"', f'[{words}"arp"') + more)
    made.apply()


def arrived(made: Guarded, sents: dict[str, Sent], where: str = "wan") -> set[str]:
    """Return which of the datagrams reach the home, or the mesh."""
    sniffer = {"wan": made.lab.wan, "mesh": made.lab.mesh_sniffer}[where]
    sniffer.wait_for(lambda _: False, 0.2)
    payloads = [frame.payload for frame in sniffer.frames()]
    return {name for name, sent in sents.items() if any(sent.token in payload for payload in payloads)}


def udp(made: Guarded, host: str, dport: int, sport: int = 0, uid: int = USER, device: str | None = None) -> Sent:
    sent: Sent = made.lab.node.call(send, host, dport, sport, device, uid=uid, gid=OTHER_GID)
    return sent


def greeting(made: Guarded, host: str, port: int, uid: int = USER) -> str:
    return str(made.lab.node.call(greet, host, port, uid=uid, gid=OTHER_GID))


def test_lan_is_reached_and_nothing_else(made: Guarded) -> None:
    lab = made.lab
    apply(made)
    assert greeting(made, NAS[4], 445) != "hello", "the control: without the word, the guard drops it"
    apply(made, LAN)
    with Watched(made):
        wait_until(
            lambda: "proto 78" in lab.node.run(["ip", "route", "show", "192.168.77.0/24"]).stdout, 10, "its route"
        )
        lab.wan.drain(), lab.mesh_sniffer.drain()
        sents = {}
        for family, host in NAS.items():
            assert greeting(made, host, 445) == "hello"
            sents[f"host {family}"] = udp(made, host, 137)
            sents[f"DNS {family}"] = udp(made, host, DNS)
            assert sents[f"DNS {family}"].error == errno.EPERM
            sents[f"far {family}"] = udp(made, FAR[family], 137)
            sents[f"public {family}"] = udp(made, at.HOME[family], 137)
        assert arrived(made, sents) == {"host 4", "host 6"}
        assert {"far 4", "far 6"} <= arrived(made, sents, "mesh"), "a default route by the uplink is not used"
        run = run_probes(lab)
        assert run.unmarked() == []
        assert {frame.daddr for frame in run.unexplained()} <= set(NAS.values())
        proof = made.nftpolicy("verify", "--live").stdout
        assert proof.startswith("proved") and "lan all (192.168.77.0/24, 10.0.0.0/8" in proof
        assert made.nftpolicy("status").returncode == 0
        made.release()
        assert "proto 78" not in lab.node.run(["ip", "route"]).stdout
    assert arrived(made, {"DNS": udp(made, NAS[4], DNS)}), "the control: without the policy, DNS reaches the network"


def test_lan_of_user_and_ports_is_no_wider(made: Guarded) -> None:
    apply(made, LAN_OF_USER)
    made.lab.wan.drain()
    sents = {}
    for family, host in NAS.items():
        assert greeting(made, host, 445) == "hello"
        sents[f"right {family}"] = udp(made, host, 138)
        sents[f"port {family}"] = udp(made, host, 140)
        sents[f"user {family}"] = udp(made, host, 138, uid=OTHER_USER)
    assert arrived(made, sents) == {"right 4", "right 6"}
    assert greeting(made, NAS[4], 8080) != "hello"
    made.release()
    assert greeting(made, NAS[4], 8080) == "hello", "the control: without the policy, the port is reached"
    assert "connected now" not in made.nftpolicy("check", POLICY).stderr
    made.file.write_text(gluon(made.lab) + LAN_OF_USER.replace("77", "78"))
    assert (
        f"lan.files.to: none of its networks is connected now; {at.WAN} has " in made.nftpolicy("check", POLICY).stderr
    )


def test_lan_carries_no_packet_of_another_machine(made: Guarded) -> None:
    lab = made.lab
    lab.node.nft(MASQUERADE)
    try:
        apply(made, LAN)
        lab.wan.drain()
        forwarded = {host: lab.client.call(send, host, 137, 0, None) for host in NAS.values()}
        assert arrived(made, forwarded) == set()
        made.release()
        forwarded = {host: lab.client.call(send, host, 137, 0, None) for host in NAS.values()}
        assert arrived(made, forwarded) == set(NAS.values()), "inconclusive: not forwarded without the policy either"
    finally:
        lab.node.nft("delete table inet test-masquerade")


def test_local_discovery_reaches_groups_and_hosts(made: Guarded) -> None:
    """Queries and announcements to the groups, answers by unicast; from another port, or to the Internet, nothing."""
    apply(made, words='"mdns", "ssdp", ')
    made.lab.wan.drain()
    sents = {}
    for family, port in GROUPS:
        group, name = GROUPS[family, port], f"{port} {family}"
        sents |= {
            f"right: query {name}": udp(made, group, port, device=at.WAN),
            f"right: announcement {name}": udp(made, group, port, port, device=at.WAN),
            f"right: answer {name}": udp(made, NAS[family], 40000, port),
            f"other port {name}": udp(made, group, port + 1, port + 1, device=at.WAN),
            f"answer from another port {name}": udp(made, NAS[family], 40000, port + 1),
            f"query of one host {name}": udp(made, NAS[family], port),
            f"public {name}": udp(made, at.NEIGHBOUR[family], 40000, port),
        }
    assert arrived(made, sents) == {name for name in sents if name.startswith("right")}
    made.release()
    public = {str(family): udp(made, at.NEIGHBOUR[family], 40000, MDNS) for family in at.FAMILIES}
    assert arrived(made, public) == set(public), "inconclusive: not sent without the policy either"


def answer(family: int, port: int) -> None:
    """Answer one question to broadcast or multicast, as NetBIOS and LLMNR do."""
    with socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", port))
        if family == 6:
            group = socket.inet_pton(socket.AF_INET6, LLMNR_GROUP) + struct.pack("=I", socket.if_nametoindex(at.WAN))
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        while True:
            data, peer = server.recvfrom(2048)
            with contextlib.suppress(PermissionError):
                server.sendto(data, peer)


def question(group: str, port: int) -> bytes:
    """Return the answer to a question, which is asked again for some time."""
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    token = os.urandom(8)
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br-lan")
        if family == socket.AF_INET:
            client.bind((NAS[4], 0))
        client.settimeout(0.1)
        for _ in range(5):
            client.sendto(token, (group, port))
            with contextlib.suppress(TimeoutError):
                return client.recv(2048) if client.recv(2048, socket.MSG_PEEK) == token else b""
    return b""


def test_questions_to_groups_are_answered_from_a_port(made: Guarded) -> None:
    lab = made.lab
    groups = (("255.255.255.255", NETBIOS), ("192.168.77.255", NETBIOS), (LLMNR_GROUP, LLMNR))
    servers = [lab.node.spawn(answer, 4, NETBIOS), lab.node.spawn(answer, 6, LLMNR)]
    apply(made)
    assert not any(lab.home.call(question, *group) for group in groups), "the control: without the words, no answer"
    apply(made, LAN_OF_ANSWERS)
    assert all(lab.home.call(question, *group) for group in groups)
    for process in servers:
        lab.node.end(process)
    lab.wan.drain()
    sents = {
        "right": udp(made, NAS[4], 40000, NETBIOS, uid=0),
        "other port": udp(made, NAS[4], 40000, NETBIOS + 1, uid=0),
        "DNS": udp(made, NAS[4], DNS, NETBIOS, uid=0),
        "public": udp(made, at.NEIGHBOUR[4], 40000, NETBIOS, uid=0),
    }
    assert arrived(made, sents) == {"right"}
    made.release()


def test_server_answers_public_hosts_and_all_at_once(made: Guarded) -> None:
    lab = made.lab
    for network, node, home in PUBLIC.values():
        flag, length = " nodad" if ":" in node else "", network.partition("/")[2]
        lab.node.ip(f"addr add {node}/{length} dev {at.WAN}{flag}")
        lab.home.ip(f"addr add {home}/{length} dev br-lan{flag}")
    apply(made, LAN_OF_SERVER, '"dhcpv4-server", "dhcpv6-server", ')
    with Watched(made):
        wait_until(lambda: "proto 78" in lab.node.run(["ip", "route", "show", PUBLIC[4][0]]).stdout, 10, "its route")
        lab.wan.drain()
        sents = {
            "right: all": udp(made, BROADCAST, 40000, DISCOVERY, device=at.WAN),
            "right: group 4": udp(made, "239.255.255.250", DISCOVERY, DISCOVERY, device=at.WAN),
            "right: group 6": udp(made, "ff02::c", DISCOVERY, DISCOVERY, device=at.WAN),
            "right: DHCP to all": udp(made, BROADCAST, 68, 67, uid=0, device=at.WAN),
            "right: DHCP to one": udp(made, PUBLIC[4][2], 68, 67, uid=0),
            "right: DHCPv6 to one": udp(made, at.HOME_LINK_LOCAL, 546, 547, uid=0, device=at.WAN),
            "DHCPv6 to a global address": udp(made, PUBLIC[6][2], 546, 547, uid=0),
            "all, another port": udp(made, BROADCAST, 40000, DISCOVERY + 1, device=at.WAN),
            "group, another port": udp(made, "239.255.255.250", DISCOVERY, device=at.WAN),
            "another group": udp(made, "239.254.0.1", DISCOVERY, DISCOVERY, device=at.WAN),
            "DHCP from another port": udp(made, BROADCAST, 68, 1067, uid=0, device=at.WAN),
            "DHCP to another port": udp(made, BROADCAST, 69, 67, uid=0, device=at.WAN),
        }
        for family, (_, _, host) in PUBLIC.items():
            sents[f"right: public {family}"] = udp(made, host, 40000, DISCOVERY)
            sents[f"public {family}, another port"] = udp(made, host, 40000, DISCOVERY + 1)
        assert arrived(made, sents) == {name for name in sents if name.startswith("right")}
        assert made.nftpolicy("verify", "--live").stdout.startswith("proved")
    made.release()
    controls = {host: udp(made, host, 40000, DISCOVERY + 1) for _, _, host in PUBLIC.values()}
    controls["all"] = udp(made, BROADCAST, 40000, DISCOVERY + 1, device=at.WAN)
    assert arrived(made, controls) == set(controls), "inconclusive: not sent without the policy either"
