"""Equivalence classes of packets: one packet of each class that the tests of a ruleset distinguish.

Rules test fields only against the few values below, so a fact about all packets of a universe holds for all packets.
"""

from collections.abc import Iterator
from itertools import product

from attrs import frozen

from nftpolicy.model.packet import parse_address
from nftpolicy.model.packet_view import PacketView
from nftpolicy.model.symbolic.box import Ranges, merge_ranges

DEVICES = ("wan", "lan0", "lan1", "lan2", "eth9")  # rules name the first three, and lan*
HOSTS = {
    4: ("10.0.0.1", "10.0.0.2", "10.0.0.7", "192.0.2.1"),
    6: ("fd00::1", "fd00::2", "fd00::7", "2001:db8::1"),
}
NETS = {4: "10.0.0.0/24", 6: "fd00::/64"}
PORTS, _PORT_CASES = (53, 80), (1, 53, 60, 80, 1000)
UIDS, _GID_CASES = (0, 1000), (0, 500, 1000, 2000)
_UID_CASES = (0, 500, 501, 1000, 2000, 2001)  # rules may write the lowest bit into a mark
MARKS = range(8)  # rules test the two low bits, and whole marks up to 3
IP = {4: "ip", 6: "ip6"}
STATES = ("new", "established", "related", "invalid", "untracked")
_TCP_SYN, _TCP_ACK = 2, 16
GROUPS = ("ports", "icmp", "flags", "flow", "saddr", "daddr", "skuid", "skgid", "oif", "iif", "fib")
ICMP = {4: "icmp", 6: "icmpv6"}


@frozen
class _Says:
    """Answer to every fib expression."""

    type: str

    def __call__(self, result: str, keys: tuple[str, ...], view: PacketView) -> str:
        return self.type


@frozen
class Universe:
    """Packets of one family as a hook sees them: all combinations of the cases of each group."""

    family: int
    groups: tuple[str, ...]
    marks: range = MARKS
    hook: str = "postrouting"

    def views(self) -> Iterator[PacketView]:
        """Yield every packet as a new view."""
        for choice in product(*(self._cases(group) for group in ("mark", *self.groups))):
            merged: dict = {}
            fields: dict = {}
            for one in choice:
                fields |= one.get("fields", {})
                merged |= one
            yield self._view(merged | {"fields": fields})

    def _view(self, changes: dict) -> PacketView:
        hosts, type_ = HOSTS[self.family], changes.pop("type", None)
        view = PacketView(
            self.family, parse_address(hosts[0]), parse_address(hosts[3]), 17, 40000, 9, uid=0, gid=0, oif="wan"
        )
        for name, value in changes.items():
            setattr(view, name, value)
        if view.uid is None:
            view.gid = None
        if type_ is not None:
            view.fib = _Says(type_)
        return view

    def _cases(self, group: str) -> list[dict]:
        hosts = [parse_address(one) for one in HOSTS[self.family]]
        icmp = 1 if self.family == 4 else 58
        frag = {("ip", "frag-off"): 1}
        match group:
            case "mark":
                return [{"mark": mark} for mark in self.marks]
            case "ports":
                found = [{"protocol": of, "dport": port} for of in (6, 17) for port in _PORT_CASES]
                later = [{"protocol": of, "dport": 53, "fields": frag} for of in (6, 17)]
                return [*found, *later, {"protocol": 132, "dport": 53}]
            case "flow":
                tracked = [
                    {"ct_state": state, "ct_mark": mark, "ct_direction": way}
                    for state in STATES[:3]
                    for mark in range(4)
                    for way in ("original", "reply")
                ]
                return [*tracked, *({"ct_state": state} for state in STATES[3:])]
            case "saddr":
                return [{"source": one} for one in hosts]
            case "daddr":
                return [{"destination": one} for one in hosts]
            case "skuid":
                return [*({"uid": uid} for uid in _UID_CASES), {"uid": None}]
            case "skgid":
                return [*({"gid": gid} for gid in _GID_CASES), {"uid": None}]
            case "oif":  # a device's own hook is asked for that device
                return [{"oif": name} for name in (("wan",) if self.hook == "egress" else (None, *DEVICES))]
            case "iif":
                return [{"iif": name} for name in (None, *(() if self.hook == "output" else DEVICES))]
            case "icmp":
                kinds = [
                    {"protocol": icmp, "fields": {(ICMP[self.family], "type"): kind}} for kind in (0, 5, 8, 128, 129)
                ]
                hops = ("ip", "ttl") if self.family == 4 else ("ip6", "hoplimit")
                return [
                    {**one, "fields": {**one.get("fields", {}), hops: ttl}}
                    for one in (*kinds, {"protocol": 17})
                    for ttl in (0, 1, 64, 255)
                ]
            case "flags":
                values = (0, _TCP_SYN, _TCP_ACK, _TCP_SYN | _TCP_ACK)
                return [*({"protocol": 6, "fields": {("tcp", "flags"): one}} for one in values), {"protocol": 17}]
            case "fib":
                return [{"type": one} for one in ("local", "unicast", "multicast")]
        raise ValueError(group)

    @property
    def region(self) -> dict[str, Ranges]:
        """Return the fields that rules require before others, as far as the universe has them."""
        some = {"ports": (6, 17, 132), "icmp": (1 if self.family == 4 else 58, 17), "flags": (6, 17)}
        found = {"protocol": merge_ranges((one, one) for group in self.groups for one in some.get(group, ()))}
        if not found["protocol"]:
            del found["protocol"]
        if "ports" not in self.groups:
            found["fragment"] = ((0, 0),)
        return found
