# SPDX-License-Identifier: BSD-2-Clause
"""Published ports: ports that rules of other programs forward to other machines (destination NAT).

Read from nftables, as Docker, podman, libvirt and iptables-nft write these rules. A port whose rule has another form
is left out: the list is for a note, and proves nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from attrs import frozen

from ..compiler.object_names import AUXILIARY_TABLES, TABLE
from ..exceptions import NftpolicyError
from ..netstate import nft
from ..policy.objects import Policy, Port

_PROTOCOLS = ("tcp", "udp")
_MAX_DEPTH = 16  # of jumps; NFT_JUMP_STACK_SIZE, include/net/netfilter/nf_tables.h


@frozen
class PublishedPort:
    """Port that a rule of `table` (family and name) forwards to `address`, or to one that the rule does not name."""

    port: Port
    table: str
    address: str | None = None


def unpublished_notes(policy: Policy) -> Iterator[str]:
    """Yield a note for each port of this machine that is forwarded, and that no uplink of the policy publishes.

    Empty without the right to read the ruleset.
    """
    tables: tuple[nft.Table, ...] = ()
    if sys.platform == "linux":
        with suppress(NftpolicyError, OSError, ImportError):
            from ..kernel.netlink import nft_ruleset

            tables = nft_ruleset.read_tables()
    for each in unpublished_ports(tables, policy):
        yield (
            f"port {each.port} is forwarded by table {each.table}, and the policy does not publish it: requests "
            f'by an uplink get no reply; add [publish.NAME] with port = "{each.port}" if they should'
        )


def unpublished_ports(tables: Iterable[nft.Table], policy: Policy) -> list[PublishedPort]:
    """Return the published ports of the tables that no uplink of the policy publishes, each once."""
    known = [publish.port for publish in policy.publish.values()]
    ports: dict[Port, PublishedPort] = {}
    for each in published_ports(tables):
        if not any(port.contains(each.port) for port in known):
            ports.setdefault(each.port, each)
    return list(ports.values())


def published_ports(tables: Iterable[nft.Table]) -> Iterator[PublishedPort]:
    """Yield the ports that destination NAT in the prerouting hook translates."""
    for table in tables:
        if table.name in (TABLE, *AUXILIARY_TABLES):
            continue
        chains = {chain.name: chain for chain in table.chains}
        sets: dict[str, nft.Set | nft.Map] = {named_set.name: named_set for named_set in table.sets}
        sets |= {named_map.name: named_map for named_map in table.maps}
        for chain in table.chains:
            if chain.hook is not None and (chain.hook.type, chain.hook.hook) == ("nat", "prerouting"):
                for port, address in _translated(chain, chains, sets, (), 0):
                    yield PublishedPort(port, f"{table.family} {table.name}", address)


def _translated(
    chain: nft.Chain,
    chains: Mapping[str, nft.Chain],
    sets: Mapping[str, nft.Set | nft.Map],
    before: tuple[Port, ...],
    depth: int,
) -> Iterator[tuple[Port, str | None]]:
    """Yield the ports that a chain translates, with the new address, if the rule names one.

    `before`: the ports of the packets that reach the chain; empty for all.
    """
    for rule in chain.rules:
        ports, protocol = before, ""
        for statement in rule.statements:
            if isinstance(statement, nft.Match):
                if statement.left == nft.Meta("l4proto") and statement.right in _PROTOCOLS:
                    protocol = str(statement.right)
                ports = tuple(_matched(statement, sets, protocol)) or ports
            elif isinstance(statement, nft.Dnat):
                mapped = tuple(_mapped(statement, sets, protocol))
                address = statement.address if isinstance(statement.address, str) else None
                yield from ((port, address) for port in mapped or ports)
            elif depth < _MAX_DEPTH:
                for verdict, entry_ports in _verdicts(statement, sets, protocol):
                    if verdict.target is not None and verdict.target in chains:
                        yield from _translated(chains[verdict.target], chains, sets, entry_ports or ports, depth + 1)


def _matched(match: nft.Match, sets: Mapping[str, nft.Set | nft.Map], protocol: str) -> Iterator[Port]:
    """Yield the destination ports that a match names; none for another match."""
    if match.op not in ("==", "in"):
        return
    elements: Iterable[object]
    if isinstance(match.right, nft.SetRef):
        named = sets.get(match.right.name)
        elements = named.elements if isinstance(named, nft.Set) else ()
    else:
        elements = match.right.elements if isinstance(match.right, nft.AnonymousSet) else (match.right,)
    for element in elements:
        yield from _port_of(match.left, element, protocol)


def _port_of(key: nft.Expression, element: object, protocol: str) -> Iterator[Port]:
    """Yield the port in an element of `key`, a destination port or a concatenation with one."""
    parts = key.parts if isinstance(key, nft.Concat) else (key,)
    values = element if isinstance(element, tuple) else (element,)
    if len(parts) != len(values):
        return
    for part, value in zip(parts, values, strict=True):
        if part == nft.Meta("l4proto") and value in _PROTOCOLS:
            protocol = str(value)
    for part, value in zip(parts, values, strict=True):
        if not isinstance(part, nft.Payload) or part.name != "dport":
            continue
        name = part.protocol if part.protocol in _PROTOCOLS else protocol
        low, _, high = str(value).partition("-")
        if name and low.isdigit() and (high or low).isdigit():
            yield Port(name, int(low), int(high or low))


def _mapped(statement: nft.Dnat, sets: Mapping[str, nft.Set | nft.Map], protocol: str) -> Iterator[Port]:
    """Yield the ports that are keys of the map from which the address comes."""
    if not isinstance(statement.address, nft.Lookup):
        return
    data = statement.address.data
    named = sets.get(data.name) if isinstance(data, nft.MapRef) else None
    entries = named.elements if isinstance(named, nft.Map) else data if isinstance(data, frozenset) else ()
    for entry in entries:
        if isinstance(entry, tuple):
            yield from _port_of(statement.address.key, entry[0], protocol)


def _verdicts(
    statement: nft.Statement, sets: Mapping[str, nft.Set | nft.Map], protocol: str
) -> Iterator[tuple[nft.Verdict, tuple[Port, ...]]]:
    """Yield the verdicts of a statement, each with the ports that the map's key names."""
    if isinstance(statement, nft.Verdict):
        yield statement, ()
    elif isinstance(statement, nft.VerdictMap):
        for element, verdict in statement.entries:
            yield verdict, tuple(_port_of(statement.key, element, protocol))
    elif isinstance(statement, nft.VerdictMapRef):
        named = sets.get(statement.name)
        for element, value in named.elements if isinstance(named, nft.Map) else ():
            if isinstance(value, nft.Verdict):
                yield value, tuple(_port_of(statement.key, element, protocol))
