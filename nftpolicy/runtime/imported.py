# SPDX-License-Identifier: BSD-2-Clause
"""Import of an OpenWrt configuration directory: read it, verify its state, and write a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import evolve, frozen

from ..compiler.compile import compile_policy
from ..model.packet import FORWARD, SOCKET, UDP, Packet, number
from ..model.walk import LEAVES, Model, Walk
from ..netstate.routing import TABLE_MAIN, IpRule, Route
from ..netstate.state import NetState
from ..openwrt.proposal import Proposal, propose
from ..openwrt.roles import Packages, Role
from ..openwrt.uci_in import Section, UciError, read
from ..policy.load import load
from ..proof.promise import claim as promised
from ..proof.prover import Progress, prove
from ..proof.surroundings import completed
from ..proof.verdict import Proof
from .verify import Asked, Judged, asked_claim

# The files of /etc/config that configure uplinks. Only the first is required.
FILES = (
    "network",
    "firewall",
    "dhcp",
    "wireless",
    "fastd",
    "tunneldigger",
    "wgpeerselector",
    "gluon-wan-dnsmasq",
    "pbr",
    "mwan3",
)
_LARGEST_FILE = 4 << 20  # bytes; a real one has a few thousand
_MOST_DIGITS = 9  # of a number of a group or routing table
_ORIGIN_PARTS = 2  # (file, line)


class NoConfiguration(Exception):
    """The directory has no configuration, or an invalid one; the message has file and line."""


@frozen
class Folder:
    """A configuration: parsed files of /etc/config, and names of groups and routing tables."""

    root: Path
    packages: Packages
    groups: dict[str, int]
    tables: dict[str, int]


@frozen
class Way:
    """An unmarked packet that leaves by an uplink now.

    `sender` describes its sender; `source_line` is FILE:LINE of the rule or route that leads it
    there.
    """

    what: str
    state: NetState
    walk: Walk
    uplink: str
    place: str

    def script(self) -> str | None:
        """Return a shell script that sends the packet in namespaces of its own.

        None if the state has names that cannot be written in a script.
        """
        from ..proof.script import script

        try:
            return script(self.state, self.walk.packet, str(self.walk.device), self.what)
        except ValueError:
            return None


@frozen
class Imported:
    """Result of an import.

    `proposal`: the draft policy with its remarks; `present`: the verification of the present
    configuration; `leaks`: the packets that leak now; `proof`: the proof of the draft policy.
    """

    folder: Path
    proposal: Proposal
    now: Judged
    ways: tuple[Way, ...]
    proof: Proof


def folder(root: Path) -> Folder:
    """Read the configuration in `root`/etc/config, or in `root` itself.

    Raises:
        RouterConfigError: there is no file `network`, or a file cannot be read.
    """
    if not root.is_dir():
        raise NoConfiguration(
            f"{root}: not a directory; give a directory that has etc/config, or a copy of /etc/config"
        )
    inner = root / "etc/config"
    directory = inner if inner.is_dir() else root
    packages: dict[str, tuple[Section, ...]] = {}
    for name in FILES:
        data = _content(directory / name)
        if data is not None:
            try:
                packages[name] = read(data, name, name)
            except UciError as error:
                raise NoConfiguration(f"{directory}/{error}") from None
    if "network" not in packages:
        raise NoConfiguration(
            f"{directory}/network: missing; this file has the interfaces of the router "
            "(/etc/config/network, or 'uci export network')"
        )
    etc = directory.parent
    groups = {
        fields[0]: int(fields[2]) for fields in _fields(etc / "group", ":") if len(fields) > 2 and _is_number(fields[2])
    }
    tables = {
        fields[1]: int(fields[0])
        for fields in _fields(etc / "iproute2/rt_tables", None)
        if len(fields) > 1 and _is_number(fields[0])
    }
    return Folder(directory, packages, groups, tables)


def _content(file: Path) -> bytes | None:
    """Return the content of a file, or None without one. Raises RouterConfigError."""
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise NoConfiguration(f"{file}: not a configuration of a router: larger than {_LARGEST_FILE >> 20} MiB")
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NoConfiguration(f"{file}: cannot be read: {error.strerror}") from None


def _fields(file: Path, separator: str | None) -> Iterator[list[str]]:
    """Yield the fields of each line that is not empty, without comments."""
    for line in (_content(file) or b"").decode(errors="replace").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            yield text.split(separator)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


def imported(
    config: Folder,
    requested: Sequence[str],
    given: NetState,
    progress: Progress = lambda _: None,
) -> Imported:
    """Write and prove a draft policy, and verify the present configuration.

    `requested`: the uplinks that the user named; `given`: the output of nft and ip on the router,
    if it is available.

    Raises:
        NotUsable: no policy can be written.
    """
    proposal = propose(config.packages, requested, config.groups, config.tables)
    state = _present_state(proposal, given)
    uplinks = [Asked(uplink.name, uplink.devices, uplink.mark) for uplink in proposal.uplinks]
    spec = asked_claim(uplinks, proposal.exempt)
    progress("how it is now")
    now = Judged("the configuration as it is", state, spec, prove(state, spec, progress))
    complete_state = completed(state, spec)[0]
    leaks = tuple(_leaks(proposal, complete_state))
    policy, _ = load(proposal.text.encode(), "the policy")
    proof = prove(compile_policy(policy), promised(policy), progress)
    return Imported(config.root, proposal, now, leaks, proof)


def _present_state(proposal: Proposal, given: NetState) -> NetState:
    """Return the state that netifd configures; `given` takes precedence in each family."""
    rule_families = {rule.family for rule in given.rules}
    route_families = {route.family for route in given.routes}
    rules = [rule for rule in proposal.made.rules if rule.family not in rule_families]
    routes = [route for route in proposal.made.routes if route.family not in route_families]
    return NetState(given.tables, (*rules, *given.rules), (*routes, *given.routes))


# --- leaks ------------------------------------------------------------------------------------

# Destinations outside all networks of the router (TEST-NET-3, RFC 5737; RFC 3849).
_FAR = {4: number("203.0.113.9"), 6: number("2001:db8:ffff::9")}
_NEAR_OFFSET = 9  # of a destination in an uplink's network; 10 if 9 is the uplink's address
_SPORT, _NTP_PORT = 40000, 123


def _leaks(proposal: Proposal, state: NetState) -> Iterator[Way]:
    """Yield unmarked packets that leave by an uplink, one for each rule or route that allows it."""
    reported: set[tuple[str, int, str]] = set()
    uplinks = {device: uplink for uplink in proposal.uplinks for device in uplink.devices}
    for sender, scenario, packet in _candidates(proposal, state, uplinks):
        trace = scenario.model.walk(packet)
        uplink = uplinks.get(trace.device or "")
        if trace.outcome != LEAVES or uplink is None or uplink.mark.worn_by(trace.mark):
            continue
        rule, route = _last_rule(trace), _last_route(trace)
        key = (uplink.name, packet.family, f"{sender}{'' if rule is None else rule.priority}")
        if key not in reported:
            reported.add(key)
            yield Way(sender, scenario.state, trace, uplink.name, _source_line(rule, route))


@frozen
class _Scenario:
    state: NetState
    model: Model


_Candidate = tuple[str, _Scenario, Packet]


def _candidates(
    proposal: Proposal,
    state: NetState,
    uplinks: dict[str, Role],
) -> Iterator[_Candidate]:
    """Yield sender, scenario and packet of each possible leak."""
    present = _Scenario(state, Model(state))
    other_networks_down = _without_other_defaults(state, uplinks)
    for family in (4, 6):
        plain = Packet(family, _FAR[family], None, UDP, _SPORT, _NTP_PORT, SOCKET, uid=0, gid=0, mark=0)
        yield "any program, to any address", present, plain
        yield from _address_candidates(proposal, present, plain)
        yield (
            "any program, while no other network has a default route",
            other_networks_down,
            plain,
        )
        for device in uplinks:
            bound = evolve(plain, bound=device)
            yield f"a program that binds to the device {device}", present, bound
        for device in proposal.forwards:
            source = _host_address(proposal, device, family)
            if source is not None:
                forwarded = evolve(plain, origin=FORWARD, iif=device, source=source)
                yield f"a host behind {device}, forwarded", present, forwarded


def _without_other_defaults(state: NetState, uplinks: dict[str, Role]) -> _Scenario:
    """Return the scenario without mesh or tunnel: only uplinks have default routes."""
    routes = tuple(
        route
        for route in state.routes
        if route.destination != "default" or route.kind != "unicast" or not route.device or route.device in uplinks
    )
    reduced = evolve(state, routes=routes)
    return _Scenario(reduced, Model(reduced))


def _address_candidates(
    proposal: Proposal,
    scenario: _Scenario,
    plain: Packet,
) -> Iterator[_Candidate]:
    """Yield packets from an uplink's address, and packets to the network of that address."""
    interfaces = [interface for uplink in proposal.uplinks for interface in uplink.interfaces]
    for address in (address for interface in interfaces for address in interface.addresses):
        if address.version != plain.family or address.ip.is_link_local:
            continue
        own = int(address.ip)
        bound = evolve(plain, source=own)
        yield "a program that binds to the uplink's address", scenario, bound
        first = int(address.network.network_address)
        near = first + _NEAR_OFFSET
        if near == own:
            near += 1
        if address.network.num_addresses > _NEAR_OFFSET + 1:
            near_packet = evolve(plain, destination=near)
            yield "any program, to the owner's own network", scenario, near_packet


