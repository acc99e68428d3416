"""Route lookups of the model against those of the kernel (RTM_GETROUTE), on generated rules and routes.

    python -m tests.kernel.lookup_differential [NUMBER] [SEED]

compares that many lookups, as root, in a namespace of its own. A difference is shrunk and printed: the commands for
`ip`, the query, and both answers.
"""

import random
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

from attrs import asdict, evolve, frozen

from nftpolicy.kernel.netlink.rtnetlink import RouteLookups, Rtnetlink
from nftpolicy.model.fib.lookup import RouteResult
from nftpolicy.model.fib.router import Router
from nftpolicy.model.packet import parse_address
from nftpolicy.netstate.routing import Route, Sysctl
from nftpolicy.netstate.state import NetState
from tests.lab.netns import Namespace, search_path

ERRNO = {"ENETUNREACH": 101, "EHOSTUNREACH": 113, "EACCES": 13, "EINVAL": 22, "EXDEV": 18}
A_ROUND = 60  # look-ups on one set of rules and routes
DEVICES = ("a0", "b0", "c0", "d0")  # d0 has no carrier
TABLES = (100, 101, 102, 103, 254, 254, 255)
ADDRESSES = {
    4: {"a0": ("10.1.0.1/16", "10.5.0.1/24"), "b0": ("10.2.0.1/16",), "c0": ("192.0.2.1/24",), "d0": ("10.4.0.1/16",)},
    6: {"a0": ("2001:db8:1::1/64",), "b0": ("2001:db8:2::1/64",), "c0": ("2001:db8:3::1/64", "2001:db8:5::1/64")},
}
PREFIXES = {
    4: ("default", "default", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.9.0.0/16", "10.9.9.0/24",
        "10.9.9.9/32", "198.51.100.0/24", "198.51.100.128/25", "224.0.0.0/4", "239.1.0.0/16", "127.1.0.0/16",
        "0.0.0.0/1", "128.0.0.0/1", "10.2.0.7/32", "255.255.255.255/32", "10.8.0.0/13"),
    6: ("default", "default", "2000::/3", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::/64", "2001:db8:9::/48",
        "2001:db8:9:9::/64", "2001:db8:9:9::9/128", "fd00::/8", "fd00:1::/32", "fe80::/10", "ff00::/8", "ff05::/16",
        "fe80::99/128"),
}  # fmt: skip
GATEWAYS = {4: ("10.1.0.2", "10.2.0.2", "192.0.2.2", "203.0.113.1"), 6: ("fe80::1", "fe80::2", "2001:db8:1::2")}
SPECIAL = {
    4: ("255.255.255.255", "224.0.0.5", "239.1.1.1", "0.0.0.0", "127.0.0.1", "127.1.2.3", "10.1.255.255", "10.1.0.1",
        "10.2.0.1", "10.5.0.1", "192.0.2.1", "10.4.0.1", "192.0.2.255", "10.5.0.255", "10.1.0.0", "10.5.0.77",
        "169.254.1.1"),
    6: ("::1", "fe80::1", "fe80::99", "ff02::1", "ff05::2", "2001:db8:1::1", "2001:db8:2::1", "2001:db8:1::",
        "2001:db8:3::5", "fd00:1::1", "2001:db8:5::1"),
}  # fmt: skip
FOREIGN = {4: ("203.0.113.9", "10.9.9.9", "10.1.2.3", "127.0.0.1", "10.2.0.7"), 6: ("2001:db8:9:9::9", "fd00:1::5")}
MARKS = (0, 0, 1, 2, 3, 0x100, 0x101, 0xFFFFFFFF)
UIDS = (0, 1000, 1001, 65534)
SETTINGS = {
    "rp_filter": (0, 0, 0, 1, 2),
    "forwarding": (1, 1, 1, 0),
    "accept_local": (0, 0, 1),
    "src_valid_mark": (0, 1),
    "route_localnet": (0, 0, 1),
    "ignore_routes_with_linkdown": (0, 1),
}


@frozen
class Query:
    """Fields of one route lookup, for the kernel and the model."""

    family: int
    destination: str
    source: str | None = None
    mark: int = 0
    iif: str | None = None
    oif: str | None = None
    uid: int = 0
    protocol: int = 0
    sport: int = 0
    dport: int = 0
    tos: int = 0


