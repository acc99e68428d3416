"""Fields of a packet for z3, as bit-vectors: each expression has a value and a condition.

Written from nft(8) and the kernel's sources, with an independent reading of nft's values: this module uses only the
values of netstate and the definition of a Region, and no module of nftpolicy/model/symbolic.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, reduce
from ipaddress import ip_address, ip_network
from itertools import count

import z3
from attrs import frozen

from nftpolicy.netstate import nft
from nftpolicy.proof.spec import MarkTest, Region

Bool, Vector = z3.BoolRef, z3.BitVecRef
TRUE, FALSE = z3.BoolVal(True), z3.BoolVal(False)
NAME = 64  # bits of a device's name: eight letters are enough here

STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}  # one bit each, as ct state has them
_ORDINALS = ("new", "established", "related", "invalid", "untracked")  # as a Region counts them
_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")
_PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132, "udplite": 136}
_ICMP = {"echo-reply": 0, "echo-request": 8, "destination-unreachable": 3}
_ICMP6 = {"echo-request": 128, "echo-reply": 129, "nd-router-solicit": 133, "nd-neighbor-solicit": 135,
          "nd-neighbor-advert": 136, "mld-listener-report": 131, "mld-listener-done": 132,
          "mld-listener-reduction": 132, "mld2-listener-report": 143}  # fmt: skip
_IGMP = {"membership-query": 0x11, "membership-report-v1": 0x12, "membership-report-v2": 0x16, "leave-group": 0x17,
         "membership-report-v3": 0x22}  # fmt: skip
_CONTROL = {"icmp": (1, 4, _ICMP), "icmpv6": (58, 6, _ICMP6), "igmp": (2, 4, _IGMP)}  # protocol, family, types
_CONFIRMED = 1 << 3  # IPS_CONFIRMED
_ETHER = {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806}
_NFPROTO = {"ipv4": 2, "ipv6": 10}
_PORTS = {"tcp": 6, "udp": 17, "sctp": 132, "udplite": 136, "dccp": 33}


def vector(name: str, bits: int) -> Vector:
    return z3.BitVec(name, bits)


@frozen
class Read:
    """Value of an expression: the value, its condition, and the meaning of nft's words."""

    value: Vector
    there: Bool
    words: Mapping[str, int] = {}
    kind: str = "number"  # or "address4", "address6", "name", "flags"


@frozen
class Changing:
    """Values that rules can write."""

    mark: Vector
    ctmark: Vector
    notrack: Bool = FALSE

    def written(self, when: Bool, other: "Changing") -> "Changing":
        """`other` where the condition holds."""
        if other is self:
            return self
        notrack = self.notrack if other.notrack is self.notrack else z3.If(when, other.notrack, self.notrack)
        return Changing(either(when, other.mark, self.mark), either(when, other.ctmark, self.ctmark), notrack)


def either(when: Bool, yes: Vector, no: Vector) -> Vector:
    return yes if yes is no else z3.If(when, yes, no)


