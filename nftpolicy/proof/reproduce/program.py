# SPDX-License-Identifier: BSD-2-Clause
"""Program inside a reproduction: Python text that sends one packet and watches where it leaves.

It is generated for the packet at hand, so that a reader sees only what happens. It needs only
Python's standard library. Its exit status is SEEN, NOT_SEEN, or another one for an error.
"""

from __future__ import annotations

from nftpolicy.model.conntrack import can_begin_flow
from nftpolicy.model.fib.source_address import is_link_local6
from nftpolicy.model.packet import ETHERTYPES, FORWARD, FRAME, ICMP, ICMPV6, KERNEL, TCP, UDP, Packet, format_address

from . import flow, headers
from .topology import NotReproducible, Topology

PACKET_SEEN, PACKET_NOT_SEEN = 0, 4  # 1 is the status of an uncaught exception

_MAX_ID = 0xFFFFFFFF  # (uid_t)-1, never a process's
_RAW_IP = 255  # sockets of this protocol send packets with their headers
_TRANSPARENT = {4: 19, 6: 75}  # IP_TRANSPARENT, IPV6_TRANSPARENT

_HEAD = '''\
import ctypes, errno, os, select, socket, struct, subprocess, sys, time

HERE, THERE = sys.argv[1:]
TOKEN = os.urandom(16).hex().encode()  # the payload to look for
{first}
def enter(namespace):
    """Move to a network namespace: sockets opened later belong to it."""
    with open("/var/run/netns/" + namespace) as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")

def link(device, ethertype):
    """Return a socket for frames by a device."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((device, ethertype))
    return sock

def watch(is_packet, seconds, device=None):
    """Return the first frame that passes the test, and its device; no frame for another device."""
    end, by = time.monotonic() + seconds, None
    while select.select([outside], [], [], max(0, end - time.monotonic()))[0]:
        frame, address = outside.recvfrom(65535)
        if address[2] != socket.PACKET_OUTGOING and is_packet(frame):
            by = address[0]
            if device in (None, by):
                return frame, by
    return None, by
'''
_FIRST = "FIRST = os.urandom(8).hex().encode()  # and the payload of earlier packets\n"

_CONTROL = """
enter(THERE)
outside = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # all frames of all devices
enter(HERE)

# Control: this frame passes no rule and must be seen, or the result would mean nothing.
link({device!r}, 0x88B5).send(b"\\xff" * 6 + bytes(6) + b"\\x88\\xb5" + TOKEN)
if not watch(lambda frame: TOKEN in frame, 1, {device!r})[0]:
    sys.exit("the watcher does not see outgoing frames")

"""

_LOAD = """\
subprocess.run(["nft", "-f", "-"], check=True)  # the tables, from standard input
"""

_END = """
refused = ""
try:
{send}
except OSError as error:
    refused = ": " + error.strerror
frame, device = watch({is_packet}, 0.1 if refused else 0.3, {device!r})
if frame:
    print("the packet left by {device}: " + {ends})
    sys.exit({SEEN})
print("not seen" + (": the packet left by " + device if device else refused))
sys.exit({NOT_SEEN})
"""

_ENDS = '" > ".join(socket.inet_ntop({af}, frame[at:at + {size}]) for at in ({source}, {destination}))'
_HAS_TOKEN = "lambda frame: TOKEN in frame"


def unreproduced_parts(packet: Packet) -> list[str]:
    """Return the fields of the packet that the program does not set up, one line each."""
    lines = [f"the field {' '.join(name)} is not set" for name in packet.fields if name not in headers.KNOWN_FIELDS]
    if not flow.can_establish(packet) and packet.flow.state not in _natural_states(packet):
        lines.append(f"the script does not make its flow {packet.flow.state}")
    elif not flow.can_establish(packet) and packet.flow.mark:
        lines.append(f"the mark of its flow ({packet.flow.mark:#x}) is not set")
    if packet.cgroup:
        lines.append(f"it is not sent from the cgroup {packet.cgroup}")
    if packet.mark and packet.origin in (KERNEL, FORWARD):
        lines.append(f"its mark ({packet.mark:#x}) must be set by the rules")
    return lines


def _natural_states(packet: Packet) -> tuple[str, ...]:
    """Return the flow states that a packet can have without further setup."""
    if packet.origin == FRAME:
        return (packet.flow.state,)  # connection tracking does not see it
    if packet.origin != KERNEL:
        return ("new" if can_begin_flow(packet.family, packet.protocol, packet.fields) else "invalid",)
    is_error = packet.protocol in (ICMP, ICMPV6) and headers.icmp_type_code(packet)[0] != headers.echo_types(packet)[1]
    return ("new", "related" if is_error else "established")


