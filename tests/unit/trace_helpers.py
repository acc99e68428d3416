"""Lab node as a state, and the outcome of the model for its packets."""

from ipaddress import ip_interface, ip_network

import pytest

from nftpolicy.model.packet import Packet, parse_address
from nftpolicy.model.trace import Model, Trace
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import Chain, Hook, Match, Meta, Rule, Table
from nftpolicy.netstate.routing import IpRule, Route, Sysctl
from nftpolicy.netstate.state import Device, NetState
from tests.lab import addresses as at

WAN, MESH, CLIENT = at.WAN, at.MESH, at.CLIENT
NODE_WAN = {4: "192.0.2.2", 6: "2001:db8:1::2"}
LOCAL, MAIN = 255, 254
NOBODY, SERVICE = 65534, 800
families = pytest.mark.parametrize("family", at.FAMILIES)

OWNED = {
    "lo": ("127.0.0.1/8", "::1/128"),
    WAN: ("192.0.2.2/24", "2001:db8:1::2/64", "fe80::2/64"),
    MESH: ("203.0.113.2/25", "2001:db8:3::2/64", "fe80::3/64"),
    CLIENT: ("203.0.113.129/25", "2001:db8:4::1/64", "fe80::4/64"),
}


def addresses(address: str, device: str) -> list[Route]:
    """Return the local routes that the kernel adds for an address."""
    own = ip_interface(address)
    length = own.max_prefixlen
    routes = [Route(own.version, LOCAL, f"{own.ip}/{length}", "local", device=device)]
    if own.version == 6:
        return [*routes, Route(6, LOCAL, "ff00::/8", "multicast", device=device)]
    kind = "local" if device == "lo" else "broadcast"
    destination = str(own.network) if device == "lo" else f"{own.network.broadcast_address}/{length}"
    return [*routes, Route(4, LOCAL, destination, kind, device=device)]


def machine(
    tables: tuple[Table, ...] = (),
    rules: tuple[IpRule, ...] = (),
    routes: tuple[Route, ...] = (),
    sysctls: tuple[Sysctl, ...] = (),
) -> NetState:
    """Return the state of the lab node: routes to itself, and the given ones."""
    local = tuple(route for device, owned in OWNED.items() for address in owned for route in addresses(address, device))
    base = tuple(
        IpRule(family, priority, table=table)
        for family in at.FAMILIES
        for priority, table in ((0, LOCAL), (32766, MAIN))
    )
    devices = tuple(Device(name, owned) for name, owned in OWNED.items())
    return NetState(tables, (*base, *rules), (*local, *routes), sysctls, devices)


def default(device: str, family: int, table: int = MAIN) -> Route:
    return Route(family, table, device=device)


def connected(device: str, family: int, table: int = MAIN) -> Route:
    own = next(address for address in OWNED[device] if ip_interface(address).version == family)
    return Route(family, table, str(ip_network(own, strict=False)), device=device)


def packet(family: int, to: str | None = None, **others: object) -> Packet:
    """Return an unmarked UDP packet of user nobody to the server."""
    destination = parse_address(to or at.SERVER[family])
    return Packet(family, destination, **{"uid": NOBODY, "gid": NOBODY, **others})


def walk(state: NetState, sent: Packet) -> Trace:
    return Model(state).trace(sent)


def end(state: NetState, sent: Packet) -> str:
    """Return the output device of a packet that leaves, else the outcome."""
    trace = walk(state, sent)
    return trace.device if trace.outcome == "leaves" else trace.outcome


def chain(
    hook: str, *rules: tuple[nft.Statement, ...], kind: str = "filter", priority: int = 0, **others: str
) -> Chain:
    name = f"{kind}-{hook}-{priority}"
    return Chain(name, tuple(Rule(statements) for statements in rules), Hook(kind, hook, priority, **others))


def inet(*chains: Chain) -> Table:
    return Table("inet", "foreign", chains)


MARK = Meta("mark")
DROP = nft.DROP


def leaves_by(device: str) -> Match:
    return Match(Meta("oifname"), device)
