"""Sockets that send the same packets repeatedly past a ruleset, and the view that a chain has of each packet.

Two namespaces and two links. Both ends of a link have one MAC address, so that no neighbour query is needed and all
packets arrive. Addresses that end in 77 belong to no host: packets to them are lost without an answer.
"""

import contextlib
import os
import socket
import struct
from dataclasses import dataclass, replace

from nftpolicy.model.packet import ICMP, ICMPV6, TCP, UDP, parse_address
from nftpolicy.model.packet_view import PacketView
from tests.lab.netns import Namespace, veth

W0, W1, FAR0, FAR1 = "w0", "w1", "far0", "far1"
MAC = {W0: "02:00:00:00:00:01", W1: "02:00:00:00:00:02"}
NODE = {4: "192.0.2.2", 6: "2001:db8:1::2"}
FAR = {4: "192.0.2.1", 6: "2001:db8:1::1"}
DOOR = {4: "192.0.2.3", 6: "2001:db8:1::3"}  # a second address of the node, to which no answers are sent
NODE1 = {4: "198.51.100.2", 6: "2001:db8:2::2"}
NOBODY = {4: "192.0.2.77", 6: "2001:db8:1::77"}
BEYOND = {4: "198.51.100.77", 6: "2001:db8:2::77"}
SELF = {4: "127.0.0.1", 6: "::1"}
OWN = {4: "127.0.0.2", 6: "2001:db8:9::1"}
ECHO, UNTRACKED, FLOW_MARKED = 7777, 4444, 5353
FLOW_MARK = 5
NEIGHBOURLY = (130, 133, 135, 143, 136)
GRE, UDPLITE, SCTP = 47, 136, 132
DESTINATIONS = {family: {NOBODY[family], BEYOND[family], OWN[family], FAR[family], DOOR[family]} for family in (4, 6)}
DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}

# Connection tracking is on; flows begin unmarked, those to one port with a mark, and those to another are not tracked.
TABLE = f"""
table inet stage {{
    chain raw-output {{ type filter hook output priority -350;
        th dport {UNTRACKED} notrack
    }}
    chain raw-prerouting {{ type filter hook prerouting priority -350;
        th dport {UNTRACKED} notrack
    }}
    chain output {{ type filter hook output priority -190;
        ct mark set 0
        th dport {FLOW_MARKED} ct mark set {FLOW_MARK}
    }}
    chain prerouting {{ type filter hook prerouting priority -190;
        ct mark set 0
        th dport {FLOW_MARKED} ct mark set {FLOW_MARK}
    }}
    chain counted-output {{ type filter hook output priority -400;
        ct state new
    }}
}}
"""


