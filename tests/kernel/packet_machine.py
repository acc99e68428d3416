"""Machine with three links that really sends packets of every origin and records each arrival.

Many packets are sent before arrivals are read, so that one packet costs well under a millisecond. The links need no
neighbour resolution, and the far ends send nothing of their own. A packet is recognized by its source port, or by the
identity of its echo request, which is unique on the machine.
"""

import contextlib
import errno
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence

from attrs import evolve, frozen

from nftpolicy.kernel.libnft import Nft
from nftpolicy.kernel.linux import Linux
from nftpolicy.model.packet import (
    FORWARD,
    FRAME,
    ICMP,
    ICMPV6,
    KERNEL,
    SOCKET,
    TCP,
    UDP,
    Packet,
    format_address,
    parse_address,
)
from nftpolicy.netstate.formats import ip_text, nft_text
from nftpolicy.netstate.routing import RTPROT_NFTPOLICY
from nftpolicy.netstate.state import NetState
from tests.lab import frames
from tests.lab.limits import brief
from tests.lab.netns import Namespace, veth

FAMILIES = (4, 6)
DEVICES = ("wan", "lan", "mesh")
ADDRESSES = {
    4: {"wan": "192.0.2.2/24", "lan": "198.51.100.2/24", "mesh": "203.0.113.2/24"},
    6: {"wan": "2001:db8:1::2/64", "lan": "2001:db8:2::2/64", "mesh": "2001:db8:3::2/64"},
}
LINK_LOCAL = {"wan": "fe80::2/64", "lan": "fe80::3/64", "mesh": "fe80::4/64"}
MACS = {"wan": "02:00:5e:00:53:61", "lan": "02:00:5e:00:53:62", "mesh": "02:00:5e:00:53:63"}
HERE = "here"  # where a packet came out that was for the machine itself
TABLES = (100, 101)  # of the routes that a state may have, besides main
MARKS = 8  # the marks below this one are written into the header on the way out, so that they can be seen
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
ECHO = {4: (ICMP, 8), 6: (ICMPV6, 128)}
SYN, RESET = 0x02, 0x14  # flags of TCP; the kernel's RST acknowledges
REPLY = {4: (ICMP, 0), 6: (ICMPV6, 129)}

_FIRST, _LAST = 10000, 55000
_DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
_SO_RCVBUFFORCE, _SO_RCVMARK, _PACKET_OUTGOING, _ETH_P_ALL = 33, 75, 4, 3
_PATIENCE, _QUIET = 0.5, 0.003  # seconds for a packet that has to come, and of silence until no other is expected

# The last chain before the wire writes the mark into the header. It is no part of the state.
_WIRE = "table netdev wire {{\n{}}}\n".format(
    "".join(
        f' chain {device} {{\n  type filter hook egress device "{device}" priority 2000000000; policy accept;\n'
        + "".join(
            f"  meta mark {mark} meta protocol {word} {word} dscp set {mark}\n"
            for mark in range(MARKS)
            for word in ("ip", "ip6")
        )
        + " }\n"
        for device in DEVICES
    )
)

Key = tuple[int, int, int]  # family, protocol (negative for an answer), the port or identity of its own


@frozen
class Arrival:
    """Packet at the far end of a device, or HERE. None: the field is not visible there."""

    where: str
    mark: int
    source: int | None
    destination: int | None
    dport: int


def key(packet: Packet) -> Key:
    """Return the key that distinguishes the packet from all other packets."""
    is_answer = packet.origin == KERNEL
    if packet.protocol in (ICMP, ICMPV6):
        identity = packet.fields.get(("icmp", "id"), 0)
    else:
        identity = packet.dport if is_answer else packet.sport
    return packet.family, -packet.protocol if is_answer else packet.protocol, identity


