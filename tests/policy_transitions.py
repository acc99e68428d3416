"""Changes of policy under load: random policies for the lab's uplink, a flood of every kind of
packet, and the allowed devices of each.

Used by tests/leaks/test_policy_transitions.py and by `script/bench window`.
"""

import contextlib
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from attrs import evolve
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from nftpolicy.policy import validate
from nftpolicy.policy.mark import FULL_MASK, Mark
from nftpolicy.policy.objects import Account, Policy, Port, Service, Uplink
from tests import policy_strategies
from tests.bench.namespace_worker import Worker
from tests.guarded_lab import OTHER_GID, SERVICE_GID, wan_routes_in_main
from tests.lab import addresses as at
from tests.lab import flooder
from tests.lab.flooder import FRAME, TCP, UDP, Counts, Flood, Kind
from tests.lab.frames import Frame, classify
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.port_counter import Tally
from tests.lab.topology import Lab

MARK = 0x5A3C_96F1  # what the service's sockets wear: br-wan's mark in every policy, whatever its mask
ALIEN = ~MARK & FULL_MASK  # no bit in common, so it never is br-wan's mark; it often is another uplink's
STICK, STICK_FAR = "usb0", {4: "198.18.0.2", 6: "2001:db8:99::2"}  # never inside; sometimes an uplink
STICK_NODE = {4: "198.18.0.1", 6: "2001:db8:99::1"}
ABSENT = ("eth7", "lte0", "wlan0", "usb0.7", "wwan1", "0a-b_c")  # uplinks of the policies that are not there
TABLES = (1, 7)  # these have the WAN's routes already
_GATEWAYS = {at.WAN: (at.HOME[4], at.HOME_LINK_LOCAL), STICK: (STICK_FAR[4], STICK_FAR[6])}

WANS, MESH = ("wan", "stick"), "mesh"  # the wires
EVERY = (*WANS, MESH)
PLAIN, FOREIGN, STOLEN, MARKED, ASTRAY, ORDINARY = "plain", "foreign", "stolen", "marked", "astray", "ordinary"
# Role -> the wires on which none of it may ever be seen.
FORBIDDEN: Mapping[str, tuple[str, ...]] = {
    PLAIN: WANS,  # no mark, led to an uplink by a route, by its device, or as a frame
    FOREIGN: WANS,  # a mark that is not br-wan's, of nobody's service
    STOLEN: EVERY,  # br-wan's mark, on a socket of another group
    MARKED: ("stick", MESH),  # br-wan's mark, of the service; without the ladder it goes to the mesh
    ASTRAY: EVERY,  # the same, bound to the mesh's device
    ORDINARY: WANS,  # no mark, led to the mesh
}
BOTH_HOWS = (UDP, TCP)


def kinds() -> list[Kind]:
    """Return every stream of the flood."""

    def both(role: str, hows: Sequence[str], to: Mapping[int, str], gid: int, mark: int = 0, device: str | None = None):  # type: ignore[no-untyped-def]
        return [Kind(role, how, family, to, gid, mark, device) for how in hows for family in at.FAMILIES]

    return [
        *both(PLAIN, BOTH_HOWS, at.NEIGHBOUR, OTHER_GID),
        *both(PLAIN, BOTH_HOWS, at.SERVER, OTHER_GID, device=at.WAN),
        *both(PLAIN, (UDP,), at.SERVER, OTHER_GID, device=STICK),
        *both(PLAIN, (FRAME,), at.SERVER, OTHER_GID, device=at.WAN),
        *both(FOREIGN, BOTH_HOWS, at.SERVER, OTHER_GID, ALIEN, at.WAN),
        *both(STOLEN, (UDP,), at.SERVER, OTHER_GID, MARK),
        *both(MARKED, BOTH_HOWS, at.SERVER, SERVICE_GID, MARK),
        *both(ASTRAY, (UDP,), at.SERVER, SERVICE_GID, MARK, at.MESH),
        *both(ORDINARY, (UDP,), at.SERVER, OTHER_GID),
    ]


# --- policies ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A policy, whether the service's marked packets may leave by br-wan under it, and whether they can:
    whether the uplink's table leads there."""

    policy: Policy
    entitled: bool
    passes: bool

    @property
    def exempt(self) -> frozenset[str]:
        """Return the exemptions of br-wan."""
        return frozenset(next(up.exempt for up in self.policy.uplink.values() if at.WAN in up.devices))


