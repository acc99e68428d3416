# SPDX-License-Identifier: BSD-2-Clause
"""Flow of a packet, established before the tables are loaded: Python text, as in program.py.

The script sends the first packet and its reply before any rule exists, so connection tracking calls
later packets established. Real flows outlive the rules that would not let them begin, too.
"""

from __future__ import annotations

from nftpolicy.model.packet import FORWARD, ICMP, ICMPV6, SOCKET, TCP, UDP, Packet, format_address

from . import headers
from .topology import Topology

TRACKING_SETUP = '''\
# Connection tracking, and a flow that starts before the tables are loaded.
subprocess.run(["nft", """
table inet reproduction {{
    chain from_here {{ type filter hook output priority -190; ct mark set {mark:#x}; }}
    chain from_there {{ type filter hook prerouting priority -190; ct mark set {mark:#x}; }}
}}"""], check=True)
'''
TRACKING_TEARDOWN = 'subprocess.run(["nft", "delete table inet reproduction"], check=True)\n'

_ANSWER = '''\
def first_packet(is_first):
    """Return the first packet of the flow, and the device by which it left."""
    frame, device = watch(is_first, 1)
    return (frame, device) if frame else sys.exit("the flow cannot be established")

def answer(frame, device, body, checksum_offset):
    """Send a packet back to the sender of `frame`, by the device that it left by."""
    source, destination = (socket.inet_ntop({af}, frame[at:at + {size}]) for at in ({at} + {size}, {at}))
    back = whole(source, destination, {protocol}, body, checksum_offset)
    outside.sendto(frame[6:12] + bytes(6) + frame[12:14] + back, (device, {ethertype:#06x}))
    time.sleep(0.05)
'''
_SYN_ACK = "struct.unpack_from('!I', frame, {at})[0] + 1"


def can_establish(packet: Packet) -> bool:
    """Return True if the script can establish the flow of this packet."""
    if packet.flow.state != "established" or packet.origin not in (SOCKET, FORWARD):
        return False
    if packet.protocol in (ICMP, ICMPV6):
        kind = headers.icmp_type_code(packet)[0]
        return packet.flow.direction == "original" and kind == headers.echo_types(packet)[0]
    return packet.protocol in (UDP, TCP) and bool(packet.sport and packet.dport)


def helper_functions(packet: Packet) -> str:
    """Return the functions that the flow needs."""
    offset, size = (26, 4) if packet.family == 4 else (22, 16)
    af, ethertype = headers.AF_CONSTANTS[packet.family], packet.protocol_number
    return _ANSWER.format(af=af, size=size, at=offset, protocol=packet.protocol, ethertype=ethertype)


def flow_lines(packet: Packet, device: str, scene: Topology) -> tuple[list[str], list[str]]:
    """Return the lines that establish the flow, and the lines that send the packet.

    The socket `sock` of a packet of this machine exists before these lines.
    """
    if packet.origin == FORWARD:
        return _forwarded(packet, device, scene)
    if packet.flow.direction == "reply":
        return _local_server(packet, device, scene)
    return _local_client(packet)


def _reply_arguments(packet: Packet, sport: int, dport: int) -> str:
    """Return the arguments of `answer` for the second packet of the flow, sent from `sport`."""
    if packet.protocol == UDP:
        return f"{headers.udp_expression(sport, dport, 'TOKEN[:0]')}, 6"
    if packet.protocol == TCP:
        expected = _SYN_ACK.format(at=headers.TRANSPORT_OFFSET[packet.family] + 4)
        return f"{headers.tcp_expression(sport, dport, headers.SYN | headers.ACK, f'1, {expected}', '')}, 16"
    return f"{headers.icmp_expression(headers.echo_types(packet)[1], payload='FIRST')}, 2"


def _first_frame_test(packet: Packet) -> str:
    """Return the test for the first frame of the flow."""
    if packet.protocol != TCP:
        return "lambda frame: FIRST in frame"
    offset = headers.PROTOCOL_OFFSET[packet.family]
    return f"lambda frame: frame[12:14] == {headers.ethertype_bytes(packet)} and frame[{offset}] == {TCP}"


