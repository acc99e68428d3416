# SPDX-License-Identifier: BSD-2-Clause
"""The kernel that this process runs on, in the network namespace of this process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve

from ..netstate import json_in, nft, text
from ..netstate.changes import (
    NftOperation,
    NftTransaction,
    RouteChange,
    RouteReplacement,
    RuleChange,
    Rules,
    Step,
    SysctlChange,
)
from ..netstate.routing import Sysctl
from ..netstate.state import Counters, NetState
from . import elements, listing
from .generation import steady
from .interface import Refused, Unavailable
from .libnft import Nft, refusal
from .rtnetlink import RtNetlink

if TYPE_CHECKING:
    from .closing import Running

PROC_SYS = Path("/proc/sys")
_OF_DEVICES = ("ingress", "egress")  # hooks that name a device, in families netdev and inet
_OF_ALL = (
    "net/ipv4/fwmark_reflect",
    "net/ipv6/fwmark_reflect",
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
)


def _of_device(name: str) -> Iterable[str]:
    """The settings of a device, or of all of them, that decide about packets."""
    keys = ("rp_filter", "forwarding", "accept_local", "src_valid_mark", "route_localnet", "bc_forwarding")
    return (*(f"net/ipv4/conf/{name}/{key}" for key in keys), f"net/ipv6/conf/{name}/forwarding")


class Linux:
    """See interface.Kernel."""

    def __init__(self) -> None:
        self._nft = Nft()
        self._links = RtNetlink()

    def observe(self, table: str, families: Sequence[str], protocol: int, sysctls: Iterable[str]) -> NetState:
        tables = steady(lambda: tuple(found for family in families if (found := self._table(family, table))))
        versions = self.ip_families()
        rules = tuple(one for version in versions for one in self._links.rules(version) if one.protocol == protocol)
        routes = tuple(one for version in versions for one in self._links.routes(version, protocol))
        return NetState(tables, rules, routes, tuple(_read(sysctls)))

    def _table(self, family: str, name: str) -> nft.Table | None:
        listed = json_in.ruleset(listing.table(self._nft, family, name))
        table = next((one for one in listed if one.name == name), None)
        return table and self._whole(table)

    def _whole(self, table: nft.Table) -> nft.Table:
        """The table with what a terse listing leaves out, the devices of its chains too."""
        table = self._filled_all(table)
        if not any(chain.hook and chain.hook.hook in _OF_DEVICES for chain in table.chains):
            return table
        return json_in.with_devices(table, self._nft.listing(f"list table {table.family} {table.name}") or "")

    def _filled_all(self, table: nft.Table) -> nft.Table:
        sets = tuple(self._filled(table, one) for one in table.sets)
        maps = tuple(self._filled_map(table, one) for one in table.maps)
        return evolve(table, sets=sets, maps=maps)

    def table_names(self) -> set[tuple[str, str]]:
        # In text, since nft 1.0.6 can't write the flags of a table as JSON.
        listed = (line.split() for line in (self._nft.listing("list tables") or "").splitlines())
        return {(family, name) for _, family, name in listed}

    def everything(self) -> NetState:
        tables = steady(self._everybodys)
        versions = self.ip_families()
        rules = tuple(one for version in versions for one in self._links.rules(version))
        routes = tuple(one for version in versions for one in self._links.routes(version))
        devices = tuple(self._links.devices())
        paths = (*_OF_ALL, *(one for device in ("all", *(each.name for each in devices)) for one in _of_device(device)))
        return NetState(tables, rules, routes, tuple(_read(paths)), devices)

    def _everybodys(self) -> tuple[nft.Table, ...]:
        listed = json_in.ruleset(listing.ruleset(self._nft))
        told = json_in.completed(listed, self._nft.listing("list ruleset", terse=True) or "")
        return tuple(self._filled_all(table) for table in told)

    def _filled(self, table: nft.Table, one: nft.Set) -> nft.Set:
        """The set with its elements."""
        if elements.readable(one.type, one.flags) and table.family in elements.FAMILIES:
            return evolve(one, elements=elements.read(*table.key, one.name, one.type))
        listed = self._nft.json(f"list set {table.family} {table.name} {one.name}")
        found = json_in.ruleset(listed)[0].sets if listed else ()
        return found[0] if found else one

    def _filled_map(self, table: nft.Table, one: nft.Map) -> nft.Map:
        listed = self._nft.json(f"list map {table.family} {table.name} {one.name}")
        found = json_in.ruleset(listed)[0].maps if listed else ()
        return found[0] if found else one

    def counters(self, table: str) -> Counters:
        listed = self._nft.json("list counters")
        found = json_in.counters(listed) if listed else {}
        return {key: counts for key, counts in found.items() if key[1] == table}

    def carry_out(self, step: Step) -> None:
        try:
            match step:
                case NftTransaction():
                    self._transaction(step)
                case RuleChange(verb, rule):
                    self._links.change_rule(verb, rule)
                case RouteChange(verb, route):
                    self._links.change_route(verb, route)
                case RouteReplacement(_, route):
                    self._links.change_route("replace", route)
                case SysctlChange(_, new):
                    (PROC_SYS / new.path).write_text(new.value)
        except OSError as error:
            raise Refused(step, error.strerror or str(error)) from None

    def _transaction(self, step: NftTransaction) -> None:
        commands = [text.operation(one) for one in step.operations]
        error = self._nft.load("".join(f"{command}\n" for command in commands))
        if error is not None:
            reason, number = refusal(error)
            raise Refused(step, reason, _named(number, commands, step.operations))

    def ip_families(self) -> tuple[int, ...]:
        return (4, 6) if (PROC_SYS / "net/ipv6").exists() else (4,)

    def links(self) -> set[str]:
        return self._links.names()

    def bridge_ports(self, devices: Iterable[str]) -> Mapping[str, Sequence[str]]:
        return self._links.bridge_ports(devices)

    def takes_link_guard(self, device: str) -> bool:
        # A check is a transaction that the kernel never commits.
        chain = nft.Chain("probe", (), nft.Hook("filter", "egress", 0, "accept", device))
        table = nft.Table("netdev", "nftpolicy-probe")
        wanted = (NftOperation("add", *table.key, table), NftOperation("add", *table.key, chain))
        probe = "".join(f"{text.operation(one)}\n" for one in wanted)
        return self._nft.load(probe, check=True) is None

    def running(self) -> Running:
        from .closing import Running

        return Running()


def _named(number: int | None, commands: list[str], operations: tuple[NftOperation, ...]) -> object:
    """The object that line `number` of the commands is about: a rule of `Rules`, or the operation's own."""
    if number is None:
        return None
    for command, one in zip(commands, operations, strict=True):
        count = command.count("\n") + 1
        if number <= count:
            return one.object.rules[number - 1] if isinstance(one.object, Rules) else one.object
        number -= count
    return None


def _read(paths: Iterable[str]) -> Iterable[Sysctl]:
    for path in paths:
        try:
            yield Sysctl(path, (PROC_SYS / path).read_text().strip())
        except FileNotFoundError:
            continue  # the device, or the family, is not there


def ready() -> Linux:
    """This machine's kernel, or Unavailable with what to do about it."""
    if os.uname().sysname != "Linux":
        raise Unavailable("this needs Linux; 'check' and 'compile' run anywhere")
    if not _may_administer():
        raise Unavailable("this needs root (CAP_NET_ADMIN): try again with sudo")
    return Linux()


def _may_administer() -> bool:
    capabilities = next(
        (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")),
        "0",
    )
    return bool(int(capabilities, 16) >> 12 & 1)  # CAP_NET_ADMIN