@frozen
class Difference:
    """Query that model and kernel answer differently, and the commands before it."""

    query: Query
    commands: tuple[str, ...]
    kernel: Route | int
    model: RouteResult
    why: str

    def __str__(self) -> str:
        commands = "\n".join(f"  {line}" for line in self.commands)
        query = {key: value for key, value in asdict(self.query).items() if value}
        return f"{self.why}\n{commands}\nquery:  {query}\nkernel: {self.kernel}\nmodel:  {self.model}"


# What is generated: lines for `ip -batch` with the family in front, and settings ("set PATH VALUE")


def random_rule(pick: random.Random, family: int) -> str:
    priority = 10 * pick.randrange(1, 30)  # so that some have the same, and a goto finds its target
    words = ["rule add priority", str(priority)]
    words += ["not"] if pick.random() < 0.12 else []
    prefix = [one for one in PREFIXES[family] if one != "default"]
    if pick.random() < 0.25:
        words += ["from", pick.choice([*prefix, *(each for of in ADDRESSES[family].values() for each in of)])]
    if pick.random() < 0.2:
        words += ["to", pick.choice(prefix)]
    if pick.random() < 0.4:
        words += ["fwmark", f"{pick.choice(MARKS):#x}/{pick.choice((1, 3, 0xFF, 0xFFFFFFFF)):#x}"]
    words += ["iif", pick.choice(("lo", "lo", "a0", "b0"))] if pick.random() < 0.15 else []
    words += ["oif", pick.choice(("lo", "a0", "b0", "c0"))] if pick.random() < 0.15 else []
    words += ["uidrange", pick.choice(("0-0", "1000-1000", "1000-2000", "65534-65534"))] if pick.random() < 0.15 else []
    words += ["tos", pick.choice(("0x10", "0x8", "0x4"))] if pick.random() < 0.08 else []
    words += ["ipproto", pick.choice(("tcp", "udp"))] if pick.random() < 0.12 else []
    words += ["sport", pick.choice(("1000", "1000-2000"))] if pick.random() < 0.08 else []
    words += ["dport", pick.choice(("53", "53-80", "443"))] if pick.random() < 0.12 else []
    words += [_action(pick, priority)]
    if words[-1].startswith("lookup"):
        words += [f"suppress_prefixlength {pick.choice((0, 0, 8, 16, 24, 32, 64))}"] if pick.random() < 0.2 else []
        words += [f"suppress_ifgroup {pick.choice((0, 5))}"] if pick.random() < 0.1 else []
    return f"-{family} " + " ".join(words)


def _action(pick: random.Random, priority: int) -> str:
    chance = pick.random()
    if chance < 0.7:
        return f"lookup {pick.choice(TABLES)}"
    if chance < 0.8:
        return f"goto {priority + 10 * pick.randrange(1, 10)}"
    return pick.choice(("nop", "unreachable", "prohibit", "blackhole", "l3mdev"))


def random_route(pick: random.Random, family: int) -> str:
    verb = pick.choice(("add", "add", "append"))
    table = pick.choice(TABLES)
    words = [pick.choice(PREFIXES[family])]
    if family == 6 and pick.random() < 0.2:
        words += ["from", pick.choice(("2001:db8:1::/64", "2001:db8:2::/48", "2001:db8::/32", "fd00::/8"))]
    words += ["tos", pick.choice(("0x10", "0x8"))] if family == 4 and pick.random() < 0.2 else []
    words += [f"table {table}"]
    words += [f"metric {pick.choice((0, 1, 2, 3))}"] if pick.random() < 0.4 else []
    words += [f"pref {pick.choice(('low', 'high'))}"] if family == 6 and pick.random() < 0.15 else []
    chance = pick.random()
    if chance < 0.2:
        kind = pick.choice(("throw", "unreachable", "prohibit", "blackhole", "throw"))
        return f"-{family} route {verb} {kind} " + " ".join(words)
    if chance < 0.27:
        kind = pick.choice(
            ("local", "broadcast", "multicast", "anycast", "local") if family == 4 else ("local", "anycast")
        )
        return f"-{family} route {verb} {kind} " + " ".join([*words, "dev", pick.choice(("lo", *DEVICES))])
    if family == 4 and pick.random() < 0.15:
        words += ["src", pick.choice(("10.1.0.1", "10.2.0.1", "10.5.0.1"))]
    if family == 6 and pick.random() < 0.1:
        words += ["src", pick.choice(("2001:db8:1::1", "2001:db8:3::1"))]
    if chance < 0.45:
        return f"-{family} route {verb} " + " ".join(
            [*words, *(f"nexthop {_random_nexthop(pick, family)}" for _ in range(pick.choice((2, 2, 3))))]
        )
    return f"-{family} route {verb} " + " ".join([*words, _random_nexthop(pick, family)])