def scenes(count: int, number: int, passing: bool = False) -> list[Scene]:
    """`count` policies by the seed `number`, of which every second one often is a changed first.

    All guard br-wan. `passing`: the service may use br-wan in all of them.
    """
    drawn: list[tuple[Policy, Policy]] = []

    @seed(number)
    @settings(
        max_examples=(count + 1) // 2,
        database=None,
        derandomize=False,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(policy_strategies.pairs(st.sampled_from(ABSENT)))
    def draw(pair: tuple[Policy, Policy]) -> None:
        drawn.append(pair)

    draw()
    random_ = random.Random(number)
    random_.shuffle(drawn)  # the generator begins with its smallest
    found: list[Scene] = []
    for first, second in drawn:
        place = random_.getrandbits(32)
        found.append(_placed(first, random.Random(place), passing))
        other = place if random_.random() < 0.6 else random_.getrandbits(32)
        found.append(_placed(second, random.Random(other), passing))
    return found[:count]


def _placed(policy: Policy, random_: random.Random, passing: bool) -> Scene:
    """Return the policy in the lab: its first uplink has br-wan, the second one sometimes the stick."""
    worn = _marks(len(policy.uplink), random_)
    table = random_.choice((*TABLES, random_.randrange(300, 2**32)))
    stick = random_.random() < 0.7
    uplinks: dict[str, Uplink] = {}
    for index, (name, uplink) in enumerate(policy.uplink.items()):
        more = {0: (at.WAN,), 1: (STICK,) if stick else ()}.get(index, ())
        extra = uplink.devices if random_.random() < 0.5 or not more else ()
        device = more[0] if more else None
        own = device and (random_.random() < 0.5 or (index == 0 and table not in TABLES and random_.random() < 0.8))
        uplinks[name] = evolve(
            uplink,
            devices=(*more, *extra),
            mark=worn[index],
            table=table if index == 0 else 1000 + index if uplink.table in (table, *TABLES) else uplink.table,
            gateways=tuple(map(ip_address, _GATEWAYS[device])) if own and device else (),
            clat=None,  # its devices are not those of the lab
        )
    first = next(iter(uplinks))
    if passing and table not in TABLES:
        uplinks[first] = evolve(uplinks[first], gateways=tuple(map(ip_address, _GATEWAYS[at.WAN])))
    owned = [device for uplink in uplinks.values() for device in (*uplink.devices, STICK)]
    inside = [one for one in policy.inside if not any(validate.matching_pattern(device, (one,)) for device in owned)]
    usual = [
        one
        for one in (at.MESH, at.CLIENT)
        if random_.random() < 0.85 and not validate.matching_pattern(one, tuple(inside))
    ]
    services, entitled = _services(policy, first, random_, passing)
    placed = Policy(policy.name, (*inside, *usual), uplinks, services)
    assert not list(validate.find_faults(placed)), list(validate.find_faults(placed))
    return Scene(placed, entitled, entitled and bool(uplinks[first].gateways or table in TABLES))


def _marks(count: int, random_: random.Random) -> list[Mark]:
    """Return marks of which MARK has only the first; ALIEN often has the second."""
    while True:
        bits = random_.choice((1, 1, 2, 4, 8, 16, 32)) if count == 1 else random_.choice((3, 4, 8, 16, 32))
        mask = sum(1 << bit for bit in random_.sample(range(32), bits))
        values = [MARK & mask, *(random_.getrandbits(32) & mask for _ in range(count - 1))]
        if count > 1 and random_.random() < 0.6:
            values[1] = ALIEN & mask
        if all(values) and len(set(values)) == count:
            return [Mark(value, mask) for value in values]


def _services(policy: Policy, wan: str, random_: random.Random, passing: bool) -> tuple[dict[str, Service], bool]:
    """Return the policy's services, often with one of the flood's group, and True if that one may
    send to the flood's target. None is of root, which sends the flood.
    """
    kept = {
        name: one
        for name, one in policy.service.items()
        if (not one.group or one.group.number not in (SERVICE_GID, OTHER_GID)) and not (_lends(one) or one.of_root)
    }
    how = random_.choice(("anywhere", "anywhere", "there", "there", "elsewhere", "not"))
    if passing and how in ("elsewhere", "not"):
        how = "there"
    if how == "not":
        return kept, False
    to = {
        "anywhere": (),
        "there": tuple(ip_network(at.SERVER_NET[family]) for family in at.FAMILIES),
        "elsewhere": (ip_network("192.0.2.128/25"), ip_network("2001:db8:77::/48")),
    }[how]
    ports = tuple(Port(protocol, *_flooded()) for protocol in (UDP, TCP)) if random_.random() < 0.4 else ()
    name = "the-vpn" if random_.random() < 0.5 else "vpn-of-another-name"
    mine = Service(wan, group=Account(str(SERVICE_GID), SERVICE_GID), to=to, ports=ports)
    return {**kept, name: mine}, how != "elsewhere"


def _lends(service: Service) -> bool:
    """Return True if its source ports are some of the flood's: any process with such a port and the
    mark may leave.
    """
    low, high = _flooded()
    return any(port.low <= high and low <= port.high for port in service.sport)


def _flooded() -> tuple[int, int]:
    low, high = flooder.ports().split("-")
    return int(low), int(high)


# --- the lab ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Measurements around one change: its time in seconds, the packets sent while it ran (`during`)
    and from shortly before to shortly after it (`sent`), those of them on each wire, and all
    other frames that left by br-wan.
    """

    seconds: float
    during: Counts
    sent: Counts
    seen: Mapping[str, tuple[int, ...]]
    others: tuple[Frame, ...]


class Field:
    """The lab with the flood, and a process in the node that changes things; a context manager.

    `changes` are functions that run in the node, by name; each returns its time in seconds. The main table leads to
    the mesh; but to br-wan's own network, and what is bound to br-wan or the stick, by these. The neighbours are static.
    """

    def __init__(self, changes: Mapping[str, Callable[..., float]], which: Sequence[Kind] | None = None) -> None:
        self.kinds = tuple(kinds() if which is None else which)
        with contextlib.ExitStack() as stack:
            self.lab = stack.enter_context(Lab())
            for sniffer in (self.lab.wan, self.lab.mesh_sniffer):
                sniffer.stop()
            self.stick = stack.enter_context(Namespace("stick"))
            self._wire()
            self.flood = Flood(self.lab.node, self.kinds)
            wires = {
                "wan": (self.lab.home, "lan-node"),
                "stick": (self.stick, "eth0"),
                MESH: (self.lab.mesh, "to-node"),
            }
            for space, device in wires.values():
                space.nft(_SINK.replace("DEVICE", device).replace("PORTS", flooder.ports()))
            self.tallies = {
                name: stack.enter_context(Tally(*place, self.flood.wanted())) for name, place in wires.items()
            }
            self._worker = Worker(self.lab.node, {name: _timed(self.flood, work) for name, work in changes.items()})
            self._stack = stack.pop_all()

    def __enter__(self) -> "Field":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _wire(self) -> None:
        node, length = self.lab.node, {4: 24, 6: 64}
        veth(node, STICK, self.stick, "eth0")
        wait_until(lambda: self.lab.wan_address(6), 5, "an IPv6 address")
        wan_routes_in_main(self.lab, 3000)
        for table in TABLES[1:]:
            node.ip(f"route add default via {at.HOME[4]} dev {at.WAN} table {table} metric 10")
            node.ip(f"-6 route add default via {at.HOME_LINK_LOCAL} dev {at.WAN} table {table} metric 10")
        for family in at.FAMILIES:
            node.ip(f"-{family} addr add {STICK_NODE[family]}/{length[family]} dev {STICK}")
            node.ip(f"-{family} route add default via {STICK_FAR[family]} dev {STICK} metric 4000")
        known = {
            at.WAN: (*at.HOME.values(), at.HOME_LINK_LOCAL, *at.NEIGHBOUR.values(), *at.SERVER.values()),
            STICK: (*STICK_FAR.values(), *at.SERVER.values()),
            # (Without a route a bound IPv4 socket takes everybody for a neighbour; asked for, they fill its buffer.)
            at.MESH: (*at.GATEWAY.values(), *at.SERVER.values()),
        }
        node.ip(
            *(
                f"neigh replace {one} lladdr {at.GATEWAY_MAC if device == at.MESH else at.HOME_MAC} dev {device} nud permanent"
                for device, addresses in known.items()
                for one in addresses
            )
        )

    def around(self, name: str, *args: object) -> Change:
        """Run one of the changes under the flood; RuntimeError if it fails."""
        for tally in self.tallies.values():
            tally.drain()
        before, seen = self.flood.counts(), self._seen()
        self.flood.resume()
        try:
            seconds, during = self._worker(name, *args)
            self.flood.resume()  # some more rounds
        finally:
            self.flood.pause()
        sent = self.flood.counts() - before
        now = self._settled()
        return Change(
            seconds,
            during,
            sent,
            {wire: tuple(b - a for a, b in zip(seen[wire], now[wire], strict=True)) for wire in self.tallies},
            tuple(self.tallies["wan"].drain()),
        )

    def _seen(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tally.counts().values()) for name, tally in self.tallies.items()}

    def _settled(self) -> dict[str, tuple[int, ...]]:
        """Return the counts of the wires when no more frames come: a veth delivers a frame within
        the sender's call.
        """
        now = self._seen()
        while True:
            time.sleep(0.001)
            later = self._seen()
            if later == now:
                return now
            now = later

    def lost_frames(self) -> int:
        """Frames that the sniffers missed; none, or nothing is known."""
        return sum(tally.dropped for tally in self.tallies.values())

    def where(self, role: str) -> list[int]:
        """Return the wires of the kinds of a role."""
        return [index for index, kind in enumerate(self.kinds) if kind.role == role]

    def strays(self, change: Change) -> dict[str, int]:
        """Return the frames on wires where none may be: "wire: kind" -> frames."""
        return {
            f"{wire}: {kind}": change.seen[wire][index]
            for index, kind in enumerate(self.kinds)
            for wire in FORBIDDEN[kind.role]
            if change.seen[wire][index]
        }


# What arrives of the flood has been counted when it comes here, and costs no more.
_SINK = """
table netdev sink {
    chain sink {
        type filter hook ingress device "DEVICE" priority 0; policy accept;
        udp dport PORTS drop
        tcp dport PORTS drop
    }
}
"""


def _timed(flood: Flood, work: Callable[..., float | None]) -> Callable[..., tuple[float, Counts]]:
    def run(*args: object) -> tuple[float, Counts]:
        before, start = flood.counts(), time.perf_counter()
        work(*args)
        passed = time.perf_counter() - start
        return passed, flood.counts() - before

    return run


class Ours:
    """Python API inside the node, with a state directory of the node."""

    def __init__(self) -> None:
        self._parts: tuple[object, object] | None = None

    def apply(self, policy: Policy) -> None:
        """Prospect and apply."""
        from nftpolicy.runtime.apply.executor import apply_change, plan_change

        kernel, memory = self._ready()
        apply_change(kernel, plan_change(kernel, policy, memory), memory)  # type: ignore[arg-type]

    def restart(self, policy: Policy) -> None:
        """Remove everything, then apply: the way that nftpolicy avoids."""
        take_guard_away()
        take_ladder_away()
        self.apply(policy)

    def _ready(self) -> tuple[object, object]:
        if self._parts is None:
            from nftpolicy.kernel.linux import Linux
            from nftpolicy.runtime.apply.state_dir import StateDir

            folder = Path("/run/lab/transitions")
            folder.mkdir(parents=True, exist_ok=True)
            self._parts = Linux(), StateDir(folder)
        return self._parts


def take_guard_away() -> None:
    """Delete the tables of nftpolicy inside the node by nft, if they exist."""
    # An nft "add" of what is there changes nothing, and makes sure that there is something to delete.
    text = "".join(f"table {family} nftpolicy\ndelete table {family} nftpolicy\n" for family in ("inet", "netdev"))
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def take_ladder_away() -> None:
    """Delete the ip rules of nftpolicy inside the node."""
    for family in at.FAMILIES:
        subprocess.run(["ip", f"-{family}", "rule", "flush", "protocol", "78"], check=True)


def words(frames: Sequence[Frame]) -> Counter[str]:
    """Return the count of each class of frames."""
    return Counter(map(classify, frames))
