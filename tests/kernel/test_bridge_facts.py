"""An uplink that is a bridge: the view at egress of the bridge and of its ports, and the origin of frames."""

import socket
from collections.abc import Iterator

import pytest

from tests.lab import addresses as at
from tests.lab.frames import ETH_PRIVATE
from tests.lab.netns import Namespace, veth
from tests.lab.sniffer import Sniffer

from .two_link_node import NOBODY, NODE_WAN, WAN, counted

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("egress")]

PORT, SECOND, GUEST = at.WAN_PORT, "wlan-private", "guest0"
COLLECT = f"""
table netdev collect {{
    counter at-bridge {{ }}
    counter at-port {{ }}
    counter with-iif {{ }}
    counter without-iif {{ }}
    counter for-host {{ }}
    counter not-for-host {{ }}
    counter marked {{ }}
    counter owned {{ }}
    chain on-bridge {{
        type filter hook egress device {WAN} priority 0; policy accept;
        WHAT counter name at-bridge
    }}
    chain on-port {{
        type filter hook egress device {PORT} priority 0; policy accept;
        WHAT counter name at-port
        WHAT meta iif != 0 counter name with-iif
        WHAT meta iif 0 counter name without-iif
        WHAT meta pkttype != host counter name not-for-host
        WHAT meta pkttype host counter name for-host
        WHAT meta mark 7 counter name marked
        WHAT meta skuid {NOBODY} counter name owned
    }}
}}
"""
FRAMES, DATAGRAMS = f"ether type {ETH_PRIVATE:#x}", "udp dport 9"
TARGETS = {
    "known": at.HOME_MAC,  # learnt by the bridge
    "unknown": at.NEIGHBOUR_MAC,
    "broadcast": "ff:ff:ff:ff:ff:ff",
    "multicast": "33:33:00:00:12:34",
}
targets = pytest.mark.parametrize("target", TARGETS)


class Bridge:
    """A node whose WAN is a bridge of two ports: one to the home, one to a guest."""

    def __init__(self, node: Namespace, home: Namespace, guest: Namespace) -> None:
        veth(home, "h0", node, PORT, at.HOME_MAC)
        veth(guest, GUEST, node, SECOND)
        node.ip(
            f"link add {WAN} address {at.NODE_WAN_MAC} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {PORT} master {WAN}",
            f"link set {SECOND} master {WAN}",
            f"link set {WAN} up",
            f"addr add {NODE_WAN[4]}/24 dev {WAN}",
            f"addr add {NODE_WAN[6]}/64 dev {WAN}",
            f"neigh add {at.HOME[4]} lladdr {at.HOME_MAC} dev {WAN}",
        )
        self.node, self.home, self.guest = node, home, guest
        self.sniffer = Sniffer(home, "h0")
        self.frame(home, "h0", TARGETS["broadcast"], b"", at.HOME_MAC)  # so that the bridge knows where the home is

    @staticmethod
    def frame(space: Namespace, device: str, target: str, body: bytes, source: str = "02:00:5e:00:53:77") -> None:
        with space.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
            ends = bytes.fromhex((target + source).replace(":", ""))
            made.sendto(ends + ETH_PRIVATE.to_bytes(2, "big") + body.ljust(46, b"\0"), (device, ETH_PRIVATE))

    def arrives(self, body: bytes) -> None:
        found = self.sniffer.wait_for(lambda frame: body in frame.payload, 1)
        assert found, "the positive control: the frame must leave by the port"


@pytest.fixture
def bridge(node: Namespace, far: Namespace) -> Iterator[Bridge]:
    with Namespace("guest") as guest:
        made = Bridge(node, far, guest)
        with made.sniffer:
            yield made


def seen(bridge: Bridge, space: Namespace, device: str, target: str) -> set[str]:
    """Return the counters that count one AF_PACKET frame."""
    bridge.node.nft(COLLECT.replace("WHAT", FRAMES))
    body = f"{space.name} {device} {target}".encode()

    def pass_() -> None:
        bridge.frame(space, device, TARGETS[target], body)
        bridge.arrives(body)

    return counted(bridge.node, pass_)


@targets
def test_K5_af_packet_on_port_skips_bridge_egress(bridge: Bridge, target: str) -> None:
    """A frame that AF_PACKET sends on a port passes egress of the port, not of the bridge."""
    found = seen(bridge, bridge.node, PORT, target)
    assert "at-port" in found, "frames sent on a port leave unseen: the link guard cannot cover bridges"
    assert "at-bridge" not in found, "egress of the bridge suffices here: the chains on the ports could go"


