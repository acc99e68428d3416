"""Forwards and published ports: packets of other machines by the uplink, and no others.

The client is a container or a host of the LAN. The mesh is the tunnel, which is the default route.
"""

import contextlib
import errno
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.guarded_lab import Guarded, gluon, guarded_lab, no_wan_routes_in_main, wan_routes_in_main, watching
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.topology import Lab

families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])
OTHER, OTHER_NET = "primary0", {4: "203.0.114.0/24", 6: "2001:db8:14::/64"}  # a second device inside
OTHER_NODE, OTHER_HOST = {4: "203.0.114.1", 6: "2001:db8:14::1"}, {4: "203.0.114.2", 6: "2001:db8:14::2"}
PORT = 8080
FORWARD = f"""
[forward.client]
uplink     = "wan"
from       = ["{at.CLIENT}"]
source     = ["{at.CLIENT_NET[4]}", "{at.CLIENT_NET[6]}"]
masquerade = true
"""
SPLIT = FORWARD + f'ports = ["udp/{at.ECHO_PORT}"]\nto = ["{at.SERVER_NET[4]}", "{at.SERVER_NET[6]}"]\n'
PUBLISH = f"""
[publish.web]
uplink = "wan"
port   = "tcp/{PORT}"
to     = "{at.CLIENT}"
"""
# As Docker and podman write it, without their other chains.
DNAT = f"""
table inet test-dnat {{
    chain pre {{
        type nat hook prerouting priority dstnat; policy accept;
        meta nfproto ipv4 tcp dport {PORT} fib daddr type local dnat ip to {at.CLIENT_ADDRESS[4]}:80
        meta nfproto ipv6 tcp dport {PORT} fib daddr type local dnat ip6 to [{at.CLIENT_ADDRESS[6]}]:80
        meta nfproto ipv4 tcp dport {PORT + 1} fib daddr type local dnat ip to {at.CLIENT_ADDRESS[4]}:80
    }}
}}
"""


TUNNEL_NAT = f"""
table inet tunnel-nat {{
    chain post {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{at.MESH}" snat ip to {at.NODE_MESH[4]}
        oifname "{at.MESH}" snat ip6 to {at.NODE_MESH[6]}
    }}
}}
"""


class Forwarding:
    """The guarded lab, its policy exchanged by each test."""

    def __init__(self, guarded: Guarded) -> None:
        self.guarded, self.lab = guarded, guarded.lab

    def policy(self, *parts: str) -> None:
        self.guarded.file.write_text("".join((gluon(self.lab), *parts)))
        self.guarded.apply()

    def sources(self, word: bytes, seconds: float = 0.0) -> dict[str, set[str]]:
        """Return the source addresses of the frames with a payload, by uplink and mesh."""
        time.sleep(seconds)
        sniffers = {"wan": self.lab.wan, "mesh": self.lab.mesh_sniffer}
        found = {
            name: {frame.saddr or "" for frame in sniffer.frames() if word in frame.payload}
            for name, sniffer in sniffers.items()
        }
        return {name: addresses for name, addresses in found.items() if addresses}

    def sent(self, family: int, word: bytes, port: int = at.ECHO_PORT, space: str = "client") -> dict[str, set[str]]:
        """Send datagrams to the server and return where they are seen."""
        self.drain()
        sender = self.lab.client if space == "client" else self.lab.other
        sender.call(inbound_clients.udp, at.SERVER[family], port, word)
        return self.sources(word)

    def drain(self) -> None:
        self.lab.wan.drain(), self.lab.mesh_sniffer.drain()

    def count(self, name: str) -> int:
        return self.guarded.counters()[f"inet/{name}"]


def with_other(lab: Lab, stack: contextlib.ExitStack) -> None:
    """Add a host at a device inside that no forward names."""
    lab.other = stack.enter_context(Namespace("other"))
    veth(lab.node, OTHER, lab.other, "eth0")
    for family in at.FAMILIES:
        length = OTHER_NET[family].split("/")[1]
        lab.node.ip(f"addr add {OTHER_NODE[family]}/{length} dev {OTHER} nodad")
        lab.other.ip(
            f"addr add {OTHER_HOST[family]}/{length} dev eth0 nodad",
            f"-{family} route add default via {OTHER_NODE[family]}",
        )
        lab.mesh.ip(f"-{family} route add {OTHER_NET[family]} via {at.NODE_MESH[family]}")
        lab.server.ip(f"-{family} route add {OTHER_NET[family]} via {at.MESH_TO_SERVER[family]}")


@pytest.fixture(scope="module")
def forwarding() -> Iterator[Forwarding]:
    with contextlib.ExitStack() as stack:
        guarded = stack.enter_context(guarded_lab())
        with_other(guarded.lab, stack)
        yield Forwarding(guarded)