@dataclass(frozen=True)
class Probe:
    """Packet to send. `way`: "lo", "out" (by w0), "reply" (of a flow that the far end began), "kept" (of one that is
    established), "in" (from the far end to the node) or "through" (on to w1).
    """

    way: str
    family: int
    protocol: int = UDP
    sport: int = 20000
    dport: int = 9
    uid: int = 0
    gid: int = 0
    mark: int = 0
    tos: int = 0
    fields: tuple[tuple[tuple[str, str], int], ...] = ()

    @property
    def is_far(self) -> bool:
        return self.way in ("in", "through")

    @property
    def addresses(self) -> tuple[str, str]:
        """Source and destination."""
        source, destination = {
            "lo": (SELF, OWN),
            "out": (NODE, NOBODY),
            "kept": (NODE, FAR),
            "reply": (NODE, FAR),
            "in": (FAR, DOOR),
            "through": (FAR, BEYOND),
        }[self.way]
        return source[self.family], destination[self.family]

    @property
    def state(self) -> str:
        """Return the connection tracking state.

        Connection tracking takes no ICMP of unknown types, and finds invalid SCTP and UDP-Lite invalid.
        """
        if dict(self.fields).get(("icmpv6", "type")) in NEIGHBOURLY:
            return "untracked"
        strange = self.protocol in (SCTP, UDPLITE) or dict(self.fields).get(("icmp", "type"), 8) != 8
        if strange or dict(self.fields).get(("icmpv6", "type"), 128) != 128:
            return "invalid"
        return "established" if self.way in ("kept", "reply") else "new"

    def passes(self, hook: str) -> bool:
        """Return True if the packet passes a hook (the hooks of a device are those of w0)."""
        return hook in {
            "lo": ("output", "postrouting", "prerouting", "input"),
            "in": ("ingress", "prerouting", "input"),
            "through": ("ingress", "prerouting", "forward", "postrouting"),
        }.get(self.way, ("output", "postrouting", "egress"))

    def view(self, hook: str, priority: int) -> PacketView:
        """Return the fields that a chain at a hook reads."""
        source, destination = map(parse_address, self.addresses)
        out = {"lo": "lo", "through": W1}.get(self.way, W0)
        arrival = {"lo": "lo", "in": W0, "through": W0}.get(self.way)
        # What lo brings back has been through the output hook.
        first = hook == "output" or (hook == "prerouting" and self.way != "lo")
        before = first and priority < -190
        is_home = hook in ("output", "postrouting", "egress") and not self.is_far
        dscp = ("ip" if self.family == 4 else "ip6", "dscp")
        return PacketView(
            family=self.family,
            source=source,
            destination=destination,
            protocol=self.protocol,
            sport=self.sport,
            dport=self.dport,
            mark=self.mark,
            ct_mark=FLOW_MARK if self.dport == FLOW_MARKED and not before else 0,
            ct_state=self.state,
            ct_direction="reply" if self.way == "reply" else "original",
            iif=None if is_home else arrival,
            oif=out if hook in ("output", "postrouting", "egress", "forward") else None,
            uid=self.uid if is_home else None,
            gid=self.gid if is_home else None,
            fields={**dict(self.fields), **self._first_words(), dscp: self.tos >> 2, ("meta", "pkttype"): 0},
            notrack=self.dport == UNTRACKED and not (first and priority < -350),
        )

    def _first_words(self) -> dict[tuple[str, str], int]:
        """Return the two 16-bit words that `th sport` and `th dport` read if the protocol has no ports."""
        if self.protocol not in (ICMP, ICMPV6, GRE):
            return {}
        sport, dport = struct.unpack_from("!HH", content(self))
        return {("th", "sport"): sport, ("th", "dport"): dport}

    def __str__(self) -> str:
        who = "" if self.is_far else f" of {self.uid}:{self.gid} with mark {self.mark:#x}"
        what = f"ipv{self.family} protocol {self.protocol} {self.sport} -> {self.dport} tos {self.tos:#x} {self.fields}"
        return f"{self.way}: {what}{who}"


def probes() -> list[Probe]:
    """Return all packets."""
    found: list[Probe] = []
    owners = [(0, 0, 0), (1000, 100, 1), (65534, 65534, 0), (1000, 5, 3), (7, 100, 0x10), (0, 5, 0x12)]
    ports = [9, 22, 53, 80, UNTRACKED, FLOW_MARKED]
    for family in (4, 6):
        control = ICMP if family == 4 else ICMPV6
        name = "icmp" if family == 4 else "icmpv6"
        for at, (uid, gid, mark) in enumerate(owners):
            for more, port in enumerate(ports[at % 2 :: 2]):
                tos = 0x20 if (at + more) % 3 == 0 else 0
                sport = 20000 + 100 * at + more
                owner = {"uid": uid, "gid": gid, "mark": mark, "tos": tos}
                found += [
                    Probe(way, family, UDP, sport, port, **owner) for way in ("lo", "out", "in", "through")
                ]  # fmt: skip
                found += [Probe(way, family, TCP, sport, port, **owner) for way in ("out", "through")]
            echo = ((name, "type"), 8 if family == 4 else 128), ((name, "code"), 0)
            odd = ((name, "type"), 42 if family == 4 else 200), ((name, "code"), at)
            raw = {"gid": gid, "mark": mark}
            # On lo an echo would be answered, and its flow established with that.
            found += [Probe(way, family, control, 0, 0, fields=echo, **raw) for way in ("out", "through")]
            found += [Probe(way, family, control, 0, 0, fields=odd, **raw) for way in ("out", "lo", "through")]
            if family == 6:
                talk = ((name, "type"), NEIGHBOURLY[at % 5]), ((name, "code"), 0)
                found += [Probe(way, family, control, 0, 0, fields=talk, **raw) for way in ("out", "through")]
            found.append(Probe("out", family, SCTP, 300 + at, ports[at], **raw))
            found.append(Probe("out", family, UDPLITE, 300 + at, ports[at], **raw))
            found.append(Probe("out", family, GRE, 0, 0, **raw))
        for way, port in (("kept", ECHO), ("reply", 9)):
            sport = 25000 if way == "kept" else ECHO
            found.append(Probe(way, family, UDP, sport, port, uid=1000, gid=100, mark=2))
    # What comes from afar has no owner and no mark here.
    return [replace(one, uid=0, gid=0, mark=0) if one.is_far else one for one in found]