class Packet:
    """Symbolic packet of a family (4, 6; 0: a frame of another ethertype)."""

    def __init__(self, family: int) -> None:
        self.family = family
        width = 128 if family == 6 else 32
        self.saddr, self.daddr = vector("saddr", width), vector("daddr", width)
        self.protocol, self.ethertype = vector("protocol", 8), vector("ethertype", 16)
        self.sport, self.dport = vector("sport", 16), vector("dport", 16)
        self.icmp_type, self.icmp_code, self.ttl = vector("type", 8), vector("code", 8), vector("ttl", 8)
        self.flags = vector("flags", 8)
        self.uid, self.gid = vector("uid", 32), vector("gid", 32)
        self.socket, self.fragment = z3.Bool("socket"), z3.Bool("fragment")
        self.state, self.reply = vector("state", 32), z3.Bool("reply")
        self.iif, self.oif = vector("iif", NAME), vector("oif", NAME)
        self.pkttype = vector("pkttype", 8)
        self.oiftype, self.frame_type = vector("oiftype", 16), vector("frame type", 16)
        self.confirmed = z3.Bool("confirmed")
        self.start = Changing(vector("mark", 32), vector("ctmark", 32))
        self.opaque: dict[tuple[str, ...], Vector] = {}

    @cached_property
    def possible(self) -> Bool:
        """Return the condition that every packet satisfies."""
        types = {4: self.ethertype == 0x0800, 6: self.ethertype == 0x86DD}
        other = z3.And(self.ethertype != 0x0800, self.ethertype != 0x86DD)
        is_state = z3.Or(*(self.state == bit for bit in STATES.values()))
        owners = [
            one != nft.FULL_MASK for one in (self.uid, self.gid)
        ]  # the kernel has no user or group of that number
        return z3.And(types.get(self.family, other), is_state, *owners)

    @cached_property
    def tracked(self) -> Bool:
        return z3.And(self.state != STATES["invalid"], self.state != STATES["untracked"])

    def within(self, region: Region, now: Changing | None = None) -> Bool:
        """Return the condition that the packet is in a region."""
        told = [self._field(name, wanted) for name, wanted in region.fields.items()]
        for name, named, barred in (
            (self.oif, region.oifname, region.not_oifname),
            (self.iif, region.iifname, region.not_iifname),
        ):
            if named is not None:
                told.append(z3.Or(*(named_like(name, one) for one in named)))
            told += [z3.Not(named_like(name, one)) for one in barred]
        told += [worn(test, now or self.start) for test in region.marks]
        return z3.And(*told)

    def _field(self, name: str, wanted: Iterable[tuple[int, int]]) -> Bool:
        if name == "ct.state":
            return z3.Or(*(self.state == STATES[_ORDINALS[at]] for a, b in wanted for at in range(a, b + 1)))
        if name in ("socket", "fragment", "ct.direction", "ct.confirmed") or name.startswith("tcp."):
            bits = {"socket": self.socket, "fragment": self.fragment}
            bit = {**bits, "ct.direction": self.reply, "ct.confirmed": self.confirmed}.get(name)
            if bit is None:
                at = _FLAGS.index(name[4:])
                bit = z3.Extract(at, at, self.flags) == 1
            return z3.Or(*(bit if value else z3.Not(bit) for a, b in wanted for value in range(a, b + 1)))
        if name == "nfproto":
            return z3.BoolVal(any(a <= self.family <= b for a, b in wanted))
        vector = getattr(self, _PLACES.get(name, name))
        return z3.Or(*(_between(vector, a, b) for a, b in wanted))


_PLACES = {
    **dict.fromkeys(("icmp.type", "icmpv6.type", "igmp.type"), "icmp_type"),
    **dict.fromkeys(("icmp.code", "icmpv6.code"), "icmp_code"),
    "ether.type": "frame_type",
}


def worn(test: MarkTest, now: Changing) -> Bool:
    mark = now.mark if test.field == "mark" else now.ctmark
    return ((mark & test.mask) == test.value) if test.equal else ((mark & test.mask) != test.value)


def _between(vector: Vector, low: int, high: int) -> Bool:
    if low == high:
        return vector == low
    top = (1 << vector.size()) - 1
    told = [z3.UGE(vector, low)] if low > 0 else []
    told += [z3.ULE(vector, high)] if high < top else []
    return z3.And(*told) if told else TRUE


