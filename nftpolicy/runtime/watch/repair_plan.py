# SPDX-License-Identifier: BSD-2-Clause
"""Pure decisions of the watch daemon: repairs, conflicts, log fields.

No access to a kernel or a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from attrs import Factory, define, field, frozen

from ...compiler import object_names
from ...compiler.compile import HostFacts
from ...kernel.netlink.monitor import ChangeSet, Origin
from ...netstate import nft
from ...netstate.formats import nft_text
from ...netstate.operations import ChainRules, IpRuleChange, NftOperation, RouteChange, SysctlChange
from ...netstate.state import CounterValues, NetState
from ...policy.objects import Policy
from ...proof.verdict import PROVED, REFUTED

StateChange = IpRuleChange | RouteChange | SysctlChange


@frozen
class Repair:
    """Repair of missing objects: nft text of each table or chain, and single changes.

    `repaired_objects` names the repaired objects for the log.
    """

    nft_texts: tuple[str, ...] = ()
    changes: tuple[StateChange, ...] = ()
    repaired_objects: tuple[str, ...] = ()

    @property
    def nft_text(self) -> str:
        """Text of one transaction; "" for none."""
        return "".join(self.nft_texts)

    @property
    def earlier_sysctls(self) -> dict[str, str]:
        """Values of the sysctls that are repaired, by path. Those of a new device were never set before."""
        return {change.new.path: change.old for change in self.changes if isinstance(change, SysctlChange)}

    def __bool__(self) -> bool:
        return bool(self.nft_texts or self.changes)


@define
class DesiredState:
    """A desired state, with the nft text of its tables ready to be loaded."""

    state: NetState
    _table_texts: dict[str, str] = field(init=False)
    _chains: dict[tuple[str, str], nft.Chain] = field(init=False)
    _sysctl_values: dict[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        tables = self.state.tables
        self._table_texts = {table.family: replace_table_text(table) for table in tables}
        self._chains = {(table.family, chain.name): chain for table in tables for chain in table.chains}
        self._sysctl_values = {sysctl.path: sysctl.value for sysctl in self.state.sysctls}

    @property
    def sysctls(self) -> tuple[str, ...]:
        """Paths of the sysctls of the state."""
        return tuple(self._sysctl_values)

    @property
    def all_tables_text(self) -> str:
        """Transaction that replaces all tables."""
        return "".join(self._table_texts.values())

    def repair_for(self, change_set: ChangeSet, values: Mapping[str, str]) -> Repair:
        """Return the repair for these events.

        `values`: current values of sysctls that may have changed.
        """
        desired = self.state
        families = [family for family in self._table_texts if family in change_set.deleted_families]
        chains = [key for key in sorted(change_set.changed_chains) if key in self._chains and key[0] not in families]
        rules = {rule for rule in change_set.deleted_rules if rule in desired.rules}
        routes = {route for route in change_set.deleted_routes if route in desired.routes}
        sysctls = [sysctl for sysctl in desired.sysctls if values.get(sysctl.path, sysctl.value) != sysctl.value]

        changes: list[StateChange] = [SysctlChange(values[sysctl.path], sysctl) for sysctl in sysctls]
        changes.extend(RouteChange("add", route) for route in desired.routes if route in routes)
        changes.extend(IpRuleChange("add", rule) for rule in desired.rules if rule in rules)

        repaired = [f"table:{family}" for family in families]
        repaired += [f"chain:{name}" for _, name in chains]
        repaired += [f"sysctl:{sysctl.path}" for sysctl in sysctls]
        repaired += [f"{kind}:{len(objects)}" for kind, objects in (("routes", routes), ("rules", rules)) if objects]

        texts = [self._table_texts[family] for family in families]
        texts += [_chain_text(family, self._chains[family, name]) for family, name in chains]
        return Repair(tuple(texts), tuple(changes), tuple(repaired))


def guarded_devices(policy: Policy, host: HostFacts) -> frozenset[str]:
    """Return the devices of all uplinks, and their bridge ports."""
    return uplink_devices(policy) | {port for ports in host.bridge_ports.values() for port in ports}


def uplink_devices(policy: Policy) -> frozenset[str]:
    """Return the devices of all uplinks."""
    return frozenset(device for uplink in policy.uplink.values() for device in uplink.devices)


def status_text(policy: Policy | None, verdict: str, is_blocked: bool, is_starved: bool) -> str:
    """Return the state for the service manager; `policy` is in force.

    `is_starved`: a foreign ip rule decides for all packets of services.
    """
    if policy is None:
        return "no policy is in force"
    if is_blocked:
        return f"BLOCKED, {policy.name}: the uplinks are stopped; 'nftpolicy status' has the reason and the way out"
    starved = ", services are starved by foreign ip rules: type 'nftpolicy status'" if is_starved else ""
    return f"{policy.name}: {verdict or 'enforced'}{starved}"


def replace_table_text(table: nft.Table) -> str:
    """Return nft text that replaces a table, or creates it, in one transaction."""
    name = f"{table.family} {table.name}"
    return f"table {name}\ndelete table {name}\n{nft_text.table_text(table)}\n"


def owned_table_text(table: nft.Table) -> str:
    """Return nft text that creates a table with "flags owner", deleted with its netlink socket."""
    header, body = nft_text.table_text(table).split("\n", 1)
    return f"{header}\n\tflags owner\n{body}\n"


def delete_table_text(table: nft.Table) -> str:
    """Return nft text that deletes a table."""
    return f"delete table {table.family} {table.name}\n"


def _chain_text(family: str, chain: nft.Chain) -> str:
    """Return nft text that restores the rules of one chain.

    Counters and sets of the table keep their contents.
    """

    def line(verb: str, item: nft.Chain | ChainRules) -> str:
        return nft_text.operation_text(NftOperation(verb, family, object_names.TABLE, item)) + "\n"

    lines = [line("add", chain), line("flush", chain)]
    if chain.rules:
        lines.append(line("add", ChainRules(chain, chain.rules)))
    return "".join(lines)


@define
class ConflictDetector:
    """Detector of a conflict with another program: more than `max_repairs` repairs in `within` seconds.

    `report_interval`: least seconds between two reports of the same conflict.
    """

    max_repairs: int = 5
    within: float = 3.0
    report_interval: float = 5.0
    _times: deque[float] = Factory(deque)
    _last_report: float | None = None
    _pending: int = 0

    def count_repair(self, now: float) -> bool:
        """Count a repair.

        Return True if it is to be logged by itself, False if it is part of a conflict.
        """
        self._times.append(now)
        while self._times[0] < now - self.within or len(self._times) > self.max_repairs + 1:
            self._times.popleft()
        if len(self._times) > self.max_repairs:
            self._pending += 1
            return False
        self._last_report = None
        return True

    def take_pending_count(self, now: float) -> int:
        """Return and clear the number of unlogged repairs, if a report is due now; else 0."""
        if not self._pending:
            return 0
        if self._last_report is not None and now < self._last_report + self.report_interval:
            return 0
        number, self._pending = self._pending, 0
        self._last_report = now
        return number

    def due(self) -> float | None:
        """Return the time of the next report; None if no conflict is pending."""
        return None if not self._pending else (self._last_report or 0) + self.report_interval


@frozen
class Exposure:
    """Effect of a missing object.

    `seconds`: from the event until the repair. `passed_packets`: packets that the uplinks sent
    meanwhile, counted if the guard itself was missing. `stopped_packets`: packets that the guard
    dropped meanwhile, counted if it was in place.
    """

    seconds: float
    passed_packets: int | None = None
    stopped_packets: int | None = None

    def log_fields(self) -> dict[str, Any]:
        """Return the fields for a log line; unknown counts are left out."""
        fields: dict[str, Any] = {"ms": round(self.seconds * 1000, 1)}
        if self.passed_packets is not None:
            fields["passed"] = self.passed_packets
        if self.stopped_packets is not None:
            fields["stopped"] = self.stopped_packets
        return fields


def requires_block(verdict: str, also_unknown: bool) -> bool:
    """Return True if the verdict on leaks (full_check.py) requires the uplinks to be blocked."""
    return verdict == REFUTED or (also_unknown and verdict not in (PROVED, ""))


def sum_drop_counters(counters: CounterValues) -> int:
    """Return the packets of all drop counters of the guard.

    Counters of accepted packets do not count.
    """
    return sum(value.packets for (_, _, name), value in counters.items() if object_names.is_drop_counter(name))


def origin_fields(author: Origin) -> dict[str, Any]:
    """Return the process that made a change, as fields of a log line."""
    fields: dict[str, Any] = {"by": author.name}
    if author.pid is not None:
        fields["pid"] = author.pid
    return fields


_LAST_BMP = 0xFFFF  # last character of four digits


def format_log_line(facts: Mapping[str, Any]) -> str:
    """Return a log line of key=value; a value that is empty or has blanks or quotes is quoted."""
    return " ".join(f"{key}={_quoted(value)}" for key, value in facts.items())


def _quoted(value: Any) -> str:
    text = str(value)
    if isinstance(value, list | tuple):
        items = list(map(str, value))
        text = ("; " if any(" " in item for item in items) else ",").join(items)
    special = any(char.isspace() or char in '"=\\' or not char.isprintable() for char in text)
    if text and not special:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else _escape(ord(char)) for char in escaped) + '"'


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code <= _LAST_BMP else f"\\U{code:08x}"