class Senders:
    """Sockets of some probes, in the namespace of this process."""

    def __init__(self, mine: list[Probe]) -> None:
        self._sends = {probe: self._open(probe) for probe in mine}

    def send(self, probe: Probe) -> None:
        """Once more."""
        self._sends[probe]()

    def _open(self, probe: Probe):
        source, destination = probe.addresses
        raw = probe.protocol not in (TCP, UDP)
        kind = socket.SOCK_RAW if raw else socket.SOCK_STREAM if probe.protocol == TCP else socket.SOCK_DGRAM

        def make() -> socket.socket:
            os.setegid(probe.gid)
            os.seteuid(probe.uid)
            try:
                made = socket.socket(DOMAIN[probe.family], kind, probe.protocol if raw else 0)
            finally:
                os.seteuid(0)
                os.setegid(0)
            made.setblocking(False)
            if probe.mark:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, probe.mark)
            level, option = {4: (socket.IPPROTO_IP, 1), 6: (socket.IPPROTO_IPV6, 67)}[probe.family]  # TOS, TCLASS
            made.setsockopt(level, option, probe.tos)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((source, 0 if raw else probe.sport))
            if probe.way == "through":
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, FAR0.encode())
            return made

        if probe.protocol == TCP:

            def connect() -> None:  # closed at once: nothing is sent twice
                with make() as made, contextlib.suppress(OSError):
                    made.connect((destination, probe.dport))

            return connect
        made, target = make(), (destination, 0 if raw else probe.dport)
        if probe.way == "reply":
            target = (destination, 9)
        payload = content(probe)

        def send() -> None:
            with contextlib.suppress(OSError):  # the sender gets an error for a dropped packet
                made.sendto(payload, target)

        return send


def content(probe: Probe) -> bytes:
    """Return what a probe holds behind the headers that the kernel writes."""
    fields = {name: value for (_, name), value in probe.fields}
    if "type" in fields:
        head = fields["type"] << 8 | fields["code"]
        total = head + 2  # identifier 1, sequence 1
        if probe.family == 6:  # RFC 8200 8.1; the kernel puts the same there
            pseudo = b"".join(socket.inet_pton(socket.AF_INET6, address) for address in probe.addresses)
            total += sum(struct.unpack("!16H", pseudo)) + 8 + ICMPV6
        checksum = 0xFFFF - (total % 0xFFFF or 0xFFFF)
        return struct.pack("!HHHH", head, checksum, 1, 1)
    if probe.protocol in (SCTP, UDPLITE):
        return struct.pack("!HHHH", probe.sport, probe.dport, 0, 0) + bytes(24)
    return b"\0\0\x08\0" + bytes(20) if probe.protocol == GRE else b"probe"


def build(node: Namespace, far: Namespace) -> None:
    """Create links, addresses and the tables of the test itself."""
    for here, there, address in ((W0, FAR0, NODE), (W1, FAR1, NODE1)):
        veth(node, here, far, there, mac_a=MAC[here], mac_b=MAC[here])
        node.ip(f"link set {here} arp off", f"addr add {address[4]}/24 dev {here}")
        node.ip(f"addr add {address[6]}/64 dev {here} nodad")
    node.ip(f"addr add {DOOR[4]}/24 dev {W0}", f"addr add {DOOR[6]}/64 dev {W0} nodad")
    far.ip(f"link set {FAR0} arp off", f"link set {FAR1} arp off", f"addr add {FAR[4]}/24 dev {FAR0}")
    far.ip(f"addr add {FAR[6]}/64 dev {FAR0} nodad")
    far.ip(f"route add {BEYOND[4]} via {NODE[4]} dev {FAR0}", f"-6 route add {BEYOND[6]} via {NODE[6]} dev {FAR0}")
    node.ip(f"addr add {OWN[6]}/128 dev lo nodad")
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        node.sysctl(key, 1)
    node.nft(TABLE)
