"""Machine with an uplink and a mesh device, in which the storm is sent, and the listener at the far end."""

import contextlib
import ctypes
import socket
import struct
import time
from collections.abc import Iterator

from tests.lab.netns import Namespace, veth

from .storm_packets import (
    ETHERTYPE,
    FAR_MAC,
    FLAGS,
    FORWARDED,
    GATEWAYS,
    MACS,
    MESH,
    MULTICAST,
    OWN,
    WAN,
    packed,
    segment_of,
    sender_number,
)

FRAME_MARKS = (0, 2)
_ALL_FRAMES, _PACKET_OUTGOING, _SO_RCVBUFFORCE = 3, 4, 33
_QUIET = 0.001  # seconds of silence after which no further packet is expected
PATIENT = 0.02  # the same on a loaded machine, where ksoftirqd delivers packets late
_MRT_INIT, _MRT_ADD_VIF, _MRT_ADD_MFC, _VIFF_USE_IFINDEX = 200, 202, 204, 8


class Machine:
    """Machine with an uplink and a mesh device, and the far ends of both. A context manager."""

    def __init__(self) -> None:
        import nftables  # noqa: F401 - once here, not in each forked child
        import pyroute2  # noqa: F401

        self._stack = contextlib.ExitStack()
        self.node, self._far = (self._stack.enter_context(Namespace(name)) for name in ("node", "far"))
        for which in ("all", "default"):
            self._far.sysctl(f"net.ipv6.conf.{which}.disable_ipv6", 1)
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.node.sysctl(key, 1)
        self.node.sysctl("net.ipv4.icmp_ratelimit", 0)
        self.node.sysctl("net.ipv6.icmp.ratelimit", 0)
        for device in (WAN, MESH):
            veth(self.node, device, self._far, f"to-{device}", MACS[device])
            self.node.ip(
                f"link set {device} arp off",
                f"addr add {OWN[4][device]}/24 dev {device}",
                f"addr add {OWN[6][device]}/64 dev {device}",
            )
        for family in (4, 6):
            self.node.ip(f"-{family} route add default via {GATEWAYS[family][WAN]} dev {WAN} onlink")
        self.far = {device: self._far_socket(f"to-{device}") for device in (WAN, MESH)}
        # Closing a packet socket takes milliseconds, so these stay.
        self.packet_sockets = {mark: self._packet_socket(mark) for mark in FRAME_MARKS}
        self._pending: list[bytes] = []  # frames that a sender read, for `arrivals`
        self.index = {device: int(self._read_index(device)) for device in (WAN, MESH)}
        self._route_multicast()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _read_index(self, device: str) -> str:
        return self.node.run(["cat", f"/sys/class/net/{device}/ifindex"]).stdout or "0"

    def _route_multicast(self) -> None:
        """Forward one group of IPv4 from the mesh to the uplink (include/uapi/linux/mroute.h)."""
        router = self._stack.enter_context(self.node.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP))
        router.setsockopt(socket.IPPROTO_IP, _MRT_INIT, 1)
        for number, device in enumerate((MESH, WAN)):
            vif = struct.pack("=HBBIi4s", number, _VIFF_USE_IFINDEX, 1, 0, self.index[device], bytes(4))
            router.setsockopt(socket.IPPROTO_IP, _MRT_ADD_VIF, vif)
        hops = bytes([255, 1, *[255] * 30])
        ends = packed(4, FORWARDED[4]) + packed(4, MULTICAST[4])
        entry = ends + struct.pack("=H", 0) + hops + bytes(2) + struct.pack("=IIIi", 0, 0, 0, 0)
        router.setsockopt(socket.IPPROTO_IP, _MRT_ADD_MFC, entry)

    def _far_socket(self, device: str) -> socket.socket:
        made = self._stack.enter_context(self._far.socket(socket.AF_PACKET, socket.SOCK_RAW))
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        made.bind((device, _ALL_FRAMES))
        return made

    def _packet_socket(self, mark: int) -> socket.socket:
        made = self._stack.enter_context(self.node.socket(socket.AF_PACKET, socket.SOCK_RAW))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        return made

    def inject(self, device: str, family: int, packet: bytes, destination: bytes = b"") -> None:
        """Send an IP packet from outside by a device, to the machine or to another link-layer address."""
        to = destination or bytes.fromhex(MACS[device].replace(":", ""))
        self.far[device].send(to + FAR_MAC + struct.pack("!H", ETHERTYPE[family]) + packet)

    def sent_by(self, port: int, flags: int) -> bytes | None:
        """Return the TCP header of a segment that left by the uplink from this port with these flags, or None."""
        for _ in range(3):
            self._pending += self._frames()
            for frame in self._pending:
                tcp = segment_of(frame)
                if tcp and struct.unpack("!H", tcp[:2])[0] == port and tcp[13] & FLAGS == flags:
                    return tcp
            time.sleep(_QUIET)
        return None

    def send_frame(
        self,
        ethertype: int,
        packet: bytes,
        mark: int = 0,
        claimed: int | None = None,
        owner: tuple[int, int] = (0, 0),
        device: str = WAN,
    ) -> None:
        """Send a frame by an AF_PACKET socket of a user and group on a device, the uplink by default.

        It claims another ethertype than the frame's own; 0: the kernel reads that of the frame.
        """
        header = FAR_MAC + bytes(5) + b"\2" + struct.pack("!H", ethertype)
        address = (device, ethertype if claimed is None else claimed)
        if owner == (0, 0) and mark in self.packet_sockets:
            self.packet_sockets[mark].sendto(header + packet, address)
            return
        with _packet_socket(mark, owner) as sender:
            sender.sendto(header + packet, address)

    def arrivals(self, silence: float = _QUIET) -> set[int]:
        """Return the numbers of the senders whose packets left by the uplink since the last call.

        `silence`: seconds without a frame after which no further one is expected.
        """
        seen: set[int] = set()
        quiet = False
        while True:
            frames = [*self._pending, *self._frames()]
            self._pending = []
            seen |= {number for frame in frames if (number := sender_number(frame)) is not None}
            if not frames and quiet:
                return seen
            quiet = not frames
            time.sleep(silence)

    def _frames(self) -> Iterator[bytes]:
        for device, far in self.far.items():
            while True:
                try:
                    frame, address = far.recvfrom(4096)
                except BlockingIOError:
                    break
                if device == WAN and address[2] != _PACKET_OUTGOING:
                    yield frame


@contextlib.contextmanager
def fs_owner(owner: tuple[int, int]) -> Iterator[None]:
    """Let the files that are made belong to a user and group, and keep all capabilities (setfsuid(2))."""
    libc = ctypes.CDLL(None)
    libc.setfsgid(owner[1])
    libc.setfsuid(owner[0])
    try:
        yield
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)


def _packet_socket(mark: int, owner: tuple[int, int]) -> socket.socket:
    """Return an AF_PACKET socket whose file belongs to a user and group."""
    with fs_owner(owner):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
    return made