def sender_program(packet: Packet, device: str, scene: Topology) -> str:
    """Return the program that sends `packet` in the namespace HERE and watches from THERE.

    Raises:
        NotReproducible: no script can produce the packet.
    """
    scene.require_device(device)
    if max(packet.uid, packet.gid) >= _MAX_ID:
        raise NotReproducible("this user or group ID is not valid for a process")
    sender = {FRAME: _frame, FORWARD: _forward, KERNEL: _by_kernel}.get(packet.origin, _by_socket)
    prepare, send, is_packet = sender(packet, device, scene)
    middle = "".join(f"{line}\n" for line in prepare)
    helpers = ""
    if flow.can_establish(packet):
        setup, send = flow.flow_lines(packet, device, scene)
        is_packet = _HAS_TOKEN
        helpers = headers.header_functions(packet) + "\n" + flow.helper_functions(packet)
        setup_lines = "".join(f"{line}\n" for line in setup)
        middle = (
            flow.TRACKING_SETUP.format(mark=packet.flow.mark) + middle + setup_lines + _LOAD + flow.TRACKING_TEARDOWN
        )
    else:
        helpers = headers.header_functions(packet) if any("whole(" in line for line in send) else ""
        middle = _LOAD + middle
    head = _HEAD.format(first=_FIRST if flow.can_establish(packet) else "")
    end = _END.format(
        send="\n".join(f"    {line}" for line in send),
        is_packet=is_packet,
        device=device,
        ends=_ends(packet),
        SEEN=PACKET_SEEN,
        NOT_SEEN=PACKET_NOT_SEEN,
    )
    return head + helpers + _CONTROL.format(device=device) + middle + end


def _ends(packet: Packet) -> str:
    if packet.frame_type != ETHERTYPES[packet.family]:
        return "frame.hex()"
    source, size = (26, 4) if packet.family == 4 else (22, 16)
    return _ENDS.format(af=headers.AF_CONSTANTS[packet.family], size=size, source=source, destination=source + size)


def tcp_frame_test(packet: Packet) -> str:
    """Return the test for a frame without payload: the only TCP frame in the namespace."""
    offset = headers.PROTOCOL_OFFSET[packet.family]
    return f"lambda frame: frame[12:14] == {headers.ethertype_bytes(packet)} and frame[{offset}] == {TCP}"


# How a packet is sent: lines that prepare it, lines that send it, and the test for its frame.
_Sender = tuple[list[str], list[str], str]


def _by_socket(packet: Packet, device: str, scene: Topology) -> _Sender:
    flags = packet.fields.get(("tcp", "flags"), headers.SYN)
    has_ports = bool(packet.sport and packet.dport)
    is_packet = _HAS_TOKEN
    if packet.protocol in (0, _RAW_IP) or headers.needs_own_header(packet):
        kind = f"socket.SOCK_RAW, {_RAW_IP}"
        send = [f"sock.sendto({_packet_text(packet, device, scene)}, {_destination(packet, 0)})"]
    elif packet.protocol == UDP and has_ports:
        payload = headers.payload_text(packet)
        kind, send = "socket.SOCK_DGRAM", [f"sock.sendto({payload}, {_destination(packet, packet.dport)})"]
    elif packet.protocol == TCP and has_ports and (flags == headers.SYN or flow.can_establish(packet)):
        kind, is_packet = "socket.SOCK_STREAM", tcp_frame_test(packet)
        send = [
            "sock.setblocking(False)",
            f"result = sock.connect_ex({_destination(packet, packet.dport)})",
            "if result not in (0, errno.EINPROGRESS):",
            "    raise OSError(result, os.strerror(result))",
        ]
    else:
        kind = f"socket.SOCK_RAW, {packet.protocol}"
        send = [f"sock.sendto({headers.transport_expression(packet)[0]}, {_destination(packet, 0)})"]
    prepare = [*_owner(packet), f"sock = socket.socket({headers.AF_CONSTANTS[packet.family]}, {kind})"]
    return [*prepare, *_options(packet, kind), *_bound(packet, kind, scene)], send, is_packet


def _is_link_local(packet: Packet, address: int) -> bool:
    return packet.family == 6 and is_link_local6(address)


def _destination(packet: Packet, port: int) -> str:
    text = f"{format_address(packet.family, packet.destination)!r}, {port}"
    if _is_link_local(packet, packet.destination) and packet.bound:
        text += f", 0, socket.if_nametoindex({packet.bound!r})"
    return f"({text})"


def _owner(packet: Packet) -> list[str]:
    names = ((packet.gid, "setfsgid"), (packet.uid, "setfsuid"))
    lines = [f"ctypes.CDLL(None).{name}({number})" for number, name in names if number]
    if not lines:
        return []
    return ["# Owner of the socket. A process of root may set marks, and keeps that right here.", *lines]


