"""Node with a WAN and a mesh device, and the packets that left by each device."""

import errno
import itertools
import json
import os
import time
from collections.abc import Callable
from typing import Any

from tests.lab import addresses as at
from tests.lab.limits import brief
from tests.lab.netns import Namespace, veth
from tests.lab.packet_senders import Job
from tests.lab.sniffer import Sniffer

NOBODY = 65534
WAN, MESH = at.WAN, at.MESH
FAR = {WAN: "to-wan", MESH: "to-mesh"}  # device of the node -> the other end, in the namespace `far`
NODE_WAN = {4: "192.0.2.2", 6: "2001:db8:1::2"}
ONLY_WAN, ONLY_MESH, SENT = ("sent", {WAN}), ("sent", {MESH}), "sent"  # what `Rig.send` gives back

_LATE, _SURPLUS = 1.0, 0.05  # seconds to wait for a packet that was sent, and for one that should not come
_serial = itertools.count()


def wire(node: Namespace, far: Namespace) -> None:
    """Connect two devices without neighbour resolution, each with an address and the kernel's own routes only.

    NOARP: frames leave at once, so that the result depends on routes and hooks only.
    """
    for device, address in ((WAN, NODE_WAN), (MESH, at.NODE_MESH)):
        veth(node, device, far, FAR[device])
        node.ip(f"link set {device} arp off", *(f"addr add {address[family]} dev {device}" for family in at.FAMILIES))


def default(device: str, family: int, table: str = "main") -> str:
    """Return the command for a default route by a device."""
    return f"-{family} route add default dev {device} table {table}"


def counters(space: Namespace) -> dict[str, int]:
    """Return the packets of every named counter."""
    listing = json.loads(space.run(["nft", "-j", "list", "counters"]).stdout)["nftables"]
    return {item["counter"]["name"]: item["counter"]["packets"] for item in listing if "counter" in item}


def counted(space: Namespace, work: Callable[[], Any]) -> set[str]:
    """Return the named counters that count while `work` runs."""
    before = counters(space)
    work()
    return {name for name, packets in counters(space).items() if packets > before.get(name, 0)}


def outcome(work: Callable[[], Any]) -> str:
    """Return "sent", or the name of the error."""
    try:
        work()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "error")
    return SENT


class TwoLinkNode:
    """Node of `wire`, with a sniffer at the far end of each device."""

    def __init__(self, node: Namespace, far: Namespace) -> None:
        wire(node, far)
        self.node, self.far = node, far
        self.sniffers = {device: Sniffer(far, peer) for device, peer in FAR.items()}

    def __enter__(self) -> "TwoLinkNode":
        return self

    def __exit__(self, *_: object) -> None:
        for sniffer in self.sniffers.values():
            sniffer.stop()

    def send(
        self,
        sender: Callable[[Job], None],
        family: int = 4,
        mark: int = 0,
        uid: int | None = NOBODY,
        patience: float = _LATE,
    ) -> tuple[str, set[str]]:
        """Send one packet by a function of the lab; return "sent" or an error, and the devices by which it left.

        A sender of marked packets keeps its capabilities, since marking needs one.
        """
        payload = f"fact {next(_serial)} {os.urandom(8).hex()}".encode()
        job = Job(family, payload, mark, 20000, NODE_WAN, WAN)
        result = self.node.call(lambda: outcome(lambda: sender(job)), uid=uid, keep_caps=bool(mark))
        return result, self.left_by(payload, patience if result == SENT else 0)

    def counters_of(self, sender: Callable[[Job], None], family: int, uid: int | None = NOBODY) -> set[str]:
        """Return the named counters that count one packet; the packet has to leave by the WAN."""

        def leave() -> None:
            assert self.send(sender, family, uid=uid) == ONLY_WAN, "the positive control: the packet must leave"

        return counted(self.node, leave)

    def left_by(self, payload: bytes, patience: float = _LATE) -> set[str]:
        """Return the devices by which a payload left."""

        def seen() -> set[str]:
            return {
                device
                for device, sniffer in self.sniffers.items()
                if any(payload in frame.payload for frame in sniffer.frames())
            }

        end = time.monotonic() + brief(patience)
        while not seen() and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(_SURPLUS)
        return seen()