class PacketMachine:
    """Machine and its links. A context manager."""

    def __init__(self) -> None:
        import nftables  # noqa: F401 - here rather than in each forked child, where it would take its time again
        import pyroute2  # noqa: F401

        self._stack = contextlib.ExitStack()
        self.node, self._far = (self._stack.enter_context(Namespace(name)) for name in ("node", "far"))
        self._far.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        self._far.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.node.sysctl(name, 1)
        for name in ("all", "default"):
            self.node.sysctl(f"net.ipv4.conf.{name}.send_redirects", 0)
        for device in DEVICES:
            veth(self.node, device, self._far, f"to-{device}", MACS[device])
            self.node.ip(
                f"link set {device} arp off",
                f"link set {device} addrgenmode none",
                f"addr flush dev {device}",
                f"addr add {LINK_LOCAL[device]} dev {device}",
                *(f"addr add {ADDRESSES[family][device]} dev {device}" for family in FAMILIES),
            )
        self._sniffers = {device: self._open_sniffer(f"to-{device}") for device in DEVICES}
        self._raw_sockets = [
            self._open_raw_socket(family, protocol) for family in FAMILIES for protocol in (UDP, TCP, ECHO[family][0])
        ]
        self._next = _FIRST

    def __enter__(self) -> "PacketMachine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the namespaces."""
        self._stack.close()

    def has_identities(self, packets: int) -> bool:
        """Return True if identities are left for this many packets."""
        return self._next + packets < _LAST

    def with_new_identity(self, packet: Packet) -> Packet:
        """Return the packet with an unused identity."""
        self._next += 1
        if packet.protocol in (ICMP, ICMPV6):
            return evolve(packet, fields={**packet.fields, ("icmp", "id"): self._next})
        return evolve(packet, sport=self._next)

    def send(self, state: NetState, packets: Sequence[Packet]) -> tuple[NetState, list[str]]:
        """Install a state beside the machine's own, and send the packets at once.

        Returns the state that the kernel then holds, and for each packet "sent" or the name of an error.
        """
        self._receive()
        for sysctl in state.sysctls:
            self.node.sysctl(sysctl.path, sysctl.value)
        found, answers = self.node.call(_install_and_send, state, packets)
        for packet in packets:
            if packet.origin == FORWARD:
                self._sniffers[packet.iif].send(_frame(packet, MACS[packet.iif]))
        return found, answers

    def seen(self, expected: int) -> dict[Key, list[Arrival]]:
        """Return the arrivals since the packets were sent; waits for this many arrivals."""
        found: dict[Key, list[Arrival]] = {}
        end = time.monotonic() + brief(_PATIENCE)
        while True:
            time.sleep(_QUIET)
            new = self._receive()
            for which, seen in new:
                found.setdefault(which, []).append(seen)
            if not new and (len(found) >= expected or time.monotonic() > end):
                return found

    def _receive(self) -> list[tuple[Key, Arrival]]:
        found = []
        for device, sniffer in self._sniffers.items():
            for raw, _, address in _received(sniffer):
                if address[2] != _PACKET_OUTGOING and (seen := _read(raw, device)):
                    found.append(seen)
        for family, protocol, sniffer in self._raw_sockets:
            for raw, ancillary, _ in _received(sniffer):
                marks = [struct.unpack("=I", data)[0] for _, kind, data in ancillary if kind == socket.SO_MARK]
                if seen := _read_own(family, protocol, raw, marks[0] if marks else 0):
                    found.append(seen)
        return found

    def _open_sniffer(self, device: str) -> socket.socket:
        made = self._stack.enter_context(self._far.socket(socket.AF_PACKET, socket.SOCK_RAW))
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        made.bind((device, _ETH_P_ALL))
        return made

    def _open_raw_socket(self, family: int, protocol: int) -> tuple[int, int, socket.socket]:
        made = self._stack.enter_context(self.node.socket(_DOMAIN[family], socket.SOCK_RAW, protocol))
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
        return family, protocol, made


# What came out


def _received(sniffer: socket.socket) -> Iterator[tuple[bytes, list[tuple[int, int, bytes]], tuple[object, ...]]]:
    while True:
        try:
            raw, ancillary, _, address = sniffer.recvmsg(2048, 64)
        except BlockingIOError:
            return
        yield raw, ancillary, address


def _read(raw: bytes, device: str) -> tuple[Key, Arrival] | None:
    body = raw[14:]
    if raw[12:14] == b"\x08\x00":
        family, protocol, mark, at = 4, body[9], body[1] >> 2, (body[0] & 15) * 4
        source, destination = body[12:16], body[16:20]
    elif raw[12:14] == b"\x86\xdd":
        family, protocol, mark, at = 6, body[6], (int.from_bytes(body[:2], "big") >> 6) & 0x3F, 40
        source, destination = body[8:24], body[24:40]
    else:
        return None
    found = _key_and_port(family, protocol, body[at:])
    if found is None:
        return None
    ends = (int.from_bytes(one, "big") for one in (source, destination))
    return found[0], Arrival(device, mark, *ends, found[1])


def _read_own(family: int, protocol: int, raw: bytes, mark: int) -> tuple[Key, Arrival] | None:
    if family == 6:  # without the header
        found = _key_and_port(family, protocol, raw)
        return found and (found[0], Arrival(HERE, mark, None, None, found[1]))
    found = _key_and_port(family, protocol, raw[(raw[0] & 15) * 4 :])
    ends = (int.from_bytes(raw[at : at + 4], "big") for at in (12, 16))
    return found and (found[0], Arrival(HERE, mark, *ends, found[1]))


def _key_and_port(family: int, protocol: int, rest: bytes) -> tuple[Key, int] | None:
    """Return the key and the destination port; None for a foreign packet."""
    for sign, kind in ((1, ECHO[family]), (-1, REPLY[family])):
        if (protocol, rest[0]) == kind:
            return (family, sign * protocol, int.from_bytes(rest[4:6], "big")), 0
    sport, dport = struct.unpack("!HH", rest[:4])
    if protocol == TCP and rest[13] == RESET:
        return (family, -TCP, dport), dport
    if protocol == UDP or (protocol == TCP and rest[13] & 0x3F == SYN):
        return (family, protocol, sport), dport
    return None


