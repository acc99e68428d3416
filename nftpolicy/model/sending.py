# SPDX-License-Identifier: BSD-2-Clause
"""The way of a packet as its socket, or its arrival, gets it: look-ups in their order, and the source address.

The routing tables answer one look-up. A packet may need several: IPv6 asks again with a source when there was
no way without one (ip6_dst_lookup_tail), a connected socket when its source is chosen (ip_route_connect), and
all that the output hook changes is asked for once more (ip_route_me_harder, ip6_route_me_harder).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from ..netstate.routing import TABLE_LOCAL
from ..netstate.state import NetState
from .addresses import is_multicast6
from .decision import Decision, Untold, likewise
from .packet import KERNEL, TCP, UDP, Packet, interval, number, shown
from .routing import Routed, Router
from .rules import LOOPBACK
from .unknown import Doubts
from .view import View

Log = list[Decision]
LOOPBACK_NET = 127  # 127.0.0.0/8, which is no source for anything else


@frozen
class Way:
    """Where a packet goes. `source` is the address that it gets, None if that is not known."""

    device: str
    source: int | None = None
    is_local: bool = False
    is_broadcast: bool = False

    def sent_from(self, source: int | None) -> Way:
        """The same with another source."""
        return self if source == self.source else Way(self.device, source, self.is_local, self.is_broadcast)


class Sending:
    """Routes for what this machine sends and what arrives at it."""

    def __init__(self, router: Router, state: NetState) -> None:
        self._router = router
        self._sources = _Sources(state)

    def first(self, packet: Packet, doubts: Doubts, log: Log) -> Way | None:
        """The way that a packet has before it meets a hook; None if its sender is given an error."""
        source = packet.source
        way = self._asked(packet, source, doubts, log)
        if source is not None:
            return way and way.sent_from(source)
        if way is None and packet.family == 6:
            source = self._sources.choose(6, packet.destination, None, doubts)  # of any device
            if source is None:
                return None
            if not isinstance(log, Untold):
                log.append(Decision("source", f"no way without a source address; once more from {shown(6, source)}"))
            way = self._asked(packet, source, doubts, log)
            way = way and way.sent_from(source)
        if way is None:
            return None
        if way.source is None:
            way = way.sent_from(self._sources.choose(packet.family, packet.destination, way.device, doubts))
        if way.source is None:
            return way
        if not isinstance(log, Untold):
            log.append(Decision("source", f"the source address is {shown(packet.family, way.source)}"))
        return self._connected(packet, way, doubts, log)

    def _connected(self, packet: Packet, way: Way, doubts: Doubts, log: Log) -> Way | None:
        """A connected socket is looked up once more, with its source; what rules say of that may differ.

        IPv4 does so when a socket connects, IPv6 when the way that it remembers has become stale. Only of
        TCP is it known that its sockets are connected.
        """
        if packet.origin == KERNEL or packet.protocol not in (TCP, UDP):
            return way
        said = likewise(log)
        other = self._asked(packet, way.source, doubts, said)
        if other is not None and (other.device, other.is_local) == (way.device, way.is_local):
            return way
        connects = packet.protocol == TCP and packet.family == 4
        if not connects and not doubts.ask("whether the socket is looked up again with its source address"):
            return way
        log.append(Decision("reroute", "the connected socket is looked up again with its source address"))
        log += said
        return other and other.sent_from(way.source)

    def again(self, packet: Packet, view: View, old: str, doubts: Doubts, log: Log) -> Way | None:
        """The way after a chain of the output hook has changed the packet, which had left by device `old`.

        IPv4 then asks as user 0, whoever sends.
        """
        oif = packet.bound if packet.origin != KERNEL else None
        if packet.family == 6 and oif is None and (view.destination >> 118 == 0x3FA or is_multicast6(view.destination)):
            oif = old
        uid = packet.uid if packet.has_socket and packet.family == 6 else 0
        return self._looked_up(packet, view, doubts, log, oif=oif, uid=uid, any_source=True)

    def arrived(self, packet: Packet, view: View, iif: str, doubts: Doubts, log: Log) -> Way | None:
        """The way of a packet that came in by a device."""
        return self._looked_up(packet, view, doubts, log, iif=iif, forwarded=True)

    def _looked_up(self, packet: Packet, view: View, doubts: Doubts, log: Log, **how: Any) -> Way | None:
        """The way of a packet that is there already.

        Its protocol and ports are read only if some rule that is not for this machine's own packets selects
        by them (fib4_rules_early_flow_dissect); but ip6_route_input knows the protocol.
        """
        read = (packet.protocol, view.sport, view.dport)
        if not self._router.reads_ports(packet.family):
            read = (packet.protocol if packet.family == 6 and how.get("forwarded") else 0, 0, 0)
        routed = self._router.lookup(
            packet.family,
            view.destination,
            source=view.source,
            mark=view.mark,
            tos=_tos(packet),
            protocol=read[0],
            sport=read[1],
            dport=read[2],
            log=log,
            **how,
        )
        if routed.outcome == "multicast" and how.get("forwarded"):  # nobody routes it here: for this machine, if at all
            return Way(LOOPBACK, is_local=True)
        return self._way(routed, packet.family, doubts)

    def own_address(self, view: View, device: str, doubts: Doubts) -> int | None:
        """The device's address for what is masqueraded to, or redirected from, where the view's packet goes."""
        return self._sources.choose(view.family, view.destination, device, doubts)

    def _asked(self, packet: Packet, source: int | None, doubts: Doubts, log: Log) -> Way | None:
        """One look-up for the packet as it was sent."""
        oif = packet.bound
        if packet.origin == KERNEL and packet.family == 6 and oif and is_multicast6(packet.destination):
            log.append(Decision("route", f"the kernel's own, on the link of {oif}"))
            return Way(oif, source)
        routed = self._router.lookup(
            packet.family,
            packet.destination,
            source=source,
            mark=packet.mark,
            oif=oif,
            uid=packet.uid if packet.has_socket else 0,
            tos=_tos(packet),
            protocol=packet.protocol,
            sport=packet.sport,
            dport=packet.dport,
            any_source=packet.origin == KERNEL or packet.protocol not in (TCP, UDP),
            # What the kernel answers prefers the device that it came by; a bound socket has no choice.
            exact=source is None or packet.origin == KERNEL,
            log=log,
        )
        return self._way(routed, packet.family, doubts)

    def _way(self, routed: Routed, family: int, doubts: Doubts) -> Way | None:
        named = routed.source
        if family == 6 and routed.outcome != "local":  # how wide the destination is decides as well
            named = routed.route.prefsrc if routed.route else None
        source = None if named is None else number(named)
        if routed.outcome == "local":
            return Way(LOOPBACK, source, is_local=True)
        if routed.leaves and routed.device is not None:
            return Way(routed.device, source, is_broadcast=routed.outcome == "broadcast")
        if routed.outcome != "unknown":
            return None
        what = ", ".join(routed.doubts) or "several ways that count as equal"
        for device in routed.devices:
            if doubts.ask(f"whether it is routed by {device} ({what})"):
                return Way(device, source)
        if not routed.devices:
            doubts.note(f"the route ({what})")
        return None


class _Sources:
    """The addresses that the kernel may choose for a packet without one, where it is not known which."""

    def __init__(self, state: NetState) -> None:
        self._owned: dict[tuple[int, str], list[int]] = defaultdict(list)
        self._found: dict[tuple[int, int, str | None], Sequence[int]] = {}
        for device in state.devices:
            for address in device.addresses:
                own = address.partition("/")[0]
                self._owned[6 if ":" in own else 4, device.name].append(number(own))
        for route in () if state.devices else state.routes:
            if route.table == TABLE_LOCAL and route.kind == "local" and route.device:
                low, high = interval(route.destination, route.family)
                if low == high:
                    self._owned[route.family, route.device].append(low)

    def choose(self, family: int, destination: int, device: str | None, doubts: Doubts) -> int | None:
        """One of them; a fork for each, None if there are none."""
        asked = (family, destination, device)
        found = self._found.get(asked)
        if found is None:
            found = self._found[asked] = self._of(family, device, destination)
        for address in found[:-1]:
            if doubts.ask(f"whether the address is {shown(family, address)}"):
                return address
        return found[-1] if found else None

    def _of(self, family: int, device: str | None, destination: int) -> Sequence[int]:
        rest = [
            address
            for (version, where), owned in self._owned.items()
            for address in owned
            if version == family and where != LOOPBACK
        ]
        near = rest if device is None else self._owned.get((family, device), [])
        if family == 4:
            return [address for address in near if address >> 24 != LOOPBACK_NET] or rest
        # An address as wide as the destination is preferred, then one of the device (RFC 6724, rules 2 and 5).
        narrow = [address for address in near if _is_link_local(address) or address == 1]
        if _is_link_local(destination) or destination == 1 or _is_group_of_the_link(destination):
            return narrow
        if destination in rest:  # rule 1
            return [destination]
        wide = [address for address in near if address not in narrow]
        return wide or [address for address in rest if not _is_link_local(address)] or narrow


def _is_group_of_the_link(address: int) -> bool:
    return is_multicast6(address) and address >> 112 & 0xF <= 2


def _is_link_local(address: int) -> bool:
    return address >> 118 == 0x3FA


def _tos(packet: Packet) -> int:
    return packet.fields.get(("ip" if packet.family == 4 else "ip6", "dscp"), 0) << 2