@targets
def test_K5_af_packet_on_bridge_passes_both_egress_hooks(bridge: Bridge, target: str) -> None:
    """A frame that AF_PACKET sends on the bridge passes egress of the bridge and then of the port."""
    found = seen(bridge, bridge.node, WAN, target)
    assert found >= {"at-bridge", "at-port"}, "one of the two link guards does not see frames of the bridge"


@targets
def test_K5_bridged_frame_passes_port_egress_only(bridge: Bridge, target: str) -> None:
    """A frame from a second port passes egress of the port by which it leaves, not of the bridge."""
    found = seen(bridge, bridge.guest, GUEST, target)
    assert "at-port" in found and "at-bridge" not in found, "bridged traffic takes another way: see who may drop it"


@targets
@pytest.mark.parametrize("origin", ["port", "bridge", "bridged"])
def test_K5_frame_at_egress_has_no_input_device(bridge: Bridge, origin: str, target: str) -> None:
    """`meta iif` is 0 at egress of a port for every frame, bridged ones too: it does not show the origin of a frame."""
    space, device = {"port": (bridge.node, PORT), "bridge": (bridge.node, WAN), "bridged": (bridge.guest, GUEST)}[
        origin
    ]
    found = seen(bridge, space, device, target)
    # Kernels before 5.18 hand the device over as the incoming one (upstream d645552e9bd9): then all show it.
    assert {"with-iif", "without-iif"} & found == {"without-iif"}, (
        "egress reports an incoming device: a rule `iif != 0 accept` would let this machine's own frames pass"
        if origin != "bridged"
        else "bridged frames show their port here: `iif != 0` could tell them apart, if own frames do not show one"
    )


@targets
@pytest.mark.parametrize("origin", ["port", "bridge", "bridged"])
def test_K5_pkttype_at_egress_separates_bridged_frames(bridge: Bridge, origin: str, target: str) -> None:
    """`meta pkttype` at egress of a port is host for frames of this machine, never for frames from a second port."""
    space, device = {"port": (bridge.node, PORT), "bridge": (bridge.node, WAN), "bridged": (bridge.guest, GUEST)}[
        origin
    ]
    expected = "not-for-host" if origin == "bridged" else "for-host"
    found = {"for-host", "not-for-host"} & seen(bridge, space, device, target)
    assert found == {expected}, "the guard of bridge ports cannot go by `meta pkttype`: it would let own frames pass"


def _speak() -> None:
    """Send one datagram of each kind, each with mark 7."""
    index = socket.if_nametoindex(WAN)
    kinds = [
        (socket.AF_INET, (at.HOME[4], 9)),
        (socket.AF_INET, ("192.0.2.255", 9)),
        (socket.AF_INET, ("239.1.2.3", 9)),
        (socket.AF_INET6, ("ff02::1234", 9, 0, index)),
    ]
    for domain, target in kinds:
        with socket.socket(domain, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, WAN.encode())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
            made.sendto(b"spoken", target)


def test_K5_ip_packet_at_port_egress_has_mark_and_owner(bridge: Bridge) -> None:
    """IP packets of a socket, broadcast and multicast too, show mark, skuid and packet type host at the port."""
    bridge.node.nft(COLLECT.replace("WHAT", DATAGRAMS))

    def pass_() -> None:
        bridge.node.call(_speak, uid=NOBODY, keep_caps=True)
        bridge.arrives(b"spoken")

    found = counted(bridge.node, pass_)
    assert found >= {"at-bridge", "at-port", "marked", "owned"}, "the link guard of a port cannot ask for the mark"
    assert "not-for-host" not in found, "own multicast looks bridged at the port: the guard must not go by pkttype"


def test_K5_forwarded_packet_at_egress_has_pkttype_host(bridge: Bridge) -> None:
    """A packet that the node routes to the WAN has packet type host at the port, so that the guard meets it there."""
    with Namespace("client") as client:
        veth(client, "eth0", bridge.node, at.CLIENT)
        bridge.node.ip(f"addr add {at.NODE_CLIENT[4]}/25 dev {at.CLIENT}")
        bridge.node.sysctl("net.ipv4.ip_forward", 1)
        client.ip(f"addr add {at.CLIENT_ADDRESS[4]}/25 dev eth0", f"route add default via {at.NODE_CLIENT[4]}")
        bridge.node.nft(COLLECT.replace("WHAT", DATAGRAMS))

        def pass_() -> None:
            with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.sendto(b"forwarded", (at.HOME[4], 9))
            bridge.arrives(b"forwarded")

        found = counted(bridge.node, pass_)
    assert {"for-host", "not-for-host"} & found == {"for-host"}, "forwarded packets look bridged: they would pass"
