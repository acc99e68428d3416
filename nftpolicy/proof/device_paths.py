# SPDX-License-Identifier: BSD-2-Clause
"""Paths of frames between the devices of this machine: by which devices a frame can leave in the end.

A frame that a device transmits goes to the other end of a veth, to the ports of a bridge, to the device
below. A frame that a device receives goes to the ports of its bridge, and to the devices above. No
path leads through the IP layer: a packet that takes it passes the hooks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..netstate.state import Device

_PAIRS = ("veth", "netkit", "vxcan")  # IFLA_LINK is the other end
# Packets in packets pass the hooks again; IFLA_LINK is the device of a route.
_TUNNELS = ("gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan", "ipip", "sit", "ip6tnl", "vti", "vti6",
            "vxlan", "geneve", "bareudp", "xfrm", "l2tpeth")  # fmt: skip
_NOT_ABOVE = (*_PAIRS, *_TUNNELS)
_SIBLINGS = ("macvlan", "ipvlan", "macvtap", "ipvtap")  # two on one device reach each other
DATAPATH = "openvswitch"
_SWITCHES = ("bridge", "hsr", "batadv", DATAPATH)  # a frame of one port leaves by the others


class FramePoint(NamedTuple):
    """A device, and whether it transmits a frame or has received one."""

    device: str
    is_received: bool = False


class DevicePaths:
    """Paths between the devices of a state. A frame that a port of a bridge receives may leave by it again."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = {device.name: device for device in devices}
        self._upper: dict[str, list[Device]] = {}
        self._ports: dict[str, list[str]] = {}
        for device in devices:
            if device.master:
                self._ports.setdefault(device.master, []).append(device.name)
            if device.link and device.kind not in _NOT_ABOVE:
                self._upper.setdefault(device.link, []).append(device)
        self._received_on_the_way: dict[tuple[str, ...], list[str]] = {}
        self._previous: dict[FramePoint, list[FramePoint]] = {}
        for name in self._devices:
            for point in (FramePoint(name), FramePoint(name, True)):
                for following in self._next_points(point):
                    self._previous.setdefault(following, []).append(point)

    def _next_points(self, point: FramePoint) -> Iterator[FramePoint]:
        """Yield the points that a frame can reach from a point in one step."""
        device = self._devices[point.device]
        if point.is_received:
            yield from (FramePoint(upper.name, True) for upper in self._upper.get(device.name, ()))
            if device.master:
                yield FramePoint(device.master, True)
                if self.kind(device.master) in _SWITCHES:
                    yield FramePoint(device.master)
            return
        yield from (FramePoint(port) for port in self._ports.get(device.name, ()))
        if device.kind == DATAPATH and device.master:  # an internal port: its frames enter the datapath
            yield FramePoint(device.master)
        if device.kind in _PAIRS and device.link:
            yield FramePoint(device.link, True)
        elif device.link and device.kind not in _NOT_ABOVE:
            yield FramePoint(device.link)
            if device.kind in _SIBLINGS:
                yield from (
                    FramePoint(sibling.name, True)
                    for sibling in self._upper.get(device.link, ())
                    if sibling.kind in _SIBLINGS and sibling is not device
                )

    def sources(self, points: Iterable[FramePoint]) -> set[FramePoint]:
        """Return the points from which a frame can reach one of `points`, with `points`."""
        waiting = list(points)
        points_before = set(waiting)
        while waiting:
            for point in self._previous.get(waiting.pop(), ()):
                if point not in points_before:
                    points_before.add(point)
                    waiting.append(point)
        return points_before

    def sources_of_sent(self, targets: Iterable[str]) -> set[FramePoint]:
        """Return the points from which a frame can leave by one of the devices `targets`."""
        return self.sources(FramePoint(target) for target in targets)

    def sent_by(self, targets: Sequence[str]) -> list[str]:
        """Return the other devices whose frames can leave by a target."""
        points = self.sources_of_sent(targets)
        return [name for name in self._devices if name not in targets and FramePoint(name) in points]

    def received_on_the_way(self, targets: Sequence[str]) -> list[str]:
        """Return the devices whose frames another device of this machine receives, and then they leave by a target.

        Also those whose frames arrive by a target.
        """
        key = tuple(targets)
        if key not in self._received_on_the_way:
            received = {point for point in self.sources_of_sent(targets) if point.is_received}
            points = self.sources({*received, *(FramePoint(target, True) for target in targets)})
            self._received_on_the_way[key] = [
                name for name in self._devices if name not in targets and FramePoint(name) in points
            ]
        return self._received_on_the_way[key]

    def from_elsewhere(self, targets: Sequence[str]) -> list[str]:
        """Return the veth devices with an end in another network namespace, whose frames can leave by a target."""
        points = self.sources_of_sent(targets)
        return [
            device.name
            for device in self._devices.values()
            if device.link_elsewhere and device.kind in _PAIRS and FramePoint(device.name, True) in points
        ]

    def devices_below(self, names: Iterable[str]) -> set[str]:
        """Return the devices that transmit what one of `names` transmits, with `names`."""
        below, waiting = set(names), list(names)
        while waiting:
            device = self._devices.get(waiting.pop())
            following = [*self._ports.get(device.name, ())] if device is not None else []
            if device is not None and device.link and device.kind not in _NOT_ABOVE:
                following.append(device.link)
            waiting += [name for name in following if name not in below]
            below.update(following)
        return below

    def parents(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """Return each device of `names` that is on top of another one, with that one."""
        devices = (self._devices.get(name) for name in names)
        return [
            (device.name, device.link)
            for device in devices
            if device is not None and device.link and device.kind not in _NOT_ABOVE
        ]

    def is_known(self, name: str) -> bool:
        """Return True if the state has a device of this name."""
        return name in self._devices

    def kind(self, name: str) -> str:
        """Return the kind of a device, "" if it is not known."""
        device = self._devices.get(name)
        return device.kind if device is not None else ""
