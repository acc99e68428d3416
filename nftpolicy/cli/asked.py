# SPDX-License-Identifier: BSD-2-Clause
"""The packet that a person asks about: the options of `explain`, and a program's sockets, as Packets."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from attrs import evolve, fields, frozen

from ..model.packet import FORWARD, FRAME, ICMP, ICMPV6, KERNEL, SOCKET, TCP, Flow, Packet
from ..netstate.nft import PROTOCOLS
from .common import BAD_INPUT, Failure, account

if TYPE_CHECKING:
    from ..kernel.conntrack import Tracked
    from ..kernel.sockets import Process, Socket

# (family, protocol, address, port, address, port) -> what connection tracking knows.
Known = Callable[[int, int, str, int, str, int], "Tracked | None"]
STATES = ("new", "established", "related", "invalid", "untracked")
_NUMBERS = {name: number for number, name in PROTOCOLS.items()} | {"icmpv6": ICMPV6}
_NUMBER = re.compile(r"(?:[0-9]{1,20}|0[xX][0-9a-fA-F]{1,20})\Z")
_FIELD = re.compile(r"([a-z][a-z0-9]*)\.([a-z]+)=(\d{1,10}|0x[0-9a-fA-F]{1,8})\Z")
_LARGEST = 2**32 - 1
_SYN, _ACK = 2, 16  # of a TCP header's flags
_RAW = 255  # IPPROTO_RAW: the program writes the header
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_ALL_FRAMES = (0, 3)  # ETH_P_ALL, and none as yet


def bad(option: str, message: str) -> Failure:
    """What is wrong with an option."""
    return Failure(f"{option}: {message}", BAD_INPUT)


def address(option: str, text: str) -> tuple[int, int, str | None]:
    """Family, number and zone of an address."""
    try:
        found = ip_address(text)
    except ValueError:
        raise bad(option, f"{text!r} is no IPv4 or IPv6 address; a name has to be looked up first") from None
    return found.version, int(found), getattr(found, "scope_id", None)


def number(option: str, text: str, largest: int = _LARGEST) -> int:
    """A number, decimal or 0x..., of at most `largest`."""
    if not _NUMBER.match(text):
        raise bad(option, f"expected a number such as 1 or 0x1, got {text[:40]!r}")
    found = int(text, 16 if text[:2] in ("0x", "0X") else 10)
    if found > largest:
        raise bad(option, f"{text} is not from 0 to {largest:#x}")
    return found


@frozen
class Asked:
    """The options as they were written."""

    to: str | None
    source: str | None = None
    proto: str = "udp"
    dport: int = 9
    sport: int = 40000
    uid: str | None = None
    gid: str | None = None
    mark: str = "0"
    cgroup: str | None = None
    dev: str | None = None
    frame: bool = False
    kernel: bool = False
    forward: str | None = None
    state: str = "new"
    reply: bool = False
    ct_mark: str = "0"
    fields: tuple[str, ...] = ()

    def packet(self) -> Packet:
        """The packet, or Failure."""
        if self.to is None:
            raise bad("--to", "missing: where does the packet go? (--pid N shows the sockets of a program)")
        family, destination, zone = address("--to", self.to)
        source = self._source(family)
        origin = self._origin(source)
        protocol = self._protocol(family)
        flow = self._flow()
        uid, gid = self._owner() if origin in (SOCKET, FRAME) else (0, 0)
        return Packet(
            family,
            destination,
            source,
            protocol,
            self.sport,
            self.dport,
            origin,
            number("--mark", self.mark),
            uid,
            gid,
            self.cgroup.strip("/") if self.cgroup else None,
            self._device(zone),
            self.forward,
            flow,
            _ETHERTYPES[family] if origin == FRAME else None,
            {**_header(family, protocol, destination, flow), **self._fields()},
        )

    def only_a_destination(self) -> None:
        """Fail if more is said than what a program's socket leaves open."""
        plain = evolve(Asked(self.to), proto=self.proto, dport=self.dport, sport=self.sport)
        for one in fields(Asked):
            if getattr(self, one.name) != getattr(plain, one.name):
                option = {"source": "from", "fields": "field"}.get(one.name, one.name).replace("_", "-")
                raise bad(f"--{option}", "not with --pid: the sockets of a program are as they are")

    def _source(self, family: int) -> int | None:
        if self.source is None:
            return None
        version, found, _ = address("--from", self.source)
        if version != family:
            raise bad("--from", f"{self.source} is IPv{version}, and --to {self.to} is IPv{family}")
        return found

    def _origin(self, source: int | None) -> str:
        chosen = {"--forward": self.forward, "--kernel": self.kernel, "--frame": self.frame}
        given = [option for option, value in chosen.items() if value]
        if len(given) > 1:
            raise bad(given[0], f"a packet begins in one place; not with {given[1]}")
        if not given:
            return SOCKET
        (option,) = given
        socketless = {"--uid": self.uid, "--gid": self.gid, "--cgroup": self.cgroup}
        for other, value in socketless.items():
            if value is not None and option != "--frame":
                raise bad(other, f"with {option} there is no socket")
        if option == "--frame" and not self.dev:
            raise bad("--frame", "an AF_PACKET socket sends on a device: name it with --dev")
        if option in ("--frame", "--forward") and source is None:
            raise bad(option, "the source address is in the packet already: name it with --from")
        if option == "--forward" and (number("--mark", self.mark) or self.dev):
            raise bad("--forward", "what arrives has no socket's mark or device; --ct-mark is its connection's")
        return {"--forward": FORWARD, "--kernel": KERNEL, "--frame": FRAME}[option]

    def _protocol(self, family: int) -> int:
        found = _NUMBERS.get(self.proto)
        if found is None:
            if not _NUMBER.match(self.proto):
                raise bad("--proto", f"{self.proto!r} is neither a number nor one of {', '.join(_NUMBERS)}")
            found = number("--proto", self.proto, 255)
        if found == ICMP and family == 6:
            raise bad("--proto", "icmp is of IPv4; that of IPv6 is ipv6-icmp")
        if found == ICMPV6 and family == 4:
            raise bad("--proto", "ipv6-icmp is of IPv6; that of IPv4 is icmp")
        return found

    def _owner(self) -> tuple[int, int]:
        uid = _account("--uid", "user", self.uid) if self.uid is not None else 0
        if self.gid is not None:
            return uid, _account("--gid", "group", self.gid)
        from ..kernel import accounts

        known = accounts.user_and_group(uid)
        return uid, (accounts.number("group", known[1]) or 0) if known else uid

    def _device(self, zone: str | None) -> str | None:
        if zone and self.dev and zone != self.dev:
            raise bad("--dev", f"{self.dev} is not the zone of {self.to}")
        return self.dev or zone

    def _flow(self) -> Flow:
        if self.state not in STATES:
            raise bad("--state", f"{self.state!r} is none of {', '.join(STATES)}")
        if self.reply and self.state == "new":
            raise bad("--reply", "a reply is of a connection that is there: --state established")
        return Flow(self.state, "reply" if self.reply else "original", number("--ct-mark", self.ct_mark))

    def _fields(self) -> dict[tuple[str, str], int]:
        found = {}
        for text in self.fields:
            parts = _FIELD.match(text)
            if not parts:
                raise bad("--field", f"expected HEADER.NAME=NUMBER such as icmpv6.type=135, got {text!r}")
            found[parts[1], parts[2]] = number("--field", parts[3])
        return found