def _local_client(packet: Packet) -> tuple[list[str], list[str]]:
    """Let a socket of this machine send first."""
    destination, port = format_address(packet.family, packet.destination), packet.dport
    if packet.protocol == TCP:
        setup = ["sock.setblocking(False)", f"sock.connect_ex(({destination!r}, {port}))"]
        send = ["sock.send(TOKEN)"]
    elif packet.protocol == UDP:
        setup = [f"sock.sendto(FIRST, ({destination!r}, {port}))"]
        send = [f"sock.sendto(TOKEN, ({destination!r}, {port}))"]
    else:
        echo = headers.echo_types(packet)[0]
        setup = [f"sock.sendto({headers.icmp_expression(echo, payload='FIRST')}, ({destination!r}, 0))"]
        send = [f"sock.sendto({headers.icmp_expression(echo)}, ({destination!r}, 0))"]
    setup += [
        f"frame, device = first_packet({_first_frame_test(packet)})",
        f"answer(frame, device, {_reply_arguments(packet, packet.dport, packet.sport)})",
    ]
    return setup, send


def _local_server(packet: Packet, device: str, scene: Topology) -> tuple[list[str], list[str]]:
    """Let an outside host send first, to a socket of this machine."""
    arrival = packet.iif or packet.bound or device
    remote, local = format_address(packet.family, packet.destination), headers.source_address(packet, arrival, scene)

    def arrives(inner: str, checksum_offset: int) -> str:
        return headers.inject_line(
            packet, scene, arrival, headers.packet_expression(remote, local, packet.protocol, (inner, checksum_offset))
        )

    if packet.protocol == UDP:
        setup = [
            "sock.settimeout(1)",
            arrives(headers.udp_expression(packet.dport, packet.sport, "FIRST"), 6),
            "sock.recv(100)",
        ]
        return setup, [f"sock.sendto(TOKEN, ({remote!r}, {packet.dport}))"]
    expected = _SYN_ACK.format(at=headers.TRANSPORT_OFFSET[packet.family] + 4)
    setup = [
        "sock.settimeout(1)",
        "sock.listen()",
        arrives(headers.tcp_expression(packet.dport, packet.sport, headers.SYN, payload=""), 16),
        f"frame, device = first_packet({_first_frame_test(packet)})",
        arrives(headers.tcp_expression(packet.dport, packet.sport, headers.ACK, f"2, {expected}", ""), 16),
        "sock, _ = sock.accept()",
    ]
    return setup, ["sock.send(TOKEN)"]


def _forwarded(packet: Packet, device: str, scene: Topology) -> tuple[list[str], list[str]]:
    """Let both ends be outside hosts."""
    assert packet.iif
    original = packet.flow.direction == "original"
    near_end = headers.source_address(packet, device, scene), packet.sport
    far_end = format_address(packet.family, packet.destination), packet.dport
    (client, sport), (server, dport) = (near_end, far_end) if original else (far_end, near_end)
    arrival = packet.iif if original else device

    def arrives(inner: str, checksum_offset: int) -> str:
        return headers.inject_line(
            packet, scene, arrival, headers.packet_expression(client, server, packet.protocol, (inner, checksum_offset))
        )

    if packet.protocol == TCP:
        setup = [arrives(headers.tcp_expression(sport, dport, headers.SYN, payload=""), 16)]
    elif packet.protocol == UDP:
        setup = [arrives(headers.udp_expression(sport, dport, "FIRST"), 6)]
    else:
        setup = [arrives(headers.icmp_expression(headers.echo_types(packet)[0], payload="FIRST"), 2)]
    setup += [
        f"frame, device = first_packet({_first_frame_test(packet)})",
        f"answer(frame, device, {_reply_arguments(packet, dport, sport)})",
    ]
    inner: tuple[str, int | None] = headers.transport_expression(packet)
    if packet.protocol == TCP:
        setup += [arrives(headers.tcp_expression(sport, dport, headers.ACK, "2, 2", ""), 16), "time.sleep(0.05)"]
        inner = (
            headers.tcp_expression(
                packet.sport, packet.dport, packet.fields.get(("tcp", "flags"), headers.ACK), "2, 2"
            ),
            16,
        )
    whole = headers.packet_expression(near_end[0], far_end[0], packet.protocol, inner)
    return setup, [headers.inject_line(packet, scene, packet.iif, whole)]
