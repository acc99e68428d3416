# SPDX-License-Identifier: BSD-2-Clause
"""First policy of a machine: TOML with comments, and what its owner has to know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_interface

from attrs import frozen

from ...netstate.routing import RTPROT_RA, RTPROT_STATIC, Route
from ...netstate.state import Device
from ...policy.known_marks import conflicting_users
from ...policy.mark import FULL_MASK, Mark
from ...policy.scalars import matching_pattern, parse_name
from ...policy.validate import RESERVED_TABLES
from ..policy_text import toml_comment, toml_list, toml_string
from .answers import published_ports, session_warnings, uplink_answers
from .devices import (
    InsideDevice,
    NoUplink,
    default_routes,
    has_network,
    inside_devices,
    is_tunnel,
    unplugged_devices,
    uplink_devices,
)
from .facts import MachineFacts, VpnProgram, WireguardTunnel
from .services import DraftedService, drafted_services, free_group

WG_QUICK, SERVER, ROUTER = "wg-quick", "server", "router"
VPN_PROGRAMS = ("openvpn", "fastd", "tunneldigger")
PROGRAMS = (WG_QUICK, *VPN_PROGRAMS, SERVER, ROUTER)

_WG_QUICK_MARK = 51820  # wg-quick/linux.bash: add_default()
_WIREGUARD_GO_MARK = 51821  # so that no other tunnel of wg-quick has it by default
_FIRST_TABLE, _FIRST_RESOLVER_PORT = 51, 5351
# One mask for all uplinks, so that no packet carries two marks.
_MARK_MASKS = (0xF0, 0xF000, 0xF000000, 0xF0000000, 0xF, 0xF00, 0xF00000)  # first those of no known program


@frozen
class DraftedUplink:
    """Uplink of the draft."""

    name: str
    devices: tuple[str, ...]
    mark: Mark
    table: int
    gateways: tuple[str, ...] = ()


@frozen
class PolicyDraft:
    """First policy: its text, its parts that steps depend on, and warnings.

    `summary` says what was found, and why it makes these uplinks.
    """

    text: str
    uplinks: tuple[DraftedUplink, ...]
    services: tuple[DraftedService, ...]
    tunnels: tuple[WireguardTunnel, ...]
    vpns: tuple[VpnProgram, ...]
    summary: str
    warnings: tuple[str, ...]


def draft_machine_policy(facts: MachineFacts, program: str | None = None, requested: Sequence[str] = ()) -> PolicyDraft:
    """Return the draft for a machine; `program` is one of PROGRAMS, `requested` the devices of the uplinks.

    Raises:
        NoUplink: there is no uplink, or `program` is not on this machine.
    """
    tunnels, vpns = _tunnels(facts, program)
    devices, reason = uplink_devices(facts, requested)
    is_client = bool(vpns) or any(tunnel.has_default_route for tunnel in tunnels)
    unplugged = () if requested or not is_client else unplugged_devices(facts, devices)
    groups = [(*devices, *unplugged)] if tunnels or vpns else [(device,) for device in devices]
    uplinks = _uplinks(facts, groups, tunnels, vpns)
    services = drafted_services(facts, uplinks[0].mark, tunnels, vpns)
    named = tuple(device for uplink in uplinks for device in uplink.devices)
    inside, warnings = inside_devices(facts, named)
    answers = {uplink.name: uplink_answers(facts, uplink.devices, is_client, tunnels) for uplink in uplinks}
    lans = _networks_behind(facts, inside)
    is_router = program == ROUTER or (
        program is None and not is_client and any(not pattern.endswith("*") for pattern in lans)
    )
    text = "\n".join(
        [
            *_head(facts, inside),
            *(line for each in uplinks for line in _uplink(facts, each, services, *answers[each.name])),
            *(line for service in services for line in _service(uplinks[0].name, service)),
            *(() if services else _EXAMPLE.format(uplink=uplinks[0].name, group=free_group(facts, 0)).splitlines()),
            *_forwards(uplinks[0].name, lans, is_router),
            *_published(facts, uplinks[0].name, [each.pattern for each in inside]),
            "",
        ]
    )
    kinds = [*(f"WireGuard {tunnel.name}" for tunnel in tunnels), *(f"{vpn.program} {vpn.name}" for vpn in vpns)]
    role = " and ".join(kinds) or ("a router" if is_router else "a server")
    summary = f"{role}, uplink {', '.join(devices)} ({reason})"
    warnings += [f"{device} has no network now, and is an uplink as well" for device in unplugged]
    warnings += session_warnings(facts, named)
    if facts.in_force:
        warnings.append("a policy of nftpolicy is in force here: its own mark and table count as free ones")
    if not facts.is_complete:
        warnings.append(
            "without root, rules, VPN files and owners of sockets were not read: run it again as root, the policy may "
            "lack services and answers"
        )
    return PolicyDraft(text, uplinks, services, tunnels, vpns, summary, tuple(warnings))


def _tunnels(facts: MachineFacts, program: str | None) -> tuple[tuple[WireguardTunnel, ...], tuple[VpnProgram, ...]]:
    """Return the tunnels that the policy is for. Raises NoUplink."""
    if program in (SERVER, ROUTER):
        return (), ()
    tunnels = facts.wireguard if program in (None, WG_QUICK) else ()
    vpns = tuple(each for each in facts.vpns if program in (None, each.program))
    if program is not None and not tunnels and not vpns:
        raise NoUplink(f"--for {program}: {_MISSING[program]}; without --for, the machine is looked at")
    return tunnels, vpns


_MISSING = {
    WG_QUICK: "there is no WireGuard device and no file in /etc/wireguard",
    "openvpn": "there is no configuration of a client in /etc/openvpn/client or /etc/openvpn",
    "fastd": "there is no /etc/fastd/NAME/fastd.conf",
    "tunneldigger": "no program tunneldigger runs",
}


# --- uplinks ----------------------------------------------------------------------------------


def _uplinks(
    facts: MachineFacts,
    groups: Sequence[tuple[str, ...]],
    tunnels: Sequence[WireguardTunnel],
    vpns: Sequence[VpnProgram],
) -> tuple[DraftedUplink, ...]:
    chosen_marks = [each.fwmark for each in tunnels if each.fwmark] + [each.mark for each in vpns if each.mark]
    first = "network" if tunnels or vpns else "wan"
    names = [first, *(f"{first}{number}" for number in range(2, len(groups) + 1))]
    in_use = facts.tables | RESERVED_TABLES | {tunnel.fwmark for tunnel in tunnels}
    tables = [number for number in range(_FIRST_TABLE, _FIRST_TABLE + 999) if number not in in_use]
    if chosen_marks:
        marks = [Mark(chosen_marks[0], FULL_MASK)]
    elif tunnels:
        by_kernel = any(not tunnel.user_space for tunnel in tunnels)
        marks = [Mark(_WG_QUICK_MARK if by_kernel else _WIREGUARD_GO_MARK, FULL_MASK)]
    else:
        marks = _free_marks(facts, len(groups))
    return tuple(
        DraftedUplink(name, devices, mark, table, _static_gateways(facts, devices))
        for name, devices, mark, table in zip(names, groups, marks, tables, strict=False)
    )


def _free_marks(facts: MachineFacts, count: int) -> list[Mark]:
    """Return one mark for each uplink, under the first mask that no other program uses. Raises NoUplink."""
    for mask in _MARK_MASKS:
        unit = mask & -mask
        marks = [Mark(unit * number, mask) for number in range(1, count + 1)]
        if (
            count < mask // unit + 1
            and not facts.marks & mask
            and not any(installed for mark in marks for _, installed in conflicting_users(mark, facts.mark_user_files))
        ):
            return marks
    raise NoUplink(f"other programs use the bits of all marks that {count} uplinks could have")


def _head(facts: MachineFacts, inside: Iterable[InsideDevice]) -> Iterator[str]:
    try:
        name = parse_name(facts.name)
    except ValueError:
        name = "machine"
    yield "# Drafted by 'nftpolicy init' from the state of this machine. Read nftpolicy.toml(5) before you change it."
    yield ""
    yield f"name = {toml_string(name)}"
    yield "inside = [  # not guarded; all other devices count as uplinks, also those that appear later"
    for each in inside:
        yield f"  {toml_string(each.pattern)},  # {toml_comment(each.reason)}"
    yield "]"


def _uplink(
    facts: MachineFacts,
    uplink: DraftedUplink,
    services: Sequence[DraftedService],
    answers: Sequence[tuple[str, str]],
    unanswered: Sequence[str],
) -> Iterator[str]:
    yield ""
    yield f"[uplink.{uplink.name}]  # only the packets that this file names leave by these devices"
    yield f"devices = {toml_list(uplink.devices)}"
    is_full = uplink.mark.mask == FULL_MASK
    yield f"mark = {toml_string(f'{uplink.mark.value:#x}' if is_full else str(uplink.mark))}"
    yield f"table = {uplink.table}  # routing table of the uplink: free on this machine"
    dhcp = () if _is_static(facts, uplink.devices) else ("dhcpv4", "dhcpv6")
    yield f"exempt = {toml_list(('arp', *dhcp, 'ndp', 'mld', 'igmp'))}  # they need no mark"
    if answers:
        yield "answer = [  # services of this machine that the uplink may reach"
        for word, reason in answers:
            yield f"  {toml_string(word)},  # {toml_comment(reason)}"
        yield "]"
    for text in unanswered:
        yield f"# listens, and is not answered: {toml_comment(text)}"
    if uplink.gateways:
        yield f"gateways = {toml_list(uplink.gateways)}  # the address is static"
    if any(service.looks_up_names for service in services):
        port = _free_port(facts)
        yield ""
        yield f"[uplink.{uplink.name}.resolver]  # name server for the services alone: it finds the VPN's servers"
        yield f"listen = {toml_list((f'127.0.0.1:{port}', f'[::1]:{port}'))}"
        yield 'sources = ["auto"]  # the name servers of DHCP and router advertisements'


def _is_static(facts: MachineFacts, devices: Sequence[str]) -> bool:
    """Return True if no DHCP client configures these devices."""
    routes = _default_routes_by(facts, devices)
    return not (facts.uses_dhcp and routes) or all(each.protocol == RTPROT_STATIC for each in routes)


def _default_routes_by(facts: MachineFacts, devices: Sequence[str]) -> list[Route]:
    return [each for each in default_routes(facts) if any(hop.device in devices for hop in each.all_nexthops)]


def _static_gateways(facts: MachineFacts, devices: Sequence[str]) -> tuple[str, ...]:
    """Return the gateways for the policy: those of one device with a static address."""
    if len(devices) > 1 or not _is_static(facts, devices):
        return ()
    routes = (each for each in _default_routes_by(facts, devices) if each.protocol != RTPROT_RA)
    hops = (hop for each in routes for hop in each.all_nexthops if hop.device in devices)
    return tuple(dict.fromkeys(hop.gateway for hop in hops if hop.gateway))


def _free_port(facts: MachineFacts) -> int:
    in_use = {each.port.low for each in facts.listening}
    return next(port for port in range(_FIRST_RESOLVER_PORT, _FIRST_RESOLVER_PORT + 9999) if port not in in_use)


def _service(uplink: str, service: DraftedService) -> Iterator[str]:
    yield ""
    yield f"[service.{service.name}]  # {toml_comment(service.comment)}"
    yield f'uplink = "{uplink}"'
    yield from service.lines


_EXAMPLE = """
# No program of this machine may begin a connection by the uplink: updates and time synchronization stop. To permit one:
#[service.updates]
#uplink = "{uplink}"
#group = {group}
#ports = ["tcp/80", "tcp/443", "udp/53", "tcp/53"]
#marks = "cgroup"  # nftpolicy run updates -- apt-get update"""