@families
def test_forwarded_packets_leave_by_uplink_only(forwarding: Forwarding, family: int) -> None:
    forwarding.policy(FORWARD)
    own = {forwarding.lab.wan_address(family)}
    assert forwarding.sent(family, b"by-uplink") == {"wan": own}
    answer = forwarding.lab.client.call(inbound_clients.udp, at.SERVER[family], at.ECHO_PORT, b"answer", 5)
    assert answer == b"answer"
    assert forwarding.lab.client.call(inbound_clients.tcp, at.SERVER[family], at.ECHO_PORT, b"stream", 5) == b"stream"
    assert forwarding.lab.client.call(inbound_clients.ping, at.SERVER[family], 5)
    assert forwarding.count("wan.forward.client") > 0


@families
def test_hosts_of_other_devices_do_not_use_uplink(forwarding: Forwarding, family: int) -> None:
    forwarding.policy(FORWARD)
    assert forwarding.sent(family, b"tunnel", space="other") == {"mesh": {OTHER_HOST[family]}}
    with uplink_in_main(forwarding.lab):
        assert forwarding.sent(family, b"other", space="other") == {}
        with forwarding.guarded.off():
            assert forwarding.sent(family, b"off", space="other") == {"wan": {OTHER_HOST[family]}}, "inconclusive"


@families
def test_split_forward_leaves_the_rest_to_tunnel(forwarding: Forwarding, family: int) -> None:
    forwarding.policy(SPLIT)
    assert forwarding.sent(family, b"split") == {"wan": {forwarding.lab.wan_address(family)}}
    assert forwarding.sent(family, b"port", port=9) == {"mesh": {at.CLIENT_ADDRESS[family]}}
    assert forwarding.lab.client.call(inbound_clients.tcp, at.SERVER[family], at.ECHO_PORT, b"tcp", 5) == b"tcp"
    assert set(forwarding.sources(b"tcp")) == {"mesh"}


@families
def test_networks_inside_reach_each_other(forwarding: Forwarding, family: int) -> None:
    """The other host is in no `source`; with its network there, its packets stay inside."""
    both = FORWARD.replace(f'"{at.CLIENT_NET[6]}"', f'"{at.CLIENT_NET[6]}", "{OTHER_NET[4]}", "{OTHER_NET[6]}"')
    forwarding.policy(both)
    with inbound_clients.listening(forwarding.lab.other, 81):
        assert forwarding.lab.client.call(inbound_clients.tcp, OTHER_HOST[family], 81, b"inside", 5) == b"inside"


@families
def test_errors_about_forwarded_packets_reach_their_host(forwarding: Forwarding, family: int) -> None:
    """The kernel's error has the mark of the packet (fwmark_reflect), and goes to the host all the same."""
    forwarding.policy(FORWARD)
    assert forwarding.lab.client.call(expired, family, at.SERVER[family]) == "EHOSTUNREACH"
    assert forwarding.lab.client.call(too_big, family, at.SERVER[family], 1400) == "no error", "inconclusive"
    forwarding.lab.node.ip(f"link set {at.WAN} mtu 1300")
    try:
        assert forwarding.lab.client.call(too_big, family, at.SERVER[family], 1400) == "EMSGSIZE"
    finally:
        forwarding.lab.node.ip(f"link set {at.WAN} mtu 1500")
        forwarding.lab.client.ip("route flush cache", "-6 route flush cache")


@families
def test_published_port_answers_by_its_uplink(forwarding: Forwarding, family: int) -> None:
    lab = forwarding.lab
    own = lab.wan_address(family)
    lab.node.nft(DNAT)
    try:
        with inbound_clients.listening(lab.client, 80):
            forwarding.policy(FORWARD)
            assert lab.neighbour.call(inbound_clients.tcp, own, PORT, b"closed") == inbound_clients.NO_ANSWER
            forwarding.policy(PUBLISH)
            for host in (lab.neighbour, lab.server):
                forwarding.drain()
                assert host.call(inbound_clients.tcp, own, PORT, b"published", 5) == b"published"
                assert forwarding.sources(b"published") == {"wan": {own}}
            assert forwarding.count("wan.publish.web") > 0
            forwarding.drain()
            if family == 4:  # a port that only the other program publishes
                answer = lab.neighbour.call(inbound_clients.tcp, own, PORT + 1, b"hidden")
                assert answer == inbound_clients.NO_ANSWER
            with forwarding.guarded.off():
                forwarding.drain()
                lab.server.call(inbound_clients.tcp, own, PORT, b"astray")
                seen = {frame.sport for frame in lab.mesh_sniffer.frames() if frame.saddr == own}
                assert PORT in seen, "inconclusive: without the policy, replies leave by the mesh"
    finally:
        lab.node.nft("delete table inet test-dnat")