def _options(packet: Packet, kind: str) -> list[str]:
    family, level = packet.family, "socket.IPPROTO_IP" if packet.family == 4 else "socket.IPPROTO_IPV6"
    options = []
    if packet.mark:
        options.append(f"socket.SOL_SOCKET, socket.SO_MARK, {packet.mark:#x}")
    if packet.bound:
        options.append(f"socket.SOL_SOCKET, socket.SO_BINDTODEVICE, {packet.bound.encode()!r}")
    if family == 4 and "STREAM" not in kind:
        options.append("socket.SOL_SOCKET, socket.SO_BROADCAST, 1")
    if (ttl := packet.fields.get(headers.TTL[family])) is not None:
        names = ("IP_TTL", "IP_MULTICAST_TTL") if family == 4 else ("IPV6_UNICAST_HOPS", "IPV6_MULTICAST_HOPS")
        options += [f"{level}, socket.{name}, {ttl}" for name in names]
    if traffic_class := headers.traffic_class(packet):
        options.append(f"{level}, socket.{'IP_TOS' if family == 4 else 'IPV6_TCLASS'}, {traffic_class}")
    return [f"sock.setsockopt({option})" for option in options]


def _bound(packet: Packet, kind: str, scene: Topology) -> list[str]:
    """Return the lines that bind the socket to its address and port."""
    port = 0 if "RAW" in kind else packet.sport
    if not packet.source:
        return [f"sock.bind(({'' if packet.family == 4 else '::'!r}, {port}))"] if port else []
    source, lines, scope = format_address(packet.family, packet.source), [], ""
    if not scene.has_address(packet.source):
        level = "socket.IPPROTO_IP" if packet.family == 4 else "socket.IPPROTO_IPV6"
        remark = "# TRANSPARENT: the source is not an address of this machine"
        lines.append(f"sock.setsockopt({level}, {_TRANSPARENT[packet.family]}, 1)  {remark}")
    if _is_link_local(packet, packet.source):
        owner = next((name for address, _, name in scene.addresses if address == source), packet.bound)
        scope = f", 0, socket.if_nametoindex({owner!r})" if owner else ""
    return [*lines, f"sock.bind(({source!r}, {port}{scope}))"]


def _frame(packet: Packet, device: str, scene: Topology) -> _Sender:
    sending_device = packet.bound or device
    prepare = [*_owner(packet), f"sock = link({sending_device!r}, {packet.protocol_number:#06x})"]
    if packet.mark:
        prepare.append(f"sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, {packet.mark:#x})")
    own_mac = headers.mac_bytes(scene.require_device(sending_device).mac)
    if not packet.fields.get(("ether", "readable"), 1):
        prepare.append("sock.setsockopt(263, 20, 1)  # PACKET_QDISC_BYPASS")
    if packet.frame_type == headers.ARP:
        sender, target = headers.source_address(packet, device, scene), format_address(4, packet.destination)
        ends = f"{own_mac} + socket.inet_aton({sender!r}) + bytes(6) + socket.inet_aton({target!r})"
        inner = f'struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + {ends} + TOKEN'
    elif packet.ethertype is not None and packet.ethertype != ETHERTYPES[packet.family]:
        inner = "TOKEN"
    else:  # rules read the IP header by the ethertype that the sender says, whatever the frame's own is
        inner = _packet_text(packet, device, scene)
    return prepare, [f'sock.send(b"\\xff" * 6 + {own_mac} + {headers.ethertype_bytes(packet)} + {inner})'], _HAS_TOKEN


def _forward(packet: Packet, device: str, scene: Topology) -> _Sender:
    if packet.iif is None:
        raise NotReproducible("its arrival device is not known")
    return [], [headers.inject_line(packet, scene, packet.iif, _packet_text(packet, device, scene))], _HAS_TOKEN


def _by_kernel(packet: Packet, device: str, scene: Topology) -> _Sender:
    """Return the lines of an outside packet that makes the kernel send this one."""
    is_icmp = packet.protocol in (ICMP, ICMPV6)
    is_packet = _HAS_TOKEN
    request, reply = headers.echo_types(packet)
    if is_icmp and headers.icmp_type_code(packet)[0] == reply:
        cause, protocol = (headers.icmp_expression(request), 2), packet.protocol
    elif is_icmp and headers.icmp_type_code(packet)[0] == (3 if packet.family == 4 else 1):
        cause, protocol = (headers.udp_expression(9, 9), 6), UDP  # no socket listens on this port
    elif packet.protocol == TCP and packet.fields.get(("tcp", "flags"), headers.RST) & headers.RST:
        cause, protocol, is_packet = (
            (headers.tcp_expression(packet.dport, packet.sport, headers.SYN), 16),
            TCP,
            tcp_frame_test(packet),
        )
    else:
        raise NotReproducible("the kernel sends this packet on its own, and the script has no trigger for it")
    arrival = packet.iif or device
    own_address = format_address(packet.family, packet.source) if packet.source else scene.device_address(arrival)
    if own_address is None:
        raise NotReproducible("the machine has no address to reply from")
    whole = headers.packet_expression(format_address(packet.family, packet.destination), own_address, protocol, cause)
    return [], [headers.inject_line(packet, scene, arrival, whole)], is_packet


def _packet_text(packet: Packet, device: str, scene: Topology) -> str:
    source = headers.source_address(packet, device, scene)
    return headers.packet_expression(
        source, format_address(packet.family, packet.destination), packet.protocol, headers.transport_expression(packet)
    )