# Inside the machine


def _install_and_send(state: NetState, packets: Sequence[Packet]) -> tuple[NetState, list[str]]:
    _install(state)
    answers = [_attempt(packet) for packet in packets]
    found = Linux().read_all()
    return evolve(found, tables=tuple(table for table in found.tables if table.name != "wire")), answers


def _install(state: NetState) -> None:
    error = Nft().load("flush ruleset\n" + "".join(map(nft_text.table_text, state.tables)) + _WIRE)
    assert error is None, error
    for family in FAMILIES:
        clear = "".join(f"route flush table {table}\n" for table in TABLES)
        _ip(family, f"{clear}route flush table main proto {RTPROT_NFTPOLICY}\nrule flush\n", check=False)
        _ip(family, "rule add priority 32766 lookup main\n" + ip_text.batch_text(state.rules, state.routes, family))


def _ip(family: int, lines: str, check: bool = True) -> None:
    command = ["ip", f"-{family}", *([] if check else ["-force"]), "-batch", "-"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert not check or not done.returncode, f"{done.stderr}\n{lines}"


def _attempt(packet: Packet) -> str:
    try:
        if packet.origin == FRAME:
            _send_frame(packet)
        elif packet.origin == SOCKET:
            _send_by_socket(packet)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "error")
    return "sent"


def _send_frame(packet: Packet) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, packet.mark)
        frame = _frame(packet, "00:00:00:00:00:00" if packet.bound == "lo" else "02:00:5e:00:53:99")
        made.sendto(frame, (packet.bound, packet.protocol_number))


def _send_by_socket(packet: Packet) -> None:
    target = format_address(packet.family, packet.destination)
    with _socket(packet) as made:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, packet.mark)
        if packet.bound:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, packet.bound.encode())
        source = "" if packet.source is None else format_address(packet.family, packet.source)
        if packet.protocol in (ICMP, ICMPV6):
            if source:
                made.bind((source, 0))
            made.sendto(_transport(packet), (target, 0))
            return
        made.bind((source, packet.sport))
        if packet.protocol == UDP:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            made.sendto(b"x", (target, packet.dport))
        else:
            with contextlib.suppress(BlockingIOError):  # the SYN is sent
                made.connect((target, packet.dport))


def _socket(packet: Packet) -> socket.socket:
    """Return a socket that belongs to the packet's user and group."""
    os.setegid(packet.gid)
    os.seteuid(packet.uid)
    try:
        if packet.protocol in (ICMP, ICMPV6):
            os.seteuid(0)  # only root makes raw sockets
            return socket.socket(_DOMAIN[packet.family], socket.SOCK_RAW, packet.protocol)
        kind = {UDP: socket.SOCK_DGRAM, TCP: socket.SOCK_STREAM}[packet.protocol]
        return socket.socket(_DOMAIN[packet.family], kind)
    finally:
        os.seteuid(0)
        os.setegid(0)


# Whole packets


def _frame(packet: Packet, mac: str) -> bytes:
    header = bytes.fromhex(mac.replace(":", "")) + b"\x02\x00\x5e\x00\x53\x70"
    ends = _packed(packet.family, packet.source or 0) + _packed(packet.family, packet.destination)
    body = _transport(packet)
    if packet.family == 6:
        rest = struct.pack("!IHBB", 6 << 28, len(body), packet.protocol, 64) + ends
    else:
        rest = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, packet.protocol, 0) + ends
        rest = rest[:10] + struct.pack("!H", frames.checksum(rest)) + rest[12:]
    return header + struct.pack("!H", ETHERTYPES[packet.family]) + rest + body


def _transport(packet: Packet) -> bytes:
    pseudo = b""
    if packet.protocol in (ICMP, ICMPV6):
        body = struct.pack("!BBHHH", ECHO[packet.family][1], 0, 0, key(packet)[2], 1) + b"NFTP"
        place = 2
    elif packet.protocol == UDP:
        body, place = struct.pack("!HHHH", packet.sport, packet.dport, 9, 0) + b"x", 6
    else:
        body, place = struct.pack("!HHIIBBHHH", packet.sport, packet.dport, 1, 0, 0x50, SYN, 8192, 0, 0), 16
    if packet.protocol != ICMP:
        ends = _packed(packet.family, packet.source or 0) + _packed(packet.family, packet.destination)
        pseudo = ends + struct.pack("!II", len(body), packet.protocol)
    return body[:place] + struct.pack("!H", frames.checksum(pseudo + body)) + body[place + 2 :]


def _packed(family: int, address: int) -> bytes:
    return address.to_bytes({4: 4, 6: 16}[family], "big")


def own(family: int, device: str) -> int:
    """Return the machine's address on a device."""
    return parse_address(ADDRESSES[family][device].partition("/")[0])