def _account(option: str, kind: str, text: str) -> int:
    try:
        return account(kind, text).number
    except ValueError as error:
        raise bad(option, str(error).partition("; create")[0]) from None


def _header(family: int, protocol: int, destination: int, flow: Flow) -> dict[tuple[str, str], int]:
    """Header fields as Linux sends them where nobody asked for others."""
    many = destination >> (28 if family == 4 else 120) == (0xE if family == 4 else 0xFF)
    found = {("ip", "ttl") if family == 4 else ("ip6", "hoplimit"): 1 if many else 64}
    if protocol == ICMP:
        found["icmp", "type"] = 8
    elif protocol == ICMPV6:
        found["icmpv6", "type"] = 128
    elif protocol == TCP:
        found["tcp", "flags"] = _SYN if flow.state == "new" else _ACK
    return found


# --- a program's sockets ---------------------------------------------------------------------------


def packet_of(one: Socket, process: Process, asked: Asked, known: Known = lambda *_: None) -> Packet | str:
    """A packet that the socket can send, or in words why there is none to show. `known` asks connection tracking."""
    if one.elsewhere:
        return "of another network namespace than the program's: not judged here"
    if one.family == 0:
        return _frame_of(one, asked)
    if one.listens:
        return "listens, and sends nothing by itself; what it accepts is a socket of its own"
    if one.remote is not None:
        family, destination, _ = address("the socket's remote address", one.remote)
        dport = one.dport
    elif asked.to is None:
        return "not connected: name a destination with --to"
    else:
        family, destination, _ = address("--to", asked.to)
        dport = asked.dport
        if family != one.family and not (one.both and family == 4):
            return f"sends IPv{one.family} only, and --to is IPv{family}"
    protocol = asked._protocol(family) if one.protocol == _RAW else one.protocol
    flow = _flow_of(one, family, known)
    return Packet(
        family,
        destination,
        address("the socket's address", one.local)[1] if one.local else None,
        protocol,
        one.sport or asked.sport,
        dport,
        SOCKET,
        one.mark,
        one.uid,
        one.gid,
        process.cgroup,
        one.bound or one.out,
        flow=flow,
        fields=_header(family, protocol, destination, flow),
    )