# --- packets of other machines ----------------------------------------------------------------


def _networks_behind(facts: MachineFacts, inside: Sequence[InsideDevice]) -> dict[str, list[Device]]:
    """Return the devices inside that may have machines behind them, by their entry of inside."""
    lans: dict[str, list[Device]] = {}
    for device in facts.devices if facts.forwards else ():
        pattern = matching_pattern(device.name, [each.pattern for each in inside])
        if pattern is not None and has_network(device) and not is_tunnel(device):
            lans.setdefault(pattern, []).append(device)
    return lans


def _forwards(uplink: str, lans: Mapping[str, Sequence[Device]], is_router: bool) -> Iterator[str]:
    """Yield a forward for the networks inside, as a comment unless the machine is a router."""
    if not lans:
        return
    addresses = [ip_interface(text) for devices in lans.values() for each in devices for text in each.addresses]
    sources = dict.fromkeys(str(address.network) for address in addresses if not address.is_link_local)
    yield ""
    sign = "" if is_router else "#"
    if is_router:
        yield "# Machines behind these devices may use the uplink, with its address."
    else:
        yield "# Machines and containers behind these devices do not use the uplink. To permit it, remove each '#':"
    yield f"{sign}[forward.lan]"
    yield f'{sign}uplink = "{uplink}"'
    yield f"{sign}from = {toml_list(lans)}"
    yield f"{sign}source = {toml_list(sources)}"
    yield f"{sign}masquerade = true"


def _published(facts: MachineFacts, uplink: str, inside: Sequence[str]) -> Iterator[str]:
    """Yield a published port for each that rules of other programs forward; as a comment if its device is unknown."""
    published = published_ports(facts)
    for port, device in {each.port: each.device for each in facts.forwarded_ports}.items():
        if device is not None and (port not in published or matching_pattern(device, inside) is None):
            continue  # it is published already, or leads back to an uplink or to this machine
        sign = "" if device is not None else "#"
        yield ""
        if device is None:
            yield "# Forwarded now; write the device that leads to its host, and remove the first '#':"
        yield f"{sign}[publish.{str(port).replace('/', '-')}]"
        yield f'{sign}uplink = "{uplink}"'
        yield f"{sign}port = {toml_string(str(port))}"
        yield f"{sign}to = {toml_string(device or 'DEVICE')}"
