"""Hooks that each packet passes, and the fields that are visible there."""

import os
import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.lab import addresses as at
from tests.lab import packet_senders, syscalls
from tests.lab.frames import classify
from tests.lab.netns import Namespace, search_path
from tests.lab.packet_senders import DISCARD, Job

from .two_link_node import FAR, MESH, WAN, TwoLinkNode, counted, counters, default

pytestmark = pytest.mark.kernel
families = pytest.mark.parametrize("family", at.FAMILIES)

REROUTED = f"""
table inet remark {{
    counter later-old {{ }}
    counter later-new {{ }}
    counter last-old {{ }}
    counter last-new {{ }}
    chain remark {{
        type route hook output priority -150; policy accept;
        udp dport {DISCARD} meta mark set 1
    }}
    chain later {{
        type filter hook output priority 0; policy accept;
        udp dport {DISCARD} oifname {MESH} counter name later-old
        udp dport {DISCARD} oifname {WAN} counter name later-new
    }}
    chain last {{
        type filter hook postrouting priority 0; policy accept;
        udp dport {DISCARD} oifname {MESH} counter name last-old
        udp dport {DISCARD} oifname {WAN} counter name last-new
    }}
}}
"""


@families
def test_K1_L15_rerouted_packet_shows_new_device_in_postrouting(two_links: TwoLinkNode, family: int) -> None:
    """A route chain changes mark and device: later output chains see the old device, postrouting sees the new one."""
    two_links.node.ip(default(MESH, family), default(WAN, family, "100"), f"-{family} rule add fwmark 1/1 lookup 100")
    two_links.node.nft(REROUTED)
    seen = two_links.counters_of(packet_senders.udp, family)
    assert "last-new" in seen and "last-old" not in seen, "the guard cannot be in postrouting: it belongs into egress"
    assert seen == {"later-old", "last-new"}, "an oifname test in the output hook would be sound here, unlike elsewhere"


VISIBLE = f"""
table inet visible {{
    counter output {{ }}
    counter postrouting {{ }}
    chain output {{
        type filter hook output priority 0; policy accept;
        udp dport {DISCARD} counter name output
    }}
    chain postrouting {{
        type filter hook postrouting priority 0; policy accept;
        udp dport {DISCARD} counter name postrouting
    }}
}}
table netdev visible {{
    counter egress {{ }}
    chain egress {{
        type filter hook egress device {WAN} priority 0; policy accept;
        udp dport {DISCARD} counter name egress
    }}
}}
"""
EVERYWHERE = {"output", "postrouting", "egress"}
HOLE = "the guard has a hole at this hook: packets of this kind leave unseen"


@pytest.mark.usefixtures("egress")
@pytest.mark.parametrize(
    ("sender", "family"),
    [
        (packet_senders.udp_bound, 4),
        (packet_senders.udp_pktinfo, 4),
        (packet_senders.udp_unicast_if, 4),
        (packet_senders.multicast_site, 4),
        (packet_senders.broadcast_limited, 4),
        (packet_senders.multicast_scope, 6),
        (packet_senders.unicast_scope, 6),
    ],
)
def test_L3_packet_of_bound_socket_passes_every_hook(
    two_links: TwoLinkNode, sender: Callable[[Job], None], family: int
) -> None:
    """A packet that routing cannot stop passes inet output, inet postrouting and netdev egress."""
    two_links.node.nft(VISIBLE)
    seen = two_links.counters_of(sender, family)
    assert seen == EVERYWHERE, HOLE


@families
@pytest.mark.usefixtures("egress")
@pytest.mark.parametrize("sender", [packet_senders.packet, packet_senders.packet_bypass], ids=["queued", "bypass"])
def test_L3_K4_af_packet_passes_egress_only(two_links: TwoLinkNode, sender: Callable[[Job], None], family: int) -> None:
    """AF_PACKET, even with PACKET_QDISC_BYPASS, passes netdev egress and no inet hook."""
    two_links.node.nft(VISIBLE)
    seen = two_links.counters_of(sender, family, uid=None)
    assert "egress" in seen, "AF_PACKET is covered by nothing here: the claim must be narrowed as without egress"
    assert seen == {"egress"}, "inet hooks see AF_PACKET here: the guard at postrouting covers more than it says"