def _random_nexthop(pick: random.Random, family: int) -> str:
    device = pick.choice((*DEVICES, "a0", "b0"))
    if pick.random() < 0.35:
        return f"dev {device}"
    if family == 4 and pick.random() < 0.1:
        return f"via inet6 fe80::1 dev {device}"
    return f"via {pick.choice(GATEWAYS[family])} dev {device} onlink"


def random_commands(pick: random.Random, has_rules: bool = True) -> list[str]:
    """Return commands for one set of rules and routes."""
    lines = []
    for device in ("all", *DEVICES):
        for name, values in SETTINGS.items():
            if device == "all" and name in ("forwarding", "rp_filter"):
                continue
            lines.append(
                f"set net/ipv4/conf/{device}/{name} {pick.choice(values) if pick.random() < 0.3 else values[0]}"
            )
        lines.append(f"set net/ipv6/conf/{device}/ignore_routes_with_linkdown {pick.choice((0, 0, 1))}")
    lines.append(f"set net/ipv6/conf/all/forwarding {pick.choice((0, 1))}")
    for family in (4, 6):
        lines += [random_route(pick, family) for _ in range(pick.randrange(2, 14))]
        if not has_rules:
            continue
        lines += [random_rule(pick, family) for _ in range(pick.randrange(0, 9))]
        if pick.random() < 0.1:
            lines.append(f"-{family} rule del priority {pick.choice((0, 32766))}")
    return lines


def random_query(pick: random.Random) -> Query:
    family = pick.choice((4, 6))
    destination = (
        pick.choice(SPECIAL[family])
        if pick.random() < 0.3
        else _address_inside(pick, pick.choice(PREFIXES[family]), family)
    )
    own = [each.split("/")[0] for of in ADDRESSES[family].values() for each in of]
    source = None if pick.random() < 0.5 else pick.choice([*own, *own, *FOREIGN[family]])
    arrives = pick.random() < 0.25
    if arrives:
        foreign = [*FOREIGN[family], _address_inside(pick, pick.choice(PREFIXES[family]), family)]
        source = pick.choice(own) if pick.random() < 0.1 else pick.choice(foreign)
        if ip_address(destination).is_multicast:  # the kernel answers for multicast routers
            destination = {4: "10.9.9.9", 6: "2001:db8:9::9"}[family]
    protocol = pick.choice((6, 17, 17) if family == 4 else (0, 6, 17, 17))  # without one, IPv4 is asked for UDP
    return Query(
        family,
        destination,
        source,
        pick.choice(MARKS) if pick.random() < 0.6 else 0,
        pick.choice(DEVICES[:3]) if arrives else None,
        pick.choice((*DEVICES, "lo")) if not arrives and pick.random() < 0.35 else None,
        0 if arrives else pick.choice(UIDS),
        protocol,
        pick.choice((0, 1000, 1500)) if protocol else 0,
        pick.choice((0, 53, 80, 443)) if protocol else 0,
        pick.choice((0, 0, 0x10, 0x8, 0x4, 0x18, 0x30, 0xB8)),
    )


def _address_inside(pick: random.Random, prefix: str, family: int) -> str:
    width = 32 if family == 4 else 128
    address, _, length = prefix.partition("/")
    if prefix == "default":
        return {4: "203.0.113.77", 6: "2a00::77"}[family]
    rest = width - int(length)
    low = pick.choice((1, 5, pick.getrandbits(rest) if rest else 0)) & ((1 << rest) - 1)
    return str(type(ip_address(address))(parse_address(address) | low))


