"""Rules that match less than they seem to: an unmarked packet leaves, and the prover does not say "proved"."""

import json
import socket
import struct
import time
from collections.abc import Callable

import pytest
from attrs import frozen

from nftpolicy.netstate.formats import nft_json_decode
from nftpolicy.netstate.routing import IpRule, Route
from nftpolicy.netstate.state import NetState
from nftpolicy.proof.prover import prove
from nftpolicy.proof.spec import Spec, UplinkSpec
from tests.lab import addresses as at
from tests.lab import packet_senders
from tests.lab.packet_senders import Job
from tests.text_only_details import add_text_only_details

from .two_link_node import FAR, MESH, ONLY_WAN, WAN, TwoLinkNode, counted, default

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("egress")]

IP, POST = "meta mark & 1 != 1", f"type filter hook postrouting priority 0; policy accept;\n oifname != {WAN} accept"
EGRESS = f'type filter hook egress device "{WAN}" priority 0; policy accept;'
STRICT = f"table inet strict {{\n chain c {{\n {POST}\n {IP} drop\n}}\n}}\n"
STRICT_LINK = f"table netdev strict {{\n chain c {{\n {EGRESS}\n {IP} drop\n}}\n}}\n"
DEFAULTS = tuple(IpRule(family, 32766, "lookup", 254, protocol=2) for family in at.FAMILIES)
ROUTES = tuple(Route(family, 254, "default", device=WAN) for family in at.FAMILIES)


def short_datagram(job: Job) -> None:
    """Send an IPv6 packet whose destination options end far behind the packet, before UDP."""
    options = bytes((socket.IPPROTO_UDP, 255)) + job.payload
    job.open(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_DSTOPTS).sendto(options, (job.server[0], 0))


def frame_that_says_arp(job: Job) -> None:
    """Send a whole IPv4 packet by an AF_PACKET socket that says ARP."""
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(job.payload), 0, 0, 64, 17, 0, bytes(4), bytes(4))
    datagram = struct.pack("!HHHH", 5000, 9, 8 + len(job.payload), 0) + job.payload
    made = job.open(socket.AF_PACKET, socket.SOCK_RAW)
    made.sendto(bytes(12) + b"\x08\x00" + header + datagram, (WAN, 0x0806))


@frozen
class Hole:
    """A ruleset that does not hold, and a sender whose packet leaves."""

    text: str
    sender: Callable[[Job], None] = packet_senders.udp
    family: int = 4
    uid: int | None = 65534  # None: root
    packets: int = 1  # the last one leaves
    is_link: bool = False


HOLES = {
    "a limit on the elements of a set": Hole(
        f"""table netdev g {{
            set families {{ typeof meta protocol; limit rate over 1/hour burst 9 packets; elements = {{ ip, ip6 }}
            }}
            chain c {{ {EGRESS}
                {IP} meta protocol @families drop
            }}
        }}"""
    ),
    "a limit on the entries of a verdict map": Hole(
        f"""table inet g {{
            map verdicts {{ type nf_proto : verdict; limit rate over 1/hour burst 9 packets
                elements = {{ ipv4 : drop, ipv6 : drop }}
            }}
            chain c {{ {POST}
                {IP} meta nfproto vmap @verdicts
            }}
        }}"""
    ),
    "a set to which a rule adds": Hole(
        f"""table inet g {{
            set allowed {{ type ipv4_addr
            }}
            chain learn {{
                add @allowed {{ ip daddr }}
            }}
            chain c {{ {POST}
                ip daddr @allowed accept
                {IP} jump learn
                {IP} drop
            }}
        }}""",
        packets=2,
    ),
    "a destination that an earlier chain writes": Hole(
        f"""table inet g {{
            chain a {{ {POST}
                meta mark & 1 == 1 accept
                ip daddr {at.SERVER[4]} @nh,128,32 set 0xc0000232 accept
                drop
            }}
            chain b {{ {POST.replace("priority 0", "priority 10")}
                {IP} ip daddr {at.SERVER[4]} drop
            }}
        }}"""
    ),
    "a write into a TCP option that other packets end": Hole(
        f"""table inet g {{
            chain c {{ {POST}
                {IP} tcp option maxseg size set 1360 drop
            }}
        }}"""
    ),
    "a port behind the end of the packet": Hole(
        f"""table inet g {{
            chain c {{ {POST}
                {IP} meta l4proto != udp drop
                {IP} udp dport 0-65535 drop
                {IP} meta nfproto ipv4 drop
            }}
        }}""",
        short_datagram,
        6,
        None,
    ),
    "a frame that says another ethertype": Hole(
        f"""table netdev g {{
            chain c {{ {EGRESS}
                {IP} meta protocol ip drop
                {IP} meta protocol ip6 drop
            }}
        }}""",
        frame_that_says_arp,
        4,
        None,
        is_link=True,
    ),
}  # fmt: skip


def verdict_of(two_links: TwoLinkNode) -> str:
    """Return the worst verdict of P1 about packets, of the node's ruleset."""
    listing = json.loads(two_links.node.run(["nft", "-j", "list", "ruleset"]).stdout)
    text = two_links.node.run(["nft", "list", "ruleset"]).stdout
    tables = add_text_only_details(nft_json_decode.decode_ruleset(listing), text)
    proof = prove(NetState(tables, DEFAULTS, ROUTES), Spec((UplinkSpec("wan", (WAN,), 1, 1),)))
    found = {one.verdict for one in proof.findings if one.property == "P1" and one.deciding}
    return next(verdict for verdict in ("refuted", "unknown", "proved") if verdict in found)