DROPPED = {
    "nothing": "table inet stop {\n}\n",
    "output": "table inet stop {\n chain c {\n  type filter hook output priority 0; policy accept;\n  RULE\n }\n}\n",
    "postrouting": "table inet stop {\n chain c {\n  type filter hook postrouting priority 0; policy accept;\n"
    "  RULE\n }\n}\n",
    "egress": f"table netdev stop {{\n chain c {{\n  type filter hook egress device {WAN} priority 0; policy accept;\n"
    "  RULE\n }\n}\n",
}


@families
@pytest.mark.usefixtures("egress")
@pytest.mark.parametrize("hook", DROPPED)
def test_L16_drop_at_egress_alone_still_sends_neighbour_query(two_links: TwoLinkNode, hook: str, family: int) -> None:
    """A packet dropped in output or postrouting (EPERM) asks for no neighbour; one that egress would drop does."""
    two_links.node.ip(f"link set {WAN} arp on", f"-{family} route add {at.NEIGHBOUR[family]} dev {WAN}")
    two_links.node.nft(DROPPED[hook].replace("RULE", f"udp dport {DISCARD} drop"))
    target = socket.inet_pton({4: socket.AF_INET, 6: socket.AF_INET6}[family], at.NEIGHBOUR[family])
    result, left = two_links.send(packet_senders.udp_bound, family, patience=0.2)
    asked = any(
        (classify(frame) == "arp" and frame.daddr == at.NEIGHBOUR[4])
        or (frame.icmp_type == 135 and frame.payload.startswith(target))
        for frame in two_links.sniffers[WAN].frames()
    )
    assert not left, "no host answers, so no packet can leave"
    early = hook in ("output", "postrouting")
    assert asked is not early, "the order of neighbour resolution and this hook differs: see which layer must drop"
    assert result == ("EPERM" if early else "sent"), "programs learn in another way here that they were stopped"


@pytest.fixture
def macvlan(two_links: TwoLinkNode) -> Callable[[Namespace], None]:
    """Makes a macvlan child of the WAN in a namespace, with an address and a default route."""

    def make(space: Namespace) -> None:
        command = f"ip link add link {WAN} name child netns {space.pid} type macvlan"
        descriptor = os.open(two_links.node.path, os.O_RDONLY)
        try:  # in the network namespace only: inside the node, no process id of another namespace is known
            with syscalls.visit(descriptor, "net"):
                done = subprocess.run(command.split(), capture_output=True, text=True, env={"PATH": search_path()})
        finally:
            os.close(descriptor)
        if done.returncode:
            pytest.skip(f"no macvlan: {done.stderr.strip()}")
        space.ip("link set child up arp off", "addr add 192.0.2.9 dev child", "route add default dev child")

    return make


@pytest.mark.usefixtures("egress")
@pytest.mark.parametrize("inside", [True, False], ids=["same-namespace", "other-namespace"])
def test_L17_macvlan_child_passes_egress_of_parent(
    two_links: TwoLinkNode, macvlan: Callable[[Namespace], None], inside: bool
) -> None:
    """Packets of a macvlan child pass egress of the parent, even if the child is in another namespace."""
    with Namespace("container") as container:
        space = two_links.node if inside else container
        macvlan(space)
        two_links.node.nft(VISIBLE)
        payload = f"child {inside}".encode()

        def leave() -> None:
            with space.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.sendto(payload, (at.SERVER[4], DISCARD))
            assert two_links.left_by(payload) == {WAN}, "the positive control: the packet must leave by the parent"

        seen = counted(two_links.node, leave)
    message = "the guard must refuse macvlan children of an uplink: its chains do not see them"
    assert "egress" in seen, message
    # In the child's own namespace the inet hooks run as well, but with the child's name.
    assert ("postrouting" in seen) is inside, message


