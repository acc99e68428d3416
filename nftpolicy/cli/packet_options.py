# SPDX-License-Identifier: BSD-2-Clause
"""Packets for `explain`: from its options, and from the sockets of a process."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from attrs import evolve, fields, frozen

from ..model.packet import FORWARD, FRAME, ICMP, ICMPV6, KERNEL, SOCKET, TCP, CtInfo, Packet
from ..netstate.formats.state_check import is_device_name
from ..netstate.nft import PROTOCOL_NAMES
from ..netstate.nft.headers import HEADER_FIELDS
from ..policy.errors import did_you_mean
from .common import EXIT_BAD_INPUT, Failure, resolve_account

if TYPE_CHECKING:
    from ..kernel.netlink.conntrack import FlowState
    from ..kernel.process_sockets import ProcessSocket, ProcessSockets

# Header fields of nft, and those that the model adds for frames.
_OF_FRAMES = {
    "ether": (*HEADER_FIELDS["ether"], (0, 1, "readable")),
    "llc": ((0, 24, "header"),),
    "meta": ((0, 16, "oiftype"),),
}
_HEADER_FIELDS = {**HEADER_FIELDS, **_OF_FRAMES}
# (family, protocol, local address, port, remote address, port) -> the entry of connection tracking.
FlowLookup = Callable[[int, int, str, int, str, int], "FlowState | None"]
STATES = ("new", "established", "related", "invalid", "untracked")
_PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()} | {"icmpv6": ICMPV6}
_NUMBER = re.compile(r"(?:[0-9]{1,20}|0[xX][0-9a-fA-F]{1,20})\Z")
_FIELD = re.compile(r"([a-z][a-z0-9]*)\.([a-z-]+)=(\d{1,10}|0x[0-9a-fA-F]{1,8})\Z")
_U32_MAX = 2**32 - 1
_PROTOCOL_MAX = 255
_SYN, _ACK = 2, 16  # flags of a TCP header
_RAW = 255  # IPPROTO_RAW: the program writes the header
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_ALL_ETHERTYPES = (0, 3)  # not bound to a protocol yet, ETH_P_ALL
_ECHO_REQUEST, _ECHO_REQUEST_V6 = 8, 128  # ICMP types
_TTL, _MULTICAST_TTL = 64, 1  # Linux: net.ipv4.ip_default_ttl, IP_MULTICAST_TTL


def option_failure(option: str, message: str) -> Failure:
    """Return the Failure for a bad value of an option."""
    return Failure(f"{option}: {message}", EXIT_BAD_INPUT)


def parse_address(option: str, text: str) -> tuple[int, int, str | None]:
    """Return family, number and zone of an address.

    Raises:
        Failure: it is not an IPv4 or IPv6 address.
    """
    try:
        address = ip_address(text)
    except ValueError:
        raise option_failure(option, f"{text!r} is not an IPv4 or IPv6 address; resolve a host name first") from None
    return address.version, int(address), getattr(address, "scope_id", None)


def parse_number(option: str, text: str, largest: int = _U32_MAX) -> int:
    """Return a number from 0 to `largest`, written in decimal or as 0x...

    Raises:
        Failure: it is not such a number.
    """
    if not _NUMBER.match(text):
        raise option_failure(option, f"expected a number such as 1 or 0x1, got {text[:40]!r}")
    number = int(text, 16 if text[:2] in ("0x", "0X") else 10)
    if number > largest:
        raise option_failure(option, f"{text} is not from 0 to {largest:#x}")
    return number


@frozen
class PacketOptions:
    """Options that describe a packet, as they were typed."""

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
        """Return the packet.

        Raises:
            Failure: an option has a bad value, or the options contradict each other.
        """
        if self.to is None:
            raise option_failure("--to", "missing: give the destination address, or --pid N for a process's sockets")
        family, destination, zone = parse_address("--to", self.to)
        source = self._source(family)
        origin = self._origin(source)
        protocol = self.protocol(family)
        flow = self._flow()
        uid, gid = self._user_and_group() if origin in (SOCKET, FRAME) else (0, 0)
        return Packet(
            family,
            destination,
            source,
            protocol,
            self.sport,
            self.dport,
            origin,
            parse_number("--mark", self.mark),
            uid,
            gid,
            self.cgroup.strip("/") if self.cgroup else None,
            self._device(zone),
            _device_name("--forward", self.forward),
            flow,
            _ETHERTYPES[family] if origin == FRAME else None,
            {**_default_fields(family, protocol, destination, flow), **self._fields()},
        )

    def require_destination_only(self) -> None:
        """Check that no option but --to, --proto, --dport and --sport is given.

        Raises:
            Failure: another option is given.
        """
        plain = PacketOptions(self.to, proto=self.proto, dport=self.dport, sport=self.sport)
        for field in fields(PacketOptions):
            if getattr(self, field.name) != getattr(plain, field.name):
                option = {"source": "from", "fields": "field"}.get(field.name, field.name).replace("_", "-")
                raise option_failure(f"--{option}", "cannot be used with --pid: the process's sockets determine it")

    def _source(self, family: int) -> int | None:
        if self.source is None:
            return None
        version, address, _ = parse_address("--from", self.source)
        if version != family:
            raise option_failure("--from", f"{self.source} is IPv{version}, and --to {self.to} is IPv{family}")
        return address

    def _origin(self, source: int | None) -> str:
        chosen = {"--forward": self.forward is not None, "--kernel": self.kernel, "--frame": self.frame}
        options = [option for option, value in chosen.items() if value]
        if len(options) > 1:
            raise option_failure(options[0], f"excludes {options[1]}: a packet has one origin")
        if not options:
            return SOCKET
        (option,) = options
        of_socket = {"--uid": self.uid, "--gid": self.gid, "--cgroup": self.cgroup}
        for socket_option, value in of_socket.items():
            if value is not None and option != "--frame":
                raise option_failure(socket_option, f"cannot be used with {option}: the packet has no socket")
        if option == "--frame" and not self.dev:
            raise option_failure("--frame", "an AF_PACKET socket sends on a device: name it with --dev")
        if option in ("--frame", "--forward") and source is None:
            raise option_failure(option, "the packet has its source address already: give it with --from")
        if option == "--forward" and (parse_number("--mark", self.mark) or self.dev):
            raise option_failure(
                "--forward",
                "excludes --mark and --dev, which are a socket's; use --ct-mark",
            )
        return {"--forward": FORWARD, "--kernel": KERNEL, "--frame": FRAME}[option]

    def protocol(self, family: int) -> int:
        """Return the IP protocol number.

        Raises:
            Failure: --proto is unknown, or does not exist in this address family.
        """
        number = _PROTOCOL_NUMBERS.get(self.proto)
        if number is None:
            if not _NUMBER.match(self.proto):
                names = ", ".join(_PROTOCOL_NUMBERS)
                near = did_you_mean(self.proto.lower(), _PROTOCOL_NUMBERS)
                raise option_failure("--proto", f"{self.proto[:40]!r} is neither a number nor one of {names}{near}")
            number = parse_number("--proto", self.proto, _PROTOCOL_MAX)
        if number == ICMP and family == 6:
            raise option_failure("--proto", "icmp is for IPv4; use ipv6-icmp")
        if number == ICMPV6 and family == 4:
            raise option_failure("--proto", "ipv6-icmp is for IPv6; use icmp")
        return number

    def _user_and_group(self) -> tuple[int, int]:
        uid = _account_number("--uid", "user", self.uid) if self.uid is not None else 0
        if self.gid is not None:
            return uid, _account_number("--gid", "group", self.gid)
        from ..kernel import accounts

        names = accounts.user_and_group(uid)
        return uid, (accounts.account_number("group", names[1]) or 0) if names else uid

    def _device(self, zone: str | None) -> str | None:
        device, zone = _device_name("--dev", self.dev), _device_name("--to", zone)
        if zone and device and zone != device:
            raise option_failure("--dev", f"{device} is not the zone of {self.to}")
        return device or zone

    def _flow(self) -> CtInfo:
        if self.state not in STATES:
            near = did_you_mean(self.state.lower(), STATES)
            raise option_failure("--state", f"{self.state[:40]!r} is not one of {', '.join(STATES)}{near}")
        if self.reply and self.state == "new":
            raise option_failure("--reply", "a new connection has no replies: add --state established")
        return CtInfo(
            self.state,
            "reply" if self.reply else "original",
            parse_number("--ct-mark", self.ct_mark),
        )

    def _fields(self) -> dict[tuple[str, str], int]:
        values = {}
        for text in self.fields:
            parts = _FIELD.match(text)
            if not parts:
                raise option_failure("--field", f"expected HEADER.NAME=NUMBER such as icmpv6.type=135, got {text!r}")
            values[parts[1], parts[2]] = _field_value(parts[1], parts[2], parts[3])
        return values


def _device_name(option: str, name: str | None) -> str | None:
    if name is not None and not is_device_name(name):
        raise option_failure(option, f"{name[:40]!r} is not a device name: 1 to 15 bytes, no '/', ':' or space")
    return name


def _field_value(header: str, name: str, text: str) -> int:
    sizes = {field: length for _, length, field in _HEADER_FIELDS.get(header, ())}
    if name not in sizes:
        known, word = (sizes, name) if sizes else (_HEADER_FIELDS, header)
        kind = f"field of {header}" if sizes else "header"
        choices = ", ".join(field for field in known if " " not in field)
        message = f"there is no {kind} {word[:40]!r}{did_you_mean(word, known)}; known are {choices}"
        raise option_failure("--field", message)
    return parse_number("--field", text, min(_U32_MAX, 2 ** sizes[name] - 1))


def _account_number(option: str, kind: str, text: str) -> int:
    try:
        return resolve_account(kind, text).number
    except ValueError as error:
        raise option_failure(option, str(error).partition("; create")[0]) from None


def _default_fields(family: int, protocol: int, destination: int, flow: CtInfo) -> dict[tuple[str, str], int]:
    """Return the header fields that Linux sends by default."""
    multicast = destination >> (28 if family == 4 else 120) == (0xE if family == 4 else 0xFF)
    ttl = _MULTICAST_TTL if multicast else _TTL
    values = {("ip", "ttl") if family == 4 else ("ip6", "hoplimit"): ttl}
    if protocol == ICMP:
        values["icmp", "type"] = _ECHO_REQUEST
    elif protocol == ICMPV6:
        values["icmpv6", "type"] = _ECHO_REQUEST_V6
    elif protocol == TCP:
        values["tcp", "flags"] = _SYN if flow.state == "new" else _ACK
    return values


# --- the sockets of a process -----------------------------------------------------------------


def socket_packet(
    socket: ProcessSocket,
    process: ProcessSockets,
    options: PacketOptions,
    find_flow: FlowLookup = lambda *_: None,
) -> Packet | str:
    """Return a packet that the socket can send, or as text why there is none to show."""
    if socket.elsewhere:
        return "in another network namespace than the process: not explained"
    if socket.family == 0:
        return _frame(socket, options)
    if socket.listens:
        return "listens, and sends nothing itself; accepted connections have sockets of their own"
    if socket.remote is not None:
        family, destination, _ = parse_address("the socket's remote address", socket.remote)
        dport = socket.dport
    elif options.to is None:
        return "not connected: name a destination with --to"
    else:
        family, destination, _ = parse_address("--to", options.to)
        dport = options.dport
        if family != socket.family and not (socket.both and family == 4):
            return f"sends IPv{socket.family} only, and --to is IPv{family}"
    protocol = options.protocol(family) if socket.protocol == _RAW else socket.protocol
    flow = _socket_flow(socket, family, find_flow)
    return Packet(
        family,
        destination,
        parse_address("the socket's address", socket.local)[1] if socket.local else None,
        protocol,
        socket.sport or options.sport,
        dport,
        SOCKET,
        socket.mark,
        socket.uid,
        socket.gid,
        process.cgroup,
        socket.bound or socket.out,
        flow=flow,
        fields=_default_fields(family, protocol, destination, flow),
    )


def _socket_flow(socket: ProcessSocket, family: int, find_flow: FlowLookup) -> CtInfo:
    if socket.local is None or socket.remote is None:
        return CtInfo()
    entry = find_flow(family, socket.protocol, socket.local, socket.sport, socket.remote, socket.dport)
    if entry is None:
        return CtInfo("established" if socket.kind == "stream" else "new")
    return CtInfo(entry.state, entry.direction, entry.mark, True if entry.state == "new" else None)


def _frame(socket: ProcessSocket, options: PacketOptions) -> Packet | str:
    """Return a frame of an AF_PACKET socket, or why there is none to show."""
    if socket.bound is None:
        return "an AF_PACKET socket that is bound to no device yet"
    frame = Packet(4, 0, 0, origin=FRAME, mark=socket.mark, uid=socket.uid, gid=socket.gid, bound=socket.bound)
    if options.to is not None:
        family, destination, _ = parse_address("--to", options.to)
        protocol = options.protocol(family)
        return evolve(
            frame,
            family=family,
            destination=destination,
            protocol=protocol,
            sport=options.sport,
            dport=options.dport,
            ethertype=_ETHERTYPES[family],
            fields=_default_fields(family, protocol, destination, CtInfo()),
        )
    if socket.protocol in (*_ALL_ETHERTYPES, *_ETHERTYPES.values()):
        return "an AF_PACKET socket, which can send any frame: name a destination with --to"
    return evolve(frame, ethertype=socket.protocol)


def describe_socket(socket: ProcessSocket) -> str:
    """Return a socket in one line."""
    if socket.family == 0:
        return f"descriptor {socket.fd}: AF_PACKET {socket.kind}, protocol {socket.protocol:#06x}" + _attributes(socket)
    families = f"IPv{socket.family} and IPv4" if socket.both else f"IPv{socket.family}"
    name = {_RAW: "raw"}.get(socket.protocol) or PROTOCOL_NAMES.get(socket.protocol, str(socket.protocol))
    raw = "raw " if socket.kind == "raw" and socket.protocol != _RAW else ""
    ends = f" {_endpoint(socket.local, socket.sport)}" if socket.local or socket.sport else ""
    ends += f" -> {_endpoint(socket.remote, socket.dport)}" if socket.remote else ""
    return f"descriptor {socket.fd}: {raw}{name} over {families}{ends}" + _attributes(socket)


def _attributes(socket: ProcessSocket) -> str:
    device = ""
    if socket.bound:
        device = f", bound to {socket.bound}"
    elif socket.out:
        device = f", sends by {socket.out} (UNICAST_IF)"
    return f", mark {socket.mark:#x}, user {socket.uid}, group {socket.gid}{device}"


def _endpoint(address: str | None, port: int) -> str:
    text = f"[{address}]" if address and ":" in address else address or "*"
    return f"{text}:{port}" if port else text