@families
def test_flow_from_before_keeps_no_other_address(forwarding: Forwarding, family: int) -> None:
    """A flow that began without NAT, or with the tunnel's address, does not leave by the uplink with it.

    (Of `masquerade`, the kernel itself drops the packet, and the flow: nf_nat_oif_changed.)
    """
    lab = forwarding.lab
    for nat in ("", TUNNEL_NAT):
        forwarding.policy()
        if nat:
            lab.node.nft(nat)
        source = at.NODE_MESH[family] if nat else at.CLIENT_ADDRESS[family]
        with lab.client.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM) as flow:
            forwarding.drain()
            flow.settimeout(5)
            flow.connect((at.SERVER[family], at.ECHO_PORT))
            flow.send(b"before")
            assert flow.recv(100) == b"before", "inconclusive"
            assert forwarding.sources(b"before") == {"mesh": {source}}, "inconclusive"
            if nat:
                lab.node.nft("delete table inet tunnel-nat")
            forwarding.policy(FORWARD)
            refused = forwarding.count("wan.not-forwarded")
            flow.send(b"after")
            assert forwarding.sources(b"after", 0.3) == {}
            assert forwarding.count("wan.not-forwarded") > refused
        assert forwarding.sent(family, b"later") == {"wan": {lab.wan_address(family)}}


def test_requests_from_before_get_no_reply_by_tunnel(forwarding: Forwarding) -> None:
    """A connection to a published port that began before the policy: its replies leave by no device."""
    lab, own = forwarding.lab, forwarding.lab.wan_address(4)
    lab.node.nft(DNAT)
    forwarding.guarded.release()
    try:
        with uplink_in_main(lab), inbound_clients.listening(lab.client, 80), lab.neighbour.socket(2, 1) as flow:
            flow.settimeout(5)
            flow.connect((own, PORT))
            flow.send(b"before")
            assert flow.recv(100) == b"before", "inconclusive"
            forwarding.policy(PUBLISH)
            forwarding.drain()
            flow.send(b"after")
            assert forwarding.sources(b"after", 0.3) == {}
        with inbound_clients.listening(lab.client, 80):
            assert lab.neighbour.call(inbound_clients.tcp, own, PORT, b"again", 5) == b"again"
    finally:
        lab.node.nft("delete table inet test-dnat")


@families
def test_forward_without_nat_gets_its_answers(forwarding: Forwarding, family: int) -> None:
    lab = forwarding.lab
    forwarding.policy(FORWARD.replace("masquerade = true", ""))
    lab.home.ip(f"-{family} route add {at.CLIENT_NET[family]} via {lab.wan_address(family)}")
    lab.server.ip(f"-{family} route replace {at.CLIENT_NET[family]} via {at.HOME_TO_SERVER[family]}")
    try:
        assert forwarding.sent(family, b"routed") == {"wan": {at.CLIENT_ADDRESS[family]}}
        answer = lab.client.call(inbound_clients.tcp, at.SERVER[family], at.ECHO_PORT, b"answer", 5)
        assert answer == b"answer"
        # A host by the uplink begins no flow to the client.
        with inbound_clients.listening(lab.client, 81):
            refused = forwarding.count("wan.not-local")
            assert lab.server.call(inbound_clients.tcp, at.CLIENT_ADDRESS[family], 81) == inbound_clients.NO_ANSWER
            assert forwarding.count("wan.not-local") > refused
    finally:
        lab.home.ip(f"-{family} route del {at.CLIENT_NET[family]}")
        lab.server.ip(f"-{family} route replace {at.CLIENT_NET[family]} via {at.MESH_TO_SERVER[family]}")


@families
def test_forged_answers_do_not_reach_hosts_inside(forwarding: Forwarding, family: int) -> None:
    """A packet of the uplink's network with the addresses and ports of a flow by the tunnel."""
    lab, port = forwarding.lab, 9
    forwarding.policy(SPLIT.replace("masquerade = true", ""))
    with lab.client.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM) as flow:
        flow.sendto(b"by-tunnel", (at.SERVER[family], port))  # not connected, so that its error is not reported
        wait_until(lambda: forwarding.sources(b"by-tunnel"), 5, "the datagram")
        assert set(forwarding.sources(b"by-tunnel")) == {"mesh"}, "inconclusive"
        ends = (at.SERVER[family], port, at.CLIENT_ADDRESS[family], flow.getsockname()[1])
        refused = forwarding.count("wan.not-local")
        lab.home.call(forged, ends, lab.wan_address(family), b"forged")
        wait_until(lambda: forwarding.count("wan.not-local") > refused, 5, "the forged packet")
        flow.settimeout(0.3)
        with pytest.raises(TimeoutError):
            flow.recv(100)
        with forwarding.guarded.off():
            lab.home.call(forged, ends, lab.wan_address(family), b"off")
            flow.settimeout(5)
            assert flow.recv(100) == b"off", "inconclusive"