# Both sides


def prepare(space: Namespace) -> None:
    """Create devices and addresses, once."""
    for device in DEVICES:
        space.ip(f"link add {device} type veth peer name p{device}")
        space.sysctl(f"net/ipv6/conf/p{device}/disable_ipv6", 1)
        space.ip(f"link set {device} up", *([] if device == "d0" else [f"link set p{device} up"]))
    space.ip("link set b0 group 5")
    for family, devices in ADDRESSES.items():
        for device, addresses in devices.items():
            space.ip(*(f"-{family} addr add {one} dev {device}{' nodad' if family == 6 else ''}" for one in addresses))


def install(commands: list[str], has_rules: bool = True) -> None:
    """Replace the rules and routes of this namespace; commands that the kernel refuses have no effect."""
    lines: dict[int, list[str]] = {}
    for family in (4, 6):
        lines[family] = [f"route flush table {one}" for one in (100, 101, 102, 103)]
        lines[family] += ["route flush table 254 proto boot", "route flush table 255 proto boot"]
        if has_rules:
            lines[family] += ["rule flush", "rule add priority 0 lookup 255", "rule add priority 32766 lookup 254"]
            lines[family] += ["rule add priority 32767 lookup 253"] if family == 4 else []
    for line in commands:
        if line.startswith("set "):
            _, path, value = line.split()
            Path("/proc/sys", path).write_text(value)
        else:
            lines[int(line[1])].append(line[3:])
    for family, batch in lines.items():
        # `route add` without `proto` is of proto boot, which is how it is found again.
        subprocess.run(
            ["ip", f"-{family}", "-force", "-batch", "-"],
            input="\n".join(batch) + "\n",
            text=True,
            capture_output=True,
            check=False,
            env={"PATH": search_path()},
        )


def read_state(links: Rtnetlink) -> NetState:
    """Return the state that the kernel holds in this namespace."""
    devices = tuple(links.devices())
    names = ("all", *(one.name for one in devices))
    paths = [f"net/ipv4/conf/{name}/{key}" for name in names for key in SETTINGS]
    paths += [f"net/ipv6/conf/{name}/forwarding" for name in names]
    settings = tuple(Sysctl(one, Path("/proc/sys", one).read_text().strip()) for one in paths)
    rules = tuple(one for family in (4, 6) for one in links.rules(family))
    routes = tuple(one for family in (4, 6) for one in links.routes(family))
    return NetState((), rules, routes, settings, devices)


def kernel_answer(lookups: RouteLookups, query: Query) -> Route | int:
    return lookups.get_route(**asdict(query))


def model_answer(router: Router, query: Query) -> RouteResult:
    words = asdict(query)
    family, destination, source = words.pop("family"), words.pop("destination"), words.pop("source")
    return router.lookup(
        family,
        parse_address(destination),
        source=parse_address(source) if source else None,
        forwarded=bool(query.iif),
        exact=True,
        **words,
    )


def difference(query: Query, kernel: Route | int, model: RouteResult, has_rules: bool = True) -> str | None:
    """Return a description of the difference, or None."""
    stays = query.iif and not isinstance(kernel, int) and kernel.kind == "anycast"  # whatever device the route names
    goes = not isinstance(kernel, int) and kernel.device != "lo" and not stays
    if model.outcome == "unknown":
        if goes and model.devices and kernel.device not in model.devices:
            return f"by {kernel.device}"
        return None if goes or model.unsupported else "it does not leave"
    if model.unsupported and not model.devices and not goes:
        return None  # the model says no more than that it doesn't leave
    if isinstance(kernel, int):
        return None if kernel == ERRNO.get(model.error or "") else f"errno {kernel}"
    if model.error:
        return f"the kernel routes it, no {model.error}"
    # IPv4's routes by one way share a cache, which remembers the type of the last packet. IPv6 tells the route's type.
    many = ("unicast", "multicast", "anycast")
    kinds = {"local": ("local", "anycast", "broadcast", "multicast"), "unicast": many, "multicast": many}
    if kernel.kind not in kinds.get(model.outcome, (model.outcome,)):
        return f"of type {kernel.kind}"
    if stays:
        return None
    if kernel.device != model.device:
        return f"by {kernel.device}"
    one_of = model.gateway is None and model.route is not None and any(hop.gateway for hop in model.route.all_nexthops)
    if kernel.gateway != model.gateway and not one_of and not model.unsupported:
        return f"via {kernel.gateway}"
    # Without rules the local table is a part of the main one, and called by its number.
    if has_rules and model.table is not None and kernel.table != model.table:
        return f"from table {kernel.table}"
    if model.source and not query.source and kernel.prefsrc and kernel.prefsrc != model.source:
        return f"from {kernel.prefsrc}"
    return None


