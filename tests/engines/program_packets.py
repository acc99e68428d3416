"""Random packets for a program: as bytes for the interpreter, and as the view that the model has of the same packet.

Values come from the constants of the program, and from next to them.
"""

import random
import struct
from collections import defaultdict
from collections.abc import Iterable

from nftpolicy.model.packet import FORWARD, ICMP, ICMPV6, SOCKET, TCP, UDP
from nftpolicy.model.packet_view import PacketView

from .kernel_program import NATIVE, Flow, ProgramPacket
from .kernel_sets import value_of
from .nft_dump import RawTable

_GRE, _SCTP = 47, 132
_STATES = {"new": 8, "established": 2, "related": 4}
_CONTROL_NAMES = {ICMP: "icmp", ICMPV6: "icmpv6"}
_DEVICES = ((1, "lo"), (2, "w0"), (3, "eth0"), (4, "wan"))
_NETDEV = 5
_CONNTRACK_PRIORITY = -200


def constants(table: RawTable, rules: Iterable[list]) -> dict[int, list[bytes]]:
    """Return the constants of rules and of the table's sets, by length; parts of concatenations too."""
    found: dict[int, set[bytes]] = defaultdict(set)
    values = [
        value_of(attributes[kind])
        for rule in rules
        for name, attributes in rule
        for kind in {"cmp": (3,), "range": (3, 4), "bitwise": (4, 5)}.get(name, ())
        if kind in attributes
    ]
    values += [
        value_of(element[kind])
        for each in table.sets.values()
        for element in each.elements
        for kind in (1, 10)
        if kind in element
    ]
    for value in values:
        found[len(value)].add(value)
        for index in range(0, len(value) if len(value) > 4 else 0, 4):
            for length in (1, 2, 4, 16):
                found[length].add(value[index : index + length])
    return {length: sorted(each for each in chosen if len(each) == length) for length, chosen in found.items()}


