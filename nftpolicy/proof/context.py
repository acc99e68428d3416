# SPDX-License-Identifier: BSD-2-Clause
"""Shared proof context: the ruleset in hook order and a header space for each packet family."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import groupby

from ..model.nft.chains import NAT_PRIORITIES, Ruleset
from ..model.packet import address_range
from ..model.symbolic.box import Box, Ranges, merge_ranges
from ..model.symbolic.chain_event import BaseChain
from ..model.symbolic.chain_transfer import ChainTransfer
from ..model.symbolic.field_values import WHOLE
from ..model.symbolic.header_space import HeaderSpace
from ..model.symbolic.ruleset_scan import mark_kind, scan_ruleset
from ..model.trace import Model
from ..netstate.bypass import HeaderWrite
from ..netstate.nft import (
    Chain,
    Dnat,
    Mangle,
    Masquerade,
    Queue,
    Redirect,
    Snat,
    Table,
    Tproxy,
    UnknownStatement,
)
from ..netstate.routing import TABLE_LOCAL
from ..netstate.state import NetState
from .device_paths import DevicePaths

_HOOK_ORDER = {"ingress": -1, "prerouting": 0, "input": 1, "forward": 1, "output": 1, "postrouting": 2, "egress": 3}
_CONNTRACK_PRIORITY = -200  # NF_IP_PRI_CONNTRACK, include/uapi/linux/netfilter_ipv4.h
_REWRITING_TYPES = (Mangle, Dnat, Snat, Masquerade, Redirect, Tproxy, Queue, UnknownStatement)
_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "netdev": (4, 6, 0)}


class ProofContext:
    """Data about `state` that the lemmas share; `devices` and `masks` are of the specification."""

    def __init__(self, state: NetState, devices: Iterable[str] = (), masks: Iterable[int] = ()) -> None:
        self.state = state
        self.ruleset = Ruleset(state.tables)
        self.ruleset_scan = scan_ruleset(self.ruleset.tables)
        self._devices, self._masks = tuple(devices), tuple(masks)
        self._transfers: dict[int, ChainTransfer] = {}
        self._rewriting_chains: dict[int, list[BaseChain]] = {}
        self._own_addresses: dict[tuple[int, tuple[str, ...]], Ranges] = {}

    @cached_property
    def model(self) -> Model:
        """Return the model that traces single packets."""
        return Model(self.state, self.ruleset)

    def is_switched_off(self, family: int) -> bool:
        """Return True if the kernel has this family switched off on every device."""
        devices = self.state.devices
        return bool(devices) and all(self.model.is_switched_off(family, device.name) for device in devices)

    def own_addresses(self, family: int, kinds: tuple[str, ...] = ("local",)) -> Ranges:
        """Return the addresses of this machine by its table local, or those of other kinds of routes there."""
        key = family, kinds
        if key not in self._own_addresses:
            self._own_addresses[key] = merge_ranges(
                address_range(route.destination, family)
                for route in self.state.routes
                if (route.family, route.table) == (family, TABLE_LOCAL) and route.kind in kinds
            )
        return self._own_addresses[key]

    def may_forward(self, family: int) -> bool:
        """Return False if the state shows that no packet of a family that arrives is sent on.

        Neither by routing, to the broadcast address of a network, by a multicast router, nor by a bridge
        whose packets pass the hooks of the IP layer.
        """
        devices = [device.name for device in self.state.devices]
        values = {sysctl.path: sysctl.value for sysctl in self.state.sysctls}
        version, bridge = ("ipv4", "iptables") if family == 4 else ("ipv6", "ip6tables")
        absent_is_off = [f"net/{version}/conf/all/mc_forwarding"]
        if any(device.kind == "bridge" for device in self.state.devices):
            absent_is_off.append(f"net/bridge/bridge-nf-call-{bridge}")
        if family == 4:
            absent_is_off += [f"net/ipv4/conf/{name}/bc_forwarding" for name in ("all", *devices)]
        return (
            not devices
            or any(values.get(path, "0") != "0" for path in absent_is_off)
            or any(self.model.is_forwarding(family, name) for name in devices)
        )

    def chain_transfer(self, family: int) -> ChainTransfer:
        """Return the chain transfer function of a family (4, 6, or 0 for other frames)."""
        if family not in self._transfers:
            space = HeaderSpace(family, self.ruleset_scan, self._devices, self._masks)
            self._transfers[family] = ChainTransfer(space, self.ruleset.tables, self.ruleset_scan)
        return self._transfers[family]

    def space(self, family: int) -> HeaderSpace:
        """Return the header space of a family."""
        return self.chain_transfer(family).space

    def filter_chains(self, family: int, hook: str, device: str | None = None) -> list[BaseChain]:
        """Return the base chains that every packet passes at a hook, probable drops first.

        The order has no meaning here. Chains of type nat are left out, since only the first packet of a
        tracked flow passes them.
        """
        return sorted(filter(_certainly_hooked, self.ruleset.base_chains(family, hook, device)), key=_drop_likelihood)

    def nat_chains(self, family: int, hook: str) -> list[BaseChain]:
        """Return the chains of type nat at a hook."""
        return [
            base_chain
            for base_chain in self.ruleset.base_chains(family, hook)
            if base_chain[1].hook and base_chain[1].hook.type == "nat"
        ]

    def all_chains(self, family: int) -> list[BaseChain]:
        """Return all base chains that packets of the family can pass at any hook."""
        return [
            (table, chain)
            for table in self.ruleset.tables
            if family in _FAMILIES.get(table.family, ()) and "dormant" not in table.flags
            for chain in table.chains
            if chain.hook is not None
        ]

    def egress_devices(self) -> set[str]:
        """Return the devices with a chain at the egress hook of netdev."""
        return {
            device
            for table in self.ruleset.tables
            for chain in table.chains
            if chain.hook is not None and chain.hook.hook == "egress" and "dormant" not in table.flags
            for device in (*chain.hook.devices, *((chain.hook.device,) if chain.hook.device else ()))
        }

    def header_may_change_after(self, family: int, base_chain: BaseChain) -> bool:
        """Return True if a later chain may change the header of a packet that this one accepts."""
        return any(
            self.is_at_or_after(other, base_chain) and other[1] is not base_chain[1]
            for other in self._chains_that_rewrite(family)
        ) or any(
            write.family == family and (_HOOK_ORDER[write.hook], write.priority) >= _order(base_chain)
            for write in self.legacy_writes
        )

    @cached_property
    def legacy_writes(self) -> tuple[HeaderWrite, ...]:
        """Return the writes of headers by rules of legacy iptables."""
        return tuple(
            effect
            for look in self.state.looks
            for actor in look.actors
            for effect in actor.effects
            if isinstance(effect, HeaderWrite) and effect.hook
        )

    @cached_property
    def device_paths(self) -> DevicePaths:
        """Return the paths of frames between the devices of the state."""
        return DevicePaths(self.state.devices)

    @staticmethod
    def is_at_or_after(base_chain: BaseChain, other: BaseChain) -> bool:
        """Return True if a packet may pass `base_chain` at or after chain `other`."""
        return _order(other) <= _order(base_chain)

    @staticmethod
    def in_kernel_order(chains: Iterable[BaseChain]) -> list[BaseChain]:
        """Return base chains in the order in which a packet passes them."""
        return sorted(chains, key=_order)

    def fields_written_in_unknown_order(self, family: int, chains: Iterable[BaseChain]) -> tuple[str, ...]:
        """Return the fields that chains of one hook and priority write, whose order is not known."""
        transfer, fields = self.chain_transfer(family), dict[str, None]()
        for _, group in groupby(chains, key=_order):
            tied = list(group)
            if len(tied) > 1:
                for table, chain in tied:
                    if transfer.can_write(table, chain.name):
                        fields |= dict.fromkeys(transfer.fields_written_in(table))
        return tuple(fields)

    def _chains_that_rewrite(self, family: int) -> list[BaseChain]:
        if family not in self._rewriting_chains:
            self._rewriting_chains[family] = [
                base_chain for base_chain in self.all_chains(family) if base_chain[0].key in self._writes_by_table[0]
            ]
        return self._rewriting_chains[family]

    def mark_writes(self, table: Table) -> Iterable[Mangle]:
        """Return each distinct statement that writes a mark in the rules of a table."""
        return self._writes_by_table[1][table.key]

    @cached_property
    def _writes_by_table(self) -> tuple[set[tuple[str, str]], dict[tuple[str, str], dict[Mangle, None]]]:
        """Return the tables that may rewrite headers, and the mark writes of each table."""
        rewriting: set[tuple[str, str]] = set()
        marks: dict[tuple[str, str], dict[Mangle, None]] = {}
        for table in self.ruleset.tables:
            table_marks = marks.setdefault(table.key, {})
            for chain in table.chains:
                for rule in chain.rules:
                    for statement in rule.statements:
                        if not isinstance(statement, _REWRITING_TYPES):
                            continue
                        if isinstance(statement, Mangle) and mark_kind(statement.key) is not None:
                            table_marks[statement] = None
                        else:
                            rewriting.add(table.key)
        return rewriting, marks

    @cached_property
    def has_nat(self) -> bool:
        """Return True if a chain may translate addresses, so that they differ between hooks."""
        return any(chain.hook is not None and chain.hook.type == "nat" for _, chain in self._chains())

    def _chains(self) -> Iterable[tuple[Table, Chain]]:
        return ((table, chain) for table in self.ruleset.tables for chain in table.chains)


def _certainly_hooked(base_chain: BaseChain) -> bool:
    """Return True if a listing shows that the chain exists and applies to these packets."""
    table, chain = base_chain
    hook = chain.hook
    if hook is None or hook.type == "nat" or "unnamed" in table.flags:
        return False
    return hook.hook not in ("ingress", "egress") or bool(hook.device or hook.devices)


def runs_before_conntrack(base_chain: BaseChain) -> bool:
    """Return True if the chain may run before connection tracking (NF_IP_PRI_CONNTRACK)."""
    hook = base_chain[1].hook
    return hook is not None and hook.hook in ("output", "prerouting") and hook.priority <= _CONNTRACK_PRIORITY


def _order(base_chain: BaseChain) -> tuple[int, int]:
    """Return the position of a chain on the way through the hooks; NAT has its own priority."""
    hook = base_chain[1].hook
    assert hook is not None
    return _HOOK_ORDER.get(hook.hook, 0), NAT_PRIORITIES.get(hook.hook, 0) if hook.type == "nat" else hook.priority


def _drop_likelihood(base_chain: BaseChain) -> tuple[bool, int]:
    hook = base_chain[1].hook
    assert hook is not None
    return hook.policy != "drop", -hook.priority


def unsupported_in(box: Box, space: HeaderSpace) -> tuple[str, ...]:
    """Return the unsupported constructs that a box depends on; empty if it depends on none."""
    return tuple(
        dict.fromkeys(
            space.unsupported[name] for name, values in box.items() if name in space.unsupported and values != WHOLE
        )
    )