def _name(text: str, bits: int = NAME) -> int:
    return int.from_bytes(text.encode()[: bits // 8].ljust(bits // 8, b"\0"), "big")


def named_like(vector: Vector, pattern: str) -> Bool:
    """Return True if a device has this name, or this prefix if the pattern ends in a star."""
    if not pattern.endswith("*"):
        return vector == _name(pattern)
    known = 8 * len(pattern[:-1])
    if not known:
        return TRUE
    return z3.Extract(NAME - 1, NAME - known, vector) == _name(pattern[:-1], known)


# --- reading ---------------------------------------------------------------------------


@frozen
class Reader:
    """Expressions of the rules of one base chain."""

    packet: Packet
    table: nft.Table
    hook: nft.Hook
    fresh: "count[int]"

    def doubt(self) -> Bool:
        """Return a condition that may be true or false."""
        return z3.Bool(f"doubt{next(self.fresh)}")

    @cached_property
    def untracked(self) -> bool:
        """Return the condition that connection tracking has not seen the packet here."""
        early = self.hook.hook in ("output", "prerouting") and self.hook.priority < -200
        return early or self.hook.hook == "ingress"

    def read(self, expression: nft.Expression, now: Changing) -> Read | None:
        """Return the value of an expression; None if it is unsupported here."""
        match expression:
            case nft.Meta(key):
                return self._meta(key, now)
            case nft.Ct(key, None):
                return self._ct(key, now)
            case nft.Payload(protocol, name):
                return self._payload(protocol, name)
            case nft.Bitwise(of, keep, put):
                inner = self.read(of, now)
                bits = None if inner is None else (self._constant(inner, keep), self._constant(inner, put))
                if inner is None or bits is None or None in bits:
                    return None
                return Read((inner.value & bits[0]) | bits[1], inner.there, inner.words, inner.kind)
            case nft.Binary(op, left, right) if isinstance(right, int):
                inner = self.read(left, now)
                if inner is None:
                    return None
                value = inner.value
                made = {"^": value ^ right, "<<": value << right, ">>": z3.LShR(value, right)}
                return Read(made[op], inner.there, inner.words, inner.kind) if op in made else None
            case nft.Fib(result, keys):
                name = (result, *keys)
                value = self.packet.opaque.setdefault(name, vector(" ".join(name), 128))
                return Read(value, TRUE, kind="word")
        return None

    @staticmethod
    def _constant(read: Read, value: nft.Value) -> int | None:
        if isinstance(value, int):
            return value & ((1 << read.value.size()) - 1)
        found = _interval(read, value)
        return found[0] if found is not None and found[0] == found[1] else None

    def _meta(self, key: str, now: Changing) -> Read | None:
        packet = self.packet
        is_ip = z3.BoolVal(packet.family in (4, 6))
        match key:
            case "mark":
                return Read(now.mark, TRUE)
            case "skuid" | "skgid":
                return Read(packet.uid if key == "skuid" else packet.gid, packet.socket)
            case "l4proto":
                return Read(packet.protocol, is_ip, _PROTOCOLS)
            case "protocol":
                return Read(packet.ethertype, TRUE, _ETHER)
            case "nfproto":
                number = 5 if self.table.family == "netdev" else {4: 2, 6: 10}.get(packet.family, 0)
                return Read(z3.BitVecVal(number, 8), TRUE, _NFPROTO)
            case "iifname" | "iif":
                # A device's own hooks know no other device.
                return Read(z3.BitVecVal(0, NAME) if self.hook.hook == "egress" else packet.iif, TRUE, kind="name")
            case "oifname" | "oif":
                return Read(z3.BitVecVal(0, NAME) if self.hook.hook == "ingress" else packet.oif, TRUE, kind="name")
            case "oiftype" if self.hook.hook == "egress":
                return Read(packet.oiftype, TRUE)
            case "pkttype":
                return Read(packet.pkttype, TRUE, {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3})
        return None

    def _ct(self, key: str, now: Changing) -> Read | None:
        packet = self.packet
        there = FALSE if self.untracked else z3.And(packet.tracked, z3.Not(now.notrack))
        match key:
            case "state":
                seen = z3.BitVecVal(STATES["invalid"], 32) if self.untracked else packet.state
                seen = z3.If(now.notrack, z3.BitVecVal(STATES["untracked"], 32), seen)
                return Read(seen, TRUE, STATES, "flags")
            case "mark":
                return Read(now.ctmark, there)
            case "direction":
                way = z3.If(packet.reply, z3.BitVecVal(1, 8), z3.BitVecVal(0, 8))
                return Read(way, there, {"original": 0, "reply": 1})
            case "status":
                confirmed = z3.If(packet.confirmed, z3.BitVecVal(_CONFIRMED, 32), z3.BitVecVal(0, 32))
                return Read(confirmed | (vector("status", 32) & ~_CONFIRMED), there, {"confirmed": _CONFIRMED}, "flags")
        return None

    def _payload(self, protocol: str, name: str) -> Read | None:
        packet = self.packet
        of = {4: "ip", 6: "ip6"}.get(packet.family)
        if protocol in ("ip", "ip6"):
            there = z3.BoolVal(protocol == of)
            if name in ("saddr", "daddr"):
                kind = "address4" if protocol == "ip" else "address6"
                if protocol != of:  # of a packet of the other family there is nothing to read
                    return Read(z3.BitVecVal(0, 32 if protocol == "ip" else 128), FALSE, kind=kind)
                return Read(getattr(packet, name), there, kind=kind)
            if name in ("ttl", "hoplimit"):
                return Read(packet.ttl, there)
            if name == "protocol":
                return Read(packet.protocol, there, _PROTOCOLS)
            return None
        if (protocol, name) == ("ether", "type") and self.hook.hook == "egress":
            return Read(packet.frame_type, packet.oiftype == 1, _ETHER)  # of Ethernet, ARPHRD_ETHER
        whole = z3.And(z3.BoolVal(packet.family in (4, 6)), z3.Not(packet.fragment))
        if protocol in ("th", *_PORTS) and name in ("sport", "dport"):
            mine = TRUE if protocol == "th" else packet.protocol == _PORTS[protocol]
            return Read(packet.sport if name == "sport" else packet.dport, z3.And(whole, mine))
        if (protocol, name) == ("tcp", "flags"):
            words = {word: 1 << at for at, word in enumerate(_FLAGS)}
            return Read(packet.flags, z3.And(whole, packet.protocol == 6), words, "flags")
        if protocol in _CONTROL and name in ("type", "code"):
            number, family, words = _CONTROL[protocol]
            there = z3.And(whole, packet.protocol == number, z3.BoolVal(packet.family == family))
            return Read(
                packet.icmp_type if name == "type" else packet.icmp_code, there, words if name == "type" else {}
            )
        return None

    # --- comparing

    def holds(self, match: nft.Match, now: Changing) -> Bool:
        """Return the condition that a rule continues after a match."""
        parts = match.left.parts if isinstance(match.left, nft.Concat) else (match.left,)
        reads = [self.read(part, now) for part in parts]
        there = z3.And(*(one.there for one in reads if one is not None))
        elements = self._elements(match.right)
        if None in reads or elements is None:
            return z3.And(there, self.doubt())
        known: list[Read] = [one for one in reads if one is not None]
        if (
            match.op in ("in", "!", "&")
            and len(known) == 1
            and not isinstance(match.right, nft.SetRef | nft.AnonymousSet)
        ):
            return z3.And(there, self._bits(known[0], match))
        if match.op in ("<", "<=", ">", ">="):
            return z3.And(there, self._order(known[0], match))
        if match.op not in ("==", "!=", "in"):
            return z3.And(there, self.doubt())
        found = [self._element(known, one) for one in elements]
        if any(one is None for one in found):
            return z3.And(there, self.doubt())
        inside = z3.Or(*found)
        return z3.And(there, z3.Not(inside) if match.op == "!=" else inside)

    def _elements(self, right: nft.MatchRight) -> Iterable[nft.Element] | None:
        match right:
            case nft.AnonymousSet(elements):
                return elements
            case nft.SetRef(name):
                known = next((one for one in self.table.sets if one.name == name), None)
                return None if known is None or known.flags & {"dynamic", "timeout"} else known.elements
            case int() | str():
                return (right,)
        return None

    def _element(self, reads: Sequence[Read], element: nft.Element) -> Bool | None:
        values = element if isinstance(element, tuple) else (element,)
        if len(values) != len(reads):
            return None
        told = [_equal(read, value) for read, value in zip(reads, values, strict=True)]
        return None if any(one is None for one in told) else z3.And(*told)

    def _bits(self, read: Read, match: nft.Match) -> Bool:
        wanted = self._constant(read, match.right)  # type: ignore[arg-type]
        if wanted is None:
            return self.doubt()
        both = read.value & wanted
        return {"in": both != 0, "!": both == 0, "&": both == wanted}[match.op]

    def _order(self, read: Read, match: nft.Match) -> Bool:
        wanted = self._constant(read, match.right) if isinstance(match.right, int | str) else None
        if wanted is None:
            return self.doubt()
        compare = {"<": z3.ULT, "<=": z3.ULE, ">": z3.UGT, ">=": z3.UGE}[match.op]
        return compare(read.value, wanted)


def _equal(read: Read, value: nft.Value) -> Bool | None:
    if read.kind == "name":
        return named_like(read.value, str(value))
    if read.kind == "word":
        return read.value == _name(str(value), 128)
    found = _interval(read, value)
    return None if found is None else _between(read.value, *found)


def _interval(read: Read, value: nft.Value) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if read.kind.startswith("address"):
        return _addresses(value)
    if read.kind == "flags" and "," in value:
        bits = [read.words.get(word) for word in value.split(",")]
        total = reduce(lambda one, other: one | (other or 0), bits, 0)
        return None if None in bits else (total, total)
    if value in read.words:
        return read.words[value], read.words[value]
    low, dash, high = value.partition("-")
    try:
        return int(low, 0), int(high, 0) if dash else int(low, 0)
    except ValueError:
        return None


def _addresses(value: str) -> tuple[int, int] | None:
    low, dash, high = value.partition("-")
    try:
        if dash:
            return int(ip_address(low)), int(ip_address(high))
        net = ip_network(value, strict=False)
    except ValueError:
        return None
    return int(net.network_address), int(net.broadcast_address)
