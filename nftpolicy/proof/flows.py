# SPDX-License-Identifier: BSD-2-Clause
"""A flow that a packet belongs to, made before the tables are loaded: Python text, as in sender.py.

Somebody sends first, and is answered, past any rule; so connection tracking calls what follows established. That a
flow outlives the rules that would not let it begin is how machines are: rules change, and flows go on.
"""

from __future__ import annotations

from nftpolicy.model.packet import FORWARD, ICMP, ICMPV6, SOCKET, TCP, UDP, Packet, shown

from . import wire
from .scene import Scene

TRACKING = '''\
# Connection tracking, and a flow that began before the tables are loaded.
subprocess.run(["nft", """
table inet reproduction {{
    chain from_here {{ type filter hook output priority -190; ct mark set {mark:#x}; }}
    chain from_there {{ type filter hook prerouting priority -190; ct mark set {mark:#x}; }}
}}"""], check=True)
'''
UNTRACK = 'subprocess.run(["nft", "delete table inet reproduction"], check=True)\n'

_ANSWER = '''\
def begun(mine):
    """The first packet of the flow, and the device by which it left."""
    frame, device = seen(mine, 1)
    return (frame, device) if frame else sys.exit("the flow can not begin")

def answer(frame, device, body, place):
    """To the sender of `frame` comes, by the way that it went, a packet back."""
    source, destination = (socket.inet_ntop({af}, frame[at:at + {size}]) for at in ({at} + {size}, {at}))
    back = whole(source, destination, {protocol}, body, place)
    outside.sendto(frame[6:12] + bytes(6) + frame[12:14] + back, (device, {ethertype:#06x}))
    time.sleep(0.05)
'''
_SYN_ACK = "struct.unpack_from('!I', frame, {at})[0] + 1"


def is_made(packet: Packet) -> bool:
    """Whether the flow of this packet can be made; if not, the packet stands for itself."""
    if packet.flow.state != "established" or packet.origin not in (SOCKET, FORWARD):
        return False
    if packet.protocol in (ICMP, ICMPV6):
        kind = wire.message(packet)[0]
        return packet.flow.direction == "original" and kind == wire.echoes(packet)[0]
    return packet.protocol in (UDP, TCP) and bool(packet.sport and packet.dport)


def helpers(packet: Packet) -> str:
    """Functions that the flow needs."""
    at, size = (26, 4) if packet.family == 4 else (22, 16)
    af, ethertype = wire.AF[packet.family], packet.protocol_number
    return _ANSWER.format(af=af, size=size, at=at, protocol=packet.protocol, ethertype=ethertype)


def flow(packet: Packet, device: str, scene: Scene) -> tuple[list[str], list[str]]:
    """The lines that make the flow (the socket `sock` is there, for a packet of this machine), and those that send."""
    if packet.origin == FORWARD:
        return _forwarded(packet, device, scene)
    if packet.flow.direction == "reply":
        return _answering(packet, device, scene)
    return _asking(packet)


def _answers(packet: Packet, sport: int, dport: int) -> str:
    """The arguments of `answer` for the second packet of the flow, sent from `sport`."""
    if packet.protocol == UDP:
        return f"{wire.udp(sport, dport, 'TOKEN[:0]')}, 6"
    if packet.protocol == TCP:
        expected = _SYN_ACK.format(at=wire.TRANSPORT_AT[packet.family] + 4)
        return f"{wire.tcp(sport, dport, wire.SYN | wire.ACK, f'1, {expected}', '')}, 16"
    return f"{wire.icmp(wire.echoes(packet)[1], payload='FIRST')}, 2"


def _first(packet: Packet) -> str:
    """Which frame is the first packet of the flow."""
    if packet.protocol != TCP:
        return "lambda frame: FIRST in frame"
    return (
        f"lambda frame: frame[12:14] == {wire.ethertype(packet)} and frame[{wire.PROTOCOL_AT[packet.family]}] == {TCP}"
    )


