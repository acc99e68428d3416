# SPDX-License-Identifier: BSD-2-Clause
"""The kinds of packets that `probe` sends, where they go, and how they are known again.

No destination can be anybody. Each one is an address that standards keep for documentation:

- 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24 (RFC 5737), 2001:db8::/32 (RFC 3849);
- 233.252.0.0/24 (RFC 5771, MCAST-TEST-NET), ff02::db8:0:0/96 and ff0e::db8:0:0/96 (RFC 6676): groups of nobody;
- 00:00:5e:00:53:01 (RFC 9542), where a frame needs an address.

The one that others do receive is 255.255.255.255, on port 9 (discard, RFC 863), and it passes no router. All have a
hop limit of 1: the first router drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from attrs import evolve, field, frozen

from ...kernel.emit import ETHERTYPES, FRAMES, ICMP, ICMPV6, PORTS, PROTOCOL, TCP, UDP, Shot
from ...model.packet import FRAME, SOCKET, Packet, number

Random = Callable[[int], bytes]

DISCARD, DNS, QUIC = 9, 53, 443
BOTH = (4, 6)
DOCUMENTATION = {
    4: tuple(map(ip_network, ("198.51.100.0/24", "203.0.113.0/24", "192.0.2.0/24"))),
    6: (ip_network("2001:db8::/32"),),
}
GROUPS = {4: ip_network("233.252.0.0/24"), 6: ip_network("ff0e::db8:0:0/96")}
ON_LINK_GROUP = ip_network("ff02::db8:0:0/96")
BROADCAST = "255.255.255.255"

# Who sends.
ROOT, STRANGER, THIEF = "root", "stranger", "thief"
_ANYBODY = (ROOT, STRANGER)

_TOKEN = 16  # bytes, the first eight of which all probes of a run share
_DNS_HEAD = bytes.fromhex("4e5001000001000000000000") + bytes((_TOKEN,))  # one question, whose first label follows
_DNS_TAIL = b"\7invalid\0\0\1\0\1"
_QUIC_HEAD = b"\xc3\0\0\0\1" + bytes((_TOKEN,))  # a long header of version 1, whose connection id follows (RFC 9000)
_QUIC_TAIL = bytes(2)


@frozen
class Kind:
    """A kind of probe. `form` and `way` are those of kernel/emit.py; `to` chooses the destination.

    `each`: it is sent for each device of an uplink, and not once where the routes lead. `ports`: and for each port
    of a bridge.
    """

    name: str
    title: str
    form: str = "udp"
    way: str = ""
    to: str = "documentation"
    families: tuple[int, ...] = BOTH
    users: tuple[str, ...] = _ANYBODY
    dport: int = DISCARD
    head: bytes = b""
    tail: bytes = b""
    each: bool = True
    ports: bool = False
    large: bool = False
    foreign: bool = False  # its source address is nobody's


def _routed(name: str, title: str, **more: object) -> Kind:
    return Kind(name, title, each=False, **more)  # type: ignore[arg-type]


_BY_ROOT = (ROOT,)
KINDS: tuple[Kind, ...] = (
    # The routes choose the device.
    _routed("udp", "UDP"),
    _routed("tcp", "TCP SYN", form="tcp"),
    _routed("ping", "ICMP echo, ping socket", form="ping"),
    _routed("echo", "ICMP echo, raw socket", form="echo", users=_BY_ROOT),
    _routed("raw", f"IP protocol {PROTOCOL}, raw socket", form="raw", users=_BY_ROOT),
    _routed("header", "own IP header, foreign source", form="header", users=_BY_ROOT, foreign=True),
    _routed("dns", "DNS query (UDP 53)", dport=DNS, head=_DNS_HEAD, tail=_DNS_TAIL),
    _routed("quic", "QUIC (UDP 443)", dport=QUIC, head=_QUIC_HEAD, tail=_QUIC_TAIL),
    _routed("mapped", "UDP, IPv4 by an IPv6 socket", way="mapped", families=(4,)),
    _routed("options", "UDP, IP options or hop-by-hop", way="options", users=_BY_ROOT),
    _routed("fragments", "UDP, fragments", large=True),
    # The socket names the uplink's device or address.
    Kind("source", "UDP from the uplink's address", way="source"),
    Kind("source-tcp", "TCP SYN from the uplink's address", form="tcp", way="source"),
    Kind("bound", "UDP, SO_BINDTODEVICE", way="bound"),
    Kind("bound-tcp", "TCP SYN, SO_BINDTODEVICE", form="tcp", way="bound"),
    Kind("bound-group", "UDP multicast, SO_BINDTODEVICE", way="bound", to="group"),
    Kind("bound-echo", "ICMP echo multicast, SO_BINDTODEVICE", form="echo", way="bound", to="group", users=_BY_ROOT),
    Kind("bound-raw", f"IP protocol {PROTOCOL} multicast, SO_BINDTODEVICE", form="raw", way="bound", to="group",
         users=_BY_ROOT),
    Kind("bound-header", "own IP header multicast, SO_BINDTODEVICE", form="header", way="bound", to="group",
         users=_BY_ROOT, foreign=True),
    Kind("unentitled", "UDP, SO_BINDTODEVICE, mark of others", way="bound", users=(THIEF,)),
    Kind("unicast-if", "UDP, IP_UNICAST_IF", way="unicast-if"),
    Kind("pktinfo", "UDP, IP_PKTINFO", way="pktinfo"),
    Kind("pktinfo-group", "UDP multicast, IP_PKTINFO", way="pktinfo", to="group"),
    Kind("group", "UDP multicast, IP_MULTICAST_IF", way="multicast-if", to="group"),
    Kind("zone", "UDP to a link-local group", way="zone", to="on-link-group", families=(6,)),
    Kind("broadcast", "UDP broadcast", way="broadcast", to="broadcast", families=(4,)),
    # Frames, which pass none of the IP layer.
    Kind("frame", "AF_PACKET, SOCK_DGRAM", form="frame", users=_BY_ROOT, ports=True, foreign=True),
    Kind("raw-frame", "AF_PACKET, SOCK_RAW", form="raw-frame", users=_BY_ROOT, ports=True, foreign=True),
    Kind("other-frame", "AF_PACKET, not IP", form="frame", families=(0,), users=_BY_ROOT, ports=True),
)  # fmt: skip


@frozen
class Who:
    """The ids of the senders, and the mark that is not theirs (0: there is nobody to take it from)."""

    stranger: int
    mark: int = 0

    def sends(self, user: str) -> Mapping[str, int | bool]:
        """Fields of a Shot."""
        other = {"uid": self.stranger, "gid": self.stranger}
        return {ROOT: {}, STRANGER: other, THIEF: {**other, "lent": True, "mark": self.mark}}[user]


def nobody(taken: Collection[int]) -> int:
    """A number that is no user and no group of a service: "nobody" where it is free."""
    return next(one for one in range(65534, 0, -1) if one not in taken)


@frozen
class Where:
    """A device to send by, its ports if it is a bridge, its addresses by family, its MTU in bytes."""

    device: str
    ports: tuple[str, ...] = ()
    source: Mapping[int, str] = field(factory=dict)
    mtu: int = 1500


@frozen
class Probe:
    """A shot, its kind, and how it is known again: by `token`, which is `offset` bytes behind the IP header."""

    kind: Kind
    user: str
    shot: Shot
    token: bytes
    offset: int = 0

    @property
    def device(self) -> str | None:
        """The device that it names; None if the routes choose."""
        return self.shot.device


@frozen
class Places:
    """Addresses of nobody, each one another. `own` are networks of this machine, which are not used."""

    random: Random
    own: tuple[IPv4Network | IPv6Network, ...] = ()

    def of(self, to: str, family: int) -> str:
        """A destination."""
        if to == "broadcast":
            return BROADCAST
        if to != "documentation":
            return self._in(ON_LINK_GROUP if to == "on-link-group" else GROUPS[family])
        known = DOCUMENTATION[family or 4]
        free = [one for one in known if not any(one.version == own.version and one.overlaps(own) for own in self.own)]
        return self._in((free or known)[0])

    def _in(self, network: IPv4Network | IPv6Network) -> str:
        host = int.from_bytes(self.random(16), "big") % (network.num_addresses - 2) + 1
        return str(network.network_address + host)


@frozen
class Maker:
    """Makes the probes of one run; `run` is the beginning of every token."""

    places: Places
    run: bytes
    families: tuple[int, ...] = BOTH

    def routed(self, who: Who, mtu: int) -> Iterator[Probe]:
        """Those whose device the routes choose."""
        for kind in KINDS:
            if not kind.each:
                yield from self._of(kind, who, Where("", mtu=mtu), None)

    def by(self, where: Where, who: Who) -> Iterator[Probe]:
        """Those for one device."""
        for kind in KINDS:
            if kind.each and (who.mark or THIEF not in kind.users):
                for device in (where.device, *(where.ports if kind.ports else ())):
                    yield from self._of(kind, who, where, device)

    def _of(self, kind: Kind, who: Who, where: Where, device: str | None) -> Iterator[Probe]:
        for family in kind.families:
            if family and family not in self.families:
                continue
            source = where.source.get(family)
            for user in kind.users:
                if kind.way != "source" or source:
                    yield self.one(kind, family, user, who.sends(user), device, source, where.mtu)

    def one(
        self,
        kind: Kind,
        family: int,
        user: str,
        sender: Mapping[str, int | bool],
        device: str | None = None,
        source: str | None = None,
        mtu: int = 1500,
    ) -> Probe:
        """A probe of a kind."""
        random = self.places.random
        token = self.run + random(_TOKEN - len(self.run))
        payload = token * (mtu // _TOKEN + 8) if kind.large else kind.head + token + kind.tail
        ports = int.from_bytes(random(4), "big")
        shot = Shot(
            kind.form,
            family,
            self.places.of(kind.to, family),
            payload,
            # A connection carries nothing at first: what it is known by are its port and address.
            dport=1024 + ports % 64000 if kind.form == "tcp" else kind.dport,
            sport=32768 + ports % 28000,
            way=kind.way,
            device=device,
            source=self.places.of("documentation", family) if kind.foreign else source,
        )
        offset = {"udp": 8, "ping": 8, "echo": 8, "header": 8, "frame": 8, "raw-frame": 8}.get(kind.form, 0)
        return Probe(kind, user, evolve(shot, **sender), token, offset + len(kind.head) if family else 0)


# --- what is seen ------------------------------------------------------------------------------------

_VLANS = frozenset((0x8100, 0x88A8))
_EXTENSIONS, _FRAGMENT = frozenset((0, 43, 60)), 44
_SYN, _ACK = 2, 16
_WORDS = {TCP: "TCP SYN", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6"}


@frozen
class Seen:
    """The outermost IP packet of what left: `rest` is what follows its header and extensions. `protocol` is None
    for what is not IP, of which `rest` is all."""

    ethertype: int
    rest: bytes
    protocol: int | None = None
    source: str = ""
    destination: str = ""
    hops: int = 0

    @property
    def ports(self) -> tuple[int, int] | None:
        """Source and destination port, of TCP and UDP."""
        if self.protocol not in (TCP, UDP) or len(self.rest) < 4:
            return None
        return int.from_bytes(self.rest[:2], "big"), int.from_bytes(self.rest[2:4], "big")

    def __str__(self) -> str:
        if self.protocol is None:
            return f"a frame of type {self.ethertype:#06x}"
        name = {TCP: "TCP SYN", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6"}.get(
            self.protocol, f"protocol {self.protocol}"
        )
        source, destination = self.source, self.destination
        if self.ports:
            ends = [f"[{one}]" if ":" in one else one for one in (source, destination)]
            source, destination = (f"{end}:{port}" for end, port in zip(ends, self.ports, strict=True))
        return f"{name} {source} > {destination}, hop limit {self.hops}"


def read(ethertype: int, data: bytes) -> Seen:
    """What left, from behind its link header on; what is cut short is kept as what is not IP."""
    while ethertype in _VLANS and len(data) >= 4:
        ethertype, data = int.from_bytes(data[2:4], "big"), data[4:]
    if ethertype == ETHERTYPES[4] and len(data) >= 20:
        size = (data[0] & 15) * 4
        ends = (str(ip_address(data[at : at + 4])) for at in (12, 16))
        return Seen(ethertype, data[size:], data[9], *ends, data[8])
    if ethertype == ETHERTYPES[6] and len(data) >= 40:
        ends = (str(ip_address(data[at : at + 16])) for at in (8, 24))
        protocol, rest = _past_extensions(data[6], data[40:])
        return Seen(ethertype, rest, protocol, *ends, data[7])
    return Seen(ethertype, data)


def _past_extensions(protocol: int, rest: bytes) -> tuple[int, bytes]:
    while len(rest) >= 8 and (protocol in _EXTENSIONS or protocol == _FRAGMENT):
        size = 8 if protocol == _FRAGMENT else 8 + 8 * rest[1]
        protocol, rest = rest[0], rest[size:]
    return protocol, rest


def _may_connect(ethertype: int, data: bytes) -> bool:
    """Whether this is the first packet of a connection: asked of everything that leaves, so that it has to be quick."""
    while ethertype in _VLANS and len(data) >= 4:
        ethertype, data = int.from_bytes(data[2:4], "big"), data[4:]
    if ethertype == ETHERTYPES[4] and len(data) >= 40:
        protocol, size = data[9], (data[0] & 15) * 4
    elif ethertype == ETHERTYPES[6] and len(data) >= 60:
        protocol, size = data[6], 40
    else:
        return False
    return protocol == TCP and len(data) > size + 13 and data[size + 13] & (_SYN | _ACK) == _SYN


class Known:
    """Knows the probes of a run again, however often their addresses were rewritten.

    What a tunnel carries is not meant, though it be readable: the token has to be where the outermost header ends.
    """

    def __init__(self, probes: Iterable[Probe]) -> None:
        self._run = b""
        self._tokens: dict[bytes, Probe] = {}
        self._connections: dict[tuple[str, int], Probe] = {}
        for probe in probes:
            self._run = probe.token[:8]
            self._tokens[probe.token] = probe
            if probe.shot.form == "tcp":
                self._connections[probe.shot.destination, probe.shot.dport] = probe

    def find(self, ethertype: int, data: bytes) -> tuple[Probe, Seen] | None:
        """The probe that this is (a fragment of), or None."""
        if self._run and self._run in data:
            return self._by_token(read(ethertype, data))
        return self._by_ports(read(ethertype, data)) if self._connections and _may_connect(ethertype, data) else None

    def _by_token(self, seen: Seen) -> tuple[Probe, Seen] | None:
        at = seen.rest.find(self._run)
        probe = self._tokens.get(seen.rest[at : at + _TOKEN]) if at >= 0 else None
        if probe is None:
            return None
        # A fragment begins anywhere in the repeated token.
        right = at < _TOKEN if probe.kind.large else at == probe.offset
        right = right and (seen.protocol is None) == (probe.shot.family == 0)
        return (probe, seen) if right else None

    def _by_ports(self, seen: Seen) -> tuple[Probe, Seen] | None:
        if seen.protocol != TCP or not seen.ports:
            return None
        probe = self._connections.get((seen.destination, seen.ports[1]))
        return (probe, seen) if probe else None


# --- for explain --------------------------------------------------------------------------------------

_NAMES_DEVICE = frozenset({"bound", "unicast-if", "pktinfo", "multicast-if", "zone", "broadcast"})
_PROTOCOLS = {"udp": UDP, "tcp": TCP, "header": UDP, "raw": PROTOCOL, **dict.fromkeys(FRAMES, UDP)}


def packet(probe: Probe, seen: Seen | None = None) -> Packet | None:
    """The probe as `explain` takes it; None if it has no words for it."""
    shot = probe.shot
    if not shot.family:
        return None
    frame = shot.form in FRAMES
    protocol = _PROTOCOLS.get(shot.form, {4: ICMP, 6: ICMPV6}[shot.family])
    sport = seen.ports[0] if seen and seen.ports else shot.sport
    with_ports = shot.form in PORTS
    return Packet(
        shot.family,
        number(shot.destination),
        number(shot.source) if shot.source and (probe.kind.foreign or shot.way == "source") else None,
        protocol,
        sport if with_ports else 0,
        shot.dport if with_ports else 0,
        FRAME if frame else SOCKET,
        shot.mark,
        shot.uid,
        shot.gid,
        bound=shot.device if frame or shot.way in _NAMES_DEVICE else None,
        ethertype=ETHERTYPES[shot.family] if frame else None,
        fields={("ip", "ttl") if shot.family == 4 else ("ip6", "hoplimit"): 1},
    )
