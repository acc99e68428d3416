# SPDX-License-Identifier: BSD-2-Clause
"""Status: the state in force compared with the policy."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from ..compiler import object_names
from ..compiler.matches import IP_HEADERS
from ..compiler.uplink_addresses import asked_set
from ..kernel.interface import Kernel
from ..netstate.operations import IpRuleChange, NftTransaction, RouteChange, RouteReplacement, SysctlChange
from ..netstate.state import CounterValues, NetState
from ..phrases import name_some
from ..policy.objects import Policy
from .apply.executor import PlannedChange, link_guard_messages, unwritable_port_message
from .apply.step_text import plan_lines
from .foreign_rules import STARVES, ForeignRule, foreign_rules
from .services.socket_classifier import SocketVerdict
from .services.socket_verdicts import read_verdicts_or_reason
from .shadow_guard_state import EARLIER_SHADOW_GUARD, stale_shadow_families


@frozen
class AskedAddress:
    """Address of another device for which hosts in an uplink's network asked in the last hour, in vain."""

    uplink: str
    address: str
    askers: tuple[str, ...]

    def __str__(self) -> str:
        hosts = name_some(self.askers, _MAX_ASKERS)
        return (
            f"uplink {self.uplink}: {hosts} asked for {self.address}, which is on another device: dropped "
            f"({object_names.object_name(self.uplink, 'not-local')}); if the uplink's network routes it to this "
            f"machine, add it to 'addresses' of [uplink.{self.uplink}]"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the address as a JSON object."""
        return {"uplink": self.uplink, "address": self.address, "by": list(self.askers)}


_MAX_ASKERS = 4  # named in a line


def asked_addresses(observed: NetState, policy: Policy) -> tuple[AskedAddress, ...]:
    """Return the addresses of other devices for which an uplink's network asked, by the sets of the guard."""
    elements = {nft_set.name: nft_set.elements for table in observed.tables for nft_set in table.sets}
    askers: dict[tuple[str, str], list[str]] = {}
    for name in policy.uplink:
        for family in IP_HEADERS:
            for element in elements.get(asked_set(name, family), ()):
                if isinstance(element, tuple):
                    address, asker = map(str, element)
                    askers.setdefault((name, address), []).append(asker)
    return tuple(AskedAddress(*key, tuple(sorted(hosts))) for key, hosts in sorted(askers.items()))


@frozen
class Status:
    """Result of the comparison, a part of the report of `nftpolicy status` (status_report.py).

    `parts`: guard, link guard, shadow guard, ip rules, routes, sysctls -> True if as expected. `is_blocked`: the
    block (by watch or apply) is loaded, so the uplinks are stopped. `differences`: the
    steps to the policy, as text. `misplaced_routes`: foreign routes over an uplink outside its
    table; they open no path and do not count for `as_expected`. `sockets`: the sockets related to
    an uplink, None if they cannot be read, for the reason in `socket_error`; they do not count for
    `as_expected`, since the guard drops packets of wrong sockets. `foreign_rules`: the ip rules of
    other programs that conflict with the policy. `notes` say which devices have no
    link guard, for instance since they are absent, so that no packet can leave by them.
    `block_reasons` say why watch loaded the block; none if another command did. `asked_addresses`: who
    asked for addresses that are not the uplink's.
    """

    policy: Policy
    parts: dict[str, bool]
    differences: tuple[str, ...]
    counters: CounterValues
    misplaced_routes: tuple[str, ...] = ()
    sockets: tuple[SocketVerdict, ...] | None = None
    socket_error: str = ""
    is_blocked: bool = False
    foreign_rules: tuple[ForeignRule, ...] = ()
    notes: tuple[str, ...] = ()
    block_reasons: tuple[str, ...] = ()
    asked_addresses: tuple[AskedAddress, ...] = ()

    @property
    def as_expected(self) -> bool:
        """True if the kernel holds exactly the compiled policy, no block, and no foreign rule that starves services."""
        return all(self.parts.values()) and not self.is_blocked and not self.is_starved

    @property
    def is_starved(self) -> bool:
        """True if a foreign ip rule decides for all packets of services."""
        return any(conflict.effect == STARVES for conflict in self.foreign_rules)

    @property
    def holds(self) -> bool:
        """True if the guard drops what the policy does not permit, though services may lack a part."""
        return self.parts["guard"] and self.parts["link guard"]

    @property
    def dropped(self) -> int:
        """Packets that the guard has dropped."""
        return sum(
            counts.packets for (_, _, name), counts in self.counters.items() if object_names.is_drop_counter(name)
        )

    @property
    def has_guard_and_rules(self) -> bool:
        """True if guard and ip rules are in force, without which no service may begin."""
        return self.parts["guard"] and self.parts["ip rules"]

    def as_json(self) -> dict[str, Any]:
        """Return the fields for `status --json`."""
        return {
            "blocked": self.is_blocked,
            "block_reasons": list(self.block_reasons),
            "parts": self.parts,
            "differences": list(self.differences),
            "notes": list(self.notes),
            "strays": list(self.misplaced_routes),
            "asked_addresses": [each.as_json() for each in self.asked_addresses],
            "foreign_rules": [conflict.as_json() for conflict in self.foreign_rules],
            "uplinks": {
                name: {"devices": list(uplink.devices), "mark": str(uplink.mark), "table": uplink.table}
                for name, uplink in self.policy.uplink.items()
            },
            "services": {name: {"uplink": service.uplink} for name, service in self.policy.service.items()},
            "counters": [
                {"layer": LAYERS[family], "counter": name, "packets": counts.packets, "bytes": counts.bytes}
                for (family, _, name), counts in sorted(self.counters.items())
            ],
            "sockets": None if self.sockets is None else [socket.as_json() for socket in self.sockets],
            "socket_error": self.socket_error,
        }


LAYERS = dict(zip(object_names.FAMILIES, ("ip", "link"), strict=True))


def read_status(kernel: Kernel, policy: Policy, planned: PlannedChange) -> Status:
    """Compare the kernel with a policy. Changes nothing."""
    steps = planned.plan.steps
    changed = {operation.family for step in steps if isinstance(step, NftTransaction) for operation in step.operations}
    is_stale = bool(stale_shadow_families(kernel, planned.desired))
    parts = {
        "guard": "inet" not in changed,
        "link guard": planned.host.has_egress_hook and not planned.unwritable_ports and "netdev" not in changed,
        "shadow guard": not is_stale,
        "ip rules": not any(isinstance(step, IpRuleChange) for step in steps),
        "routes": not any(isinstance(step, RouteChange | RouteReplacement) for step in steps),
        "sysctls": not any(isinstance(step, SysctlChange) for step in steps),
    }
    sockets, trouble = read_verdicts_or_reason(kernel, policy)
    return Status(
        policy,
        parts,
        differences=(*plan_lines(planned.plan), *map(unwritable_port_message, sorted(planned.unwritable_ports))),
        counters=kernel.counters(object_names.TABLE),
        sockets=None if sockets is None else tuple(sockets),
        socket_error=trouble,
        notes=(*link_guard_messages(planned.host), *((EARLIER_SHADOW_GUARD,) if is_stale else ())),
        is_blocked=any(name == object_names.BLOCK_TABLE for _, name in kernel.table_names()),
        foreign_rules=foreign_rules(kernel.ip_rules(), policy),
        asked_addresses=asked_addresses(planned.observed, policy),
    )