@pytest.mark.parametrize("tunnel", ["up", "down"])
def test_flood_of_lan_leaves_nothing_astray(forwarding: Forwarding, tunnel: str) -> None:
    """Datagrams of two devices to a port of the forward and to others: each by its own way, or by none."""
    lab = forwarding.lab
    forwarding.policy(SPLIT)
    with uplink_in_main(lab), contextlib.ExitStack() as stack:
        if tunnel == "down":
            lab.mesh_down()
            stack.callback(lab.mesh_up)
        forwarding.drain()
        with watching(lab) as watch:
            for family in at.FAMILIES:
                for space, port in ((lab.client, at.ECHO_PORT), (lab.client, 9), (lab.other, at.ECHO_PORT)):
                    space.call(flood, family, at.SERVER[family], port, f"flood-{space.name}-{port}".encode(), 300)
            seen = {(frame.payload, frame.saddr) for frame in lab.wan.frames() if frame.payload.startswith(b"flood-")}
            assert seen == {(b"flood-client-7", lab.wan_address(family)) for family in at.FAMILIES}
            assert (watch.unmarked, watch.stray) == (0, 0)
        with forwarding.guarded.off():
            for family in at.FAMILIES:
                lab.other.call(flood, family, at.SERVER[family], 9, b"off", 3)
            seen = {frame.saddr for frame in lab.wan.frames() if frame.payload == b"off"}
            assert seen == set(OTHER_HOST.values()), "inconclusive"


@contextlib.contextmanager
def uplink_in_main(lab: Lab) -> Iterator[None]:
    """Yield while table main leads to the uplink, where the guard alone holds packets back."""
    wan_routes_in_main(lab)
    try:
        yield
    finally:
        no_wan_routes_in_main(lab)


def forged(ends: tuple[str, int, str, int], router: str, word: bytes) -> None:
    """Send a datagram with a foreign source to a host behind the router, from the namespace of the process."""
    source, sport, destination, dport = ends
    family = 6 if ":" in source else 4
    subprocess.run(["ip", f"-{family}", "route", "replace", destination, "via", router], check=True)
    domain, level, transparent = (
        (socket.AF_INET, socket.IPPROTO_IP, _IP_TRANSPARENT)
        if family == 4
        else (socket.AF_INET6, socket.IPPROTO_IPV6, _IPV6_TRANSPARENT)
    )
    try:
        with socket.socket(domain, socket.SOCK_DGRAM) as made:
            made.setsockopt(level, transparent, 1)
            made.bind((source, sport))
            made.sendto(word, (destination, dport))
    finally:
        subprocess.run(["ip", f"-{family}", "route", "del", destination], check=True)


def flood(family: int, address: str, port: int, word: bytes, number: int) -> None:
    """Send datagrams from as many ports."""
    for _ in range(number):
        with socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM) as made:
            with contextlib.suppress(OSError):
                made.sendto(word, (address, port))


_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h
_IP_TTL, _IP_RECVERR, _IP_MTU_DISCOVER, _DO = 2, 11, 10, 2  # linux/in.h
_IPV6_UNICAST_HOPS, _IPV6_RECVERR, _IPV6_MTU_DISCOVER = 16, 25, 23  # linux/in6.h


def expired(family: int, address: str) -> str:
    """Send a datagram that its first router discards; return the name of the error that the router reports."""
    return _error(family, address, (_IP_TTL if family == 4 else _IPV6_UNICAST_HOPS, 1), b"expired")


def too_big(family: int, address: str, length: int) -> str:
    """Send datagrams that no router may fragment; return the name of the error that a router reports."""
    return _error(family, address, (_IP_MTU_DISCOVER if family == 4 else _IPV6_MTU_DISCOVER, _DO), b"x" * length)


def _error(family: int, address: str, option: tuple[int, int], data: bytes) -> str:
    domain, level = (socket.AF_INET, socket.IPPROTO_IP) if family == 4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
    with socket.socket(domain, socket.SOCK_DGRAM) as made:
        made.setsockopt(level, *option)
        made.setsockopt(level, _IP_RECVERR if family == 4 else _IPV6_RECVERR, 1)
        made.connect((address, 9 if data == b"expired" else at.ECHO_PORT))
        made.settimeout(1)
        try:
            made.send(data)
            made.recv(2000)
        except TimeoutError:
            return "silence"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "no error"