FRAME_TYPES = f"""
table netdev types {{
    counter says-arp {{ }}
    counter says-ip {{ }}
    counter is-arp {{ }}
    counter is-ip {{ }}
    counter is-vlan {{ }}
    counter is-readable {{ }}
    counter by-name {{ }}
    counter ethernet {{ }}
    counter has-user {{ }}
    chain egress {{
        type filter hook egress device {WAN} priority 0; policy accept;
        ip6 nexthdr 58 accept
        meta protocol arp counter name says-arp
        meta protocol ip counter name says-ip
        @ll,96,16 0x0806 counter name is-arp
        @ll,96,16 0x0800 counter name is-ip
        @ll,96,16 0x8100 counter name is-vlan
        @ll,96,16 0-65535 counter name is-readable
        ether type 0-65535 counter name by-name
        meta oiftype ether counter name ethernet
        meta skuid 0-4294967294 counter name has-user
    }}
}}
"""
ALWAYS, READABLE = {"ethernet", "has-user"}, {"is-readable", "by-name"}


@pytest.mark.parametrize(
    ("ethertype", "head", "bypass", "expected"),
    [
        (0x0806, b"\x08\x06", False, {"says-arp", "is-arp", *READABLE}),
        (0x0806, b"\x08\x00", False, {"says-arp", "is-ip", *READABLE}),
        (0x0800, b"\x08\x06", False, {"says-ip", "is-arp", *READABLE}),
        (0x0806, b"\x81\x00\0\x05\x08\x06", False, {"says-arp", "is-vlan", *READABLE}),
        (0x0806, b"\x08\x06", True, {"says-arp"}),
    ],
)
def test_L20_frame_type_at_egress_differs_from_meta_protocol(
    two_links: TwoLinkNode, ethertype: int, head: bytes, bypass: bool, expected: set[str]
) -> None:
    two_links.node.nft(FRAME_TYPES)

    def frame(job: Job) -> None:
        made = job.open(socket.AF_PACKET, socket.SOCK_RAW)
        if bypass:
            made.setsockopt(packet_senders._SOL_PACKET, packet_senders._PACKET_QDISC_BYPASS, 1)
        body = packet_senders._datagram(job, at.NEIGHBOUR) if head == b"\x08\x00" else bytes(28) + job.payload
        made.sendto(b"\xff" * 6 + bytes(6) + head + body, (WAN, ethertype))

    # Frames of the kernel, such as reports of its groups, may be counted too, but not each time.
    runs = (two_links.counters_of(frame, 4, uid=0) for _ in range(3))
    by_version = {"is-arp", *READABLE} if bypass else set()  # Linux 6.12 reads the frame, 6.18 does not
    assert set.intersection(*runs) - by_version == expected | ALWAYS


def test_L20_device_without_link_header_has_no_frame_type(two_links: TwoLinkNode) -> None:
    two_links.node.run(["ip", "tuntap", "add", "dev", "tun9", "mode", "tun"])
    two_links.node.ip("link set tun9 up")
    two_links.node.nft(FRAME_TYPES.replace(WAN, "tun9"))

    def leave() -> None:
        with two_links.node.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
            made.sendto(bytes(46), ("tun9", 0x0800))

    assert counted(two_links.node, leave) == {"says-ip", "has-user"}


NEIGHBOUR_USERS = f"""
table inet users {{
    counter unowned {{ }}
    counter owned {{ }}
    chain last {{
        type filter hook postrouting priority 0; policy accept;
        oifname {WAN} icmpv6 type {{ 135, 136 }} jump owner
    }}
    chain owner {{
        meta skuid 0-4294967294 counter name owned return
        counter name unowned
    }}
}}
table netdev users {{
    counter unowned-frame {{ }}
    counter owned-frame {{ }}
    chain egress {{
        type filter hook egress device {WAN} priority 0; policy accept;
        icmpv6 type {{ 135, 136 }} jump owner
    }}
    chain owner {{
        meta skuid 0-4294967294 counter name owned-frame return
        counter name unowned-frame
    }}
}}
"""


