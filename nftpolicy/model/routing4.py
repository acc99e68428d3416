# SPDX-License-Identifier: BSD-2-Clause
"""How IPv4 routes beside its rules and tables (net/ipv4/route.c): what is bound, what is a group, what came in."""

from __future__ import annotations

from attrs import evolve

from ..netstate.routing import TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN
from ..netstate.state import NetState
from . import addresses
from .addresses import Addresses
from .decision import Decision
from .fib import ERRORS, Search, Table4
from .packet import IGMP
from .rules import LOOPBACK, Asked
from .search import NO_ROUTE, UNKNOWN, Found, Log, Routed, Searcher, by, kind_of, local, refusal
from .unknown import Doubts

NEVER_A_RULE = "whether nobody ever added an ip rule"
_KERNEL = 2  # RTPROT_KERNEL


class Router4(Searcher):
    """Lookups of IPv4 packets."""

    def __init__(self, state: NetState, known: Addresses) -> None:
        super().__init__(state, 4, known)
        # As long as nobody has added a rule, IPv4 searches the local and the main table as one.
        both = (*self.routes.get(TABLE_LOCAL, ()), *self.routes.get(TABLE_MAIN, ()))
        self.local = self.tables.get(TABLE_LOCAL)
        every = (one for routes in self.routes.values() for one in routes)
        self._plain_local = all(one.protocol == _KERNEL for one in every if one.kind == "local")
        self._merged = Table4(both) if self.rules.untouched else None

    def output(self, asked: Asked, doubts: Doubts, said: Log, any_source: bool) -> Routed:
        source, destination, oif = asked.source, asked.destination, asked.oif
        to_group, to_all = addresses.is_multicast4(destination), destination == addresses.BROADCAST
        if source is not None:
            if addresses.is_multicast4(source) or source == addresses.BROADCAST:
                return Routed("none", error="EINVAL")
            if oif is None and (to_group or to_all):
                # As if the socket were bound to the device that has the source.
                device = self._owner(source, doubts)
                return self._on_link4(asked, device) if device else Routed("none", error=NO_ROUTE)
            if not any_source and self.addresses.are_told and self._owner(source, doubts) is None:
                return Routed("none", error=NO_ROUTE)
        if oif is not None:
            if not self.addresses.is_up(oif):
                return Routed("none", error=NO_ROUTE)
            if destination >> 8 == addresses.LOCAL_MULTICAST or to_all or asked.protocol == IGMP:
                return self._on_link4(asked, oif)
            if source is None and (to_group or not destination):
                asked = evolve(asked, source=self.addresses.chosen4(oif, None, loops=not to_group))
        if not destination:
            return self._checked4(asked, Routed("local", LOOPBACK, source=addresses.shown4(source)))
        what = Search(destination, 0, oif, asked.tos)
        found = self._found(asked, what, doubts, said)
        refused = refusal(found)
        if refused and refused.outcome != UNKNOWN and oif is not None:
            # "Apparently, routing tables are wrong. Assume, that the destination is on link." (route.c)
            said.append(_kept(refused, oif))
            return self._on_link4(asked, oif)
        if refused:
            return refused
        hit = found.hit
        assert hit is not None
        if hit.route.kind == "local":
            own = hit.route.prefsrc or addresses.shown4(destination)
            return self._checked4(asked, local(found, own))
        kind = "broadcast" if to_all else "multicast" if to_group else kind_of(hit.route)
        routed = by(
            found, kind, lambda hop: hit.route.prefsrc or self.addresses.source4(hop, self._loops(hop.device or ""))
        )
        # A default route shows a multicast packet the device, not the gateway.
        bare = kind == "broadcast" or (kind == "multicast" and hit.length < 4)
        return self._checked4(asked, evolve(routed, gateway=None) if bare else routed)

    def _owner(self, address: int, doubts: Doubts) -> str | None:
        """The device that has an address of this machine, or of the local route that makes it one (__ip_dev_find)."""
        known = self.addresses.device(4, address)
        if known:
            return known
        owner = _local_by(self.local, address, doubts)
        merged = _local_by(self._merged, address, doubts) if self._merged else owner
        return merged if merged != owner and doubts.ask(NEVER_A_RULE) else owner

    def _on_link4(self, asked: Asked, device: str) -> Routed:
        """Out by the device, without a route."""
        destination = asked.destination
        kind = "multicast" if addresses.is_multicast4(destination) else "unicast"
        kind = "broadcast" if destination == addresses.BROADCAST else kind
        source = addresses.shown4(self.addresses.chosen4(device, None, self._loops(device)))
        return self._checked4(asked, Routed(kind, device, source=source, devices=(device,)))

    def _checked4(self, asked: Asked, routed: Routed) -> Routed:
        """Loopback addresses stay on loopback."""
        if asked.source is None:
            return routed
        own = addresses.shown4(asked.source)
        routed = routed if routed.source == own else evolve(routed, source=own)
        if asked.source >> 24 != 127:
            return routed
        refusing = [one for one in routed.devices if one != LOOPBACK and not self._loops(one)]
        if not refusing:
            return routed
        if len(refusing) < len(routed.devices):
            return evolve(routed, doubts=(*routed.doubts, f"a loopback address by {' or '.join(refusing)}"))
        return Routed("none", error="EINVAL")

    def _loops(self, device: str) -> bool:
        """Whether loopback addresses are like any other there."""
        return bool(self._sysctl("route_localnet", device))

    def _found(self, asked: Asked, what: Search, doubts: Doubts, said: Log) -> Found:
        """What the rules lead to; where nobody ever added one, the longest prefix of both tables counts."""
        found = self.search(asked, what, doubts, said)
        if self._merged is None:
            return found
        hit = self._merged.find(what, doubts)
        last = self.tables.get(TABLE_DEFAULT)
        if last and (hit is None or hit.route.kind in ERRORS):
            hit = last.find(what, doubts) or hit
        if (hit and hit.route) is (found.hit and found.hit.route) or not doubts.ask(NEVER_A_RULE):
            return found
        rule = next((one for one in self.rules.rules if hit and one.table == hit.route.table), None)
        return Found(rule, rule and rule.table, hit)

    def input(self, asked: Asked, doubts: Doubts, said: Log) -> Routed:
        source, destination, device = asked.source or 0, asked.destination, asked.iif
        if addresses.is_multicast4(destination):
            return Routed("multicast", source=addresses.shown4(source), error=None)
        if addresses.is_multicast4(source) or source == addresses.BROADCAST:
            return Routed("none", error="EINVAL")
        if destination == addresses.BROADCAST or (not destination and not source):
            here = Routed("local", LOOPBACK)
            return self._validated(evolve(asked, destination=0), here, doubts) if source else here
        loops = source >> 24 == 127 or destination >> 24 == 127  # lo included: what its own packets bring is not asked
        if not source or not destination or (loops and not self._loops(device)):
            return Routed("none", error="EINVAL")
        what = Search(destination, 0, None, asked.tos)
        found = self._found(asked, what, doubts, said)
        refused = refusal(found)
        kind = found.hit.route.kind if found.hit else None
        if not refused and kind in ("local", "broadcast"):
            asked = evolve(asked, destination=0) if kind == "broadcast" else asked
            return self._validated(asked, local(found, None), doubts)
        if not self._sysctl("forwarding", device, missing=1) and not (refused and refused.outcome == UNKNOWN):
            return Routed("none", error="EHOSTUNREACH")
        if refused:
            return refused
        if kind != "unicast":
            return Routed("none", error="EINVAL")
        return self._validated(asked, by(found, "unicast", lambda hop: None), doubts)

    def _validated(self, asked: Asked, routed: Routed, doubts: Doubts) -> Routed:
        """The reverse path filter (fib_validate_source), which also refuses our own addresses from outside."""
        device = asked.iif
        strictness = self._sysctl("rp_filter", device, worst=True)
        accepts_ours = bool(self._sysctl("accept_local", device))
        ways = routed.devices or (LOOPBACK,)
        found = {by: self._passes(asked, by, strictness, accepts_ours, doubts) for by in ways}
        if None in found.values():
            return Routed(UNKNOWN, doubts=(*routed.doubts, "the route back"))
        if len(set(found.values())) > 1:
            return evolve(routed, doubts=(*routed.doubts, "the route back, which is not the same for all ways"))
        return routed if found[ways[0]] else Routed("none", error="EINVAL")

    def _passes(self, asked: Asked, by: str, strictness: int, accepts_ours: bool, doubts: Doubts) -> bool | None:
        """Whether the source is one that may come in by this device and leave by that. None: not known."""
        if not strictness and accepts_ours and by != asked.iif:
            return True
        passes = self._passes_back(asked, by, strictness, accepts_ours, doubts)
        if passes is not None and not strictness and by != asked.iif and self.rules.untouched and self._plain_local:
            # Where nobody ever added a rule, one look at the addresses is enough.
            is_quick = self.addresses.device(4, asked.source or 0) is None
            return is_quick if is_quick == passes or doubts.ask(NEVER_A_RULE) else passes
        return passes

    def _passes_back(self, asked: Asked, by: str, strictness: int, accepts_ours: bool, doubts: Doubts) -> bool | None:
        """Whether a packet the other way round would leave by the device that this one came by. None: not known."""
        device, source = asked.iif, asked.source or 0
        mark = asked.mark if self._sysctl("src_valid_mark", device) else 0
        read = (asked.protocol, asked.dport, asked.sport) if self.rules.reads_ports else (0, 0, 0)
        back = Asked(4, source, asked.destination or None, mark, by, None, 0, asked.tos, *read)
        hit = self._found(back, Search(source, 0, None, asked.tos), doubts, []).hit
        if hit is None or hit.route.kind in ERRORS:
            return not strictness
        if not hit.is_known:
            return None
        kind = hit.route.kind
        if kind != "unicast" and not (kind == "local" and accepts_ours):
            return False
        is_ours = kind == "local" and device == LOOPBACK
        return strictness != 1 or is_ours or any(hop.device == device for hop in hit.route.ways)

    def _sysctl(self, name: str, device: str, missing: int = 0, worst: bool = False) -> int:
        """An IPv4 setting of a device: the one for all counts too, for `worst` as far as it is higher."""
        values = [self.value(f"net/ipv4/conf/{one}/{name}") for one in ("all", device)]
        if name == "forwarding":
            values = values[1:]
        numbers = [int(one) if (one or "").isdigit() else missing for one in values if one is not None]
        return max(numbers, default=missing) if worst or numbers else missing


def _local_by(table: Table4 | None, address: int, doubts: Doubts) -> str | None:
    hit = table.find(Search(address), doubts) if table else None
    return hit.route.device if hit and hit.route.kind == "local" else None


def _kept(refused: Routed, oif: str) -> Decision:
    text = f"bound to {oif}: leaves there although there is no route ({refused.outcome})"
    return Decision("route", text, refused.route, refused.route.origin if refused.route else (), f"leaves by {oif}")