def _asking(packet: Packet) -> tuple[list[str], list[str]]:
    """A socket of this machine sends first."""
    to, port = shown(packet.family, packet.destination), packet.dport
    if packet.protocol == TCP:
        begin, send = ["sock.setblocking(False)", f"sock.connect_ex(({to!r}, {port}))"], ["sock.send(TOKEN)"]
    elif packet.protocol == UDP:
        begin, send = [f"sock.sendto(FIRST, ({to!r}, {port}))"], [f"sock.sendto(TOKEN, ({to!r}, {port}))"]
    else:
        echo = wire.echoes(packet)[0]
        begin = [f"sock.sendto({wire.icmp(echo, payload='FIRST')}, ({to!r}, 0))"]
        send = [f"sock.sendto({wire.icmp(echo)}, ({to!r}, 0))"]
    begin += [
        f"frame, device = begun({_first(packet)})",
        f"answer(frame, device, {_answers(packet, packet.dport, packet.sport)})",
    ]
    return begin, send


def _answering(packet: Packet, device: str, scene: Scene) -> tuple[list[str], list[str]]:
    """Somebody outside sends first, to a socket of this machine."""
    arrival = packet.iif or packet.bound or device
    far, own = shown(packet.family, packet.destination), wire.source_of(packet, arrival, scene)

    def arrives(inner: str, place: int) -> str:
        return wire.from_outside(packet, scene, arrival, wire.whole(far, own, packet.protocol, (inner, place)))

    if packet.protocol == UDP:
        begin = ["sock.settimeout(1)", arrives(wire.udp(packet.dport, packet.sport, "FIRST"), 6), "sock.recv(100)"]
        return begin, [f"sock.sendto(TOKEN, ({far!r}, {packet.dport}))"]
    expected = _SYN_ACK.format(at=wire.TRANSPORT_AT[packet.family] + 4)
    begin = [
        "sock.settimeout(1)",
        "sock.listen()",
        arrives(wire.tcp(packet.dport, packet.sport, wire.SYN, payload=""), 16),
        f"frame, device = begun({_first(packet)})",
        arrives(wire.tcp(packet.dport, packet.sport, wire.ACK, f"2, {expected}", ""), 16),
        "sock, _ = sock.accept()",
    ]
    return begin, ["sock.send(TOKEN)"]


def _forwarded(packet: Packet, device: str, scene: Scene) -> tuple[list[str], list[str]]:
    """Both ends are outside."""
    assert packet.iif
    original = packet.flow.direction == "original"
    near = wire.source_of(packet, device, scene), packet.sport
    far = shown(packet.family, packet.destination), packet.dport
    (one, sport), (other, dport) = (near, far) if original else (far, near)
    arrival = packet.iif if original else device

    def arrives(inner: str, place: int) -> str:
        return wire.from_outside(packet, scene, arrival, wire.whole(one, other, packet.protocol, (inner, place)))

    if packet.protocol == TCP:
        begin = [arrives(wire.tcp(sport, dport, wire.SYN, payload=""), 16)]
    elif packet.protocol == UDP:
        begin = [arrives(wire.udp(sport, dport, "FIRST"), 6)]
    else:
        begin = [arrives(wire.icmp(wire.echoes(packet)[0], payload="FIRST"), 2)]
    begin += [
        f"frame, device = begun({_first(packet)})",
        f"answer(frame, device, {_answers(packet, dport, sport)})",
    ]
    inner: tuple[str, int | None] = wire.body(packet)
    if packet.protocol == TCP:
        begin += [arrives(wire.tcp(sport, dport, wire.ACK, "2, 2", ""), 16), "time.sleep(0.05)"]
        inner = wire.tcp(packet.sport, packet.dport, packet.fields.get(("tcp", "flags"), wire.ACK), "2, 2"), 16
    whole = wire.whole(near[0], far[0], packet.protocol, inner)
    return begin, [wire.from_outside(packet, scene, packet.iif, whole)]