def compare(seed: int, wanted: int, has_rules: bool = True) -> tuple[int, int, list[Difference]]:
    """Compare lookups in this namespace.

    Returns the number of lookups, the number of lookups that the model leaves open, and the differences.
    """
    links, done, left_open, differences, turn = Rtnetlink(), 0, 0, [], 0
    with RouteLookups() as lookups:
        while done < wanted and len(differences) < 10:
            pick = random.Random(f"{seed}/{turn}")
            turn += 1
            commands = random_commands(pick, has_rules)
            install(commands, has_rules)
            router = Router(read_state(links))
            for _ in range(min(A_ROUND, wanted - done)):
                query = random_query(pick)
                kernel, model = kernel_answer(lookups, query), model_answer(router, query)
                done += 1
                left_open += model.outcome == "unknown"
                why = difference(query, kernel, model, has_rules)
                if why:
                    why = f"seed {seed}/{turn - 1}: {why}"
                    differences.append(
                        shrink(links, lookups, Difference(query, tuple(commands), kernel, model, why), has_rules)
                    )
                    break
    return done, left_open, differences


def shrink(links: Rtnetlink, lookups: RouteLookups, found: Difference, has_rules: bool) -> Difference:
    """Return the same difference with as few commands and as plain a query as possible."""

    def attempt(commands: tuple[str, ...], query: Query) -> Difference | None:
        install(list(commands), has_rules)
        kernel, model = kernel_answer(lookups, query), model_answer(Router(read_state(links)), query)
        why = difference(query, kernel, model, has_rules)
        return Difference(query, commands, kernel, model, found.why) if why else None

    # Nearly always the settings play no part, but each world has to say them all.
    for at in range(len(found.commands) - 1, -1, -1):
        line = found.commands[at]
        plain = (f"{line.rsplit(' ', 1)[0]} {1 if 'forwarding' in line else 0}",) if line.startswith("set ") else ()
        found = attempt((*found.commands[:at], *plain, *found.commands[at + 1 :]), found.query) or found
    for key, nothing in (
        ("source", None),
        ("mark", 0),
        ("oif", None),
        ("uid", 0),
        ("protocol", 17 if found.query.family == 4 else 0),
        ("sport", 0),
        ("dport", 0),
        ("tos", 0),
    ):
        found = attempt(found.commands, evolve(found.query, **{key: nothing})) or found
    plain = tuple(line for line in found.commands if not line.startswith("set ") or not line.endswith(" 0"))
    return evolve(found, commands=plain)


def run(seed: int, wanted: int, has_rules: bool = True) -> tuple[int, int, list[Difference]]:
    """Compare lookups in a new namespace, without any ip rule command if `has_rules` is false."""
    with Namespace("lookups") as space:
        prepare(space)
        return space.call(compare, seed, wanted, has_rules, timeout=60 + wanted / 50)


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    began = time.monotonic()
    done, left_open, differences = run(seed, wanted)
    more, also_open, others = run(seed, wanted // 10, has_rules=False)
    done, left_open, differences = done + more, left_open + also_open, differences + others
    for one in differences:
        print(one, end="\n\n")
    seconds = time.monotonic() - began
    print(f"{done} look-ups compared, seed {seed}: {len(differences)} differ, {left_open} left open, {seconds:.1f} s")
    sys.exit(bool(differences))