def test_L21_neighbour_discovery_of_kernel_has_no_user(two_links: TwoLinkNode) -> None:
    two_links.node.ip(f"link set {WAN} arp on", f"-6 route add {at.NEIGHBOUR[6]} dev {WAN}")
    two_links.node.nft(NEIGHBOUR_USERS)
    found = counted(two_links.node, lambda: two_links.send(packet_senders.udp_bound, 6, patience=0.2))
    assert found == {"unowned", "unowned-frame"}

    def advertise(job: Job) -> None:
        made = job.open(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, WAN.encode())
        made.sendto(bytes([136]) + bytes(7) + job.payload, ("ff02::1", 0, 0, socket.if_nametoindex(WAN)))

    found = counted(two_links.node, lambda: two_links.send(advertise, 6, uid=0, patience=0.2))
    assert found >= {"owned", "owned-frame"}


def test_L3_far_end_without_probe_receives_nothing(two_links: TwoLinkNode) -> None:
    """Control of the other tests: without a probe there is no payload to find."""
    assert two_links.left_by(b"never sent", 0.1) == set() and set(two_links.sniffers) == set(FAR)


FLOW_BEGINS = f"""
table inet begins {{
    counter first {{ }}
    counter new {{ }}
    chain output {{
        type filter hook output priority 0; policy accept;
        udp dport {DISCARD} ct status ! confirmed counter name first
        udp dport {DISCARD} ct state new counter name new
    }}
}}
"""


@families
def test_only_first_packet_of_a_flow_is_not_confirmed(two_links: TwoLinkNode, family: int) -> None:
    """Until a reply `ct state new` matches each packet, and `ct status ! confirmed` the first one."""
    two_links.node.ip(default(MESH, family))
    two_links.node.nft(FLOW_BEGINS)
    two_links.node.call(send_twice, at.SERVER[family])
    found = counters(two_links.node)
    assert (found["first"], found["new"]) == (1, 2)


def send_twice(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _ in range(2):
            one.sendto(b"x", (address, DISCARD))


TUNNEL = """
table inet tunnel {
    counter output-sent { }
    counter output-arrived { }
    counter last-of-tunnel { }
    counter last-owned { }
    chain output {
        type filter hook output priority 0; policy accept;
        udp dport 4789 meta iif 0 counter name output-sent
        udp dport 4789 meta iif != 0 counter name output-arrived
    }
    chain last {
        type filter hook postrouting priority 0; policy accept;
        udp dport 4789 iifname "vx0" counter name last-of-tunnel
        udp dport 4789 meta mark 7 meta skuid 4711 counter name last-owned
    }
}
"""


@families
def test_packet_of_tunnel_has_input_device_after_output(two_links: TwoLinkNode, family: int) -> None:
    """The outer packet has mark and owner of the inner one; its tunnel is the input device, but not in output."""
    two_links.node.ip(
        default(WAN, family),
        f"link add vx0 type vxlan id 5 remote {at.SERVER[family]} dstport 4789",
        "addr add 10.9.0.1/24 dev vx0",
        "link set vx0 up",
        "neigh replace 10.9.0.2 lladdr 02:00:00:00:00:05 dev vx0",
    )
    two_links.node.nft(TUNNEL)
    two_links.node.call(send_marked, "10.9.0.2", uid=4711, keep_caps=True)
    found = counters(two_links.node)
    assert found["output-arrived"] == 0
    assert found["output-sent"] and found["last-of-tunnel"] and found["last-owned"]


def send_marked(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
        one.sendto(b"x", (address, DISCARD))
