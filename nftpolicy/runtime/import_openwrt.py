# SPDX-License-Identifier: BSD-2-Clause
"""Import of an OpenWrt configuration directory: read it, verify its state, and write a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import evolve, frozen

from ..compiler.compile import compile_policy
from ..exceptions import NftpolicyError
from ..importers.openwrt.draft import Draft, draft_policy
from ..importers.openwrt.uci_parser import ParsedSection, UciError, parse_uci
from ..importers.openwrt.uplinks import Packages, UplinkCandidate
from ..model.packet import FORWARD, SOCKET, UDP, Packet, parse_address
from ..model.trace import LEAVES, Model, Trace
from ..netstate.routing import TABLE_MAIN, IpRule, Route
from ..netstate.state import NetState
from ..policy.load import load
from ..proof.assumptions import add_assumed_environment
from ..proof.policy_spec import build_spec
from ..proof.prover import Progress, prove
from ..proof.verdict import Proof
from .regular_file import read_regular
from .verify import GivenUplink, Verification, spec_of_uplinks

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


class RouterConfigError(NftpolicyError):
    """The directory has no configuration, or an invalid one; the message has file and line."""


@frozen
class RouterConfig:
    """A configuration: parsed files of /etc/config, and names of groups and routing tables."""

    directory: Path
    packages: Packages
    groups: dict[str, int]
    tables: dict[str, int]


@frozen
class UnmarkedLeak:
    """An unmarked packet that leaves by an uplink now.

    `sender` describes its sender; `source_line` is FILE:LINE of the rule or route that leads it
    there.
    """

    sender: str
    state: NetState
    trace: Trace
    uplink: str
    source_line: str

    def script(self) -> str | None:
        """Return a shell script that sends the packet in namespaces of its own.

        None if the state has names that cannot be written in a script.
        """
        from ..proof.reproduce.script import reproduction_script

        try:
            return reproduction_script(self.state, self.trace.packet, str(self.trace.device), self.sender)
        except ValueError:
            return None


@frozen
class ImportResult:
    """Result of an import.

    `proposal`: the draft policy with its remarks; `present`: the verification of the present
    configuration; `leaks`: the packets that leak now; `proof`: the proof of the draft policy.
    """

    directory: Path
    proposal: Draft
    present: Verification
    leaks: tuple[UnmarkedLeak, ...]
    proof: Proof


def read_router_config(root: Path) -> RouterConfig:
    """Read the configuration in `root`/etc/config, or in `root` itself.

    Raises:
        RouterConfigError: there is no file `network`, or a file cannot be read.
    """
    if not root.is_dir():
        raise RouterConfigError(
            f"{root}: not a directory; give a directory that has etc/config, or a copy of /etc/config"
        )
    inner = root / "etc/config"
    directory = inner if inner.is_dir() else root
    packages: dict[str, tuple[ParsedSection, ...]] = {}
    for name in FILES:
        data = _content(directory / name)
        if data is not None:
            try:
                packages[name] = parse_uci(data, name, name)
            except UciError as error:
                raise RouterConfigError(f"{directory}/{error}") from None
    if "network" not in packages:
        raise RouterConfigError(
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
    return RouterConfig(directory, packages, groups, tables)


def _content(file: Path) -> bytes | None:
    """Return the content of a file, or None without one. Raises RouterConfigError."""
    try:
        content = read_regular(file, _LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RouterConfigError(f"{file}: cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST_FILE:
        raise RouterConfigError(f"{file}: not a configuration of a router: larger than {_LARGEST_FILE >> 20} MiB")
    return content


def _fields(file: Path, separator: str | None) -> Iterator[list[str]]:
    """Yield the fields of each line that is not empty, without comments."""
    for line in (_content(file) or b"").decode(errors="replace").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            yield text.split(separator)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


def import_config(
    config: RouterConfig,
    requested: Sequence[str],
    printed_state: NetState,
    progress: Progress = lambda _: None,
) -> ImportResult:
    """Write and prove a draft policy, and verify the present configuration.

    `requested`: the uplinks that the user named; `printed_state`: the output of nft and ip on the router,
    if it is available.

    Raises:
        NotImportable: no policy can be written.
    """
    proposal = draft_policy(config.packages, requested, config.groups, config.tables)
    state = _present_state(proposal, printed_state)
    uplinks = [GivenUplink(uplink.name, uplink.devices, uplink.mark) for uplink in proposal.uplinks]
    spec = spec_of_uplinks(uplinks, proposal.exempt)
    progress("how it is now")
    now = Verification("the configuration as it is", state, spec, prove(state, spec, progress))
    complete_state = add_assumed_environment(state, spec)[0]
    leaks = tuple(_leaks(proposal, complete_state))
    policy, _ = load(proposal.text.encode(), "the policy")
    proof = prove(compile_policy(policy), build_spec(policy), progress)
    return ImportResult(config.directory, proposal, now, leaks, proof)


def _present_state(proposal: Draft, printed_state: NetState) -> NetState:
    """Return the state that netifd configures; `printed_state` takes precedence in each family."""
    rule_families = {rule.family for rule in printed_state.rules}
    route_families = {route.family for route in printed_state.routes}
    rules = [rule for rule in proposal.netifd_state.rules if rule.family not in rule_families]
    routes = [route for route in proposal.netifd_state.routes if route.family not in route_families]
    return NetState(printed_state.tables, (*rules, *printed_state.rules), (*routes, *printed_state.routes))


# --- leaks ------------------------------------------------------------------------------------

# Destinations outside all networks of the router (TEST-NET-3, RFC 5737; RFC 3849).
_FAR = {4: parse_address("203.0.113.9"), 6: parse_address("2001:db8:ffff::9")}
_NEAR_OFFSET = 9  # of a destination in an uplink's network; 10 if 9 is the uplink's address
_SPORT, _NTP_PORT = 40000, 123


def _leaks(proposal: Draft, state: NetState) -> Iterator[UnmarkedLeak]:
    """Yield unmarked packets that leave by an uplink, one for each rule or route that allows it."""
    reported: set[tuple[str, int, str]] = set()
    uplinks = {device: uplink for uplink in proposal.uplinks for device in uplink.devices}
    for sender, scenario, packet in _candidates(proposal, state, uplinks):
        trace = scenario.model.trace(packet)
        uplink = uplinks.get(trace.device or "")
        if trace.outcome != LEAVES or uplink is None or uplink.mark.matches(trace.mark):
            continue
        rule, route = _last_rule(trace), _last_route(trace)
        key = (uplink.name, packet.family, f"{sender}{'' if rule is None else rule.priority}")
        if key not in reported:
            reported.add(key)
            yield UnmarkedLeak(sender, scenario.state, trace, uplink.name, _source_line(rule, route))


@frozen
class _Scenario:
    state: NetState
    model: Model


_Candidate = tuple[str, _Scenario, Packet]


def _candidates(
    proposal: Draft,
    state: NetState,
    uplinks: dict[str, UplinkCandidate],
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
        for device in proposal.forwarding_devices:
            source = _host_address(proposal, device, family)
            if source is not None:
                forwarded = evolve(plain, origin=FORWARD, iif=device, source=source)
                yield f"a host behind {device}, forwarded", present, forwarded


def _without_other_defaults(state: NetState, uplinks: dict[str, UplinkCandidate]) -> _Scenario:
    """Return the scenario without mesh or tunnel: only uplinks have default routes."""
    routes = tuple(
        route
        for route in state.routes
        if route.destination != "default" or route.kind != "unicast" or not route.device or route.device in uplinks
    )
    reduced = evolve(state, routes=routes)
    return _Scenario(reduced, Model(reduced))


def _address_candidates(
    proposal: Draft,
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


def _host_address(proposal: Draft, device: str, family: int) -> int | None:
    """Return an address of a host in the network of a device, or None without one."""
    for interface in proposal.network.interfaces:
        if interface.device != device:
            continue
        for address in interface.addresses:
            if address.version == family:
                return int(address.ip) + 1
    return None


def _last_rule(trace: Trace) -> IpRule | None:
    things = (step.subject for step in reversed(trace.steps))
    return next((thing for thing in things if isinstance(thing, IpRule)), None)


def _last_route(trace: Trace) -> Route | None:
    things = (step.subject for step in reversed(trace.steps))
    return next((thing for thing in things if isinstance(thing, Route)), None)


def _source_line(rule: IpRule | None, route: Route | None) -> str:
    """Return FILE:LINE of the rule, or of the route if the rule is the kernel's; "" if unknown."""
    for item in (rule, route):
        if item is not None and len(item.origin) == _ORIGIN_PARTS:
            return ":".join(item.origin)
    return ""


def leak_route(leak: UnmarkedLeak) -> str:
    """Return the rule and the route by which a packet leaks, in the terms of ip(8)."""
    rule, route = _last_rule(leak.trace), _last_route(leak.trace)
    parts = []
    if rule is not None:
        table = "main" if rule.table == TABLE_MAIN else rule.table
        parts.append(f"ip rule {rule.priority}, table {table}")
    if route is not None:
        via = f" via {route.gateway}" if route.gateway else ""
        parts.append(f"route {route.destination}{via} dev {route.device}")
    return ", ".join(parts) or "no route lookup"