def _flow_of(one: Socket, family: int, known: Known) -> Flow:
    if one.local is None or one.remote is None:
        return Flow()
    found = known(family, one.protocol, one.local, one.sport, one.remote, one.dport)
    if found is None:
        return Flow("established" if one.kind == "stream" else "new")
    return Flow(found.state, found.direction, found.mark)


def _frame_of(one: Socket, asked: Asked) -> Packet | str:
    if one.bound is None:
        return "an AF_PACKET socket on no device as yet"
    frame = Packet(4, 0, 0, origin=FRAME, mark=one.mark, uid=one.uid, gid=one.gid, bound=one.bound)
    if asked.to is not None:
        family, destination, _ = address("--to", asked.to)
        protocol = asked._protocol(family)
        return evolve(
            frame,
            family=family,
            destination=destination,
            protocol=protocol,
            sport=asked.sport,
            dport=asked.dport,
            ethertype=_ETHERTYPES[family],
            fields=_header(family, protocol, destination, Flow()),
        )
    if one.protocol in (*_ALL_FRAMES, *_ETHERTYPES.values()):
        return "an AF_PACKET socket, which sends any frame: name a destination with --to"
    return evolve(frame, ethertype=one.protocol)


def describe(one: Socket) -> str:
    """A socket in one line."""
    if one.family == 0:
        return f"descriptor {one.fd}: AF_PACKET {one.kind}, protocol {one.protocol:#06x}" + _rest(one)
    both = " and IPv4" if one.both else ""
    name = {_RAW: "raw"}.get(one.protocol) or PROTOCOLS.get(one.protocol, str(one.protocol))
    raw = "raw " if one.kind == "raw" and one.protocol != _RAW else ""
    ends = f" {_end(one.local, one.sport)}" if one.local or one.sport else ""
    ends += f" -> {_end(one.remote, one.dport)}" if one.remote else ""
    return f"descriptor {one.fd}: {raw}{name} by IPv{one.family}{both}{ends}" + _rest(one)


def _rest(one: Socket) -> str:
    device = f", on {one.bound}" if one.bound else f", by {one.out} (UNICAST_IF)" if one.out else ""
    return f", mark {one.mark:#x}, user {one.uid}, group {one.gid}{device}"


def _end(text: str | None, port: int) -> str:
    shown = f"[{text}]" if text and ":" in text else text or "*"
    return f"{shown}:{port}" if port else shown
