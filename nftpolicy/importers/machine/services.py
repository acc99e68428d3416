# SPDX-License-Identifier: BSD-2-Clause
"""Services of a drafted policy: the kernel's WireGuard, and VPN programs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from attrs import evolve, frozen

from ...policy.mark import Mark
from ...policy.scalars import parse_name
from ..policy_text import toml_list
from .facts import MachineFacts, VpnProgram, WireguardTunnel

_FIRST_GROUP = 851
_LISTEN_PORT = 51820
_UNITS = {"openvpn": "openvpn-client", "fastd": "fastd"}  # units of Debian
_UNIT_PART = re.compile(r"[A-Za-z0-9:_.-]*\Z")


@frozen
class DraftedService:
    """Service of the draft: the lines of its table in TOML that follow the key uplink.

    `unit` is the unit of systemd that the distribution starts it by, if there is one; `start` are commands that
    start its programs in their group.
    """

    name: str
    lines: tuple[str, ...]
    comment: str
    unit: str | None = None
    start: tuple[str, ...] = ()
    looks_up_names: bool = False

    @property
    def group(self) -> int | None:
        """The number of its group, None without one."""
        numbers = [line.removeprefix("group = ") for line in self.lines if line.startswith("group = ")]
        return int(numbers[0]) if numbers else None


def drafted_services(
    facts: MachineFacts, mark: Mark, tunnels: Sequence[WireguardTunnel], vpns: Sequence[VpnProgram]
) -> tuple[DraftedService, ...]:
    """Return the services of the tunnels, with unique names; `mark` is that of their uplink."""
    return _unique(_services(facts, mark, tunnels, vpns))


def _services(
    facts: MachineFacts, mark: Mark, tunnels: Sequence[WireguardTunnel], vpns: Sequence[VpnProgram]
) -> Iterator[DraftedService]:
    number = 0
    lines: tuple[str, ...]
    kernel = [tunnel for tunnel in tunnels if not tunnel.user_space]
    if kernel:
        ports = toml_list(dict.fromkeys(f"udp/{port}" for port in listen_ports(kernel).values()))
        names = ", ".join(tunnel.name for tunnel in kernel)
        yield DraftedService("wireguard", ("kernel = true", f"sport = {ports}  # ListenPort"), f"the kernel's {names}")
        if any(tunnel.endpoint_names for tunnel in kernel):
            group = free_group(facts, number)
            number += 1
            lines = (f"group = {group}", 'ports = ["udp/53", "tcp/53"]  # DNS only')
            comment = "wg-quick, which looks up the endpoint"
            looking_up = [tunnel.name for tunnel in kernel if tunnel.endpoint_names]
            unit = _unit("wg-quick", looking_up[0] if len(looking_up) == 1 else "")
            start = tuple(_wg_quick(facts, group, name) for name in looking_up)
            yield DraftedService("names", lines, comment, unit, start, looks_up_names=True)
    for tunnel in tunnels:
        if tunnel.user_space:
            group = free_group(facts, number)
            number += 1
            has_names = bool(tunnel.endpoint_names)
            comment = f"wireguard-go of {tunnel.name}"
            unit = _unit("wg-quick", tunnel.name)
            start = (_wg_quick(facts, group, tunnel.name),)
            yield DraftedService(_name(tunnel.name, number), (f"group = {group}",), comment, unit, start, has_names)
    for vpn in vpns:
        group = free_group(facts, number)
        number += 1
        if vpn.program == "tunneldigger":
            lines = (f"group = {group}", 'ports = ["udp/1-65535"]', 'marks = "cgroup"')
            comment = "nftpolicy run tunneldigger -- tunneldigger ..."
        else:
            option = f"packet mark {mark.value}" if vpn.program == "fastd" else f"mark {mark.value}"
            lines = (f"group = {group}", f'marks = "itself"  # {option}')
            comment = vpn.file or vpn.program
        unit = _unit(_UNITS[vpn.program], vpn.name) if vpn.program in _UNITS else None
        begin = f"systemctl stop {shlex.quote(unit)}; " if unit else ""
        command = _in_group(group, f"{vpn.program} --config {shlex.quote(vpn.file)}") if vpn.file else comment
        start = (begin + command,)
        yield DraftedService(_name(vpn.name, number), lines, comment, unit, start, vpn.looks_up_names)


def _wg_quick(facts: MachineFacts, group: int, name: str) -> str:
    """Return the command that starts a tunnel in a group, after its end if it is there now."""
    up = _in_group(group, f"wg-quick up {shlex.quote(name)}")
    return f"wg-quick down {shlex.quote(name)}; {up}" if name in (each.name for each in facts.devices) else up


def _in_group(group: int, command: str) -> str:
    return f"setpriv --regid {group} --clear-groups {command}"


def _unit(template: str, instance: str) -> str | None:
    return f"{template}@{instance}.service" if _UNIT_PART.match(instance) else None


def _unique(services: Iterable[DraftedService]) -> tuple[DraftedService, ...]:
    by_name: dict[str, DraftedService] = {}
    for each in services:
        numbers = (f"{each.name[:20]}{number}" for number in range(2, 999))
        name = next(name for name in (each.name, *numbers) if name not in by_name)
        by_name[name] = evolve(each, name=name)
    return tuple(by_name.values())


def listen_ports(tunnels: Iterable[WireguardTunnel]) -> dict[str, int]:
    """Return the port of each tunnel: its own, else the first that no other one has.

    Tunnels with a default route are not up at the same time, as the files of a provider, and share a port.
    """
    free = sorted(set(range(_LISTEN_PORT, 65536)) - {tunnel.listen_port for tunnel in tunnels}, reverse=True)
    shared = free.pop()
    return {
        tunnel.name: tunnel.listen_port or (shared if tunnel.has_default_route else free.pop()) for tunnel in tunnels
    }


def _name(text: str, number: int) -> str:
    try:
        return parse_name(text)
    except ValueError:
        return f"vpn{number}"


def free_group(facts: MachineFacts, number: int) -> int:
    """Return a number that no group of this machine has; a higher `number` gives another one."""
    return [group for group in range(_FIRST_GROUP, _FIRST_GROUP + 9999) if group not in facts.groups][number]