@pytest.mark.parametrize("hole", HOLES.values(), ids=HOLES)
def test_weak_rule_is_not_proved_and_leaks(two_links: TwoLinkNode, hole: Hole) -> None:
    node = two_links.node
    node.ip(*(default(WAN, family) for family in at.FAMILIES))
    node.nft(hole.text)
    assert verdict_of(two_links) != "proved"
    for _ in range(hole.packets):
        result = two_links.send(hole.sender, hole.family, uid=hole.uid)
    assert result == ONLY_WAN, "the kernel's rules hold: the model may be exact here"
    node.nft("flush ruleset\n" + STRICT + STRICT_LINK)
    assert verdict_of(two_links) == "proved"
    assert two_links.send(hole.sender, hole.family, uid=hole.uid, patience=0.2)[1] == set(), "a strict guard holds"
    marked = two_links.send(hole.sender, hole.family, mark=1, uid=hole.uid)
    assert marked == ONLY_WAN, "the control: the marked packet must leave"


COUNTED = """table inet seen {
    counter protocol { }
    counter port { }
    counter header { }
    chain c {
        type filter hook output priority 0
        ip6 daddr SERVER counter name header
        meta l4proto 0-255 ip6 daddr SERVER counter name protocol
        th dport 0-65535 ip6 daddr SERVER counter name port
    }
}
""".replace("SERVER", at.SERVER[6])
READABLE = {
    "a datagram": (packet_senders.udp, {"header", "protocol", "port"}),
    "a header behind the end": (short_datagram, {"header", "protocol"}),
}


@pytest.mark.parametrize(("sender", "names"), READABLE.values(), ids=READABLE)
def test_header_is_readable_up_to_its_end(two_links: TwoLinkNode, sender, names) -> None:
    two_links.node.ip(default(WAN, 6))
    two_links.node.nft(COUNTED)
    assert two_links.counters_of(sender, 6, None) == names


# Without IPv6, which sends packets of its own.
TYPES = f"""
table ip types {{
    counter post-host {{ }}
    counter post-multicast {{ }}
    chain c {{
        type filter hook postrouting priority 0
        oifname {WAN} meta pkttype host counter name post-host
        oifname {WAN} meta pkttype multicast counter name post-multicast
    }}
}}
table netdev types {{
    counter link-host {{ }}
    counter link-other {{ }}
    chain c {{
        {EGRESS}
        meta protocol ip6 accept
        meta pkttype host counter name link-host
        meta pkttype != host counter name link-other
    }}
}}
"""
SENT_HERE = {
    "a datagram": (packet_senders.udp, {"post-host", "link-host"}),
    "a datagram to a group": (packet_senders.multicast_site, {"post-host", "link-host"}),
    "a frame": (frame_that_says_arp, {"link-host"}),
}


@pytest.mark.parametrize(("sender", "names"), SENT_HERE.values(), ids=SENT_HERE)
def test_packet_of_this_machine_has_the_type_host(two_links: TwoLinkNode, sender, names) -> None:
    two_links.node.ip(default(WAN, 4))
    two_links.node.nft(TYPES)
    assert two_links.counters_of(sender, 4, None) == names


_MRT_INIT, _MRT_ADD_VIF, _MRT_ADD_MFC = 200, 202, 204  # include/uapi/linux/mroute.h
_VIFF_USE_IFINDEX = 8
_GROUP, _OUTSIDE = "239.1.1.1", "203.0.113.50"


def route_group(ready: socket.socket) -> None:
    """Forward a group from the mesh to the WAN until the other end is closed."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP) as made:
        made.setsockopt(socket.IPPROTO_IP, _MRT_INIT, struct.pack("i", 1))
        for number, device in enumerate((MESH, WAN)):
            index = socket.if_nametoindex(device)
            vif = struct.pack("=HBBIi4s", number, _VIFF_USE_IFINDEX, 1, 0, index, bytes(4))
            made.setsockopt(socket.IPPROTO_IP, _MRT_ADD_VIF, vif)
        limits = bytes((255, 1)) + b"\xff" * 30
        addresses = socket.inet_aton(_OUTSIDE) + socket.inet_aton(_GROUP)
        mfc = addresses + struct.pack("=H", 0) + limits + bytes(2) + bytes(16)
        made.setsockopt(socket.IPPROTO_IP, _MRT_ADD_MFC, mfc)
        ready.send(b"ready")
        ready.recv(1)


def test_forwarded_group_keeps_its_packet_type(two_links: TwoLinkNode) -> None:
    """A multicast router forwards packets of the type "multicast": "host" does not cover what is forwarded."""
    node, far = two_links.node, two_links.far
    node.sysctl("net.ipv4.ip_forward", 1)
    node.sysctl("net.ipv4.conf.all.rp_filter", 0)
    node.sysctl(f"net.ipv4.conf.{MESH}.rp_filter", 0)
    node.nft(TYPES)
    payload = f"group {time.monotonic()}".encode()

    def forward() -> None:
        with far.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, FAR[MESH].encode())
            size = 28 + len(payload)
            ends = socket.inet_aton(_OUTSIDE), socket.inet_aton(_GROUP)
            header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 8, 17, 0, *ends)
            made.sendto(header + struct.pack("!HHHH", 5000, 9, size - 20, 0) + payload, (_GROUP, 0))
        assert two_links.left_by(payload) == {WAN}, "the positive control: the packet must be forwarded"

    near, other = socket.socketpair()
    with near, other:
        node.spawn(route_group, other)
        near.settimeout(20)
        assert near.recv(8) == b"ready"
        assert counted(node, forward) == {"post-multicast", "link-other"}
        near.send(b"x")