def _host_address(proposal: Proposal, device: str, family: int) -> int | None:
    """Return an address of a host in the network of a device, or None without one."""
    for interface in proposal.network.interfaces:
        if interface.device != device:
            continue
        for address in interface.addresses:
            if address.version == family:
                return int(address.ip) + 1
    return None


def _last_rule(trace: Walk) -> IpRule | None:
    things = (step.thing for step in reversed(trace.decisions))
    return next((thing for thing in things if isinstance(thing, IpRule)), None)


def _last_route(trace: Walk) -> Route | None:
    things = (step.thing for step in reversed(trace.decisions))
    return next((thing for thing in things if isinstance(thing, Route)), None)


def _source_line(rule: IpRule | None, route: Route | None) -> str:
    """Return FILE:LINE of the rule, or of the route if the rule is the kernel's; "" if unknown."""
    for item in (rule, route):
        if item is not None and len(item.origin) == _ORIGIN_PARTS:
            return ":".join(item.origin)
    return ""


def reason(way: Way) -> str:
    """Return the rule and the route by which a packet leaks, in the terms of ip(8)."""
    rule, route = _last_rule(way.walk), _last_route(way.walk)
    parts = []
    if rule is not None:
        table = "main" if rule.table == TABLE_MAIN else rule.table
        parts.append(f"ip rule {rule.priority}, table {table}")
    if route is not None:
        via = f" via {route.gateway}" if route.gateway else ""
        parts.append(f"route {route.destination}{via} dev {route.device}")
    return ", ".join(parts) or "no route lookup"
