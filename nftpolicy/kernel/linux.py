# SPDX-License-Identifier: BSD-2-Clause
"""The running Linux kernel, in the network namespace of this process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..netstate import nft
from ..netstate.formats import nft_json_decode, nft_text
from ..netstate.formats.nft_implied_tests import as_executed
from ..netstate.operations import (
    ChainRules,
    IpRuleChange,
    NftOperation,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    Step,
    SysctlChange,
)
from ..netstate.routing import LOOPBACK_ADDRESSES, IpRule, Sysctl
from ..netstate.state import CounterValues, NetState
from . import nft_list
from .bypass import take_looks
from .capability import CAP_NET_ADMIN, read_capabilities
from .errors import RulesetUnreadable, StepRefused, SysctlMissing, Unavailable, error_reason
from .libnft import Nft, parse_error
from .netlink import nft_counters, nft_ruleset
from .netlink.nft_generation import read_consistent
from .netlink.rtnetlink import Rtnetlink

if TYPE_CHECKING:
    from .live_sockets import LiveSockets
    from .netlink.route_mover import RouteMover

PROC_SYS = Path("/proc/sys")
_GLOBAL_SYSCTLS = (
    "net/ipv4/fwmark_reflect",
    "net/ipv6/fwmark_reflect",
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/ipv4/conf/all/mc_forwarding",
    "net/ipv6/conf/all/mc_forwarding",
)


_DEVICE_SYSCTLS = ("rp_filter", "forwarding", "accept_local", "src_valid_mark", "route_localnet", "bc_forwarding")


def _device_sysctls(device: str) -> Iterable[str]:
    """Return the paths of the sysctls of a device, or of "all", that affect packets."""
    ipv4 = (f"net/ipv4/conf/{device}/{key}" for key in _DEVICE_SYSCTLS)
    ipv6 = (f"net/ipv6/conf/{device}/{key}" for key in ("forwarding", "force_forwarding", "disable_ipv6"))
    return (*ipv4, *ipv6)


# Devices that a check has found to have the egress hook: lo, which cannot go away. To check again would hold the
# kernel's mutex of nftables in an RCU grace period, while `watch` may wait for it with a repair.
_hooked: set[str] = set()


class Linux:
    """Kernel of this machine: see interface.Kernel."""

    def __init__(self) -> None:
        self._nft = Nft()
        self._rtnetlink = Rtnetlink()

    def read_own(self, table: str, families: Sequence[str], protocol: int, sysctls: Iterable[str]) -> NetState:
        tables = read_consistent(lambda: self._tables(families, table), accept_equal=True)
        versions = self.ip_families()
        rules = tuple(
            rule for version in versions for rule in self._rtnetlink.rules(version) if rule.protocol == protocol
        )
        routes = tuple(route for version in versions for route in self._rtnetlink.routes(version, protocol))
        return NetState(tables, rules, routes, tuple(_read_sysctls(sysctls)))

    def _tables(self, families: Sequence[str], name: str) -> tuple[nft.Table, ...]:
        executed = {table.key: table for table in nft_ruleset.read_tables(name)}
        tables = (self._listed_table(family, name, executed.get((family, name))) for family in families)
        return tuple(table for table in tables if table is not None)

    def _listed_table(self, family: str, name: str, executed: nft.Table | None) -> nft.Table | None:
        try:
            listed = self._table(family, name)
        except RulesetUnreadable:
            # Another program has added an object whose name is not text: nft cannot list it.
            if executed is None or nft_text.has_writable_names(executed):
                raise
            return executed
        return None if listed is None else as_executed(listed, executed)

    def _table(self, family: str, name: str) -> nft.Table | None:
        listing = nft_json_decode.decode_ruleset(nft_list.list_table(self._nft, family, name))
        return next((table for table in listing if table.name == name), None)

    def table_names(self) -> set[tuple[str, str]]:
        return nft_counters.read_table_names()

    def read_all(self) -> NetState:
        tables = nft_ruleset.read_tables()
        versions = self.ip_families()
        rules = tuple(rule for version in versions for rule in self._rtnetlink.rules(version))
        routes = tuple(route for version in versions for route in self._rtnetlink.routes(version))
        links = self._rtnetlink.links()
        devices = tuple(link.device for link in links)
        names = ("all", *(device.name for device in devices))
        paths = (*_GLOBAL_SYSCTLS, *(path for name in names for path in _device_sysctls(name)))
        return NetState(tables, rules, routes, tuple(_read_sysctls(paths)), devices, take_looks(routes, links))

    def has_more_routes(self, number: int) -> bool:
        return any(self._rtnetlink.has_more_routes(version, number) for version in self.ip_families())

    def counters(self, table: str) -> CounterValues:
        return nft_counters.read_counters(table)

    def apply_step(self, step: Step) -> None:
        try:
            match step:
                case NftTransaction():
                    self._load(step)
                case IpRuleChange(verb, rule):
                    self._rtnetlink.change_rule(verb, rule)
                case RouteChange(verb, route):
                    self._rtnetlink.change_route(verb, route)
                case RouteReplacement(_, route):
                    self._rtnetlink.change_route("replace", route)
                case SysctlChange(_, new):
                    (PROC_SYS / new.path).write_text(new.value)
        except OSError as error:
            is_gone = isinstance(step, SysctlChange) and error.errno in (errno.ENOENT, errno.ENODEV)
            raise (SysctlMissing if is_gone else StepRefused)(step, error_reason(error)) from None

    def _load(self, step: NftTransaction) -> None:
        commands = [nft_text.operation_text(operation) for operation in step.operations]
        error = self._nft.load("".join(f"{command}\n" for command in commands))
        if error is not None:
            reason, line = parse_error(error)
            raise StepRefused(step, reason, _object_at(line, commands, step.operations))

    def ip_families(self) -> tuple[int, ...]:
        return (4, 6) if (PROC_SYS / "net/ipv6").exists() else (4,)

    def ip_rules(self) -> tuple[IpRule, ...]:
        return tuple(rule for family in self.ip_families() for rule in self._rtnetlink.rules(family))

    def loopback_families(self) -> tuple[int, ...]:
        addresses = self._rtnetlink.loopback_addresses()
        return tuple(family for family, address in LOOPBACK_ADDRESSES.items() if address in addresses)

    def device_names(self) -> set[str]:
        return self._rtnetlink.device_names()

    def bridge_ports(self, devices: Iterable[str]) -> Mapping[str, Sequence[str]]:
        return self._rtnetlink.bridge_ports(devices)

    def supports_egress_hook(self, device: str) -> bool:
        if device in _hooked:
            return True
        # A check is a transaction that the kernel never commits.
        table = nft.Table("netdev", "nftpolicy-probe")
        chain = nft.Chain("probe", (), nft.Hook("filter", "egress", 0, "accept", device))
        operations = (NftOperation("add", *table.key, table), NftOperation("add", *table.key, chain))
        probe = "".join(f"{nft_text.operation_text(operation)}\n" for operation in operations)
        has_hook = self._nft.load(probe, check=True) is None
        if has_hook and device == "lo":
            _hooked.add(device)
        return has_hook

    def route_mover(self) -> RouteMover:
        from .netlink.route_mover import RouteMover

        return RouteMover()

    def live_sockets(self) -> LiveSockets:
        from .live_sockets import LiveSockets

        return LiveSockets()


def _object_at(line: int | None, commands: list[str], operations: tuple[NftOperation, ...]) -> object:
    """Return the object of a line of the commands: a rule of `Rules`, or the object of the operation."""
    if line is None:
        return None
    for command, operation in zip(commands, operations, strict=True):
        count = command.count("\n") + 1
        if line <= count:
            return operation.object.rules[line - 1] if isinstance(operation.object, ChainRules) else operation.object
        line -= count
    return None


def _read_sysctls(paths: Iterable[str]) -> Iterable[Sysctl]:
    for path in paths:
        try:
            yield Sysctl(path, (PROC_SYS / path).read_text().strip())
        except FileNotFoundError:
            continue  # no such device, or no IPv6


def open_kernel() -> Linux:
    """Return the kernel of this machine. Raises Unavailable, which names the fix."""
    if os.uname().sysname != "Linux":
        raise Unavailable("this needs Linux; 'check' and 'compile' run anywhere")
    if not _has_net_admin():
        raise Unavailable("this needs root (CAP_NET_ADMIN): try again with sudo")
    return Linux()


def _has_net_admin() -> bool:
    """Return True if this process has the effective capability CAP_NET_ADMIN (proc_pid_status(5))."""
    return bool(read_capabilities("CapEff") >> CAP_NET_ADMIN & 1)