class PacketSource:
    """Packets at a hook, drawn with the constants of a program."""

    def __init__(self, hook: str, priority: int, versions: tuple[int, ...], known: dict[int, list[bytes]], seed: int):
        self._hook, self._priority, self._versions = hook, priority, versions
        self._known, self._random = known, random.Random(seed)

    def _number(self, length: int, order: str, usual: tuple[int, ...]) -> int:
        draw = self._random
        if self._known.get(length) and draw.random() < 0.75:
            value = int.from_bytes(draw.choice(self._known[length]), order)
            return (value + draw.choice((0, 0, 0, 1, -1))) % (1 << 8 * length)
        return draw.choice(usual)

    def draw(self) -> tuple[ProgramPacket, PacketView]:
        """Return one packet in both forms."""
        draw = self._random
        family = draw.choice(self._versions)
        size = 4 if family == 4 else 16
        source, destination = (self._number(size, "big", (1, 0x7F000001)) for _ in range(2))
        usual = (TCP, UDP, ICMP if family == 4 else ICMPV6)
        protocol = self._number(1, "big", usual) if draw.random() < 0.2 else draw.choice((*usual, _GRE, _SCTP))
        sport, dport = (self._number(2, "big", (9, 53, 1024)) for _ in range(2))
        dscp, ecn, hops = draw.choice((0, 46, self._number(1, "big", (8,)) & 63)), draw.choice((0, 1, 3)), 64
        hops = self._number(1, "big", (1, 64, 255))
        later = family == 4 and draw.random() < 0.1
        fields: dict[tuple[str, str], int] = {}
        transport = self._transport(protocol, sport, dport, fields)
        fraction = draw.randrange(1, 0x2000) if later else draw.choice((0, 0, 0x4000))
        name = "ip" if family == 4 else "ip6"
        is_forwarded = self._hook == "forward"
        fields |= {(name, "dscp"): dscp, (name, "ecn"): ecn}
        if family == 4:
            length = 20 + len(transport)
            fields |= {
                ("ip", "ttl"): (hops + is_forwarded) % 256,
                ("ip", "frag-off"): fraction,
                ("ip", "length"): length,
            }
            if is_forwarded and hops == 255:
                hops = 254
                fields["ip", "ttl"] = 255
            header = struct.pack("!BBHHHBBH", 0x45, dscp << 2 | ecn, length, 0, fraction, hops, protocol, 0)
        else:
            if is_forwarded:
                hops = min(hops, 254)
            fields |= {("ip6", "hoplimit"): hops + is_forwarded, ("ip6", "length"): len(transport)}
            header = struct.pack("!IHBB", 6 << 28 | (dscp << 2 | ecn) << 20, len(transport), protocol, hops)
        network = header + source.to_bytes(size, "big") + destination.to_bytes(size, "big")
        packet = ProgramPacket(
            network=bytearray(network + transport),
            ethertype=0x0800 if family == 4 else 0x86DD,
            family=_NETDEV if self._hook in ("ingress", "egress") else {4: 2, 6: 10}[family],
            transport=len(network),
            protocol=protocol,
            fragment_offset=fraction & 0x1FFF,
            mark=self._number(4, NATIVE, (0, 1, 16)),
        )
        view = PacketView(
            family, source, destination, protocol, sport, dport, mark=packet.mark, fields=fields, origin=SOCKET
        )
        self._add_surroundings(packet, view)
        return packet, view

    def _transport(self, protocol: int, sport: int, dport: int, fields: dict[tuple[str, str], int]) -> bytes:
        """Return the transport header, and add what the model has to know of it."""
        draw = self._random
        if protocol == TCP:
            flags = draw.choice((2, 16, 18, 4, self._number(1, "big", (1,))))
            fields["tcp", "flags"] = flags
            return struct.pack("!HHIIBBHHH", sport, dport, 1, 2, 0x50, flags, 3, 0, 0)
        if protocol in _CONTROL_NAMES:
            name = _CONTROL_NAMES[protocol]
            kind, code = self._number(1, "big", (0, 3, 8, 128)), self._number(1, "big", (0, 1))
            fields |= {(name, "type"): kind, (name, "code"): code}
            first = kind << 8 | code
            fields |= {("th", "sport"): first, ("th", "dport"): 0}
            return struct.pack("!HHHH", first, 0, 1, 1)
        fields |= {("th", "sport"): sport, ("th", "dport"): dport}
        return struct.pack("!HHHH", sport, dport, 8, 0) + bytes(8)

    def _add_surroundings(self, packet: ProgramPacket, view: PacketView) -> None:
        """Add devices, socket and connection."""
        draw, hook = self._random, self._hook
        is_sent = hook in ("output", "egress") or (hook == "postrouting" and draw.random() < 0.5)
        if not is_sent:
            packet.iif = draw.choice(_DEVICES[1:])
            view.iif, view.origin = packet.iif[1], FORWARD
        if hook in ("output", "forward", "postrouting", "egress"):
            packet.oif = draw.choice(_DEVICES)
            view.oif = packet.oif[1]
        if is_sent and draw.random() < 0.8:
            packet.uid, packet.gid = (self._number(4, NATIVE, (0, 5, 1000)) for _ in range(2))
            view.uid, view.gid = packet.uid, packet.gid
        view.ct_state = draw.choice(("new", "established", "related", "invalid", "untracked"))
        view.ct_direction = "original" if view.ct_state == "new" else draw.choice(("original", "reply"))
        view.ct_mark = self._number(4, NATIVE, (0, 1, 16))
        if (packet.protocol, packet.ethertype) == (ICMPV6, 0x86DD) and view.fields["icmpv6", "type"] in range(130, 144):
            view.ct_state = "untracked"
        is_early = hook == "ingress" or (hook in ("output", "prerouting") and self._priority < _CONNTRACK_PRIORITY)
        packet.is_untracked = view.ct_state == "untracked" and not is_early
        if view.ct_state in _STATES and not is_early:
            packet.flow = Flow(_STATES[view.ct_state], view.ct_mark, 0, view.ct_direction == "reply")
